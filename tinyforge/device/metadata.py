"""What a model file says of itself, read from the file alone: no runtime is needed, no model is loaded.

ONNX: fields of the messages ModelProto, GraphProto and NodeProto in protobuf's wire format. OpenVINO: the elements
under ``rt_info/tinyforge`` of the .xml. Source: onnx.proto3 (ONNX); Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from .folder import BundleFault

METADATA_PROPS, GRAPH, NODE, OP_TYPE = 14, 7, 1, 4
SIZES = {1: 8, 5: 4}  # wire types of fixed size


def read_metadata(path: Path) -> dict[str, str]:
    """Text entries of TinyForge in a model file. Raises BundleFault when the file is damaged."""
    try:
        return _openvino(path) if path.suffix == ".xml" else _onnx(path.read_bytes())
    except (ValueError, IndexError, ElementTree.ParseError) as fault:
        raise BundleFault(f"{path.name}: not a model file ({fault})") from fault


def _openvino(path: Path) -> dict[str, str]:
    found = ElementTree.parse(path).getroot().find("rt_info/tinyforge")
    return {} if found is None else {entry.tag: entry.get("value", "") for entry in found}


def _onnx(data: bytes) -> dict[str, str]:
    pairs = (dict(_fields(value)) for number, value in _fields(data) if number == METADATA_PROPS)
    return {bytes(pair.get(1, b"")).decode(): bytes(pair.get(2, b"")).decode() for pair in pairs}


def onnx_operators(path: Path) -> list[str]:
    """The types of a model's nodes, in order. Raises ValueError or IndexError when the file is damaged."""
    graphs = (graph for number, graph in _fields(path.read_bytes()) if number == GRAPH)
    nodes = (node for graph in graphs for number, node in _fields(graph) if number == NODE)
    return [bytes(kind).decode() for node in nodes for number, kind in _fields(node) if number == OP_TYPE]


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, bytes | memoryview]]:
    """(number, content) of the fields of a message; numbers have no content."""
    view, place = memoryview(data), 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == 2:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("truncated")
            yield number, view[place : place + size]
            place += size
        elif kind == 0:
            _, place = _varint(data, place)
        elif kind in SIZES:
            place += SIZES[kind]
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """(value, place after it)."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")

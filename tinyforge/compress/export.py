"""Torch -> ONNX -> OpenVINO. Equal weights give equal bytes: no path, stack trace or counter is left in a file."""

import copy
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from tinyforge.compress.metadata import INPUT_NAME, OUTPUT_NAME, Metadata, onnx_properties
from tinyforge.device.spec import InputSpec
from tinyforge.errors import GateError
from tinyforge.store import write_atomic

COUNTED = re.compile(r"^[A-Z][A-Za-z0-9]*_\d+(?=$|/)")  # the type of an operation, not always its own, and a number


def export_onnx(student: nn.Module, spec: InputSpec, path: Path, *, opset: int, metadata: Metadata) -> Path:
    """Write ``student`` as one ONNX file and return ``path``.

    student: (B, 3, H, W) normalised float32 -> logits (B, N); it is copied, never changed. The graph is float32 with a
    free batch dimension, batch norm folded, all weights inside the file, shapes inferred, layout as ``spec.layout``.
    Raises GateError when the exporter does not give the asked opset or the checker refuses the graph.
    """
    network = copy.deepcopy(student).to("cpu", torch.float32).eval()
    if spec.layout == "NHWC":
        network = ChannelsLast(network).eval()
    height, width = spec.size
    example = torch.zeros((2, 3, height, width) if spec.layout == "NCHW" else (2, height, width, 3))
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )
    model = program.model_proto
    given = {entry.domain: entry.version for entry in model.opset_import}
    if given.get("") != opset:
        raise GateError(f"export to ONNX: asked for opset {opset}, the exporter gave {given}; choose opset 18 or later")
    return save_onnx(model, path, metadata)


class ChannelsLast(nn.Module):
    """Accepts (B, H, W, 3) for a network that wants (B, 3, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.permute(0, 3, 1, 2))


def save_onnx(model: onnx.ModelProto, path: Path, metadata: Metadata) -> Path:
    """Clean, infer shapes, check fully, and write; a file at ``path`` is whole or absent. Raises GateError."""
    clean_onnx(model)
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"{path.name}: the ONNX checker refuses it: {error}") from error
    onnx.helper.set_model_props(model, onnx_properties(metadata))
    write_atomic(path, model.SerializeToString(deterministic=True))
    return path


def clean_onnx(model: onnx.ModelProto) -> None:
    """Drop what the exporter noted for debugging (stack traces with paths, names of Python objects), in place."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *model.functions,
    ):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for function in model.functions:
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")


def export_openvino(onnx_path: Path, out_xml: Path, *, fp16: bool, metadata: Metadata) -> Path:
    """Convert an ONNX file to ``out_xml``, which is returned, and its ``.bin``. fp16: weights are stored in half."""
    return save_openvino(convert_openvino(onnx_path), out_xml, fp16=fp16, metadata=metadata)


def convert_openvino(onnx_path: Path) -> Any:
    """The ONNX file as an ``openvino.Model`` in memory."""
    return import_openvino().convert_model(onnx_path)


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry: importing it, and NNCF, would send a report over the network.

    Both fall back to their own stub when ``openvino_telemetry`` cannot be imported, which an empty entry ensures.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def save_openvino(model: Any, out_xml: Path, *, fp16: bool, metadata: Metadata) -> Path:
    """Write an ``openvino.Model`` with ``metadata`` under ``rt_info``; both files are whole or absent."""
    rename_counted(model)
    for section, values in metadata.items():
        for key, value in values.items():
            model.set_rt_info(value, [section, key])
    with scratch_folder(out_xml) as folder:
        import_openvino().save_model(model, folder / out_xml.name, compress_to_fp16=fp16)
        move_model(folder / out_xml.name, out_xml)
    return out_xml


def move_model(path: Path, out: Path) -> None:
    """Move a model file to ``out``, after the ``.bin`` that belongs to an ``.xml``."""
    if out.suffix == ".xml":
        path.with_suffix(".bin").replace(out.with_suffix(".bin"))
    path.replace(out)


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for what is not finished; gone on leaving, and swept by the store after a ``kill -9``."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".scratch-") as folder:
        yield Path(folder)


def rename_counted(model: Any) -> None:
    """Rename what OpenVINO named by a counter of the process (``Constant_37024``) by its place in the graph."""
    for index, operation in enumerate(model.get_ordered_ops()):
        name = operation.get_friendly_name()
        stable = COUNTED.sub(f"{operation.get_type_name()}_at_{index}", name)
        if stable != name:
            operation.set_friendly_name(stable)


def halve_onnx(fp32: Path, out: Path, metadata: Metadata) -> Path:
    """Write ``fp32`` with its weights in half precision, each cast back to float32 when the file is loaded.

    Half the size, the same arithmetic: ONNX Runtime's CPU provider has hardly any half-precision operation.
    """
    model = onnx.load(fp32)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            casts.append(
                onnx.helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=onnx.TensorProto.FLOAT)
            )
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, f"{tensor.name}.half"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return save_onnx(model, out, metadata)

"""Layers that lose most in int8, found by their place in the graph: first, last, squeeze-and-excitation, hard-swish.

ONNX and OpenVINO graphs are read into the same plain form, so that one rule serves both.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import onnx

WEIGHTED = {"Conv", "Convolution", "GroupConvolution", "Gemm", "MatMul"}
POOLED = {"GlobalAveragePool", "ReduceMean"}
GATES = {"Sigmoid", "HardSigmoid", "HSigmoid"}
SWISH = {"HardSwish", "HSwish", "Swish"}
PRODUCTS = {"Mul", "Multiply"}
PASSED = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Clamp",
    "Add",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    *SWISH,
    *PRODUCTS,
}


@dataclass(frozen=True)
class Node:
    """kind: the runtime's name of the operation. inputs: names of the nodes that feed it, constants left out."""

    kind: str
    inputs: tuple[str, ...]


Graph = Mapping[str, Node]  # in an order in which every node comes after its inputs


def onnx_graph(model: onnx.ModelProto) -> Graph:
    made_by = {output: node.name for node in model.graph.node for output in node.output}
    return {
        node.name: Node(node.op_type, tuple(made_by[name] for name in node.input if name in made_by))
        for node in model.graph.node
    }


def openvino_graph(model: Any) -> Graph:
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
    return {
        node.get_friendly_name(): Node(
            node.get_type_name(),
            tuple(
                value.get_node().get_friendly_name()
                for value in node.input_values()
                if value.get_node().get_type_name() != "Constant"
            ),
        )
        for node in nodes
    }


def first_and_last(graph: Graph) -> set[str]:
    """Names of the first and the last layer with weights."""
    weighted = [name for name, node in graph.items() if node.kind in WEIGHTED]
    return {weighted[0], weighted[-1]} if weighted else set()


def gates(graph: Graph) -> set[str]:
    """Names in every squeeze-and-excitation: from the pooling to the product with the gate."""
    found: set[str] = set()
    for name, node in graph.items():
        if node.kind in PRODUCTS:
            for gate in (one for one in node.inputs if graph[one].kind in GATES):
                path = _back_to_pooling(graph, gate)
                found |= path | {name} if path else set()
    return found


def _back_to_pooling(graph: Graph, gate: str) -> set[str]:
    """Names from a gate back to the pooling before it; none when it has no pooling before it."""
    seen, waiting, pooled = set(), [gate], False
    while waiting:
        name = waiting.pop()
        kind = graph[name].kind
        if name in seen or not kind:
            continue
        if kind not in WEIGHTED | POOLED | GATES | PASSED:
            return set()
        seen.add(name)
        pooled |= kind in POOLED
        waiting += [] if kind in POOLED else graph[name].inputs
    return seen if pooled else set()


def swishes(graph: Graph) -> set[str]:
    """Names of every x * gate(x): one operation, or the gate and the product."""
    found = {name for name, node in graph.items() if node.kind in SWISH}
    for name, node in graph.items():
        if node.kind in PRODUCTS:
            for gate in (one for one in node.inputs if graph[one].kind in GATES):
                found |= {name, gate} if set(graph[gate].inputs) & set(node.inputs) else set()
    return found


EXCLUDED = {"first and last": first_and_last, "squeeze-and-excitation": gates, "hard-swish": swishes}


def excluded(graph: Graph, kinds: Set[str]) -> set[str]:
    """Names of the layers of those kinds."""
    return set().union(*(EXCLUDED[kind](graph) for kind in kinds))

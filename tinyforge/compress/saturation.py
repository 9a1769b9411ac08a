"""What an int8 ONNX model answers on an x86-64 processor without VNNI, worked out on any processor.

There, ONNX Runtime multiplies unsigned activations by signed weights and adds neighbouring products in 16 bits
(``vpmaddubsw``): a pair beyond [-32768, 32767] is cut off. The twin of a model is an ordinary float graph that
subtracts from every layer what such pairs lose; only pairs of weights that can overflow are computed again.
Source: ONNX Runtime, "Quantize ONNX models", When to use reduce-range; its option ``session.x64quantprecision``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

LOW, HIGH = -32768, 32767
PEAK = 255  # of an unsigned activation
MAX_TWIN_BYTES = 512 * 2**20
PER_STEP = 4  # bytes of one vpmaddubsw lane group: rows are filled up with zeros to a multiple of it


@dataclass(frozen=True)
class Saturation:
    """The model with sums that saturate beside itself with exact ones. layers: those that can saturate -> number of
    weight pairs that can. flips: indices of images whose answer changes. max_abs_change: of a logit. Both are None
    where so many pairs can that their twin would not fit (``MAX_TWIN_BYTES``).
    """

    num_images: int
    layers: dict[str, int]
    flips: list[int] | None
    max_abs_change: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def saturation(path: Path, inputs: np.ndarray) -> Saturation:
    """Of a QDQ file written by ``qdq.static_qdq``, on (n, ...) prepared inputs."""
    exact = onnx.load(path)
    twin, layers = saturating_twin(exact)
    if not layers:
        return Saturation(len(inputs), {}, [], 0.0)
    if twin is None:
        return Saturation(len(inputs), layers, None, None)
    answers = [_run(model, inputs) for model in (exact, twin)]
    return Saturation(
        num_images=len(inputs),
        layers=layers,
        flips=np.flatnonzero(answers[0].argmax(axis=1) != answers[1].argmax(axis=1)).tolist(),
        max_abs_change=float(np.abs(answers[0] - answers[1]).max()),
    )


def _run(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # no int8 kernels: exact sums
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: inputs[i : i + 8]})[0] for i in range(0, len(inputs), 8)])


@dataclass(frozen=True)
class _Layer:
    """A Conv, Gemm or MatMul of int8 by int8. weight: (O, K, kh, kw) or (O, K) whole numbers. scale: of one product,
    (O,). zero: of the activation, as unsigned. activation: name of the quantised tensor, of int8 if signed.
    """

    node: onnx.NodeProto
    weight: np.ndarray
    scale: np.ndarray
    zero: float
    activation: str
    signed: bool

    @property
    def groups(self) -> int:
        return next((a.i for a in self.node.attribute if a.name == "group"), 1)


def saturating_twin(model: onnx.ModelProto) -> tuple[onnx.ModelProto | None, dict[str, int]]:
    """A copy of a QDQ model whose sums saturate (None: it would be too large), and the number of risky weight pairs of
    each layer that has any.
    """
    twin = onnx.ModelProto.FromString(model.SerializeToString())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in twin.graph.initializer}
    made_by = {output: node for node in twin.graph.node for output in node.output}
    nodes, found, size = [], {}, 0
    for node in twin.graph.node:
        nodes.append(node)
        layer = _int8_layer(node, made_by, constants)
        pairs = risky_pairs(layer.weight, layer.groups) if layer else ()
        if pairs:
            found[node.name] = len(pairs)
            size += 4 * len(pairs) * layer.groups * layer.weight[0].size
        if pairs and size <= MAX_TWIN_BYTES:
            nodes += _correction(layer, pairs, twin.graph)
    if size > MAX_TWIN_BYTES:
        return None, found
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    return twin, found


def _int8_layer(
    node: onnx.NodeProto, made_by: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> _Layer | None:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not all(name in made_by for name in node.input[:2]):
        return None
    given, weights = (made_by[name] for name in node.input[:2])
    if {given.op_type, weights.op_type} != {"DequantizeLinear"} or weights.input[0] not in constants:
        return None
    weight, scale = constants[weights.input[0]].astype(np.int32), constants[weights.input[1]].astype(np.float64)
    zero = constants[given.input[2]]
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
        weight = weight.T
    if node.op_type == "Conv" and weight.shape[1] == 1 and _attribute(node, "group", 1) > 1:
        return None  # depthwise kernels multiply in 16 bits and add in 32
    products = np.broadcast_to(scale * float(constants[given.input[1]]), (len(weight),))
    signed = zero.dtype == np.int8
    return _Layer(node, weight, products, float(zero) + 128 * signed, given.input[0], signed)


def risky_pairs(weight: np.ndarray, groups: int = 1) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    """(output channel, channels-last place of the first weight, of the second) of each pair that can overflow.

    weight: whole numbers (O, K, kh, kw) or (O, K). Neighbours in the order rows, columns, channels are added in pairs.
    """
    rows = weight.reshape(len(weight), weight.shape[1], -1).transpose(0, 2, 1).reshape(len(weight), -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % PER_STEP))).reshape(len(weight), -1, 2)
    high, low = np.maximum(rows, 0).sum(axis=2), np.minimum(rows, 0).sum(axis=2)
    found = np.argwhere((high * PEAK > HIGH) | (low * PEAK < LOW))
    per_group = len(weight) // groups
    return tuple((int(o), _place(weight, 2 * int(k), o // per_group), _place(weight, 2 * int(k) + 1, o // per_group))
                 for o, k in found)  # fmt: skip


def _place(weight: np.ndarray, index: int, group: int) -> tuple[int, ...]:
    """Where the weight is: (input channel of the whole layer, channel within the group, row, column)."""
    kernel, channel = divmod(index, weight.shape[1])
    place = np.unravel_index(kernel, weight.shape[2:]) if weight.ndim == 4 else ()
    return (int(group) * weight.shape[1] + channel, channel, *map(int, place))


def _correction(layer: _Layer, pairs: Any, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that subtract what the layer's pairs lose; its output is renamed, and the difference takes its name."""
    node, prefix, convolution = layer.node, f"saturated_{len(graph.initializer)}", layer.weight.ndim == 4
    output = node.output[0]
    products = np.zeros((len(pairs), layer.weight.shape[1] * layer.groups, *layer.weight.shape[2:]), np.float32)
    back = np.zeros((len(layer.weight), len(pairs), *((1, 1) if convolution else ())), np.float32)
    for row, (channel, *places) in enumerate(pairs):
        for place in places:
            products[(row, place[0], *place[2:])] = layer.weight[(channel, *place[1:])]
        back[channel, row] = layer.scale[channel]

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    def step(kind: str, inputs: list[str], out: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [f"{prefix}_{out}"], **attributes)

    node.output[0] = f"{prefix}_exact"
    shift = constant("shift", np.float32(128 * layer.signed))
    nodes = [
        step("Cast", [layer.activation], "cast", to=onnx.TensorProto.FLOAT),
        step("Add", [f"{prefix}_cast", shift], "unsigned"),
    ]
    if convolution:
        pads = _attribute(node, "pads", [0, 0, 0, 0])
        around = constant("pads", np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
        keep = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("strides", "dilations")}
        nodes += [
            step("Pad", [f"{prefix}_unsigned", around, constant("zero", np.float32(layer.zero))], "padded"),
            step("Conv", [f"{prefix}_padded", constant("products", products)], "pairs", **keep),
        ]
    else:
        nodes += [step("MatMul", [f"{prefix}_unsigned", constant("products", products.T.copy())], "pairs")]
    bounds = [constant("low", np.float32(LOW)), constant("high", np.float32(HIGH))]
    nodes += [
        step("Clip", [f"{prefix}_pairs", *bounds], "kept"),
        step("Sub", [f"{prefix}_pairs", f"{prefix}_kept"], "excess"),
        step("Conv", [f"{prefix}_excess", constant("back", back)], "lost")
        if convolution
        else step("MatMul", [f"{prefix}_excess", constant("back", back.T.copy())], "lost"),
        helper.make_node("Sub", [f"{prefix}_exact", f"{prefix}_lost"], [output]),
    ]
    return nodes


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

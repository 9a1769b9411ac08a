"""Do the calibrated ranges hold the activations of the real supports? Values outside are cut off by an int8 model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tinyforge.compress.calibration import Prepared
from tinyforge.compress.metadata import INPUT_NAME

WORST = 5  # tensors that are named


@dataclass(frozen=True)
class Coverage:
    """Over all quantised activations: their number, the share of values outside the calibrated range, in [0, 1], the
    largest such share of one tensor, and the worst tensors by name.
    """

    num_images: int
    num_tensors: int
    outside: float
    worst_outside: float
    worst: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def coverage(model: Path, supports: Prepared) -> Coverage:
    """Of an int8 model, .onnx (QDQ) or .xml (FakeQuantize), on the real supports, run in order."""
    watch = _watch_onnx(model) if model.suffix == ".onnx" else _watch_openvino(model)
    outside: dict[str, int] = {}
    total: dict[str, int] = {}
    for row in supports:
        for name, values, low, high in watch(row):
            step = (high - low) / 255  # rounding to the outermost level cuts nothing off
            beyond = (values > high + step / 2) | ((values < low - step / 2) & (low < 0))  # low = 0: a fused ReLU
            outside[name] = outside.get(name, 0) + int(beyond.sum())
            total[name] = total.get(name, 0) + beyond.size
    shares = {name: outside[name] / total[name] for name in total}
    worst = sorted((name for name in shares if shares[name]), key=lambda name: (-shares[name], name))[:WORST]
    return Coverage(
        num_images=len(supports),
        num_tensors=len(total),
        outside=sum(outside.values()) / max(1, sum(total.values())),
        worst_outside=max(shares.values(), default=0.0),
        worst={name: shares[name] for name in worst},
    )


def _watch_onnx(path: Path):
    """row -> (name, values, low, high) of every activation that the model quantises."""
    import onnxruntime as ort

    model = onnx.load(path)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantised = [
        node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]
    ranges = {}
    for node in quantised:
        scale, zero = (constants[name].astype(np.float32) for name in node.input[1:3])
        kind = np.iinfo(constants[node.input[2]].dtype)
        ranges[node.input[0]] = ((kind.min - zero) * scale, (kind.max - zero) * scale)
    inner = [name for name in ranges if name != INPUT_NAME]
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in present)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def watch(row: np.ndarray):
        found = session.run(inner, {INPUT_NAME: row}) if inner else []  # asked for nothing, it would return everything
        values = dict(zip(inner, found, strict=True)) | {INPUT_NAME: row}
        return [(name, values[name], *bounds) for name, bounds in ranges.items()]

    return watch


def _watch_openvino(path: Path):
    from tinyforge.compress.export import import_openvino

    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(path)
    nodes = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() != "Constant"
    ]
    bounds = [
        tuple(node.input_value(port).get_node().get_data().astype(np.float32) for port in (1, 2)) for node in nodes
    ]
    names = [node.get_friendly_name() for node in nodes]
    model.add_outputs([node.input_value(0) for node in nodes])
    count = len(model.outputs) - len(nodes)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})

    def watch(row: np.ndarray):
        answers = list(compiled(row).values())[count:]
        return [(name, value, *both) for name, value, both in zip(names, answers, bounds, strict=True)]

    return watch

"""The twin is held against sums done pair by pair, as the instruction does them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinyforge.compress.saturation import HIGH, LOW, risky_pairs, saturation


def quantised_layer(path: Path, weight: np.ndarray, zero: int, **attributes) -> Path:
    """Quantise, multiply by ``weight`` (convolution or linear), mean over space: as static quantisation leaves it."""
    convolution = weight.ndim == 4
    constants = {
        "scale": np.float32(0.05), "zero": np.int8(zero), "weight": weight.astype(np.int8),
        "step": np.full(len(weight), 0.01, np.float32), "none": np.zeros(len(weight), np.int8),
        "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    shape = ["batch", weight.shape[1], *((6, 6) if convolution else ())]
    last = "layer" if convolution else "logits"
    kind = ("Conv", attributes) if convolution else ("Gemm", {"transB": 1})
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "step", "none"], ["w"], axis=0),
        helper.make_node(kind[0], ["x", "w"], [last], name="layer", **kind[1]),
    ]
    if convolution:
        nodes.append(helper.make_node("ReduceSum", ["layer", "axes"], ["logits"], keepdims=0))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def by_hand(inputs: np.ndarray, weight: np.ndarray, zero: int, pad: int, stride: int) -> np.ndarray:
    """Exact sums and sums of saturating pairs, (2, B, O), of the layer above."""
    unsigned = np.clip(np.rint(inputs / np.float32(0.05)) + zero, -128, 127) + 128
    if weight.ndim == 2:
        unsigned, weight = unsigned[..., None, None], weight[..., None, None]
    padded = np.pad(unsigned, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=zero + 128)
    out_channels, _, rows, columns = weight.shape
    flat = weight.transpose(0, 2, 3, 1).reshape(out_channels, -1)
    totals = np.zeros((2, len(inputs), out_channels))
    for top in range(0, padded.shape[2] - rows + 1, stride):
        for left in range(0, padded.shape[3] - columns + 1, stride):
            patch = (
                padded[:, :, top : top + rows, left : left + columns].transpose(0, 2, 3, 1).reshape(len(inputs), 1, -1)
            )
            products = np.pad(patch * flat, ((0, 0), (0, 0), (0, flat.shape[1] % 2)))
            pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=3)
            offset = (zero + 128) * flat.sum(axis=1)
            totals[0] += pairs.sum(axis=2) - offset
            totals[1] += np.clip(pairs, LOW, HIGH).sum(axis=2) - offset
    return totals * 0.05 * 0.01


@pytest.mark.parametrize(
    ("shape", "pad", "stride", "zero"),
    [((5, 4, 3, 3), 1, 1, -128), ((5, 3, 3, 3), 1, 2, -20), ((4, 8, 1, 1), 0, 1, 0), ((6, 10), 0, 1, -5)],
)
def test_the_twin_saturates_as_pairs_of_products_do(tmp_path: Path, shape, pad: int, stride: int, zero: int):
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, shape).astype(np.float64)
    inputs = rng.uniform(-7, 13, (12, shape[1], *((6, 6) if len(shape) == 4 else ()))).astype(np.float32)
    attributes = {"pads": [pad] * 4, "strides": [stride] * 2}
    found = saturation(quantised_layer(tmp_path / "layer.onnx", weight, zero, **attributes), inputs)
    exact, cut = by_hand(inputs, weight, zero, pad, stride)
    assert found.max_abs_change == pytest.approx(np.abs(exact - cut).max(), rel=1e-4)
    assert found.max_abs_change > 0.1
    assert found.flips == np.flatnonzero(exact.argmax(axis=1) != cut.argmax(axis=1)).tolist()
    assert found.layers == {"layer": len(risky_pairs(weight.astype(int)))}


def test_a_twin_that_would_not_fit_is_not_made(tmp_path: Path, monkeypatch):
    """A ResNet12's would take 2 GiB, more than a model file can."""
    weight = np.random.default_rng(0).integers(-127, 128, (5, 4, 3, 3))
    model = quantised_layer(tmp_path / "layer.onnx", weight, -128, pads=[1] * 4)
    monkeypatch.setattr("tinyforge.compress.saturation.MAX_TWIN_BYTES", 1000)
    found = saturation(model, np.zeros((2, 4, 6, 6), np.float32))
    assert (found.flips, found.max_abs_change) == (None, None)
    assert found.layers == {"layer": len(risky_pairs(weight))}


def test_seven_bit_weights_cannot_saturate(tmp_path: Path):
    weight = np.random.default_rng(0).integers(-64, 64, (5, 4, 3, 3))
    assert risky_pairs(weight) == ()
    inputs = np.full((2, 4, 6, 6), 50, np.float32)
    found = saturation(quantised_layer(tmp_path / "layer.onnx", weight, -128, pads=[1] * 4), inputs)
    assert (found.flips, found.max_abs_change, found.layers) == ([], 0.0, {})


def test_pairs_are_neighbouring_channels():
    weight = np.zeros((1, 4, 1, 2), int)
    weight[0, 1, 0, 1], weight[0, 2, 0, 1] = 127, 127  # neighbours, but of two pairs
    assert risky_pairs(weight) == ()
    weight[0, 3, 0, 1] = 2
    assert [pair[1][1:] + pair[2][1:] for pair in risky_pairs(weight)] == [(2, 0, 1, 3, 0, 1)]

"""Every fault is planted where it would arise, and must be named there."""

import json

import numpy as np
import pytest
from PIL import Image

from tinyforge.device.bundle import BundleFault, hash_files, load_bundle
from tinyforge.device.selftest import GOLDEN_JSON, GOLDEN_NPZ, compare_logits, run_selftest, write_golden
from tinyforge.device.spec import InputSpec

from .conftest import build_bundle, change_record, encode


def faults(root):
    return [(fault["check"], fault["where"]) for fault in run_selftest(load_bundle(root)).faults]


def rehash(root):
    change_record(root, files=hash_files(root))


def edit_golden(root, **changes):
    """Replace arrays of golden.npz by functions of them, and list its new hash."""
    with np.load(root / GOLDEN_NPZ) as stored:
        arrays = dict(stored)
    np.savez(root / GOLDEN_NPZ, **{**arrays, **{name: change(arrays[name]) for name, change in changes.items()}})
    rehash(root)


@pytest.mark.parametrize("spec", [InputSpec((8, 8)), InputSpec((8, 8), fit="crop", crop_pct=0.9, layout="NHWC")])
def test_a_good_bundle_passes(tmp_path, spec):
    outcome = run_selftest(load_bundle(build_bundle(tmp_path / "b", spec)))
    assert outcome.ok
    assert outcome.checks == 3 + 1 + 2
    assert outcome.notes == []


def test_golden_vectors_are_written_the_same_way_twice(built_bundle, tmp_path):
    images = {path.name: path.read_bytes() for path in sorted((built_bundle / "selftest").glob("*.png"))}
    for name in "ab":
        write_golden(tmp_path / name, images, InputSpec((8, 8)), {})
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")


def test_changed_file(bundle_path):
    weights = bundle_path / "model/onnx-fp32.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert faults(bundle_path) == [("file", "model/onnx-fp32.onnx")]


def test_wrong_decode(bundle_path):
    """As if a decoder gave other pixels: the golden hash and the golden pixels are of another picture."""
    (bundle_path / "selftest/1.png").write_bytes(encode(Image.new("RGB", (14, 20), "navy")))
    rehash(bundle_path)
    assert faults(bundle_path) == [("decode", "selftest/1.png")]


def test_undecodable_image(bundle_path):
    (bundle_path / "selftest/1.png").write_bytes(b"nonsense")
    rehash(bundle_path)
    assert faults(bundle_path) == [("decode", "selftest/1.png")]


def test_slightly_other_decoder_is_a_note(bundle_path):
    record = json.loads((bundle_path / GOLDEN_JSON).read_text())
    record["images"][0]["sha256"] = "0" * 64
    (bundle_path / GOLDEN_JSON).write_text(json.dumps(record))
    rehash(bundle_path)
    outcome = run_selftest(load_bundle(bundle_path))
    assert outcome.ok
    assert outcome.notes == ["selftest/0.png: decoded slightly differently, by up to 0 of 255 after resizing"]


def test_wrong_resize(bundle_path):
    change_record(bundle_path, input=InputSpec((8, 8), resize="nearest").to_json())
    assert {check for check, _ in faults(bundle_path)} == {"resize"}


def test_wrong_normalise(bundle_path):
    change_record(bundle_path, input=InputSpec((8, 8), resize="bilinear", mean=(0, 0, 0)).to_json())
    assert faults(bundle_path) == [("normalise", GOLDEN_NPZ)]


def test_wrong_model_answer(bundle_path):
    edit_golden(bundle_path, **{"logits_openvino-fp16": lambda logits: logits + 1})
    assert faults(bundle_path) == [("model", "openvino-fp16")]


def test_only_the_named_variant_is_run(bundle_path):
    edit_golden(bundle_path, **{"logits_openvino-fp16": lambda logits: logits + 1})
    assert run_selftest(load_bundle(bundle_path), ["onnx-fp32"]).ok


def test_other_version_is_a_note_not_a_fault(bundle_path):
    record = json.loads((bundle_path / GOLDEN_JSON).read_text())
    record["made_with"]["onnxruntime"] = "0.1"
    (bundle_path / GOLDEN_JSON).write_text(json.dumps(record))
    rehash(bundle_path)
    outcome = run_selftest(load_bundle(bundle_path))
    assert outcome.ok
    assert outcome.notes[0].endswith("here, 0.1 when the bundle was made")


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": lambda pixels: pixels[:, :4]},
        {"input": lambda x: x.astype(np.float64)},
        {"logits_onnx-fp32": lambda logits: logits[:, :2]},
    ],
)
def test_vectors_of_another_shape_are_refused(bundle_path, change):
    edit_golden(bundle_path, **change)
    with pytest.raises(BundleFault, match=f"'{next(iter(change))}' must be"):
        run_selftest(load_bundle(bundle_path))


def test_no_vectors_at_all_are_refused(bundle_path):
    (bundle_path / GOLDEN_JSON).write_text('{"images": [], "made_with": {}}')
    rehash(bundle_path)
    with pytest.raises(BundleFault, match="'images' is empty"):
        run_selftest(load_bundle(bundle_path))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_damaged_vectors_are_refused(bundle_path, damage):
    path = bundle_path / GOLDEN_NPZ
    path.write_bytes(damage(path.read_bytes()))
    rehash(bundle_path)
    with pytest.raises(BundleFault, match="cannot be read"):
        run_selftest(load_bundle(bundle_path))


def test_pickled_vectors_are_refused(bundle_path):
    edit_golden(bundle_path, pixels=lambda pixels: np.array([{"code": 1}], dtype=object))
    with pytest.raises(BundleFault, match="cannot be read"):
        run_selftest(load_bundle(bundle_path))


GOLDEN = np.array([[0.0, 10.0], [10.0, 0.0]] * 5, np.float32)


@pytest.mark.parametrize(
    ("logits", "precision", "verdict"),
    [
        (GOLDEN, "fp32", None),
        (GOLDEN + 0.005, "fp32", None),
        (GOLDEN + 0.05, "fp32", "differ by 0.50%"),
        (GOLDEN + 0.05, "fp16", None),
        (GOLDEN + 1, "int8", None),
        (GOLDEN + 2, "int8", "saturates or rounds otherwise"),
        (GOLDEN[:, :1], "fp32", "shape"),
        (GOLDEN * np.nan, "int8", "not finite"),
    ],
)
def test_tolerances(logits, precision, verdict):
    found = compare_logits(logits, GOLDEN, precision)
    assert found is None if verdict is None else verdict in found


def test_int8_answers_must_mostly_agree():
    near = np.array([[0.0, 10.0]] + [[5.0, 5.1]] * 9, np.float32)
    flipped = near.copy()
    flipped[1:, 0] += 0.2
    assert "10% agree" in compare_logits(flipped, near, "int8")

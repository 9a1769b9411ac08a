"""Every fault is planted where it would arise, and must be named there."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tinyforge.device.bundle import load_bundle
from tinyforge.device.folder import BundleFault
from tinyforge.device.instructions import instruction_set
from tinyforge.device.machine import versions
from tinyforge.device.seal import hash_files
from tinyforge.device.selftest import (
    GOLDEN_JSON,
    GOLDEN_NPZ,
    OTHER_KERNELS,
    SAME_KERNELS,
    Golden,
    cause_of,
    compare_logits,
    floor_faults,
    run_selftest,
    tolerance,
    write_golden,
)
from tinyforge.device.spec import InputSpec

from .conftest import build_bundle, change_record, encode, rehash


def faults(root):
    return [(fault["check"], fault["where"]) for fault in run_selftest(load_bundle(root)).faults]


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
    assert outcome.checks == 3 + 1 + 2  # images, input, models
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
    edit_golden(bundle_path, **{"logits_onnx-fp32": lambda logits: logits + 1})
    (fault,) = run_selftest(load_bundle(bundle_path)).faults
    assert fault["check"] == "runtime"
    assert fault["message"].endswith(" here, 0.1 when the bundle was made: install that")


def altered_device(folder, edit):
    """The device package of a bundle as a package of its own, changed in ``preprocess.py``: (load, run)."""
    shutil.copytree(folder / "tinyforge_device", folder / "altered_device")
    path = folder / "altered_device/preprocess.py"
    text = path.read_text()
    assert edit[0] in text
    path.write_text(text.replace(*edit))
    rehash(folder)
    sys.path.insert(0, str(folder))
    try:
        names = ("bundle", "selftest", "preprocess")
        bundle, selftest, _ = (importlib.import_module(f"altered_device.{name}") for name in names)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.startswith("altered_device")]:
            del sys.modules[name]
        shutil.rmtree(folder / "altered_device")
    rehash(folder)
    return lambda: selftest.run_selftest(bundle.load_bundle(folder)).faults


@pytest.mark.parametrize(
    ("edit", "check", "count"),
    [
        (("image = Image.fromarray(rgb)\n", "image = Image.fromarray(rgb[::-1])\n"), "resize", 3),
        (("getattr(Image.Resampling, spec.resize.upper())", "Image.Resampling.NEAREST"), "resize", 3),
        (('np.array(image.convert("RGB"))', 'np.array(image.convert("RGB"))[..., ::-1].copy()'), "decode", 3),
        (("np.float32(255)", "np.float32(256)"), "normalise", 1),
        (("transpose(0, 3, 1, 2)", "transpose(0, 3, 2, 1)"), "normalise", 1),
    ],
)
def test_a_device_that_prepares_otherwise(bundle_path, edit, check, count):
    """As a port would, or a runtime's own preprocessing: it is named where it arises, and nowhere else."""
    faults = altered_device(bundle_path, edit)()
    assert [fault["check"] for fault in faults] == [check] * count


def test_a_package_that_is_too_old(bundle_path):
    (bundle_path / "requirements.txt").write_text("numpy>=1.26\nPillow>=99.1\nonnxruntime>=1.20\n")
    rehash(bundle_path)
    (fault,) = run_selftest(load_bundle(bundle_path)).faults
    assert (fault["check"], fault["where"]) == ("package", "Pillow")
    assert fault["message"].endswith("is too old for this bundle: pip install 'Pillow>=99.1'")


@pytest.mark.parametrize(
    ("floor", "old"),
    [("0.9", False), ("1", False), ("9999", True), ("", False), ("nonsense", False), ("1.9.2.1", False)],
)
def test_versions_are_compared_as_numbers(tmp_path, floor, old):
    (tmp_path / "requirements.txt").write_text(f"numpy>={floor}\nabsent>=5\n# a comment\n")
    assert [name for name, _ in floor_faults(tmp_path)] == (["numpy"] if old else [])


@pytest.mark.parametrize(
    ("machine", "flags", "found"),
    [
        ("x86_64", "flags\t: fpu sse2 avx2 avx512bw avx512_vnni", "x86_64 avx512-vnni"),
        ("AMD64", "flags\t: sse2 avx2", "x86_64 avx2"),
        ("arm64", "Features\t: fp asimd asimddp", "aarch64 dotprod"),
        ("aarch64", "Features\t: fp asimd", "aarch64 neon"),
        ("riscv64", "isa : rv64imafdc", "riscv64"),
    ],
)
def test_instruction_sets(tmp_path, machine, flags, found):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert instruction_set(tmp_path / "cpuinfo", machine) == found
    assert instruction_set(tmp_path / "absent", machine) == found.split()[0]


def test_the_same_kernels_are_held_to_more(built_bundle):
    variant = load_bundle(built_bundle).variant()
    here = {"instructions": instruction_set(), **versions()}
    assert tolerance(variant, here) == SAME_KERNELS["fp32"]
    assert tolerance(variant, {**here, "instructions": "aarch64 neon"}) == OTHER_KERNELS["fp32"]
    assert tolerance(variant, {**here, "onnxruntime": "1.0"}) == OTHER_KERNELS["fp32"]


@pytest.mark.parametrize(
    ("made_with", "saturated", "saturates", "check", "words"),
    [
        ({}, False, True, "saturation", "saturate on this processor"),
        (
            {"instructions": "x86_64 avx2"},
            True,
            False,
            "saturation",
            "saturated where the bundle was made (x86_64 avx2)",
        ),
        ({"onnxruntime": "1.0"}, False, False, "runtime", "1.0 when the bundle was made: install that"),
        ({"instructions": "aarch64 neon"}, False, False, "model", "than where the bundle was made (aarch64 neon)"),
        ({}, False, False, "model", ""),
    ],
)
def test_the_likeliest_cause_is_named(built_bundle, made_with, saturated, saturates, check, words):
    made_with = {"instructions": instruction_set(), **versions(), **made_with}
    golden = Golden(np.zeros(1), np.zeros(1), made_with, saturated)
    found = cause_of(load_bundle(built_bundle).variant(), golden, saturates=saturates)
    assert found[0] == check
    assert words in found[1]


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
    (bundle_path / GOLDEN_JSON).write_text('{"schema_version": 2, "images": [], "made_with": {}, "saturated": {}}')
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
    ("logits", "allowed", "verdict"),
    [
        (GOLDEN, SAME_KERNELS["fp32"], None),
        (GOLDEN + 0.005, OTHER_KERNELS["fp32"], None),
        (GOLDEN + 0.005, SAME_KERNELS["fp32"], "differ by 0.05%"),
        (GOLDEN + 0.05, OTHER_KERNELS["fp32"], "differ by 0.50%"),
        (GOLDEN + 0.05, OTHER_KERNELS["fp16"], None),
        (GOLDEN + 1, OTHER_KERNELS["int8"], None),
        (GOLDEN + 1, SAME_KERNELS["int8"], "differ by 10.00%"),
        (GOLDEN[:, :1], OTHER_KERNELS["fp32"], "shape"),
        (GOLDEN * np.nan, OTHER_KERNELS["int8"], "not finite"),
    ],
)
def test_tolerances(logits, allowed, verdict):
    found = compare_logits(logits, GOLDEN, allowed)
    assert found is None if verdict is None else verdict in found


def test_int8_answers_must_mostly_agree():
    near = np.array([[0.0, 10.0]] + [[5.0, 5.1]] * 9, np.float32)
    flipped = near.copy()
    flipped[1:, 0] += 0.2
    assert "10% agree" in compare_logits(flipped, near, OTHER_KERNELS["int8"])

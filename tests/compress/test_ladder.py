from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest

from tinyforge.compress.ladder import LADDERS, NEXT, RUNTIMES, TRAINED, Tried, attempt, climb
from tinyforge.compress.variants import Variant, make_variants, measure, warnings, x86_warnings
from tinyforge.device.runtime import effective_precision, open_session
from tinyforge.errors import GateError
from tinyforge.recipe import Compress

INT8 = ["onnx-int8", "openvino-int8"]


def silence(materials, out: Path) -> None:
    """A rung whose model answers 0."""
    LADDERS["onnx-fp32"]["fp32"](materials, out)
    model = onnx.load(out)
    for tensor in (one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT):
        tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, out)


@pytest.mark.parametrize("kind", INT8)
def test_the_first_rung_that_passes_is_kept_and_the_climb_stops(made, kind: str):
    found = made.variants[kind]
    assert [one.kept for one in found.tried] == [False] * (len(found.tried) - 1) + [True]
    assert found.rung == found.tried[-1].rung
    assert all(one.reason for one in found.tried[:-1])
    assert found.tried[-1].parity.num_images == found.tried[-1].drop.num_images == 200


@pytest.mark.parametrize("kind", INT8)
def test_int8_keeps_the_answers_on_images_it_never_saw_and_is_smaller(made, digits, student_logits, spec, kind: str):
    labels, pixels = digits.labels[1000:], digits.rgb[1000:]
    found = measure(
        made.variants[kind], made.folder, student_logits, pixels, spec, Compress(), labels=labels, threads=1
    )
    assert found.parity.agreement >= 0.97
    assert found.drop.low <= found.drop.drop <= found.drop.high <= 0.03
    assert (found.logits.argmax(axis=1) == labels).mean() > 0.85
    weights = made.folder / made.variants[kind].files[-1]
    assert weights.stat().st_size < 0.6 * (made.folder / "onnx-fp32.onnx").stat().st_size


def test_int8_onnx_is_quantised_throughout(made):
    model = onnx.load(made.folder / "onnx-int8.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") >= 4
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)


@pytest.mark.parametrize(("kind", "rung"), [(kind, rung) for kind, rungs in LADDERS.items() for rung in rungs])
def test_every_rung_makes_a_model_that_answers_as_the_student(materials, tmp_path: Path, kind: str, rung: str):
    suffix = ".onnx" if kind.startswith("onnx") else ".xml"
    found = attempt(kind, rung, LADDERS[kind][rung], materials, tmp_path / f"model{suffix}")
    assert found.reason == ""
    assert found.parity.agreement >= 0.97
    assert found.model_bytes > 1000


def test_a_climb_tries_in_order_and_records_why_each_lost(materials, tmp_path: Path):
    def broken(_, out):
        raise RuntimeError("no such kernel")

    good = LADDERS["onnx-fp32"]["fp32"]
    heard: list[str] = []
    rungs = {"a": broken, "b": silence, "c": good, "d": good}
    path, tried = climb("onnx-int8", replace(materials, tell=heard.append), tmp_path, rungs)
    assert heard == ["onnx-int8: a", "onnx-int8: b", "onnx-int8: c"]
    assert path.name == "onnx-int8-2.onnx"
    assert [one.rung for one in tried] == ["a", "b", "c"]
    assert tried[0].reason == "could not be made: RuntimeError: no such kernel"
    assert "agrees with the student on" in tried[1].reason
    assert (tried[2].reason, tried[2].kept) == ("", True)
    assert [Tried.from_json(one.to_json()) for one in tried] == tried


def test_training_is_no_rung_without_a_teacher_or_steps(materials, tmp_path: Path):
    never = {TRAINED: partial(lambda *_: pytest.fail("was tried"))}
    assert climb("onnx-int8", replace(materials, teach=None), tmp_path, never) == (None, [])
    without = replace(materials, settings=Compress(qat_steps=0))
    assert climb("onnx-int8", without, tmp_path, never) == (None, [])


def test_where_no_int8_passes_half_precision_takes_its_place(
    student, calibration, validation, spec, classes, tmp_path, monkeypatch
):
    monkeypatch.setitem(LADDERS, "onnx-int8", {"silence": silence, "again": silence})
    given = {"calibration": calibration, "settings": Compress(precisions=["onnx-int8"]), "name": "digits", "opset": 18}
    made = make_variants(student, spec, classes, tmp_path / "a", validation=validation, **given)
    assert [one.name for one in made] == ["onnx-fp32", "onnx-int8", NEXT["onnx-int8"]]
    assert [bool(one.failure) for one in made] == [False, True, False]
    assert [one.rung for one in made[1].tried] == ["silence", "again"]
    assert made[1].failure.startswith(
        "none of 2 rungs passed its gate; the nearest, silence: agrees with the student on"
    )
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["onnx-fp16.onnx", "onnx-fp32.onnx"]
    other = replace(validation, logits=validation.logits + 1)
    with pytest.raises(GateError, match="onnx-fp32"):  # such a student is not the one that was exported
        make_variants(student, spec, classes, tmp_path / "b", validation=other, **given)


def test_half_precision_weights_halve_the_file_and_compute_in_float32(materials, tmp_path: Path):
    out = tmp_path / "half.onnx"
    LADDERS["onnx-fp16"]["fp16 weights"](materials, out)
    assert out.stat().st_size < 0.62 * materials.fp32.stat().st_size
    assert effective_precision(open_session(out, "onnxruntime", 1)) == "f32"


@pytest.mark.parametrize("kind", ["onnx-int8", "openvino-int8"])
def test_what_a_runtime_computes_in_is_read_back(materials, tmp_path: Path, kind: str):
    found = []
    for name in (next(iter(LADDERS[kind])), "first and last layer in fp32"):
        out = tmp_path / f"{len(found)}{'.onnx' if kind == 'onnx-int8' else '.xml'}"
        LADDERS[kind][name](materials, out)
        found.append(effective_precision(open_session(out, RUNTIMES[kind.split("-")[0]], 1)))
    assert found == ["i8", "2 i8 + 2 f32"]


def test_variants_survive_json_and_warn_of_what_was_found(made):
    for one in made.variants.values():
        assert Variant.from_json(one.to_json()).to_json() == one.to_json()
    one = made.variants["onnx-int8"]
    assert (one.coverage.num_images, one.saturation.num_images) == (20, 200)
    unknown = replace(one, saturation=replace(one.saturation, flips=None, max_abs_change=None, layers={"a": 5}))
    assert "int8 sums of 5 pairs" in x86_warnings(unknown)[0]
    told = replace(
        one,
        saturation=replace(one.saturation, flips=[3, 7]),
        coverage=replace(one.coverage, worst_outside=0.02, worst={"relu": 0.02}),
    )
    assert "2 of 200" in x86_warnings(told)[0]
    assert ["2.0% of the values of relu" in text for text in warnings(told)] == [True]
    assert warnings(made.variants["onnx-fp32"]) == x86_warnings(made.variants["onnx-fp32"]) == []

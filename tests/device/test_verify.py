"""Whatever number is edited, verify finds it and says what the raw data give."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyforge.device.bench import bench_model, summary
from tinyforge.device.bundle import BundleFault, file_record, hash_files, load_bundle
from tinyforge.device.verify import verify_bundle

from .conftest import CLASSES, SPEC, change_record, write_onnx, write_predictions, write_record


@pytest.fixture(scope="module")
def report(built_bundle):
    """Of the fp32 model, measured once."""
    bundle = load_bundle(built_bundle)
    model, images = bundle.model_path(bundle.variant()), [built_bundle / "selftest/0.png"]
    return bench_model(model, "onnxruntime", 1, images, SPEC, seconds=0, min_runs=70, warmup=2)


@pytest.fixture
def measured_path(bundle_path, report):
    """A bundle with latencies."""
    (bundle_path / "latency").mkdir()
    (bundle_path / "latency/onnx-fp32.json").write_text(json.dumps(report["raw_us"]))
    latency = {"onnx-fp32": {**summary(report), "raw": "latency/onnx-fp32.json"}}
    change_record(bundle_path, latency=latency, files=hash_files(bundle_path))
    return bundle_path


def edit(root, path, value):
    """Set one number of bundle.json, given by its keys."""
    record = json.loads((root / "bundle.json").read_text())
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    write_record(root, record)


def messages(root):
    return [fault["message"] for fault in verify_bundle(root).faults]


def test_a_good_bundle_passes(measured_path):
    outcome = verify_bundle(measured_path)
    assert outcome.faults == []
    assert outcome.checks > 20


@pytest.mark.parametrize("key", ["n", "correct", "accuracy", "low", "high"])
def test_every_number_of_a_score_is_recomputed(bundle_path, key):
    edit(bundle_path, ["scores", "student", key], 0.99)
    (message,) = messages(bundle_path)
    assert message.startswith(f"scores['student']: {key} is given as 0.99, the raw data say ")


@pytest.mark.parametrize(
    "path",
    [["runs"], ["p50_ms"], ["p90_ms"], ["p99_ms"], ["mean_ms"], ["p90_bound_ms"], ["stages", "decode", "p50_ms"]],
)
def test_every_latency_is_recomputed(measured_path, path):
    edit(measured_path, ["latency", "onnx-fp32", *path], 0.001)
    (message,) = messages(measured_path)
    assert message.startswith(f"latency['onnx-fp32']: {path[0]} is given as ")


def test_model_size_is_compared(measured_path):
    edit(measured_path, ["latency", "onnx-fp32", "model_bytes"], 10)
    assert "model_bytes is given as 10" in messages(measured_path)[0]


def test_all_discrepancies_are_collected(measured_path):
    edit(measured_path, ["scores", "student", "correct"], 6)
    edit(measured_path, ["latency", "onnx-fp32", "p50_ms"], 0.001)
    (measured_path / "selftest/0.png").write_bytes(b"x")
    outcome = verify_bundle(measured_path)
    assert [fault["check"] for fault in outcome.faults] == ["file", "score", "latency"]
    assert outcome.notes == ["models and golden vectors were not run, since files have changed"]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({"names": ["a"], "labels": [0, 1], "predicted": [0]}, "must be equally many"),
        ({"names": ["a"], "labels": [0], "predicted": [3]}, "class indices below 3"),
        ({"names": ["a"], "labels": [True], "predicted": [0]}, "class indices below 3"),
        ({"names": ["a", "a"], "labels": [0, 0], "predicted": [0, 0]}, "'a' appears more than once"),
        ({"names": [1], "labels": [0], "predicted": [0]}, "names must be text"),
        ({"labels": [0], "predicted": [0]}, "'names' is missing"),
    ],
)
def test_faulty_predictions(bundle_path, predictions, message):
    (bundle_path / "predictions/student.json").write_text(json.dumps(predictions))
    change_record(bundle_path, files=hash_files(bundle_path))
    (found,) = messages(bundle_path)
    assert message in found


def test_one_image_has_one_label(bundle_path):
    record = json.loads((bundle_path / "bundle.json").read_text())
    record["scores"]["teacher"] = write_predictions(bundle_path, "teacher", [0, 0, 1, 1, 2, 1], [0] * 6)
    write_record(bundle_path, {**record, "files": hash_files(bundle_path)})
    (found,) = messages(bundle_path)
    assert "'5.png' has another label" in found


@pytest.mark.parametrize("raw", [{"decode": [1], "preprocess": [1], "infer": [1.5]}, {"decode": [1]}])
def test_faulty_latencies(measured_path, raw):
    (measured_path / "latency/onnx-fp32.json").write_text(json.dumps(raw))
    change_record(measured_path, files=hash_files(measured_path))
    (found,) = messages(measured_path)
    assert "latency/onnx-fp32.json: " in found


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"input": json.dumps(SPEC.to_json())}, "carries no 'classes'"),
        ({"classes": '["blue", "red"]', "input": json.dumps(SPEC.to_json())}, "'classes' in the model file is not"),
        ({"classes": json.dumps(CLASSES), "input": "{}"}, "'input' in the model file is not"),
        ({"classes": json.dumps(CLASSES), "input": "nonsense"}, "'input' in the model file is not"),
    ],
)
def test_metadata_of_the_model_must_agree(bundle_path, metadata, message):
    write_onnx(bundle_path / "model/onnx-fp32.onnx", metadata)
    edit(
        bundle_path,
        ["model", "variants", "onnx-fp32", "files"],
        [file_record(bundle_path, "model/onnx-fp32.onnx")],
    )
    change_record(bundle_path, files=hash_files(bundle_path))
    (found,) = messages(bundle_path)
    assert message in found


def places(value, path=()):
    """The path of keys to everything in a JSON value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_replaced_is_refused_or_found_but_never_crashes(measured_path, data):
    """But for what says nothing of the bundle's behaviour, every replaced value is noticed."""
    good = (measured_path / "bundle.json").read_text()
    path = data.draw(st.sampled_from(sorted(places(json.loads(good)), key=str)))
    junk = data.draw(st.sampled_from([None, True, -1, 1.5, "x", "../x", [], {}, [{}], {"x": 1}]))
    edit(measured_path, path, junk)
    try:
        found = bool(verify_bundle(measured_path).faults)
    except BundleFault:
        found = True
    finally:
        (measured_path / "bundle.json").write_text(good)
    assert found or path[0] in ("name", "target", "provenance", "licences", "threads", "scores", "latency", "model")


def test_what_is_no_bundle_is_a_fault_of_its_own(tmp_path):
    with pytest.raises(BundleFault):
        verify_bundle(tmp_path)

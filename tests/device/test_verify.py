"""Whatever number is edited, verify finds it and says what the raw data give. ``test_mutations`` does it for all."""

import json
import math
import os
import subprocess

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tinyforge.device import stats
from tinyforge.device.bundle import load_bundle
from tinyforge.device.conditions import judge
from tinyforge.device.folder import BundleFault
from tinyforge.device.machine import describe_machine
from tinyforge.device.metadata import read_metadata
from tinyforge.device.runtime import open_session
from tinyforge.device.verify import verify_bundle

from .conftest import (
    CLASSES,
    SPEC,
    bench_model,
    change_record,
    metadata_of,
    read_record,
    reclaim,
    rehash,
    write_onnx,
    write_predictions,
    write_record,
)
from .test_certificate import AT_REST
from .test_saturation import with_int8


@pytest.fixture(scope="module")
def report(built_bundle):
    """Of the fp32 model, measured once."""
    bundle = load_bundle(built_bundle)
    model, images = bundle.model_path(bundle.variant()), [built_bundle / "selftest/0.png"]
    report = bench_model(model, images, SPEC, min_runs=70)
    at_rest = [{**sample, "busy_cores": 0.0} for sample in report["samples"]]
    return {**report, "machine": describe_machine(), "settled": True, "samples": at_rest, **judge(at_rest)}


@pytest.fixture
def measured_path(bundle_path, report):
    """A bundle with latencies."""
    (bundle_path / "latency").mkdir()
    (bundle_path / "latency/onnx-fp32.json").write_text(json.dumps(report))
    reclaim(bundle_path)
    return bundle_path


def edit(root, path, value):
    """Set one number of bundle.json, given by its keys."""
    record = read_record(root)
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
    assert outcome.checks > 100
    assert set(outcome.facts) == {"digest", "certificate"}


@pytest.mark.parametrize("key", ["n", "correct", "accuracy", "low", "high"])
def test_every_number_of_a_score_is_recomputed(bundle_path, key):
    edit(bundle_path, ["scores", "student", key], 0.99)
    (message,) = messages(bundle_path)
    assert message.startswith(f"scores/student/{key} is given as 0.99, the raw data say ")


@pytest.mark.parametrize(
    "path",
    [["runs"], ["p50_ms"], ["p90_ms"], ["p99_ms"], ["mean_ms"], ["p90_bound_ms"], ["stages", "decode", "p50_ms"]],
)
def test_every_latency_is_recomputed(measured_path, path):
    edit(measured_path, ["latency", "onnx-fp32", *path], 0.001)
    (message,) = messages(measured_path)
    assert message.startswith(f"latency/onnx-fp32/{'/'.join(path)} is given as 0.001, the raw data say ")


def test_model_size_is_compared(measured_path):
    edit(measured_path, ["latency", "onnx-fp32", "model_bytes"], 10)
    assert "model_bytes is given as 10" in messages(measured_path)[0]


def test_numbers_that_are_only_stated_are_those_of_the_raw_report(measured_path):
    edit(measured_path, ["latency", "onnx-fp32", "load_ms"], 0.001)
    (message,) = messages(measured_path)
    assert message.startswith("latency/onnx-fp32/load_ms is given as 0.001, the raw data say ")


def test_the_certificate_follows_from_the_raw_data(measured_path, report):
    found = read_record(measured_path)["certificate"]
    assert found["variant"] == "onnx-fp32"
    assert found["accuracy"]["at_least"] == math.floor(stats.exact_lower(6, 6) * 1e6) / 1e6 == 0.606962
    assert found["latency"]["at_most_ms"] == stats.percentile_bound(report["raw_us"]["infer"], 0.9) / 1000
    assert found["statement"] == (
        f"top-1 >= 60.6 % at 95 % (exact binomial, n = 6); "
        f"p90 of inference <= {found['latency']['at_most_ms']:g} ms at 99 % "
        f"(early stopping, {found['latency']['runs']} runs) on {report['machine']['cpu']}"
    )
    assert verify_bundle(measured_path).facts["certificate"] == found["statement"]


@pytest.mark.parametrize("place", [("accuracy", "at_least"), ("latency", "at_most_ms"), ("latency", "runs")])
def test_a_better_certificate_is_found(measured_path, place):
    edit(measured_path, ["certificate", *place], 0.999)
    (message,) = messages(measured_path)
    assert message.startswith(f"certificate/{'/'.join(place)} is given as 0.999, the raw data say ")


@pytest.mark.parametrize("samples", [[], [{}], ["x"], [{**AT_REST, "firmware": "1"}], None])
def test_states_of_the_machine_that_are_none(measured_path, report, samples):
    (measured_path / "latency/onnx-fp32.json").write_text(json.dumps({**report, "samples": samples}))
    rehash(measured_path)
    (message,) = messages(measured_path)
    assert "latency/onnx-fp32.json: 'samples'" in message


def test_a_file_that_has_no_place_in_a_bundle(bundle_path):
    """Python would import it where the device package runs."""
    (bundle_path / "numpy.py").write_text("print('mine')")
    rehash(bundle_path)
    with pytest.raises(BundleFault, match="has no place in a bundle"):
        load_bundle(bundle_path)


def test_folders_deeper_than_calls_can_go(bundle_path):
    """Made by steps: a path of that length is none."""
    place = os.open(bundle_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        place, above = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    try:
        (message,) = messages(bundle_path)
    finally:
        subprocess.run(["rm", "-r", bundle_path / "d"], check=True)
    assert "not listed in bundle.json" in message or "File name too long" in message


def test_the_digest_tells_this_bundle_from_any_other(bundle_path):
    digest = load_bundle(bundle_path).digest
    assert verify_bundle(bundle_path, digest.upper() + "\n").ok
    change_record(bundle_path, provenance={"seed": 1})
    assert verify_bundle(bundle_path).ok
    assert [fault["check"] for fault in verify_bundle(bundle_path, digest).faults] == ["digest"]


def test_what_is_not_covered_is_told(bundle_path):
    (bundle_path / ".venv").mkdir()
    (bundle_path / "tinyforge_device/__pycache__").mkdir()
    notes = verify_bundle(bundle_path).notes
    assert [note.split()[0] for note in notes] == [".venv:", "tinyforge_device/__pycache__/"]


def test_all_discrepancies_are_collected(measured_path):
    edit(measured_path, ["scores", "student", "correct"], 6)
    edit(measured_path, ["latency", "onnx-fp32", "p50_ms"], 0.001)
    (measured_path / "selftest/0.png").write_bytes(b"x")
    outcome = verify_bundle(measured_path)
    assert [fault["check"] for fault in outcome.faults] == ["file", "scores", "latency"]
    assert outcome.notes == ["models and golden vectors were not run, since something else does not fit"]


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
    rehash(bundle_path)
    (found,) = messages(bundle_path)
    assert message in found


def test_one_image_has_one_label(bundle_path):
    write_predictions(bundle_path, "teacher", [0, 0, 1, 1, 2, 1], [0] * 6)
    rehash(bundle_path)
    (found,) = messages(bundle_path)
    assert "'5.png' has another label" in found


def test_parity_needs_the_same_images(bundle_path):
    write_predictions(bundle_path, "openvino-fp16", [0, 0, 1], [0, 0, 1])
    rehash(bundle_path)
    (found,) = messages(bundle_path)
    assert "openvino-fp16.json: not of the same images as predictions/onnx-fp32.json" in found


def test_a_score_without_predictions_and_predictions_without_a_score(bundle_path):
    write_predictions(bundle_path, "teacher", [0, 0, 1, 1, 2, 2], [0] * 6)
    rehash(bundle_path)
    assert "scores/teacher is given as 'absent'" in messages(bundle_path)[0]
    (bundle_path / "predictions/teacher.json").unlink()
    (bundle_path / "predictions/student.json").unlink()
    rehash(bundle_path)
    assert "the raw data say 'absent'" in messages(bundle_path)[0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"infer": [1.5]}, "whole microseconds"),
        ({"infer": [-1]}, "whole microseconds"),
        ({"infer": [86_400 * 10**6 + 1]}, "at most a day"),
        ({"infer": [10**320]}, "is too large a number"),
        ({"infer": [-(2**63)]}, "is too large a number"),
        ({"infer": [1, 2]}, "equally many runs"),
        ({"other": [1]}, "equally many runs"),
        ({"infer": 3}, "'infer' must be a list"),
    ],
)
def test_faulty_latencies(measured_path, report, raw, message):
    values = {**{stage: [1] for stage in report["raw_us"]}, **raw}
    (measured_path / "latency/onnx-fp32.json").write_text(json.dumps({**report, "raw_us": values}))
    rehash(measured_path)
    (found,) = messages(measured_path)
    assert "latency/onnx-fp32.json: " in found
    assert message in found


@pytest.mark.parametrize("junk", [10**320, -(10**400), 1e300, [[[]]], {"x": None}, "x", None])
@pytest.mark.parametrize("key", ["raw_us", "machine", "threads", "settled", "valid", "reasons", "peak_rss_mib"])
def test_a_changed_report_is_found_whatever_it_holds(measured_path, report, key, junk):
    """Its hash has failed already; also when it was listed anew, nothing in it ends the check."""
    infer = {**report["raw_us"], "infer": [junk] * len(report["raw_us"]["infer"])}
    value = infer if key == "raw_us" else junk
    (measured_path / "latency/onnx-fp32.json").write_text(json.dumps({**report, key: value}))
    first, *_ = messages(measured_path)
    assert first == "latency/onnx-fp32.json: changed, its sha256 differs from bundle.json"
    rehash(measured_path)
    assert messages(measured_path) != []


def test_a_peak_of_memory_that_is_no_number_stands_as_a_dash(measured_path, report):
    (measured_path / "latency/onnx-fp32.json").write_text(json.dumps({**report, "peak_rss_mib": "x"}))
    reclaim(measured_path)
    assert messages(measured_path) == []


def test_what_is_nested_too_deep_to_be_written_again_is_refused(bundle_path):
    record = json.loads((bundle_path / "bundle.json").read_text())
    for depth, words in ((30, "edited after it was sealed"), (500, "nested more than 32 deep")):
        deep = "[" * depth + "]" * depth
        text = json.dumps({**record, "provenance": {"x": 0}}).replace('{"x": 0}', f'{{"x": {deep}}}')
        (bundle_path / "bundle.json").write_text(text)
        with pytest.raises(BundleFault, match=words):
            load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("top-1 >= 60.6 %", "top-1 >= 99.9 %"),
        ("| student | 6 | 5 |", "| student | 6 | 6 |"),
        ("| **onnx-fp32** (shipped)", "| **onnx-fp32** (best)"),
        ("| model | p50 ms |", "| model | p90 ms |"),
        ("| onnx-fp32 | ", "| onnx-fp32 | 0"),
        ("## Certificate\n", "## Promise\n"),
    ],
)
def test_a_number_of_the_card_that_does_not_follow_is_found(measured_path, old, new):
    path = measured_path / "README.md"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    rehash(measured_path)
    (message,) = messages(measured_path)
    assert message.startswith("README.md says '")


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, lines[-1]], lambda lines: []])
def test_every_row_of_the_card_is_there_once(measured_path, change):
    path = measured_path / "README.md"
    path.write_text("\n".join(change(path.read_text().rstrip().split("\n"))))
    rehash(measured_path)
    assert messages(measured_path)[0].startswith("README.md says ")


@pytest.mark.parametrize("name", ["onnx-fp32", "openvino-fp16"])
def test_a_model_without_int8_operators_is_not_int8(bundle_path, name):
    edit(bundle_path, ["model", "variants", name, "precision"], "int8")
    words = "'precision' is 'int8', but the model file has no int8 operators"
    assert any(words in message for message in messages(bundle_path))


def test_an_int8_model_is_nothing_else(bundle_path):
    root = with_int8(bundle_path, 60)
    assert messages(root) == []
    edit(root, ["model", "variants", "onnx-int8", "precision"], "fp16")
    (message,) = messages(root)
    assert message == "model/onnx-int8.onnx: 'precision' is 'fp16', but the model file has int8 operators"


def test_int8_of_openvino_is_read_off_its_file(bundle_path):
    path = bundle_path / "model/openvino-fp16.xml"
    path.write_text(path.read_text().replace("<layers>", '<layers><!-- type="FakeQuantize" -->'))
    rehash(bundle_path)
    (message,) = messages(bundle_path)
    assert message == "model/openvino-fp16.xml: 'precision' is 'fp16', but the model file has int8 operators"


def test_latencies_of_a_model_that_is_not_there(measured_path):
    (measured_path / "latency/onnx-fp32.json").rename(measured_path / "latency/onnx-int8.json")
    rehash(measured_path)
    (found,) = messages(measured_path)
    assert "latency/onnx-int8.json: of no model of this bundle" in found


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"classes": None}, "carries no 'classes'"),
        ({"name": None}, "carries no 'name'"),
        ({"name": "other"}, "'name' in the model file is not"),
        ({"classes": '["blue", "red"]'}, "'classes' in the model file is not"),
        ({"input": "{}"}, "'input' in the model file is not"),
        ({"input": "nonsense"}, "'input' in the model file is not"),
    ],
)
def test_metadata_of_the_model_must_agree(bundle_path, metadata, message):
    entries = {key: value for key, value in {**metadata_of(), **metadata}.items() if value is not None}
    write_onnx(bundle_path / "model/onnx-fp32.onnx", entries)
    rehash(bundle_path)
    (found,) = messages(bundle_path)
    assert message in found


def test_metadata_of_openvino_is_read_without_it(bundle_path):
    path = bundle_path / "model/openvino-fp16.xml"
    text = path.read_text()
    assert '<name value="colour"' in text
    path.write_text(text.replace('<name value="colour"', '<name value="other"'))
    rehash(bundle_path)
    assert messages(bundle_path) == ["model/openvino-fp16.xml: 'name' in the model file is not that of bundle.json"]


def test_metadata_is_what_the_runtimes_read(built_bundle):
    bundle = load_bundle(built_bundle)
    for variant in bundle.variants.values():
        path = bundle.model_path(variant)
        assert read_metadata(path) == open_session(path, variant.runtime).metadata() == metadata_of()
    assert set(CLASSES) <= set(json.loads(metadata_of()["classes"]))


def places(value, path=()):
    """The path of keys to everything in a JSON value."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_replaced_is_refused_or_found_but_never_crashes(measured_path, data):
    """By a careful forger, who seals it anew; but for what follows from nothing in the bundle."""
    good = (measured_path / "bundle.json").read_bytes()
    path = data.draw(st.sampled_from(sorted(places(json.loads(good)), key=str)))
    junk = data.draw(st.sampled_from([None, True, -1, 1.5, "x", "../x", [], {}, [{}], {"x": 1}]))
    value = json.loads(good)
    for key in path:
        value = value[key]
    assume(repr(value) != repr(junk))
    edit(measured_path, path, junk)
    try:
        found = bool(verify_bundle(measured_path).faults)
    except BundleFault:
        found = True
    finally:
        (measured_path / "bundle.json").write_bytes(good)
    assert found or path[0] in ("target", "provenance", "licences", "threads", "seal") or "providers" in path


def test_what_is_no_bundle_is_a_fault_of_its_own(tmp_path):
    with pytest.raises(BundleFault):
        verify_bundle(tmp_path)

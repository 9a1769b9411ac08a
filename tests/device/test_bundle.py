import json

import pytest

from tinyforge.device.bundle import (
    BundleFault,
    bundle_files,
    hash_faults,
    load_bundle,
    locate,
)

from .conftest import CLASSES, SPEC, change_record, write_record


def record_of(root):
    return json.loads((root / "bundle.json").read_text())


def test_a_good_bundle(built_bundle):
    bundle = load_bundle(built_bundle, check_hashes=True)
    assert bundle.classes == tuple(CLASSES)
    assert bundle.spec == SPEC
    assert bundle.variant().name == bundle.chosen == "onnx-fp32"
    assert bundle.model_path(bundle.variant("openvino-fp16")).name == "openvino-fp16.xml"
    assert bundle.variant("openvino-fp16").model_bytes > 0


def test_unhashed_files_and_byte_code_are_not_listed(bundle_path):
    (bundle_path / "report.html").write_text("anything")
    (bundle_path / ".venv").mkdir()
    (bundle_path / ".venv/pyvenv.cfg").write_text("")
    cache = bundle_path / "tinyforge_device/__pycache__"
    cache.mkdir()
    (cache / "spec.cpython-311.pyc").write_bytes(b"x")
    load_bundle(bundle_path, check_hashes=True)
    assert not {"bundle.json", "README.md", "report.html"} & set(bundle_files(bundle_path))


@pytest.mark.parametrize("key", ["schema_version", "name", "classes", "input", "threads", "model", "files", "scores"])
def test_every_key_is_needed(bundle_path, key):
    change_record(bundle_path, **{key: None})
    with pytest.raises(BundleFault, match=key.replace("_", ".")):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2, this program reads 1"),
        ({"schema_version": True}, "schema version True"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"name": 5}, "'name' must be text"),
        ({"threads": True}, "'threads' must be a whole number"),
        ({"threads": 0}, "'threads' must be at least 1"),
        ({"classes": []}, "'classes' must be unique names"),
        ({"classes": ["a", "a"]}, "'classes' must be unique names"),
        ({"classes": ["a", 3]}, "'classes' must be unique names"),
        ({"input": {**SPEC.to_json(), "size": [0, 8]}}, "'input': InputSpec: size"),
        ({"input": {"resize": "box"}}, "'input': .*size"),
        ({"input": {**SPEC.to_json(), "mean": ["a", 0, 0], "std": ["x", 1, 1]}}, "'input'"),
        ({"files": {"README.txt": "abc"}}, "not a sha256"),
        ({"model": {"chosen": "onnx-int8", "variants": {}}}, "no variant 'onnx-int8'"),
        ({"model": {"variants": {}}}, "'chosen' is missing"),
    ],
)
def test_faulty_records_are_refused(bundle_path, changes, message):
    change_record(bundle_path, **changes)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("runtime", "tflite", "unknown runtime 'tflite'"),
        ("precision", "int4", "unknown precision 'int4'"),
        ("files", [], "at least one"),
        ("files", [3], "must be an object"),
        ("files", "model", "'files' must be a list"),
    ],
)
def test_faulty_variants_are_refused(bundle_path, key, value, message):
    record = record_of(bundle_path)
    record["model"]["variants"]["onnx-fp32"][key] = value
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 1}, r"model/onnx-fp32\.onnx: \d+ bytes, bundle.json says 1"),
        ({"bytes": 0}, "'bytes' must be at least 1"),
        ({"bytes": "many"}, "'bytes' must be a whole number"),
        ({"sha256": "0" * 64}, "'model' and 'files' disagree"),
        ({"sha256": "xyz"}, "not a sha256"),
        ({"path": "model/absent.onnx"}, r"model/absent\.onnx: missing"),
        ({"path": "../outside.onnx"}, "leaves the bundle"),
    ],
)
def test_faulty_file_records_are_refused(bundle_path, change, message):
    record = record_of(bundle_path)
    record["model"]["variants"]["onnx-fp32"]["files"][0].update(change)
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


def test_a_file_named_twice_is_refused(bundle_path):
    record = record_of(bundle_path)
    record["model"]["variants"]["onnx-fp32"]["files"] *= 2
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match="must name each file once"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "model\\x", "C:x", "", "a\0b"])
def test_paths_that_leave_are_refused(bundle_path, name):
    with pytest.raises(BundleFault, match="leaves the bundle"):
        locate(bundle_path, name)


@pytest.mark.parametrize("name", ["a" * 1000, "\ud800"])
def test_unusable_paths_are_refused(bundle_path, name):
    with pytest.raises(BundleFault, match="cannot be used"):
        locate(bundle_path, name)


def test_paths_are_written_one_way(bundle_path):
    with pytest.raises(BundleFault, match="plain form"):
        locate(bundle_path, "model//onnx-fp32.onnx")


def test_symbolic_links_may_not_leave(bundle_path, tmp_path):
    (tmp_path / "outside").write_text("secret")
    (bundle_path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleFault, match="leaves the bundle through a symbolic link"):
        locate(bundle_path, "link")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"schema_version": 1', "not valid JSON"),
        ("[1]", "must be an object"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('"\\ud800', "not valid JSON"),
    ],
)
def test_damaged_json_is_refused(bundle_path, text, message):
    (bundle_path / "bundle.json").write_text(text)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


def test_not_a_bundle(tmp_path):
    with pytest.raises(BundleFault, match="is not a folder"):
        load_bundle(tmp_path / "absent")
    with pytest.raises(BundleFault, match=r"bundle\.json: missing"):
        load_bundle(tmp_path)


def test_changed_missing_and_added_files_are_all_found(bundle_path):
    bundle = load_bundle(bundle_path)
    (bundle_path / "selftest/0.png").write_bytes(b"other")
    (bundle_path / "selftest/1.png").unlink()
    (bundle_path / "new.txt").write_text("x")
    assert hash_faults(bundle) == [
        "selftest/0.png: changed, its sha256 differs from bundle.json",
        "selftest/1.png: missing",
        "new.txt: not listed in bundle.json",
    ]
    with pytest.raises(BundleFault, match=r"selftest/1\.png: missing"):
        load_bundle(bundle_path)

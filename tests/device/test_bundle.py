import hashlib
import json

import pytest

from tinyforge.device.bundle import hash_faults, load_bundle
from tinyforge.device.folder import BundleFault, check_distinct, check_name, locate
from tinyforge.device.predict import open_bundle, predict
from tinyforge.device.seal import bundle_files, digest_of, seal_of

from .conftest import CLASSES, SPEC, change_record, edit_record, read_record, rehash, write_record


def test_a_good_bundle(built_bundle):
    bundle = load_bundle(built_bundle, check_hashes=True)
    assert bundle.classes == tuple(CLASSES)
    assert bundle.spec == SPEC
    assert bundle.variant().name == bundle.chosen == "onnx-fp32"
    assert bundle.model_path(bundle.variant("openvino-fp16")).name == "openvino-fp16.xml"
    assert bundle.variant("openvino-fp16").model_bytes > 0


def test_every_file_is_listed_but_bundle_json_byte_code_and_what_is_hidden(bundle_path):
    (bundle_path / ".venv").mkdir()
    (bundle_path / ".venv/pyvenv.cfg").write_text("")
    cache = bundle_path / "tinyforge_device/__pycache__"
    cache.mkdir()
    (cache / "spec.cpython-311.pyc").write_bytes(b"x")
    load_bundle(bundle_path, check_hashes=True)
    assert {"README.md", "report.html", "requirements.txt"} < set(bundle_files(bundle_path))
    (cache / "payload.so").write_bytes(b"x")
    with pytest.raises(BundleFault, match=r"__pycache__/payload\.so: not listed"):
        load_bundle(bundle_path, check_hashes=True)


def test_the_seal_is_the_sha256_of_the_record_without_it(built_bundle):
    record = read_record(built_bundle)
    seal = record.pop("seal")
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert seal == seal_of(record) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_what_sha256sum_prints(built_bundle):
    data = (built_bundle / "bundle.json").read_bytes()
    assert load_bundle(built_bundle).digest == digest_of(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"seed": 0', '"seed": 1'),
        lambda text: text.replace('"seed": 0', '"seed":  0'),
        lambda text: text.replace('"seed": 0', '"seed": 0.0'),
        lambda text: text.rstrip(),
        lambda text: text.replace("colour", "\\u0063olour"),
    ],
)
def test_an_edited_record_is_not_used(bundle_path, edit):
    path = bundle_path / "bundle.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(BundleFault, match="edited after it was sealed"):
        load_bundle(bundle_path)
    assert load_bundle(bundle_path, sealed=False).unsealed


@pytest.mark.parametrize("key", ["schema_version", "name", "classes", "input", "threads", "model", "files", "scores"])
def test_every_key_is_needed(bundle_path, key):
    change_record(bundle_path, **{key: None})
    with pytest.raises(BundleFault, match=key.replace("_", ".")):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema version 1, of an older TinyForge; build it again with this version"),
        ({"schema_version": 3}, "schema version 3, this program reads 2"),
        ({"schema_version": "2"}, "schema version '2', this program reads 2"),
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
        ({"model": {"chosen": "a", "variants": {}, "extra": 1}}, "bundle.json: 'model': unknown key 'extra'"),
        ({"licences": [1, 2]}, r"licences\[0\]: must be an object"),
        ({"licences": [{"name": "x", "licence": "MIT"}, {"name": "y"}]}, r"licences\[1\]: 'licence' is missing"),
        ({"licences": [{"name": "x", "licence": 1}]}, r"licences\[0\]: 'licence' must be text"),
        ({"licences": [{"name": ["x"], "licence": "MIT"}]}, r"licences\[0\]: 'name' must be text"),
        ({"provenance": [1]}, "'provenance' must be an object"),
    ],
)
def test_faulty_records_are_refused(bundle_path, changes, message):
    change_record(bundle_path, **changes)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


def test_more_may_be_told_of_licences_but_not_of_files(bundle_path):
    change_record(bundle_path, licences=[{"name": "x", "licence": "MIT", "url": "https://example.org"}])
    load_bundle(bundle_path)
    edit_record(bundle_path, lambda record: record["model"]["variants"]["onnx-fp32"]["files"][0].update(extra=1))
    with pytest.raises(BundleFault, match=r"variant 'onnx-fp32', model/onnx-fp32.onnx: unknown key 'extra'"):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("runtime", "tflite", "unknown runtime 'tflite'"),
        ("precision", "int4", "unknown precision 'int4'"),
        ("files", [], "at least one"),
        ("files", [3], "must be an object"),
        ("files", "model", "'files' must be a list"),
        ("extra", 1, "variant 'onnx-fp32': unknown key 'extra'"),
    ],
)
def test_faulty_variants_are_refused(bundle_path, key, value, message):
    record = read_record(bundle_path)
    record["model"]["variants"]["onnx-fp32"][key] = value
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": 0}, "'bytes' must be at least 1"),
        ({"bytes": "many"}, "'bytes' must be a whole number"),
        ({"sha256": "0" * 64}, "'model' and 'files' disagree"),
        ({"sha256": "xyz"}, "not a sha256"),
        ({"path": "model/absent.onnx"}, r"model/absent\.onnx: named in 'model', but not in 'files'"),
        ({"path": "../outside.onnx"}, "leaves the bundle"),
    ],
)
def test_faulty_file_records_are_refused(bundle_path, change, message):
    record = read_record(bundle_path)
    record["model"]["variants"]["onnx-fp32"]["files"][0].update(change)
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


def test_a_file_named_twice_is_refused(bundle_path):
    record = read_record(bundle_path)
    record["model"]["variants"]["onnx-fp32"]["files"] *= 2
    write_record(bundle_path, record)
    with pytest.raises(BundleFault, match="must name each file once"):
        load_bundle(bundle_path)


NAMES = [
    ("/etc/passwd", "is absolute"),
    ("../x", "leaves the bundle"),
    ("a/../../x", "leaves the bundle"),
    ("model\\x", "is a Windows path"),
    ("C:x", "is a Windows path"),
    ("\\\\server\\share", "is a Windows path"),
    ("", "is empty"),
    ("a\0b", "control character"),
    ("a\nb", "control character"),
    ("model//onnx-fp32.onnx", "plain form"),
    ("./model", "plain form"),
    ("model/", "plain form"),
    ("model/nul.onnx", "not portable"),
    ("model/x.", "not portable"),
    ("a" * 1000, "cannot be used"),
    ("\ud800", "cannot be used"),
]


@pytest.mark.parametrize(("name", "reason"), NAMES)
def test_unsafe_paths_are_refused_wherever_they_stand(bundle_path, name, reason):
    with pytest.raises(BundleFault, match=reason):
        locate(bundle_path, name)
    record = read_record(bundle_path)
    text = json.dumps({**record, "files": {**record["files"], name: "0" * 64}})
    (bundle_path / "bundle.json").write_text(text)
    with pytest.raises(BundleFault, match=reason):
        load_bundle(bundle_path)


@pytest.mark.parametrize("name", ["model/onnx-fp32.onnx", "ü/é.png", ".hidden", "a b.txt", "console.txt"])
def test_safe_paths(name):
    check_name(name)


@pytest.mark.parametrize("pair", [("README.md", "readme.MD"), ("\u00e9.png", "e\u0301.png"), ("straße", "STRASSE")])
def test_names_that_are_one_file_elsewhere(pair):
    with pytest.raises(BundleFault, match="same file on some systems"):
        check_distinct(pair)


def test_a_folder_in_the_place_of_a_file(bundle_path):
    (bundle_path / "report.html").unlink()
    (bundle_path / "report.html").mkdir()
    with pytest.raises(BundleFault, match=r"report\.html: is not a regular file"):
        load_bundle(bundle_path)


def test_symbolic_links_may_not_leave(bundle_path, tmp_path):
    (tmp_path / "outside").write_text("secret")
    (bundle_path / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleFault, match="leaves the bundle through a symbolic link"):
        locate(bundle_path, "link")
    assert ("link", "link: not listed in bundle.json") in hash_faults(load_bundle(bundle_path))


def test_symbolic_links_are_refused_inside_too(bundle_path):
    (bundle_path / "report.html").unlink()
    (bundle_path / "report.html").symlink_to("README.md")
    with pytest.raises(BundleFault, match=r"'report\.html' is a symbolic link"):
        load_bundle(bundle_path)


def test_a_linked_folder_is_found(bundle_path, tmp_path):
    (tmp_path / "outside").mkdir()
    (bundle_path / "more").symlink_to(tmp_path / "outside")
    assert hash_faults(load_bundle(bundle_path)) == [("more", "more: not listed in bundle.json")]
    (bundle_path / "more").unlink()
    (bundle_path / "selftest").rename(tmp_path / "selftest")
    (bundle_path / "selftest").symlink_to(tmp_path / "selftest")
    with pytest.raises(BundleFault, match="leaves the bundle through a symbolic link"):
        load_bundle(bundle_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"schema_version": 1', "not valid JSON"),
        ("[1]", "must be an object"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
        ('"\\ud800', "not valid JSON"),
    ],
)
def test_damaged_json_is_refused(bundle_path, text, message):
    (bundle_path / "bundle.json").write_text(text)
    with pytest.raises(BundleFault, match=message):
        load_bundle(bundle_path)


def test_a_huge_record_is_not_read(bundle_path):
    with (bundle_path / "bundle.json").open("r+b") as stream:
        stream.truncate(2**40)
    with pytest.raises(BundleFault, match=r"bundle\.json: larger than \d+ bytes"):
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
        ("selftest/0.png", "selftest/0.png: changed, its sha256 differs from bundle.json"),
        ("selftest/1.png", "selftest/1.png: missing"),
        ("new.txt", "new.txt: not listed in bundle.json"),
    ]
    with pytest.raises(BundleFault, match=r"selftest/1\.png: missing"):
        load_bundle(bundle_path)


def test_a_changed_model_is_not_opened(bundle_path):
    bundle = load_bundle(bundle_path)
    with (bundle_path / "model/openvino-fp16.bin").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleFault, match=r"model/openvino-fp16\.bin: changed"):
        bundle.model_path(bundle.variant("openvino-fp16"))
    rehash(bundle_path)
    again = load_bundle(bundle_path)
    assert again.model_path(again.variant("openvino-fp16")).is_file()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("scores", {"x": 3}, "scores of 'x': must be an object"),
        ("scores", {"x": {"n": 1, "accuracy": 1.0, "low": 0.5}}, "scores of 'x': 'high' is missing"),
        ("scores", {"x": {"n": 1, "accuracy": "all", "low": 0.5, "high": 1.0}}, "'accuracy' must be a number"),
        ("latency", {"onnx-fp32": 1}, "latency of 'onnx-fp32': must be an object"),
        ("latency", {"onnx-fp32": {"p50_ms": "fast"}}, "'p50_ms' must be a number"),
        ("certificate", {}, "'certificate': 'statement' is missing"),
        ("certificate", {"statement": 3}, "'statement' must be text"),
    ],
)
def test_what_is_shown_of_a_bundle_is_checked_though_it_is_sealed(bundle_path, key, value, words):
    change_record(bundle_path, **{key: value})
    with pytest.raises(BundleFault, match=words):
        load_bundle(bundle_path)
    load_bundle(bundle_path, sealed=False)


def test_a_model_of_other_classes_gives_no_answers(bundle_path):
    change_record(bundle_path, classes=["a"])
    bundle = load_bundle(bundle_path)
    image = bundle_path / "selftest/0.png"
    with pytest.raises(BundleFault, match=r"tells 3 classes apart, bundle\.json names 1"):
        predict(bundle, open_bundle(bundle), [image])

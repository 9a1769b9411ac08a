"""The bundle as it is used on a device: its own copy of the package, in its own process."""

import hashlib
import json
import os
import shutil
import signal

import pytest

from tinyforge.device.__main__ import main
from tinyforge.device.plain import plain
from tinyforge.device.report import outcome_text, predictions_text, scores_text, table
from tinyforge.device.stats import score

from .conftest import colour_picture, edit_record, encode, rehash, run_module


@pytest.fixture
def photos(tmp_path):
    paths = []
    for label, name in enumerate(["a red.jpg", "b.png", "ü.png"]):
        path = tmp_path / name
        path.write_bytes(encode(colour_picture(label, seed=7), "JPEG" if name.endswith("jpg") else "PNG"))
        paths.append(str(path))
    return paths


def test_predict(built_bundle, photos):
    done = run_module(built_bundle, "predict", ".", *photos, "--top", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)["predictions"]
    assert [result["image"] for result in results] == photos
    assert [result["answers"][0]["class"] for result in results] == ["red", "green", "blue"]
    assert all(len(result["answers"]) == 2 for result in results)
    assert all(0.33 < result["answers"][0]["probability"] <= 1 for result in results)


def test_predict_names_bad_images_and_answers_the_rest(built_bundle, photos, tmp_path):
    (tmp_path / "empty.png").touch()
    done = run_module(built_bundle, "predict", ".", str(tmp_path / "empty.png"), photos[2])
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path / 'empty.png'}: empty file\n"
    assert done.stdout.startswith(f"{photos[2]}: blue ")


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp16"])
def test_bench(built_bundle, variant):
    options = ["--variant", variant, "--seconds", "0", "--runs", "64", "--warmup", "3"]
    done = run_module(built_bundle, "bench", ".", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["bundle"] == "colour"
    assert report["variants"][variant]["p90_ms"] > 0
    assert report["variants"][variant]["p99_ms"] is None


def test_bench_as_text(built_bundle, photos, capsys):
    options = ["--seconds", "0", "--runs", "64", "--warmup", "3", "--variant", "all", "--images", photos[0]]
    assert main(["bench", str(built_bundle), *options]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("onnx-fp32", "openvino-fp16", "peak_rss_mib", "decode", "preprocess"))


@pytest.mark.parametrize("command", ["selftest", "verify"])
def test_selftest_and_verify_pass(built_bundle, command):
    done = run_module(built_bundle, command, ".")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"{command} passed, ")


@pytest.mark.parametrize("command", ["selftest", "verify"])
def test_a_changed_file_fails_with_1(bundle_path, command):
    (bundle_path / "selftest/0.png").write_bytes(b"other")
    done = run_module(bundle_path, command, ".", "--json")
    assert done.returncode == 1
    outcome = json.loads(done.stdout)
    assert not outcome["ok"]
    assert outcome["faults"][0] == {
        "check": "file",
        "where": "selftest/0.png",
        "message": "selftest/0.png: changed, its sha256 differs from bundle.json",
    }


@pytest.mark.parametrize(("command", "code"), [(["verify"], 1), (["selftest"], 1), (["bench"], 2), (["predict"], 2)])
def test_an_edited_record_is_found_by_checks_and_not_used_otherwise(bundle_path, photos, capsys, command, code):
    edit_record(bundle_path, lambda record: record.update(threads=2), seal=False)
    assert main([*command, str(bundle_path), *(photos[:1] if command == ["predict"] else [])]) == code
    printed = capsys.readouterr()
    assert "bundle.json: edited after it was sealed" in printed.out + printed.err


def test_verify_tells_digest_and_certificate(built_bundle, capsys):
    assert main(["verify", str(built_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"digest: {hashlib.sha256((built_bundle / 'bundle.json').read_bytes()).hexdigest()}"
    assert lines[1].startswith("certificate: top-1 >= ")
    assert main(["verify", str(built_bundle), "--digest", lines[0].split()[1]]) == 0
    assert main(["verify", str(built_bundle), "--digest", "0" * 64, "--json"]) == 1
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["faults"][0]["check"] == "digest"


@pytest.mark.parametrize(
    "arguments", [[], ["fly", "."], ["predict", "."], ["bench", ".", "--runs", "0"], ["bench", ".", "--seconds", "nan"]]
)
def test_wrong_usage_is_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


@pytest.mark.parametrize("command", [["selftest"], ["verify"], ["bench"], ["predict"]])
def test_no_bundle_is_2_with_one_line(tmp_path, capsys, command):
    images = ["x.png"] if command == ["predict"] else []
    assert main([*command, str(tmp_path), *images]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: bundle.json: missing in {tmp_path}; is that a bundle, whole? Copy it again or build it\n"


def test_unknown_variant_is_2(built_bundle, capsys):
    assert main(["selftest", str(built_bundle), "--variant", "onnx-int4"]) == 2
    assert "no variant 'onnx-int4' in this bundle; it has onnx-fp32, openvino-fp16" in capsys.readouterr().err


def test_unopenable_model_is_2(bundle_path, photos, capsys):
    model = bundle_path / "model/onnx-fp32.onnx"
    model.write_bytes(b"\xff" * model.stat().st_size)
    assert main(["predict", str(bundle_path), photos[0]]) == 2
    assert "model/onnx-fp32.onnx: changed" in capsys.readouterr().err
    rehash(bundle_path)
    assert main(["predict", str(bundle_path), photos[0]]) == 2
    assert "onnxruntime cannot open it" in capsys.readouterr().err


def test_missing_runtime_is_3(built_bundle, photos, tmp_path, monkeypatch):
    """A module of that name which cannot be imported stands for one that is not installed."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/onnxruntime.py").write_text("raise ModuleNotFoundError('not here', name='onnxruntime')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    for arguments in (["predict", ".", photos[0]], ["selftest", "."], ["bench", "."]):
        done = run_module(built_bundle, *arguments)
        assert done.returncode == 3, arguments
        assert done.stderr.startswith("error: onnxruntime is not installed")
    assert run_module(built_bundle, "predict", ".", photos[0], "--variant", "openvino-fp16").returncode == 0


def test_a_runtime_that_cannot_be_imported_is_not_called_absent(built_bundle, photos, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so: cannot open')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_module(built_bundle, "predict", ".", photos[0])
    assert done.returncode == 3
    assert "onnxruntime is installed, but cannot be imported (libfoo.so: cannot open)" in done.stderr


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="interrupts are ignored: a background job"
)
def test_an_interrupt_while_a_runtime_is_imported_is_130(built_bundle, photos, tmp_path, monkeypatch):
    """As numpy's C interface does, the module takes the interrupt for a broken import."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.2)\n"
        "except KeyboardInterrupt:\n    pass\n"
        "raise ImportError('numpy.core.multiarray failed to import')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for command in (["predict", ".", photos[0]], ["verify", "."]):
        done = run_module(built_bundle, *command)
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n"), done.stdout


@pytest.mark.parametrize("sign", ["\x1b[2J", "\u202e", "\n", "\x00", "\u2028", "\udce9", "\x9b"])
def test_what_steers_a_terminal_is_written_out(sign):
    shown = plain(f"a{sign}b")
    assert shown.isprintable()
    assert shown == f"a{sign.encode('unicode_escape').decode()}b"
    answers = [{"image": "x.png", "answers": [{"class": f"a{sign}b", "probability": 1.0}]}]
    assert predictions_text(answers) == f"x.png: {shown} 100.0 %"
    assert table(["name"], [[f"a{sign}b"]]).splitlines()[2] == shown
    fault = {"check": "file", "message": f"a{sign}b"}
    assert f"file: {shown}\n" in outcome_text({"ok": False, "checks": 1, "faults": [fault], "notes": []}, "verify")


def test_letters_of_all_scripts_stay():
    text = "caf\u00e9 \u4eba \U0001f469\u200d\U0001f373 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert plain(text) == text


def test_missing_numpy_is_3(built_bundle, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('not here', name='numpy')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_module(built_bundle, "selftest", ".")
    assert (done.returncode, done.stderr) == (3, "error: numpy is missing; pip install -r requirements.txt\n")


@pytest.mark.parametrize(
    ("module", "size"),
    [
        *((name, None) for name in ("tiers", "plain", "folder", "seal", "selftest", "report", "runtime")),
        *((name, 0) for name in ("plain", "folder", "tiers")),
        ("selftest", 3000),
        ("plain", 300),
    ],
)
def test_a_damaged_program_is_2_with_one_line(bundle_path, module, size):
    """A module lost on the way (None), or cut to so many bytes."""
    path = bundle_path / f"tinyforge_device/{module}.py"
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    done = run_module(bundle_path, "selftest", ".")
    told = f"error: this bundle's program is damaged: tinyforge_device/{module}.py; copy the bundle again\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_a_module_that_ends_too_early_but_reads_well_is_told_by_its_hash(bundle_path):
    path = bundle_path / "tinyforge_device/preprocess.py"
    path.write_bytes(path.read_bytes() + b"\nnot_a_name\n")
    done = run_module(bundle_path, "selftest", ".")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "program is damaged: tinyforge_device/preprocess.py;" in done.stderr


def test_a_damaged_program_without_its_record_is_told_too(bundle_path):
    (bundle_path / "bundle.json").unlink()
    (bundle_path / "tinyforge_device/folder.py").unlink()
    done = run_module(bundle_path, "verify", ".")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "program is damaged: tinyforge_device/folder.py;" in done.stderr


def test_undecodable_bench_image_is_2(built_bundle, tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"nonsense")
    assert main(["bench", str(built_bundle), "--images", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'x.png'}: not an image, or its header is damaged\n"


def test_another_bundle_than_its_own(built_bundle, tmp_path):
    """The package of one bundle checks another, from any working directory."""
    shutil.copytree(built_bundle / "tinyforge_device", tmp_path / "tinyforge_device")
    done = run_module(tmp_path, "selftest", os.path.relpath(built_bundle, tmp_path))
    assert done.returncode == 0


def test_internal_faults_are_5(bundle_path, monkeypatch, capsys):
    monkeypatch.setattr("tinyforge.device.verify.verify_bundle", lambda path, digest: 1 / 0)
    assert main(["verify", str(bundle_path)]) == 5
    assert capsys.readouterr().err == "error: internal: ZeroDivisionError: division by zero\n"


def test_table_is_aligned():
    assert table(["name", "ms"], [["a", 1.5], ["longer", None]]).splitlines() == [
        "name       ms",
        "------  -----",
        "a       1.500",
        "longer      -",
    ]
    assert table(["name"], []) == "name\n----"


def test_a_score_shows_its_interval_and_n():
    assert scores_text({"student": score(170, 200)}).splitlines()[-1] == "student  85.0 % (79.4-89.3), n = 200"


def test_undecodable_images_have_no_line():
    assert predictions_text([{"image": "a", "error": "empty file"}]) == ""

"""A bundle is written, read back by the device package, and runs from the folder alone."""

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from device.conftest import bench_model

from tinyforge.compress.bundle import FLOORS, Contents, bundle_digest, requirements, write_bundle
from tinyforge.compress.variants import Variant
from tinyforge.device.bundle import load_bundle
from tinyforge.device.folder import BundleFault
from tinyforge.device.machine import describe_machine
from tinyforge.device.preprocess import decode
from tinyforge.device.verify import verify_bundle
from tinyforge.errors import BundleError, GateError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contents(made, digits, student_logits, classes, spec, tmp_path_factory) -> Contents:
    labels = digits.labels[1000:].tolist()
    predicted = student_logits.argmax(axis=1).tolist()
    names = [f"{index}.png" for index in range(1000, 1000 + len(labels))]
    image = tmp_path_factory.mktemp("images") / "0.png"
    image.write_bytes(digits.png(0))
    model = made.folder / "onnx-int8.onnx"
    latency = bench_model(model, [image], spec)
    return Contents(
        name="digits",
        target="raspi4",
        classes=classes,
        spec=spec,
        threads=1,
        chosen="onnx-int8",
        models=made.folder,
        made=list(made.variants.values()),
        golden_images={f"{index}.png": digits.png(index) for index in range(4)},
        recipe_lock='name = "digits"\n',
        report_html="<!doctype html><title>digits</title>",
        predictions={
            method: {"names": names, "labels": labels, "predicted": predicted}
            for method in ("student", "onnx-fp32", "onnx-int8")
        },
        latency={"onnx-int8": latency},
        machine=describe_machine(),
        provenance={"seed": 0},
        licences=[{"name": "backbone", "licence": "Apache-2.0"}],
        notes=["Photographs are outside | the *domain*."],
    )


@pytest.fixture(scope="module")
def bundle(contents: Contents, tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "digits-raspi4", contents)


def test_int8_models_for_a_target_of_exact_sums_say_so_and_verify(contents: Contents, tmp_path: Path):
    loaded = load_bundle(write_bundle(tmp_path / "digits-raspi4", replace(contents, exact_int8=True)))
    assert {name: one.exact_int8 for name, one in loaded.variants.items()} == {"onnx-int8": True, "onnx-fp32": False}
    assert verify_bundle(loaded.root).ok


def test_the_device_reads_and_verifies_it(bundle: Path, contents: Contents, spec):
    loaded = load_bundle(bundle, check_hashes=True)
    assert (loaded.name, loaded.target, loaded.chosen) == ("digits", "raspi4", "onnx-int8")
    assert loaded.classes == tuple(contents.classes)
    assert loaded.spec == spec
    assert sorted(loaded.variants) == ["onnx-fp32", "onnx-int8"]
    outcome = verify_bundle(bundle)
    assert outcome.faults == []
    assert outcome.checks > 20


def test_it_runs_from_the_folder_alone(bundle: Path, tmp_path: Path, digits):
    """Nothing but its own package and site-packages: the project is not on the path, and no torch is imported."""
    (tmp_path / "seven.png").write_bytes(digits.png(7))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> dict:
        command = [sys.executable, "-W", "error", "-m", "tinyforge_device", *arguments, "--json"]
        done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("selftest", ".")["ok"]
    assert run("verify", ".")["ok"]
    answer = run("predict", ".", str(tmp_path / "seven.png"))["predictions"][0]
    assert "7" in json.dumps(answer)
    assert not list(bundle.rglob("*.pyc")) or load_bundle(bundle, check_hashes=True)


def test_everything_of_the_format_is_there_and_nothing_else(bundle: Path):
    top = {path.name for path in bundle.iterdir()}
    assert top == {
        *("bundle.json", "model", "tinyforge_device", "selftest", "predictions", "latency"),
        *("recipe.lock.toml", "requirements.txt", "README.md", "report.html"),
    }
    assert {path.name for path in (bundle / "model").iterdir()} == {"onnx-int8.onnx", "onnx-fp32.onnx"}
    packed = {path.name: path.read_bytes() for path in (bundle / "tinyforge_device").glob("*.py")}
    assert packed == {path.name: path.read_bytes() for path in (ROOT / "tinyforge/device").glob("*.py")}
    assert decode(bundle / "selftest" / "0.png").shape == (16, 16, 3)


def test_same_contents_same_bytes(bundle: Path, contents: Contents, tmp_path: Path):
    again = write_bundle(tmp_path / "elsewhere", contents)
    files = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert [str(file) for file in files if (again / file).read_bytes() != (bundle / file).read_bytes()] == []
    text = (bundle / "bundle.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_score_comes_from_the_predictions(bundle: Path, contents: Contents):
    score = json.loads((bundle / "bundle.json").read_text())["scores"]["student"]
    one = contents.predictions["student"]
    assert score["correct"] == sum(a == b for a, b in zip(one["labels"], one["predicted"], strict=True))
    assert score["low"] < score["accuracy"] < score["high"]


def test_every_byte_is_covered_and_the_digest_is_sha256sums(bundle: Path):
    listed = json.loads((bundle / "bundle.json").read_bytes())["files"]
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert {name for name in there if "__pycache__" not in name} == {*listed, "bundle.json"}
    digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert bundle_digest(bundle) == verify_bundle(bundle).facts["digest"] == digest
    (fault,) = verify_bundle(bundle, "0" * 64).faults
    assert fault["check"] == "digest"


def test_the_certificate_is_of_the_shipped_model(bundle: Path, contents: Contents):
    found = json.loads((bundle / "bundle.json").read_bytes())["certificate"]
    assert found["variant"] == "onnx-int8"
    assert found["accuracy"]["n"] == 797
    assert 0.5 < found["accuracy"]["at_least"] < found["accuracy"]["correct"] / 797
    slowest = sorted(contents.latency["onnx-int8"]["raw_us"]["infer"])
    if found["latency"]["reason"] == "":
        assert slowest[0] / 1000 < found["latency"]["at_most_ms"] <= slowest[-1] / 1000
    assert found["statement"] in (bundle / "README.md").read_text().replace("\\", "")


def test_parity_is_of_the_shipped_model_beside_the_reference(bundle: Path):
    parity = json.loads((bundle / "bundle.json").read_bytes())["parity"]
    assert list(parity) == ["onnx-int8"]
    assert parity["onnx-int8"]["against"] == "onnx-fp32"
    assert (parity["onnx-int8"]["agreement"], parity["onnx-int8"]["drop"]) == (1.0, 0.0)
    assert parity["onnx-int8"]["low"] < 0 < parity["onnx-int8"]["high"]


def test_without_test_images_no_accuracy_is_certified(contents: Contents, tmp_path: Path):
    folder = write_bundle(tmp_path / "b", replace(contents, predictions={}, latency={}))
    found = json.loads((folder / "bundle.json").read_bytes())
    assert (found["certificate"]["accuracy"], found["certificate"]["latency"], found["parity"]) == (None, None, {})
    assert "no accuracy is claimed: there were no test images" in (folder / "README.md").read_text()


def test_a_bundle_of_an_older_schema_is_replaced(contents: Contents, tmp_path: Path):
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "bundle.json").write_text('{"schema_version": 1, "name": "digits", "target": "raspi4"}')
    with pytest.raises(BundleFault, match="build it again with this version"):
        load_bundle(folder)
    assert load_bundle(write_bundle(folder, contents)).name == "digits"


def test_the_card_says_what_how_well_and_how_to_run(bundle: Path):
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# digits for raspi4\n")
    assert "nine & \\<nine>" in card
    assert "python -m tinyforge_device predict . photo.jpg" in card
    assert re.search(r"\| student \| 797 \| \d+ \| \d\d\.\d \| \d\d\.\d – \d\d\.\d \|", card)
    assert re.search(r"\| onnx-int8 \| [\d.]+ \| [\d.]+ \| – \| 64 \|", card)
    assert "- Photographs are outside \\| the \\*domain\\*." in card


def test_floors_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["host"]]
    floors = {name.lower(): floor for name, floor in (one.split(">=") for one in listed)}
    assert {name: floors[name.lower()] for name in FLOORS} == FLOORS
    assert requirements("openvino").splitlines()[-1] == f"openvino>={FLOORS['openvino']}"


def test_an_openvino_bundle_needs_openvino(contents: Contents, tmp_path: Path):
    folder = write_bundle(tmp_path / "b", replace(contents, chosen="openvino-int8", latency={}))
    assert "openvino" in (folder / "requirements.txt").read_text()
    assert {path.name for path in (folder / "model").iterdir()} == {
        *("openvino-int8.xml", "openvino-int8.bin", "onnx-fp32.onnx"),
    }
    assert "Not measured" in (folder / "README.md").read_text()


def test_a_bundle_of_the_same_recipe_is_replaced(contents: Contents, tmp_path: Path):
    folder = write_bundle(tmp_path / "b", contents)
    (folder / "stray.txt").write_text("left by a person")
    write_bundle(folder, replace(contents, provenance={"seed": 1}))
    assert json.loads((folder / "bundle.json").read_text())["provenance"] == {"seed": 1}
    assert not (folder / "stray.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_anything_else_is_replaced_only_when_asked(contents: Contents, tmp_path: Path):
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="in the way"):
        write_bundle(folder, contents)
    assert (folder / "thesis.txt").read_text() == "mine"
    write_bundle(folder, contents, overwrite=True)
    with pytest.raises(BundleError, match="another recipe, 'digits'"):
        write_bundle(folder, replace(contents, name="letters"))
    assert load_bundle(folder).name == "digits"


def test_a_bundle_that_does_not_verify_is_not_delivered(contents: Contents, tmp_path: Path):
    folder = write_bundle(tmp_path / "b", contents)
    before = (folder / "bundle.json").read_bytes()
    swapped = replace(contents, classes=list(reversed(contents.classes)))
    with pytest.raises(GateError, match="'classes' in the model file"):
        write_bundle(folder, swapped)
    assert (folder / "bundle.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_a_killed_build_left_is_gone_after_the_next(contents: Contents, tmp_path: Path):
    leftover = tmp_path / ".b-being-written" / "new" / "model"
    leftover.mkdir(parents=True)
    (leftover / "half.onnx").write_bytes(b"half")
    write_bundle(tmp_path / "b", contents)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_processes_do_not_write_the_same_bundle(contents: Contents, tmp_path: Path):
    (tmp_path / ".b-being-written").mkdir()
    handle = os.open(tmp_path / ".b-being-written", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BundleError, match="being written by another process"):
        write_bundle(tmp_path / "b", contents)
    os.close(handle)
    write_bundle(tmp_path / "b", contents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "openvino-fp32"}, "openvino-fp32: it was not made"),
        ({"predictions": {"../x": {"names": ["a"], "labels": [0], "predicted": [0]}}}, "cannot name a file"),
    ],
)
def test_contents_that_make_no_bundle(contents: Contents, tmp_path: Path, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_bundle(tmp_path / "b", replace(contents, **change))
    assert not list(tmp_path.iterdir())


def test_variants_survive_json(made):
    for variant in made.variants.values():
        assert Variant.from_json(json.loads(json.dumps(variant.to_json()))) == variant

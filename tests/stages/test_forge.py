"""The whole road on a tiny backbone: what it leaves, what it reuses, and that kill -9 changes nothing."""

import hashlib
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tinyforge.device.bundle import load_bundle
from tinyforge.device.preprocess import decode
from tinyforge.device.verify import verify_bundle
from tinyforge.errors import BundleError, GateError, MissingError, RecipeError, UsageError
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages import STAGES, dry_run, forge
from tinyforge.store import Store


def told(lines):
    return lambda text: lines.append(text)


def recipe_for(inputs, *more):
    images, test, overrides = inputs
    return load_recipe("smoke", [*overrides, f'data.path="{images}"', f'data.test="{test}"', *more])


def test_what_another_build_makes_anew_is_not_read(forge_inputs, tmp_path):
    recipe = recipe_for(forge_inputs)
    with Store(tmp_path / "store").in_use(alone=True), pytest.raises(UsageError, match="--overwrite"):
        forge(recipe, load_target(recipe.target), tmp_path, log=told([]))
    with Store(tmp_path / "store").in_use(alone=False), pytest.raises(UsageError, match="in use"):
        forge(recipe, load_target(recipe.target), tmp_path, log=told([]), overwrite=True)


@pytest.fixture(scope="module")
def built(forge_inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    recipe = recipe_for(forge_inputs)
    return recipe, out, forge(recipe, load_target(recipe.target), out, log=told([]))


def test_a_build_leaves_a_bundle_that_verifies(built):
    _, _, result = built
    assert verify_bundle(result["bundle"]).ok
    assert {"support-hard", "support-kd", "tint-teacher", "teacher", "onnx-fp32", "onnx-int8"} <= set(result["scores"])
    assert all(
        score["n"] == 16 and score["low"] <= score["accuracy"] <= score["high"] for score in result["scores"].values()
    )
    assert result["chosen"].startswith("onnx")  # the Pi's recipe
    assert "openvino-int8" not in {one["name"] for one in result["variants"]}, "the Pi does not run it"


def test_a_bundle_says_what_its_ranges_were_calibrated_on(built):
    recipe, out, result = built
    record = load_bundle(result["bundle"]).record
    told = record["provenance"]["calibration"]
    made = json.loads(next((out / "store").glob("compress-*/compress.json")).read_text())["calibration_sha256"]
    assert told["images"] == len(made) == recipe.compress.calibration_images
    assert told["sha256"] == hashlib.sha256("".join(made).encode()).hexdigest()
    int8 = [one for one in record["model"]["variants"].values() if one["precision"] == "int8"]  # where it was faster
    assert all(one["exact_int8"] for one in int8), "an Arm board's sums are exact"
    assert [load_target(name).exact_int8 for name in ("raspi4", "jetson-orin", "intel-cpu")] == [True, True, False]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher.name", "nowhere", "no teacher at 'nowhere'"),
        ("teacher.name", "timm:resnet10tt", "timm has no model"),
        ("distill.student", "conv5", "no student 'conv5'"),
        ("distill.student", "timm:resnet10tt", "timm has no model"),
    ],
)
def test_wrong_models_are_told_before_the_first_stage(forge_inputs, tmp_path, key, value, message):
    recipe = recipe_for(forge_inputs, f'{key}="{value}"')
    lines: list[str] = []
    with pytest.raises(RecipeError, match=message):
        forge(recipe, load_target(recipe.target), tmp_path, log=told(lines))
    assert not [line for line in lines if line.startswith("invert")]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_bundles_place_is_told_before_the_first_stage(forge_inputs, tmp_path):
    recipe = recipe_for(forge_inputs)
    (tmp_path / f"{recipe.name}-{recipe.target}").mkdir()
    with pytest.raises(BundleError, match="is in the way and is not a bundle"):
        forge(recipe, load_target(recipe.target), tmp_path, log=told([]))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_report_shows_the_certificate_of_the_bundle(built):
    bundle = load_bundle(built[2]["bundle"])
    statement = bundle.record["certificate"]["statement"]
    assert "top-1 >= " in statement
    assert "p90 of inference <= " in statement
    assert statement in html.unescape((bundle.root / "report.html").read_text(encoding="utf-8"))


def test_the_backbone_is_told_to_be_out_of_its_domain(built):
    assert any("outside the domain" in text for text in built[2]["warnings"])


def test_a_second_build_makes_no_stage_again(built):
    recipe, out, _ = built
    lines = []
    forge(recipe, load_target(recipe.target), out, until="compress", log=told(lines))
    assert sum("was done before" in line for line in lines) == len(STAGES) - 1
    assert [stage["state"] for stage in dry_run(recipe, load_target(recipe.target), out, log=told([]))[:-1]] == [
        "done"
    ] * 4


def test_more_images_do_not_invert_again_and_keep_the_first(built, forge_inputs):
    recipe, out, result = built
    more = recipe_for(forge_inputs, "synthesize.images_per_class=8")
    lines = []
    longer = forge(more, load_target(recipe.target), out, until="synthesize", log=told(lines))
    assert longer["stages"]["invert"] == result["stages"]["invert"]
    assert longer["stages"]["synthesize"] != result["stages"]["synthesize"]


def test_other_test_images_do_not_change_what_is_learned_before_them(built, forge_inputs, tmp_path):
    _, out, _ = built
    fewer = shutil.copytree(forge_inputs[1], tmp_path / "fewer")
    next(fewer.rglob("*.png")).unlink()
    plan = dry_run(recipe_for(forge_inputs, f'data.test="{fewer}"'), load_target("raspi4"), out, log=told([]))
    assert [stage["state"] for stage in plan[:2]] == ["done", "done"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.student='conv5'", "no student 'conv5'"),
        ("invert.upscale='nowhere.pth'", "no file nowhere.pth"),
        ("invert.initializers={goose='bird'}", "goose"),
        ("teacher.name='nowhere'", "no teacher at 'nowhere'"),
        ("backbone.name='CompVis/nowhere'", "a dry run downloads nothing"),
        ("backbone.name='photo'", "did you mean 'photos'"),
        ("teacher.name='timm:vit_small_patch16_224.dino'", "a dry run downloads nothing"),
        ("teacher.name='photo'", "did you mean 'photos'"),
        ("compress.precisions=['openvino-int8']", "raspi4 may run onnx-int8"),
    ],
)
def test_a_dry_run_refuses_what_a_build_would(forge_inputs, tmp_path, override, words):
    recipe = recipe_for(forge_inputs, override)
    with pytest.raises((RecipeError, MissingError), match=words):
        dry_run(recipe, load_target(recipe.target), tmp_path / "out", log=told([]))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_a_place_where_nothing_can_be(forge_inputs, tmp_path):
    (tmp_path / "file").write_text("")
    recipe = recipe_for(forge_inputs)
    with pytest.raises(UsageError, match="is not a folder; choose another --out"):
        dry_run(recipe, load_target(recipe.target), tmp_path / "file", log=told([]))


def test_models_are_known_by_their_content_and_not_by_how_they_were_named(built, forge_inputs, tmp_path):
    _, out, _ = built
    for name in ("backbone", "teacher"):
        shutil.copytree(forge_inputs[0].parent / name, tmp_path / name)
    named = [f'{name}.name="{tmp_path / name}"' for name in ("backbone", "teacher")]
    plan = dry_run(recipe_for(forge_inputs, *named), load_target("raspi4"), out, log=told([]))
    assert [stage["state"] for stage in plan[:4]] == ["done"] * 4


def test_a_dry_run_of_a_stage_ends_there(built):
    recipe, out, _ = built
    plan = dry_run(recipe, load_target(recipe.target), out, until="synthesize", log=told([]))
    assert [step["stage"] for step in plan] == ["invert", "synthesize"]


def test_another_upscaler_under_the_same_name_inverts_again(forge_inputs, tmp_path):
    file, keys = tmp_path / "hat.pth", set()
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        recipe = recipe_for(forge_inputs, f"invert.upscale='{file}'")
        keys.add(dry_run(recipe, load_target(recipe.target), tmp_path, log=told([]))[0]["key"])
    assert len(keys) == 2


def test_reconstructions_are_nearer_than_plain_ddim(built):
    record = json.loads((built[1] / "store").glob("invert-*/invert.json").__next__().read_text())
    assert np.mean(record["latent_mse"]) < np.mean(record["plain_ddim_latent_mse"])


def test_a_gate_that_no_model_passes_is_an_error(forge_inputs, built):
    recipe = recipe_for(forge_inputs, "compress.max_abs_error=1e-9")
    with pytest.raises(GateError, match="does not answer as the student does"):
        forge(recipe, load_target(recipe.target), built[1], log=told([]))


def test_synthetic_images_of_small_supports_have_their_size(built):
    files = list((built[1] / "store").glob("synthesize-*/images/*/*.png"))
    assert files
    assert all(decode(file).shape == (8, 8, 3) for file in files)  # the backbone draws 8 px, the supports have 16


def command(inputs, out, *more, stage="compress"):
    images, test, overrides = inputs
    words = [
        sys.executable,
        "-m",
        "tinyforge",
        stage,
        "--recipe",
        "smoke",
        "--data",
        str(images),
        "--test",
        str(test),
        "--out",
        str(out),
    ]
    return [*words, *(word for override in overrides for word in ("-o", override)), *more]


MARKS = {
    "invert": "supports/0000.safetensors",
    "synthesize": "images/*/*.png",
    "distill": "students/support-hard/*",
    "compress": "models/*",
}


def kill_in(stage, words, out):
    """Start the command, and kill -9 it as soon as the partial folder of ``stage`` holds its mark."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not list(out.glob(f"store/{stage}-*.partial/{MARKS[stage]}")):
            assert process.poll() is None, f"ended with {process.returncode} before {stage} was seen"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def kill_when_told(text, words):
    """Start the command, and kill -9 it as soon as it says so."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert any(text in line for line in process.stderr)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def manifests(out):
    return {path.parent.name: path.read_bytes() for path in (out / "store").glob("*/manifest.json")}


def test_kill_9_in_each_stage_ends_with_the_same_bytes(forge_inputs, tmp_path):
    subprocess.run(command(forge_inputs, tmp_path / "whole"), check=True, capture_output=True)
    for stage in MARKS:
        kill_in(stage, command(forge_inputs, tmp_path / "killed"), tmp_path / "killed")
    kill_when_told("bench: onnx-fp32", command(forge_inputs, tmp_path / "killed", stage="build"))
    assert not (tmp_path / "killed/smoke-raspi4").exists()
    for name in ("whole", "killed"):
        words = command(forge_inputs, tmp_path / name, "-o", 'compress.precisions=["onnx-fp32"]', stage="build")
        subprocess.run(words, check=True, capture_output=True)
    whole = manifests(tmp_path / "whole")
    assert len(whole) == 5  # compress twice: with all models, and with one
    assert manifests(tmp_path / "killed") == whole
    assert unmeasured(tmp_path / "killed/smoke-raspi4") == unmeasured(tmp_path / "whole/smoke-raspi4")


def unmeasured(bundle):
    """Path -> bytes of a bundle's files, those aside that tell how fast it was."""
    measured = ("bundle.json", "README.md", "report.html", "latency/onnx-fp32.json", "selftest/golden.json")
    files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in measured}

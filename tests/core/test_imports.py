"""What a command imports is what its user waits for."""

import json
import subprocess
import sys
import time

import pytest

HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "timm",
    "nncf",
    "sklearn",
    "scipy",
    "matplotlib",
    "onnx",
    "pandas",
}
BASE = {"click", "rich", "pydantic", "numpy", "PIL"}
SCRIPT = """
import contextlib, io, json, sys
from tinyforge.__main__ import main
sys.argv = ["tinyforge", *json.loads(sys.argv[1])]
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit as end:
        code = end.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HELP_LIMIT_S = 0.15
SLOW_MACHINES = 3.0  # shared continuous-integration machines are that much slower than the two cores of the budget


def modules_of(*arguments) -> set[str]:
    """Top-level modules that the command imports in a fresh process; it must succeed."""
    command = [sys.executable, "-c", SCRIPT, json.dumps([str(argument) for argument in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(modules)


def test_help_needs_click_only():
    assert modules_of("--help") & (HEAVY | BASE) == {"click"}


@pytest.mark.parametrize("arguments", [("recipes",), ("targets", "raspi4"), ("doctor",)], ids=" ".join)
def test_catalogues_need_the_base_only(arguments):
    assert not modules_of(*arguments) & (HEAVY | {"onnxruntime", "openvino"})


@pytest.mark.parametrize("command", ["inspect", "verify", "bench", "predict"])
def test_bundles_need_their_runtime_only(command, whole_bundle, blue_picture):
    more = {"bench": ("--seconds", 0, "--runs", 1, "--warmup", 1), "predict": (blue_picture,)}.get(command, ())
    assert not modules_of(command, whole_bundle, *more) & HEAVY


def test_the_package_itself_needs_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, tinyforge; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {name.partition(".")[0] for name in done.stdout.split()} & (HEAVY | BASE)


def test_help_is_quick():
    """Best of seven: the time that the program needs, not what its neighbours take."""
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tinyforge", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < HELP_LIMIT_S * SLOW_MACHINES, seconds

"""The whole remote way on an arm64 Debian under emulation; see build_root.sh. Minutes, and only where one was built:

TINYFORGE_ARM64_ROOT=ROOT pytest -m slow tests/device/emulated
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyforge.loading import load_target, to_toml
from tinyforge.remote import Wish

from .board import QUICK, EmulatedBoard, compare, write_digits

ROOT = Path(os.environ.get("TINYFORGE_ARM64_ROOT", "/nonexistent"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not (ROOT / ".finished").is_file(), reason="no TINYFORGE_ARM64_ROOT; build_root.sh makes one"),
    pytest.mark.skipif(os.getuid() != 0, reason="a chroot needs root"),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    with EmulatedBoard(ROOT, tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For builds that share their stages."""
    return tmp_path_factory.mktemp("digits")


def bundle(folder: Path, model: str) -> Path:
    """A build of the sample task for a Raspberry Pi 4 that may run this one kind of model."""
    target = load_target("raspi4").model_copy(update={"name": model, "models": [model]})
    (folder / f"{model}.toml").write_text(to_toml(target.model_dump(mode="json")))
    argv = [sys.executable, "-m", "tinyforge", "build", "--recipe", "smoke", "--out", folder, "--json"]
    done = subprocess.run([*argv, "-o", f"target={folder / model}.toml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["result"]["bundle"])


@pytest.mark.parametrize(("model", "carried"), [("onnx-fp32", False), ("onnx-int8", False), ("onnx-int8", True)])
def test_the_board_answers_as_this_machine_does(board, folder, model, carried):
    """Its accuracy within the interval of this machine's, hardly a label different; with packages there, or wheels."""
    chosen = {"wheels": ROOT.with_name(f"{ROOT.name}-wheels")} if carried else {"python": "/usr/bin/python3"}
    test = write_digits(folder / "test", 6)
    found = compare(board, Wish(bundle(folder, model), options=("--variant", "all", *QUICK), test=test, **chosen))
    assert found["selftest"]["ok"], found["selftest"]
    assert found["board"]["architecture"] == found["machine"]["architecture"] == "aarch64"
    assert found["emulated"] is True
    assert found["n"] == 60
    (one,) = (both for name, both in found["accuracy"].items() if name == model)
    assert one["here"]["low"] <= one["there"]["accuracy"] <= one["here"]["high"]
    assert len(found["flips"][model]) <= 1
    assert not (ROOT / "root/.tinyforge").exists()

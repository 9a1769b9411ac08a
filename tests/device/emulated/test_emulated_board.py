"""The whole remote way on an arm64 Debian under emulation; see build_root.sh. Minutes, and only where one was built:

TINYFORGE_ARM64_ROOT=ROOT pytest -m slow tests/device/emulated
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyforge.remote import Wish

from .board import QUICK, EmulatedBoard, compare, write_digits

ROOT = Path(os.environ.get("TINYFORGE_ARM64_ROOT", "/nonexistent"))
MODELS = ["onnx-fp32", "onnx-int8"]  # their runtime is there

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
def wish(tmp_path_factory):
    """A build of the sample task, int8 too, and six test images of each class."""
    folder = tmp_path_factory.mktemp("digits")
    words = ["build", "--recipe", "smoke", "--out", folder, "--json", "-o", f"compress.precisions={json.dumps(MODELS)}"]
    argv = [sys.executable, "-m", "tinyforge", *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    bundle = Path(json.loads(done.stdout)["result"]["bundle"])
    options = [*(word for name in MODELS for word in ("--variant", name)), *QUICK]
    return Wish(bundle, options=options, test=write_digits(folder / "test", 6))


@pytest.mark.parametrize("how", ["packages there", "wheels from here"])
def test_the_board_answers_as_this_machine_does(board, wish, how):
    """Fixed rounding of int8 sums: no label may differ. Logits of fp32 differ in their last digits, labels hardly."""
    wheels = ROOT.with_name(f"{ROOT.name}-wheels")
    chosen = {"python": "/usr/bin/python3"} if how == "packages there" else {"wheels": wheels}
    found = compare(board, Wish(wish.bundle, options=wish.options, test=wish.test, **chosen))
    assert found["selftest"]["ok"], found["selftest"]
    assert found["board"]["architecture"] == found["machine"]["architecture"] == "aarch64"
    assert found["emulated"] is True
    assert found["n"] == 60
    assert sorted(found["flips"]) == MODELS
    for name, one in found["accuracy"].items():
        assert one["here"]["low"] <= one["there"]["accuracy"] <= one["here"]["high"]
        assert len(found["flips"][name]) <= 1
    assert not (ROOT / "root/.tinyforge").exists()

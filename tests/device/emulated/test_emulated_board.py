"""The whole remote way on an arm64 Debian under emulation; see build_root.sh. Minutes, and only where one was built:

TINYFORGE_ARM64_ROOT=ROOT pytest -m slow tests/device/emulated
"""

import os
from pathlib import Path

import pytest

from tinyforge.remote import Wish

from ..conftest import CLASSES, build_bundle, colour_picture, encode
from .board import QUICK, EmulatedBoard, compare

ROOT = Path(os.environ.get("TINYFORGE_ARM64_ROOT", "/nonexistent"))
CHOSEN = ("--variant", "onnx-fp32", *QUICK)  # the one whose runtime is there

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
    folder = tmp_path_factory.mktemp("colour")
    for label, name in enumerate(CLASSES):
        (folder / "test" / name).mkdir(parents=True)
        for seed in range(5):
            picture = colour_picture(label, seed=seed)
            (folder / "test" / name / f"{seed}.jpg").write_bytes(encode(picture, "JPEG"))
    return Wish(build_bundle(folder / "colour-generic-cpu"), options=CHOSEN, test=folder / "test")


@pytest.mark.parametrize("how", ["packages there", "wheels from here"])
def test_the_board_answers_as_this_machine_does(board, wish, how):
    wheels = ROOT.with_name(f"{ROOT.name}-wheels")
    chosen = {"python": "/usr/bin/python3"} if how == "packages there" else {"wheels": wheels}
    found = compare(board, Wish(wish.bundle, options=wish.options, test=wish.test, **chosen))
    assert found["selftest"]["ok"], found["selftest"]
    assert found["board"]["architecture"] == found["machine"]["architecture"] == "aarch64"
    assert found["emulated"] is True
    assert found["n"] == 15
    assert found["flips"] == {"onnx-fp32": []}
    here, there = (found["accuracy"]["onnx-fp32"][where] for where in ("here", "there"))
    assert here == there
    assert not (ROOT / "root/.tinyforge").exists()

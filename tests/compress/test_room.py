"""Without room on the disk a build stops: it must not ship what happened to be written."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tinyforge.compress.ladder import LADDERS, attempt, climb
from tinyforge.compress.room import require_room


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process can grow beyond 512 bytes, as on a disk that is full.

    Not a fixture: what pytest tells of a test, maybe into a file, is written before fixtures end.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["onnx-int8", "onnx-fp16", "openvino-fp16", "onnx-fp32"])
def test_a_model_that_cannot_be_written_ends_the_climb(materials, tmp_path: Path, kind: str):
    with pytest.raises(OSError, match="File too large") as told, small_files():
        climb(kind, materials, tmp_path)
    assert told.value.filename == str(tmp_path)


@pytest.mark.parametrize("fault", [RuntimeError, ValueError])
def test_a_rung_that_fails_in_its_own_words_on_a_full_disk_ends_the_climb(materials, tmp_path: Path, fault):
    def corrupt(_, out: Path) -> None:
        raise fault("Wire format was corrupt")

    with pytest.raises(OSError, match="File too large") as told, small_files():
        attempt("onnx-int8", "a", corrupt, materials, tmp_path / "model.onnx")
    assert told.value.filename == str(tmp_path)


def test_memory_that_does_not_hold_ends_the_climb(materials, tmp_path: Path):
    def greedy(_, out: Path) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        attempt("onnx-int8", "a", greedy, materials, tmp_path / "model.onnx")


def test_where_there_is_room_nothing_is_left_behind(materials, tmp_path: Path):
    model = tmp_path / "model.onnx"
    model.write_bytes(bytes(10))
    require_room(model, [tmp_path, None])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_rung_that_fails_with_room_left_is_recorded(materials, tmp_path: Path):
    untrained = Path(shutil.copy(materials.fp32, tmp_path))  # in a folder where no other test has trained it
    with_no_teacher = replace(materials, fp32=untrained, teach=lambda: 1 / 0)
    rung = "quantisation-aware training"
    found = attempt("onnx-int8", rung, LADDERS["onnx-int8"][rung], with_no_teacher, tmp_path / "model.onnx")
    assert found.reason == "could not be made: ZeroDivisionError: division by zero"

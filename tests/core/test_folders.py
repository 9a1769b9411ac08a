"""Folders for results are checked before anything is computed."""

from pathlib import Path

import pytest

from tinyforge.errors import UsageError
from tinyforge.folders import check_out


def test_a_folder_that_is_there_or_can_be_made_is_fine(tmp_path: Path):
    check_out(tmp_path)
    check_out(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x", "x" * 5000])
def test_what_cannot_be_a_folder_is_refused(out: str):
    with pytest.raises(UsageError, match="choose another --out"):
        check_out(Path(out))


def test_an_evaluation_asks_before_it_reads(tmp_path: Path):
    from click.testing import CliRunner

    from tinyforge.cli import program

    done = CliRunner().invoke(program, ["evaluate", "folder", "--data", str(tmp_path), "--out", "/dev/null"])
    assert (done.exit_code, "/dev/null is not a folder" in done.output) == (2, True), done.output

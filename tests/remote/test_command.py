"""Options of `bench`, and one verdict over several boards."""

import pytest
from click.testing import CliRunner

from tinyforge.cli import program
from tinyforge.errors import DeviceError, GateError, UsageError
from tinyforge.remote import bench_options, boards_text, failure
from tinyforge.remote.board import key

GOOD = {"ok": True, "checks": 3, "faults": [], "notes": []}
BAD = {**GOOD, "ok": False, "faults": [{"check": "decode", "where": "0.png", "message": "pixels differ"}]}


def board(selftest=GOOD, reasons=(), bench=True):
    machine = {"cpu": "A72", "architecture": "aarch64", "cores": 4, "emulated": False}
    conditions = {"reasons": list(reasons), "valid": not reasons, "notes": []}
    measured = {"machine": machine, "variants": {}, "comparisons": [], "conditions": conditions}
    return {
        "address": "ssh://pi@a",
        "board": {"model": "Raspberry Pi 4", "architecture": "aarch64"},
        "warnings": ["little memory"],
        "sent": {"files": 3, "there_before": 1},
        "selftest": selftest,
        "bench": measured if bench else None,
    }


def lost(code=4, kind="DeviceError"):
    return {"address": "ssh://pi@b", "error": {"type": kind, "message": "gone", "exit_code": code}}


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ([board()], None),
        ([board(), lost()], DeviceError),
        ([board(BAD, bench=False), lost()], DeviceError),
        ([lost(2, "BundleError")], UsageError),
        ([board(BAD, bench=False)], GateError),
        ([board(reasons=["throttled"])], GateError),
    ],
)
def test_the_verdict_over_all_boards(found, kind):
    verdict = failure(found)
    assert (type(verdict) if verdict else None) is kind
    text = boards_text(found)
    assert all(one["address"] in text for one in found)


def test_the_text_tells_what_matters():
    text = boards_text([board(BAD, bench=False), board(reasons=["throttled"]), lost()])
    for words in (
        "decode: pixels differ",
        "INVALID: throttled",
        "failed, as told at the end",
        "note: little memory",
        "1 there before",
    ):
        assert words in text
    assert "gone" in str(failure([lost()])), "once, as the error"


def test_options_travel_as_words():
    words = bench_options(["a", "b"], [1, 2], 6.0, 64, 20)
    assert words[:6] == ["--variant", "a", "--variant", "b", "--threads", "1,2"]
    assert bench_options([], None, 0, 1, 1) == ["--seconds", "0", "--runs", "1", "--warmup", "1"]


def test_names_follow_the_content():
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1}) != key({"a": 1})
    assert len(key([])) == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep"], "--keep is of boards"),
        (["--ssh-config", "x"], "--ssh-config is of boards"),
        (["--threads", "0"], "1,2,4"),
        (["--threads", "2,"], "1,2,4"),
        (["--tier", "slow"], "quick"),
        (["--device", "pi@board"], "ssh://user@host"),
    ],
)
def test_wrong_options_are_wrong_usage(options, words, tmp_path):
    result = CliRunner().invoke(program, ["bench", str(tmp_path), *options])
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--variant", "nope"], "no variant 'nope'"),
        (["--images", "cut.png"], "cut.png: "),
        (["--images", "missing.png"], "there is no such image"),
        (["--test", "missing"], "missing: is not a folder"),
        (["--test", "strange"], "no class of this bundle"),
    ],
)
def test_what_no_board_could_measure_is_told_before_any_is_asked(bundle, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "strange/no-such-class").mkdir(parents=True)
    monkeypatch.setattr("tinyforge.remote.board.Connection", None)  # nobody is asked
    result = CliRunner().invoke(program, ["bench", str(bundle), "--device", "ssh://pi@nowhere", *options])
    assert result.exit_code == 2, result.output
    assert words in result.stderr

"""What the report shows of the trial."""

import pytest

from tinyforge.device.stats import score
from tinyforge.report.html import dropped_parts

from .test_html import EVIL, Reader, render_report, report

DROPPED = {"total": 360, "kept": 350, "rejected": 8, "duplicates": 2}


def way(name: str, gain=None, **changes) -> dict:
    base = {"name": name, "score": score(20, 30), "log_loss": 0.9, "gain": gain, "expected": 0.1, "probability": 0.8,
            "bar": 0.9}  # fmt: skip
    return {**base, **changes}


def record(**changes) -> dict:
    base = {
        "in_domain": False, "held_out": 30, "folds": 3, "steps": 100,
        "ways": [way("support-hard"), way("tint-teacher", (0.2, 0.05, 0.35), probability=0.97)], "mixes": [],
        "teacher": {**way("teacher", (0.5, 0.1, 0.9), score=score(24, 30)), "trusted": True, "misleads": False,
                    "lr": 0.0, "rates": {"0": 0.8, "0.001": 0.7}},
    }  # fmt: skip
    return {**base, **changes}


def shown(**changes) -> str:
    trial = {"shipped": "tint-teacher", "why": f"tint-teacher ships {EVIL}", "dropped": DROPPED, "record": record()}
    return Reader(render_report(report(trial={**trial, **changes}))).text


def test_what_was_chosen_by_how_much_and_what_was_dropped():
    text = shown()
    for part in (
        "tint-teacher ships <script>", "Of 360 synthetic images 350 were kept; the teacher rejected 8", "20 / 30",
        "+0.200", "+0.050 – +0.350", "0.97", "24 / 30", "itself, trusted", "+0.500", "tint-teacher chosen", "outside",
        "0.97 needs 0.90", "0: 80.0 %, 0.001: 70.0 %; 0 was chosen",
    ):  # fmt: skip
        assert part in text


def test_a_teacher_that_knows_less_is_named():
    teacher = {**record()["teacher"], "trusted": False, "misleads": True}
    assert "itself, shown to know less" in shown(record=record(teacher=teacher))
    assert "itself, neither trusted nor" in shown(record=record(teacher={**teacher, "misleads": False}))


def test_another_mix_carries_the_mark():
    mixes = [way("tint-teacher"), way("tint-teacher-alpha0.3", (0.1, 0.02, 0.2))]
    text = shown(shipped="tint-teacher-alpha0.3", record=record(mixes=mixes))
    assert "Other mixes of tint-teacher" in text
    assert "tint-teacher-alpha0.3 chosen" in text
    assert "tint-teacher chosen" not in text


def test_without_held_out_supports_there_are_no_numbers():
    ways = [way(name, score=None, log_loss=None) for name in ("support-hard", "tint-teacher")]
    text = shown(record=record(ways=ways, held_out=0, teacher=way("teacher", score=None)))
    assert "Short students" not in text
    assert "20 / 30" not in text


def test_a_forced_method_has_no_table():
    text = shown(record=None)
    assert "tint-teacher ships" in text
    assert "P(better)" not in text


@pytest.mark.parametrize("trial", [None, {"dropped": None}])
def test_no_synthetic_images_no_sentence(trial):
    assert dropped_parts(trial) == ""

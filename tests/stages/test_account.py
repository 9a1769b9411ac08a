"""What a race tells, of candidates whose numbers are known: nothing is trained or measured here."""

import json
from types import SimpleNamespace

import pytest

from tinyforge.device.stats import exact_lower
from tinyforge.stages.budget.account import plot, record, write
from tinyforge.stages.budget.limits import Row
from tinyforge.stages.budget.verdict import judge
from tinyforge.summary import budget_text

N = 400
LIMITS = {"max_ms": 5.0, "max_mib": 2.0, "min_accuracy": 0.8}
MACHINE = {"cpu": "a board"}


def row(student, correct, ms, kib, **changes):
    claim = {"at_least": exact_lower(correct, N), "correct": correct, "n": N}
    right = tuple(index < correct for index in range(N))
    latency = {"at_most_ms": 1.01 * ms, "runs": 662, "reason": ""}
    base = {"p90_ms": (ms, 0.99 * ms, 1.01 * ms), "latency": latency, "accuracy": claim, "right": right}
    return Row(student, 32, "onnx-int8", 4, "onnxruntime", "int8", 1024 * kib, 50.0, **{**base, **changes})


ROWS = (
    row("accurate", 392, 4.0, 900),
    row("close", 390, 1.0, 500),
    row("beaten", 380, 1.5, 500),
    row("wrong", 200, 0.1, 100),
    row("large", 395, 9.0, 9000, accuracy=None, right=None, raced=False, why="clearly misses max-mib"),
)


def told(rows=ROWS, limits=LIMITS):
    road = SimpleNamespace(
        recipe=SimpleNamespace(name="raspi", seed=0),
        job=SimpleNamespace(target=SimpleNamespace(name="raspi4")),
    )
    verdict = judge(rows, limits, 0.01)
    return verdict, record(road, verdict, ["x 32 px onnx-int8: none of 9 rungs passed"], MACHINE, "ssh://pi@pi4")


def test_who_ships_who_is_beaten_and_who_misses_what():
    verdict, found = told()
    outcomes = {one["student"]: one["outcome"] for one in found["candidates"]}
    assert outcomes == {
        "wrong": "misses min-accuracy",
        "close": "ships",
        "beaten": "keeps the limits, beaten by 2",
        "accurate": "keeps the limits",
        "large": "not trained: clearly misses max-mib",
    }
    assert [one["number"] for one in found["candidates"]] == [1, 2, 3, 4, 5]
    assert found["winner"] == "close 32 px onnx-int8 4 threads"
    assert "0.5 points less accurate than the most accurate of 3 that keep the limits, accurate 32 px" in found["why"]
    assert verdict.failure == ""


def test_beaten_by_whom_with_the_paired_difference():
    (beaten,) = [one["beaten_by"] for one in told()[1]["candidates"] if one["beaten_by"]]
    difference, low, high = beaten["accuracy_difference"]
    assert (beaten["number"], difference) == (2, 10 / N)
    assert low < difference < high


def test_an_accuracy_comes_with_its_n_and_the_bound_that_holds_for_all():
    one = next(one for one in told()[1]["candidates"] if one["student"] == "close")["accuracy"]
    assert (one["n"], one["correct"], one["accuracy"]) == (N, 390, 0.975)
    assert one["at_least"] == pytest.approx(exact_lower(390, N, 1 - 0.05 / 4), abs=1e-6)


def test_a_limit_is_kept_by_what_the_certificate_will_claim():
    alone, among = exact_lower(390, N), exact_lower(390, N, 1 - 0.05 / 4)
    verdict, _ = told(limits={"min_accuracy": (alone + among) / 2})
    assert verdict.lost["close 32 px onnx-int8 4 threads"] == ["min_accuracy"]


def test_the_table_says_it_all():
    _, found = told()
    text = budget_text({"budget": {**found, "files": {"record": "budget.json"}}, "warnings": ["hot"]})
    lines = text.splitlines()
    assert lines[0].split() == ["candidate", "accuracy_%", ">=_%", "p90_ms", "<=_ms", "mib", "rss_mib", "outcome"]
    (close,) = [line for line in lines if line.lstrip().startswith("2 ")]
    for part in ("close 32 px onnx-int8 4 threads", "97.500", "95.1", "1.010", "0.488", "ships"):
        assert part in close
    assert {"x 32 px onnx-int8: none of 9 rungs passed", "warning: hot", "record: budget.json"} <= set(lines)


def test_when_nobody_keeps_the_limits_the_binding_one_is_told():
    verdict, found = told(limits={"max_ms": 0.05})
    assert found["winner"] is None
    assert verdict.failure == (
        "no candidate keeps max-ms 0.05:\n"
        "  max-ms 0.05: the fastest candidate, wrong 32 px onnx-int8 4 threads, takes up to 0.101 ms "
        "(p90 0.1 ms; upper bound at 99 %, 662 runs)"
    )


def test_files(tmp_path):
    verdict, found = told()
    reports = {one.name: {"raw_us": {"infer": [1]}} for one in ROWS}
    (tmp_path / "latency").mkdir()
    (tmp_path / "latency" / "99.json").write_text("of an earlier race")
    files = write(tmp_path, found, plot(verdict), reports)
    assert json.loads((tmp_path / "budget.json").read_text()) == found
    assert files["plot"] == str(tmp_path / "budget.svg")
    assert sorted(path.name for path in (tmp_path / "latency").iterdir()) == [f"{k:02d}.json" for k in range(1, 6)]


def test_the_plot_shows_who_was_trained_with_the_limits():
    svg = plot(told()[0])
    assert svg.count('r="4"') + svg.count('r="7"') == 4 + 4  # four candidates and four kinds in the legend
    assert svg.count("dasharray") == 2
    untrained = plot(judge(ROWS[-1:], LIMITS, 0.01))
    assert "model size in MiB" in untrained


def test_the_report_shows_the_race():
    from report.test_html import Reader, render_report, report

    verdict, found = told()
    html = render_report(report(budget={"record": found, "plot": plot(verdict, inside_html=True)}))
    text = Reader(html).text
    assert "Budget close 32 px onnx-int8 4 threads is 0.5 points less accurate" in text
    assert "max-ms 5, max-mib 2, min-accuracy 0.8" in text
    assert "97.5 n = 400" in text
    assert "Measured on ssh://pi@pi4" in text
    assert "<svg" in html

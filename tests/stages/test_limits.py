"""What binds, on candidates whose numbers are known."""

import pytest

from tinyforge.stages.budget.limits import Row, best, binding, clearly_misses, keeps, missed


def row(student="conv4", ms=1.0, mib=1.0, at_least=0.9, threads=1, **changes):
    latency = {"at_most_ms": ms, "runs": 662, "reason": "" if ms else "it was measured under an emulator"}
    accuracy = at_least and {"at_least": at_least, "correct": 95, "n": 100}
    base = {"p90_ms": (ms or 1.0, ms or 1.0, ms or 1.0), "p50_ms": ms, "latency": latency, "accuracy": accuracy}
    return Row(student, 32, "onnx-int8", threads, model_bytes=round(mib * 2**20), **{**base, **changes})


def test_limits_are_kept_when_equal():
    limits = {"max_ms": 1.0, "max_mib": 1.0, "min_accuracy": 0.9}
    assert missed(row(), limits) == []
    assert missed(row(ms=1.001, mib=1.001, at_least=0.899), limits) == ["max_ms", "max_mib", "min_accuracy"]


def test_what_cannot_be_claimed_keeps_no_limit():
    assert not keeps(row(ms=None), "max_ms", 1e9)
    assert not keeps(row(at_least=None), "min_accuracy", 0.0)


def test_untrained_only_a_clear_miss_counts():
    limits = {"max_ms": 1.0, "max_mib": 1.0, "min_accuracy": 0.99}
    assert clearly_misses(row(ms=1.2, mib=1.04), limits) == []
    assert clearly_misses(row(ms=1.3, mib=1.06), limits) == ["max_ms", "max_mib"]
    assert (
        clearly_misses(row(ms=1.3, p50_ms=0.9), limits) == []
    )  # only its slower runs, which may be the machine's fault


def test_a_limit_that_nobody_keeps_is_named_with_who_comes_nearest():
    rows = [row("conv4", ms=0.11), row("timm:lcnet_050", ms=0.5)]
    (text,) = binding(rows, {"max_ms": 0.05, "max_mib": 2.0, "min_accuracy": 0.8})
    assert text == (
        "max-ms 0.05: the fastest candidate, conv4 32 px onnx-int8 1 thread, takes up to 0.11 ms "
        "(p90 0.11 ms; upper bound at 99 %, 662 runs)"
    )
    (text,) = binding(rows, {"max_mib": 0.5})
    assert text == "max-mib 0.5: the smallest candidate, conv4 32 px onnx-int8 1 thread, has 1 MiB"
    (text,) = binding(rows, {"min_accuracy": 0.95})
    assert "is right in 90.0 % or more (95 of 100; bound at 95 %)" in text


def test_limits_that_only_together_are_too_tight():
    rows = [row("fast", ms=1.0, at_least=0.7), row("good", ms=9.0, at_least=0.95)]
    slow, wrong = binding(rows, {"max_ms": 5.0, "min_accuracy": 0.9})
    assert slow.startswith("max-ms 5: of the candidates within min-accuracy 0.9, the fastest, good 32 px")
    assert wrong.startswith("min-accuracy 0.9: of the candidates within max-ms 5, the most accurate, fast 32 px")


def test_no_two_limits_can_be_kept():
    rows = [row("a", 1, 9, 0.1), row("b", 9, 1, 0.1), row("c", 9, 9, 0.9)]
    (text,) = binding(rows, {"max_ms": 2.0, "max_mib": 2.0, "min_accuracy": 0.8})
    assert text == "each of max-ms, max-mib, min-accuracy can be kept, but no two of them together"


def test_accuracy_is_left_aside_when_nobody_was_trained():
    rows = [row(ms=3.0, at_least=None, raced=False)]
    (text,) = binding(rows, {"max_ms": 1.0, "min_accuracy": 0.9})
    assert text.startswith("max-ms 1: the fastest candidate")


def test_a_latency_that_no_measurement_carries():
    (text,) = binding([row(ms=None)], {"max_ms": 1.0})
    assert text == "max-ms 1: no latency can be claimed: it was measured under an emulator"


@pytest.mark.parametrize(("limit", "name"), [("max_ms", "a"), ("max_mib", "b"), ("min_accuracy", "c")])
def test_best(limit, name):
    rows = [row("a", 1, 9, 0.1), row("b", 9, 1, 0.1), row("c", 9, 9, 0.9), row("d", None, 9, None)]
    assert best(rows, limit).student == name

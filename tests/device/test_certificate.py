"""What a certificate claims of answers and latencies, and what it does not."""

import pytest

from tinyforge.device.certificate import certificate

AT_REST = {"load": 0.0, "governors": [], "firmware": 0, "throttle_events": 0, "cooling": [], "busy_cores": 0.0}
THROTTLED, BUSY = {**AT_REST, "firmware": 1 << 2}, {**AT_REST, "busy_cores": 1.5}
ROWS = [(f"{index}.png", 0, 0) for index in range(50)]


def timed(runs, **more):
    told = {"machine": {"cpu": "Pi"}, "threads": 1, "settled": True, "samples": [AT_REST, AT_REST]}
    return {"raw_us": {"infer": [1000] * runs}, **told, **more}


@pytest.mark.parametrize(
    ("answers", "report", "statement"),
    [
        ({}, timed(64), "no accuracy is claimed: there were no test images; p90 of inference <= 1 ms"),
        ({"m": ROWS}, timed(63), "no latency is claimed: 64 timed runs are needed, there are 63"),
        ({"m": ROWS}, None, "no latency is claimed: it was not measured"),
        ({"m": ROWS}, timed(64, machine={"cpu": "x", "emulated": True}), "claimed: it was measured under an emulator"),
        ({"m": ROWS}, timed(64, samples=[AT_REST, THROTTLED]), "the measurement is not valid: throttled"),
        ({"m": ROWS}, timed(64, samples=[BUSY, AT_REST]), "(early stopping, 64 runs, beside other work) on Pi"),
        ({"m": ROWS}, timed(64, settled=False), "(early stopping, 64 runs, not settled) on Pi"),
        ({"m": ROWS}, timed(64), "top-1 >= 94.1 % at 95 % (exact binomial, n = 50); p90 of inference <= 1 ms at 99 %"),
        ({"other": ROWS}, timed(64), "no accuracy is claimed"),
    ],
)
def test_nothing_is_certified_that_was_not_measured(answers, report, statement):
    found = certificate("m", answers, {} if report is None else {"m": report})
    assert statement in found["statement"]
    assert (found["accuracy"] is None) == ("no accuracy" in statement)


def test_the_best_of_many_is_certified_less():
    alone, best = (certificate("m", {"m": ROWS}, {}, count) for count in (1, 10))
    assert best["statement"].startswith("top-1 >= 89.9 % at 95 % (exact binomial, n = 50, the best of 10 models)")
    assert best["accuracy"]["at_least"] < alone["accuracy"]["at_least"]

"""Who is beaten and who ships, on entries whose order is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyforge.compress.pareto import Entry, accuracy_bound, beaten_by, beats, p90_interval, ships
from tinyforge.device.stats import exact_lower

N = 400


def entry(name="a", correct=360, ms=1.0, spread=0.01, size=1000, right=None):
    """``correct`` of N right: the first ones."""
    answers = tuple(index < correct for index in range(N)) if right is None else right
    return Entry(name, size, ms, ms * (1 - spread), ms * (1 + spread), answers)


def test_clearly_faster_at_equal_accuracy_and_size_beats():
    assert beats(entry(ms=1.0), entry(ms=1.2))
    assert not beats(entry(ms=1.2), entry(ms=1.0))


def test_a_tie_beats_nobody():
    assert not beats(entry(ms=1.0), entry(ms=1.04))
    assert not beats(entry(ms=1.0, spread=0.2), entry(ms=1.3, spread=0.2))  # the intervals overlap
    assert not beats(entry(size=1000), entry(size=1040))
    assert not beats(entry(correct=361), entry(correct=360))  # one image more is no clear difference


def test_one_right_answer_more_keeps_a_slow_one():
    assert not beats(entry(correct=360, ms=1.0, size=100), entry(correct=361, ms=9.0, size=900))


def test_clearly_more_accurate_beats_what_is_as_fast_and_as_large():
    assert beats(entry(correct=380, ms=1.04, size=1040), entry(correct=360, ms=1.0, size=1000))
    assert not beats(entry(correct=380, ms=1.06), entry(correct=360, ms=1.0))
    assert not beats(entry(correct=380, size=1060), entry(correct=360, size=1000))


def test_the_difference_is_paired():
    """10 more of 10 that differ is clear; 10 more of 70 that differ is not."""
    swapped = tuple(index >= 40 for index in range(N))
    assert beats(entry(correct=370), entry(correct=360))
    assert not beats(entry(correct=370), entry(right=swapped))


def test_unknown_accuracy_neither_beats_nor_is_beaten():
    unknown = Entry("x", 1, 0.1, 0.1, 0.1, None)
    assert not beats(unknown, entry())
    assert not beats(entry(size=1, ms=0.01), unknown)


entries = st.builds(
    entry,
    correct=st.integers(0, N),
    ms=st.floats(0.1, 10),
    spread=st.floats(0, 0.3),
    size=st.integers(1, 10**7),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(entries, min_size=1, max_size=7))
def test_no_circle_so_somebody_is_never_beaten(found):
    named = [Entry(str(i), *[getattr(one, key) for key in list(vars(one))[1:]]) for i, one in enumerate(found)]
    beaten = beaten_by(named)
    assert len(beaten) < len(named)
    for name in beaten:
        seen = name
        for _ in named:
            seen = beaten.get(seen)
            if seen is None:
                break
        assert seen is None  # following who beats whom ends


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=8))
def test_with_wide_steps_and_no_noise_it_is_pareto_dominance(points):
    """Steps of 40 images, of twice the time and of twice the size are all clear."""
    made = [entry(str(i), 40 * a, 2.0**b, 0.0, 100 * 2**c) for i, (a, b, c) in enumerate(points)]
    beaten = beaten_by(made)
    for i, (a, b, c) in enumerate(points):
        dominated = any(x >= a and y <= b and z <= c and (x, y, z) != (a, b, c) for x, y, z in points)
        assert (str(i) in beaten) == dominated


def test_the_most_accurate_ships_or_the_fastest_close_to_it():
    accurate, close, far = entry("accurate", 380, 5.0), entry("close", 377, 1.0), entry("far", 370, 0.1)
    assert ships([accurate, close, far], 0.01).name == "close"
    assert ships([accurate, close, far], 0.0).name == "accurate"
    assert ships([accurate, close, far], 0.1).name == "far"


def test_among_equally_fast_ones_the_smallest_ships():
    large, small = entry("large", ms=1.0, size=2000), entry("small", ms=1.04, size=1000)
    assert ships([large, small], 0.01).name == "small"
    unknown = [Entry("slow", 1, 2.0, 2.0, 2.0), Entry("fast", 9, 1.0, 1.0, 1.0)]
    assert ships(unknown, 0.01).name == "fast"


def test_the_interval_of_a_p90_covers_it_as_often_as_promised():
    rng = np.random.default_rng(0)
    truth = float(np.exp(0.3 * 1.2815515655446004))  # p90 of a log-normal with sigma 0.3
    above = below = 0
    for _ in range(300):
        sample = np.exp(0.3 * rng.standard_normal(300)) * 1e6
        p90, low, high = p90_interval(sample.round().astype(int).tolist())
        assert low <= p90 <= high
        above, below = above + (truth * 1000 > high), below + (truth * 1000 < low)
    assert above <= 9
    assert below <= 9
    assert above + below > 0  # and it is not far wider than needed


def test_too_few_runs_for_a_p90():
    with pytest.raises(ValueError, match="too few"):
        p90_interval([1] * 63)


def test_the_bound_of_a_chosen_model_is_lower():
    assert accuracy_bound(360, N, 1) == exact_lower(360, N)
    assert accuracy_bound(360, N, 10) == exact_lower(360, N, 0.995) < exact_lower(360, N)

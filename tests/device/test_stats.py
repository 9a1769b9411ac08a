import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy import stats as reference

from tinyforge.device import stats

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_wilson_of_the_published_example():
    assert stats.wilson(170, 200) == pytest.approx((0.794, 0.893), abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(counts=counts, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(counts, confidence):
    found = stats.wilson(*counts, confidence)
    expected = reference.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found[0] <= counts[0] / counts[1] <= found[1] <= 1


@settings(max_examples=60, deadline=None)
@given(counts=counts)
def test_exact_lower_equals_scipy(counts):
    expected = reference.binomtest(*counts, alternative="greater").proportion_ci(0.95, method="exact").low
    assert stats.exact_lower(*counts) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 10, 50, 200, 1000, 10_000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99, 0.999])
def test_exact_lower_is_a_quantile_of_the_beta_distribution(n, confidence):
    """Clopper-Pearson: the (1 - confidence) quantile of Beta(correct, n - correct + 1)."""
    for correct in sorted({1, n // 3, n // 2, 9 * n // 10, n - 1, n} - {0}):
        expected = reference.beta.ppf(1 - confidence, correct, n - correct + 1)
        assert stats.exact_lower(correct, n, confidence) == pytest.approx(expected, rel=1e-7)
    assert stats.exact_lower(0, n, confidence) == 0.0


def test_exact_lower_holds_as_often_as_promised():
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.8, 0.97):
        counts = rng.binomial(100, truth, 3000)
        bounds = {int(count): stats.exact_lower(int(count), 100) for count in set(counts)}
        assert np.mean([bounds[int(count)] <= truth for count in counts]) >= 0.945


@settings(max_examples=60, deadline=None)
@given(a=st.floats(0.1, 5000), b=st.floats(0.1, 5000), x=st.floats(0, 1))
def test_beta_cdf_equals_scipy(a, b, x):
    assert stats.beta_cdf(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30, 1000])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_t_quantile_equals_scipy(degrees, probability):
    assert stats.t_quantile(probability, degrees) == pytest.approx(reference.t.ppf(probability, degrees), rel=1e-9)


def test_mean_interval_by_hand():
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean, mean - low) == pytest.approx((2.0, 4.302653 / math.sqrt(3), 4.302653 / math.sqrt(3)))
    with pytest.raises(ValueError, match="at least two"):
        stats.mean_interval([1.0])


def test_runs_needed_as_mlperf_states():
    assert stats.runs_needed(0.90) == 64
    assert stats.runs_needed(0.99) == 662


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_runs_needed_from_first_principles(share):
    """At most one run slower than the percentile: n * (1 - p) * p^(n - 1) + p^n, which must be luck of at most 1 %."""
    luck = [n * (1 - share) * share ** (n - 1) + share**n for n in range(1, 700)]
    assert stats.runs_needed(share) == 1 + next(i for i, chance in enumerate(luck) if i > 0 and chance <= 0.01)


def test_percentile_is_nearest_rank():
    assert [stats.percentile(range(1, 11), share) for share in (0.0, 0.5, 0.9, 0.91, 1.0)] == [1, 5, 9, 10, 10]


def test_percentile_bound_holds_as_often_as_promised():
    rng = np.random.default_rng(0)
    samples = rng.random((2000, 100))
    held = np.mean([stats.percentile_bound(row.tolist(), 0.9) >= 0.9 for row in samples])
    assert held >= 0.985
    assert stats.percentile_bound(list(range(63)), 0.9) is None
    assert stats.percentile_bound(list(range(64)), 0.9) == 62


def test_paired_difference_of_equal_results_is_not_certainty():
    difference, low, high = stats.paired_difference([True] * 20, [True] * 20)
    assert difference == 0
    assert -0.15 < low < 0 < high < 0.15


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=300))
def test_paired_difference_is_antisymmetric(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    difference, low, high = stats.paired_difference(a, b)
    assert difference == pytest.approx((sum(a) - sum(b)) / len(a))
    assert stats.paired_difference(b, a) == pytest.approx((-difference, -high, -low))
    assert -1 <= low <= high <= 1


def test_paired_difference_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(1500):
        uniform = rng.random(150)
        _, low, high = stats.paired_difference(uniform < 0.90, uniform > 0.15)  # truth: 0.90 - 0.85
        covered.append(low <= 0.05 <= high)
    assert 0.93 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 12), (40, 10)])
def test_mcnemar_equals_the_binomial_test(only_a, only_b):
    a = [True] * only_a + [False] * only_b + [True] * 7
    b = [False] * only_a + [True] * only_b + [True] * 7
    expected = reference.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert stats.mcnemar(a, b) == pytest.approx(expected)


def test_more_confidence_is_wider():
    widths = [np.ptp(stats.wilson(80, 100, confidence)) for confidence in (0.5, 0.9, 0.95, 0.99)]
    assert all(a < b for a, b in pairwise(widths))


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="is not a score"):
        stats.score(*counts)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        stats.paired_difference([True], [True, False])

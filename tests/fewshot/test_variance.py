"""The formulas against simulated episodes, and the plans made from them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyforge.fewshot.variance import components, episodes_needed, half_width, mean_variance, optimal_queries

MU, SPREAD = 0.7, 0.08


def simulate(rng, num_episodes: int, num_queries: int) -> list[np.ndarray]:
    """Right and wrong answers of episodes whose true accuracy is a Beta variable of mean MU and deviation SPREAD."""
    size = MU * (1 - MU) / SPREAD**2 - 1
    accuracies = rng.beta(MU * size, (1 - MU) * size, num_episodes)
    return [(rng.random(num_queries) < a).astype(float) for a in accuracies]


def test_the_estimators_find_what_was_simulated():
    found = components(simulate(np.random.default_rng(0), 4000, 50))
    assert found.mean == pytest.approx(MU, abs=0.005)
    assert math.sqrt(found.between) == pytest.approx(SPREAD, rel=0.05)
    assert found.within == pytest.approx(MU * (1 - MU) - SPREAD**2, rel=0.01)
    assert (found.num_queries, found.num_episodes) == (50, 4000)


@pytest.mark.parametrize("num_queries", [2, 10, 200])
def test_the_variance_of_the_mean_is_that_of_repeated_evaluations(num_queries):
    rng = np.random.default_rng(1)
    means = [np.mean([one.mean() for one in simulate(rng, 10, num_queries)]) for _ in range(1500)]
    within = MU * (1 - MU) - SPREAD**2
    assert np.var(means) == pytest.approx(mean_variance(SPREAD**2, within, 10, num_queries), rel=0.12)


@settings(deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.0, 0.9), st.integers(1, 500), st.integers(1, 3000))
def test_for_right_and_wrong_it_is_the_formula_with_the_binomial_variance(mu, share, n, m):
    between = share * mu * (1 - mu)
    written_out = (between * (1 - 1 / m) + mu * (1 - mu) / m) / n
    assert mean_variance(between, mu * (1 - mu) - between, n, m) == pytest.approx(written_out)


def test_equal_episodes_have_no_variance_between_them():
    rng = np.random.default_rng(2)
    values = [(rng.random(200) < 0.6).astype(float) for _ in range(50)]
    assert components(values).between < 0.02**2


def test_what_cannot_be_estimated_is_none():
    assert components([np.array([1.0, 0.0])]).between is None
    assert components([np.array([1.0]), np.array([0.0])]).within is None
    with pytest.raises(ValueError, match="at least one"):
        components([])


@pytest.mark.parametrize(("sd", "points"), [(0.08, 0.037), (0.04, 0.018)])
def test_twenty_episodes_with_all_queries_give_the_known_half_widths(sd, points):
    variance = mean_variance(sd**2, 0.75 * 0.25 - sd**2, 20, 2975)
    assert half_width(variance, 20) == pytest.approx(points, abs=0.002)


@settings(deadline=None)
@given(st.floats(0.0, 0.02), st.floats(0.001, 0.25), st.integers(1, 3000), st.floats(0.005, 0.2))
def test_the_episodes_planned_suffice_and_one_fewer_does_not(between, within, m, wanted):
    n = episodes_needed(between, within, m, wanted)
    assert half_width(mean_variance(between, within, n, m), n) <= wanted
    assert n == 2 or half_width(mean_variance(between, within, n - 1, m), n - 1) > wanted


def test_the_optimal_number_of_queries_costs_least():
    between, within, episode_cost, query_cost = 0.08**2, 0.2, 300.0, 0.5
    best = optimal_queries(between, within, episode_cost, query_cost)

    def cost_of_precision(m: float) -> float:
        return (episode_cost + query_cost * m) * (between + within / m)

    assert all(cost_of_precision(best) <= cost_of_precision(m) for m in (best / 2, best * 0.9, best * 1.1, best * 2))
    assert optimal_queries(0.0, within, 1.0, 1.0) == math.inf


def test_no_half_width_is_no_plan():
    with pytest.raises(ValueError, match="above 0"):
        episodes_needed(0.01, 0.2, 10, 0.0)

"""How sure a few-shot result is: variance between and within episodes, and what it takes to be surer.

A query's value x is 1 or 0 for right or wrong, or the difference -1, 0, 1 of two methods on it. Episode i has the true
mean a_i over its possible queries; a_i has mean mu and variance sigma_b^2 over episodes. With n episodes of M queries::

    Var = (1/n) (sigma_b^2 + w / M),   w = E[variance of x within an episode]

For right and wrong, w = E[a (1 - a)] = mu (1 - mu) - sigma_b^2, so that

    Var = (1/n) [sigma_b^2 (1 - 1/M) + mu (1 - mu) / M]

Source: Landolsi & Kahl 2024, arXiv 2406.03146, section on the variance of the accuracy estimator; the law of total
variance. Optimal M: two-stage sampling, Cochran 1977, Sampling Techniques, section 10.6.
Legend: n episodes, M queries of an episode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyforge.device.stats import t_quantile


@dataclass(frozen=True)
class Components:
    """mean: mu. between: sigma_b^2, not below 0. within: w. num_queries: harmonic mean of M. num_episodes: n.

    between is None with one episode, within is None where an episode has a single query.
    """

    mean: float
    between: float | None
    within: float | None
    num_queries: float
    num_episodes: int


def components(values: Sequence[np.ndarray]) -> Components:
    """Unbiased estimates from the query values (M_i,) of n episodes; before sigma_b^2 is cut at 0.

    sigma_b^2 = s^2 - mean(w_i / M_i), s^2 the sample variance of the episodes' means, w_i that within episode i.
    Raises ValueError without episodes or with an empty one.
    """
    if not values or min(map(len, values)) < 1:
        raise ValueError("components need at least one episode, each with at least one query")
    counts = np.array([len(one) for one in values], dtype=np.float64)
    means = np.array([one.mean(dtype=np.float64) for one in values])
    known = counts.min() > 1
    inner = np.array([one.var(ddof=1, dtype=np.float64) for one in values]) if known else None
    between = None
    if len(values) > 1 and inner is not None:
        between = max(0.0, float(means.var(ddof=1) - (inner / counts).mean()))
    within = None if inner is None else float(inner.mean())
    return Components(float(means.mean()), between, within, float(len(counts) / (1 / counts).sum()), len(values))


def mean_variance(between: float, within: float, num_episodes: int, num_queries: float) -> float:
    """Variance of the mean over episodes, as in the module's first formula."""
    return (between + within / num_queries) / num_episodes


def half_width(variance: float, num_episodes: int, confidence: float = 0.95) -> float:
    """Of the t-interval around a mean over episodes that has this variance."""
    return t_quantile(0.5 + confidence / 2, num_episodes - 1) * math.sqrt(variance)


def episodes_needed(between: float, within: float, num_queries: float, wanted: float, confidence: float = 0.95) -> int:
    """Fewest episodes, at least 2, whose interval is expected to be no wider than +-``wanted`` (> 0)."""
    if wanted <= 0:
        raise ValueError("the wanted half-width must be above 0")

    def wide(n: int) -> bool:
        return half_width(mean_variance(between, within, n, num_queries), n, confidence) > wanted

    high = 2
    while wide(high):
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if wide(middle) else (low, middle)
    return high


def optimal_queries(between: float, within: float, episode_cost: float, query_cost: float) -> float:
    """M* = sqrt((C_e / c_q) w / sigma_b^2): the queries per episode that buy most; infinite where sigma_b is 0.

    episode_cost: of an episode without its queries; query_cost: of one query; in the same unit, both above 0.
    """
    return math.inf if between == 0 else math.sqrt(episode_cost / query_cost * within / between)

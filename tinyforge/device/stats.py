"""How sure a measured number is. Pure functions, standard library only.

Probabilities and accuracies are in [0, 1]; every interval is (low, high), two-sided unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

MAX_TERMS = 10_000


def score(correct: int, n: int) -> dict:
    """An accuracy as it stands in every report: {n, correct, accuracy, low, high}, Wilson 95 %, six decimals."""
    low, high = wilson(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": round(correct / n, 6),
        "low": round(low, 6),
        "high": round(high, 6),
    }


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion. Source: E. B. Wilson 1927, JASA 22(158). Raises ValueError on impossible counts."""
    _check_counts(correct, n)
    z = _z(confidence)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    return low, 1.0 if correct == n else min(1.0, centre + half)


def exact_lower(correct: int, n: int, confidence: float = 0.95) -> float:
    """One-sided lower bound of a proportion: the p at which ``correct`` or more of n has probability 1 - confidence.

    Source: Clopper & Pearson 1934, Biometrika 26(4).
    """
    _check_counts(correct, n)
    if correct == 0:
        return 0.0
    return _bisect(lambda p: 1.0 - binomial_cdf(correct - 1, n, p), 1.0 - confidence, 0.0, 1.0)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P[at most k of n succeed], each with probability p."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else beta_cdf(1.0 - p, n - k, k + 1)


def paired_difference(
    a_correct: Sequence[bool], b_correct: Sequence[bool], confidence: float = 0.95
) -> tuple[float, float, float]:
    """(difference, low, high) of accuracy a - accuracy b on the same items.

    Source: Bonett & Price 2012, J. Educ. Behav. Stat. 37(4): adjusted Wald, honest also when few items differ.
    """
    n, only_a, only_b = _discordant(a_correct, b_correct)
    p_a, p_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = _z(confidence) * math.sqrt((p_a + p_b - (p_a - p_b) ** 2) / (n + 2))
    return (only_a - only_b) / n, max(-1.0, p_a - p_b - half), min(1.0, p_a - p_b + half)


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> float:
    """Two-sided exact p-value of "a and b are equally accurate" on the same items. Source: McNemar 1947."""
    _, only_a, only_b = _discordant(a_correct, b_correct)
    return min(1.0, 2.0 * binomial_cdf(min(only_a, only_b), only_a + only_b, 0.5))


def _discordant(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> tuple[int, int, int]:
    """(items, only a right, only b right)."""
    if len(a_correct) != len(b_correct) or len(a_correct) == 0:
        raise ValueError(f"paired results must be equally many, at least one: {len(a_correct)} and {len(b_correct)}")
    pairs = [(bool(a), bool(b)) for a, b in zip(a_correct, b_correct)]
    return len(pairs), pairs.count((True, False)), pairs.count((False, True))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t. Raises ValueError with fewer than two values."""
    n = len(values)
    if n < 2:
        raise ValueError("an interval of the mean needs at least two values")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = t_quantile(0.5 + confidence / 2, n - 1) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def t_quantile(probability: float, degrees: int) -> float:
    """The t with P[T <= t] = probability in [0.5, 1), for Student's T; relative error below 1e-9."""
    tail = 2.0 * (1.0 - probability)  # P[|T| > t] = I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2)
    x = _bisect(lambda x: beta_cdf(x, degrees / 2, 0.5), tail, 0.0, 1.0)
    return math.sqrt(degrees * (1.0 - x) / x)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank: a measured value)."""
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


@cache
def runs_needed(share: float, confidence: float = 0.99) -> int:
    """Fewest runs after which a percentile may be claimed: one slower run is allowed for, yet at most one would be
    luck with probability <= 1 - confidence. 64 for 0.90, 662 for 0.99.

    Source: MLPerf inference, early stopping (LoadGen ``early_stopping``), tolerance 0.
    """
    runs = 2
    while binomial_cdf(1, runs, 1.0 - share) > 1.0 - confidence:
        runs += 1
    return runs


def percentile_bound(values: Sequence[float], share: float, confidence: float = 0.99) -> float | None:
    """A value that the true percentile does not exceed, with ``confidence``; None with fewer runs than needed.

    With t the most slower runs that would still be luck (probability <= 1 - confidence), it is the (t + 1)th largest.
    """
    n, slower = len(values), 1
    if binomial_cdf(slower, n, 1.0 - share) > 1.0 - confidence or n < 2:
        return None
    while binomial_cdf(slower + 1, n, 1.0 - share) <= 1.0 - confidence:
        slower += 1
    return sorted(values)[n - 1 - slower]


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b). Source: Press et al., Numerical Recipes, section 6.4 (Lentz)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction 1 + d1 / (1 + d2 / (1 + ...)) of I_x(a, b), by Lentz's method."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for term in range(1, MAX_TERMS):
        m = term // 2
        if term % 2:
            step = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + step * d or tiny)
        c = 1.0 + step / c or tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _bisect(rising: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches ``target``, to the last bit."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_counts(correct: int, n: int) -> None:
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} correct of {n} is not a score")

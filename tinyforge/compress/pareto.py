"""Which candidates of a race are beaten, and which of those that keep the limits ships. Pure functions.

**Beaten.** a beats b when it is at least as good in all three: as many of the same test images right, or more, and a
p90 latency and a size at most 5 % larger. And clearly better in one of them: the 95 % interval of the paired difference
in accuracy lies above 0; or the intervals of the p90 (99 % on each side) lie more than 5 % apart; or b is more than 5 %
larger. So a tie beats nobody, and more right answers, be it one, are never given up for speed here. The same 5 % on
both sides lets no circle arise: what is gained where it is clear is more than may be lost where it is not. Where
accuracy is unknown, nobody is beaten.

**Shipped.** Of those that keep the limits and are at most ``max_drop`` less accurate than the most accurate of them,
the fastest; of those within 5 % of its p90, the smallest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyforge.compress.selection import TIE
from tinyforge.device.stats import exact_lower, paired_difference, percentile, percentile_bound

SHARE, CONFIDENCE = 0.90, 0.99
ACCURACY_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Entry:
    """What was measured of a candidate. p90_ms, low_ms, high_ms: see ``p90_interval``.

    right: for each test image, in one order for all candidates, whether the answer is right; None without test images.
    """

    name: str
    model_bytes: int
    p90_ms: float
    low_ms: float
    high_ms: float
    right: tuple[bool, ...] | None = None


def p90_interval(infer_us: Sequence[int]) -> tuple[float, float, float]:
    """(p90, low, high) in ms: the true p90 exceeds high, or falls below low, with probability at most 1 % each.

    Order statistics, see ``stats.percentile_bound``; low is the bound of the mirrored values. Needs 64 runs or more;
    ValueError with fewer.
    """
    high = percentile_bound(infer_us, SHARE, CONFIDENCE)
    low = percentile_bound([-value for value in infer_us], 1 - SHARE, CONFIDENCE)
    if high is None or low is None:
        raise ValueError(f"{len(infer_us)} runs are too few for a p90")
    return percentile(infer_us, SHARE) / 1000, -low / 1000, high / 1000


def beats(a: Entry, b: Entry) -> bool:
    """See the rule above."""
    if a.right is None or b.right is None or sum(a.right) < sum(b.right):
        return False
    if a.p90_ms > b.p90_ms * (1 + TIE) or a.model_bytes > b.model_bytes * (1 + TIE):
        return False
    faster, smaller = a.high_ms * (1 + TIE) < b.low_ms, a.model_bytes * (1 + TIE) < b.model_bytes
    return faster or smaller or (sum(a.right) > sum(b.right) and paired_difference(a.right, b.right)[1] > 0)


def beaten_by(entries: Sequence[Entry]) -> dict[str, str]:
    """Name of each that is beaten -> the fastest of those that beat it. The others are not dominated."""
    found = {}
    for one in entries:
        winners = [other for other in entries if other is not one and beats(other, one)]
        if winners:
            found[one.name] = min(winners, key=lambda other: other.p90_ms).name
    return found


def ships(entries: Sequence[Entry], max_drop: float) -> Entry:
    """Which of the entries, all of which keep the limits, is shipped; accuracies are ignored where one is unknown."""
    close = list(entries)
    if all(one.right is not None for one in entries):
        most = max(sum(one.right) for one in entries)
        close = [one for one in entries if most - sum(one.right) <= max_drop * len(one.right)]
    fastest = min(one.p90_ms for one in close)
    return min((one for one in close if one.p90_ms <= fastest * (1 + TIE)), key=lambda one: one.model_bytes)


def accuracy_bound(correct: int, n: int, models: int) -> float:
    """A lower bound for the chosen of so many ``models`` that holds at 95 % although the test images chose it.

    Exact, one-sided, at 1 - 0.05 / models: all of them hold at once. Source: Bonferroni; see ``stats.exact_lower``.
    """
    return exact_lower(correct, n, 1 - (1 - ACCURACY_CONFIDENCE) / models)

"""What answers about held-out supports say for and against each way of making a student. Pure numpy.

Accuracy on a few dozen images is too coarse to compare students that differ by some points; the log loss, in nats, uses
how sure each answer was. A student that learned from soft labels is less sure than one that learned from hard ones, so
each way first gets one temperature of its own, and the comparison is of what the answers rank, not of how loud they
are.

Legend: n held-out images, N classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinyforge.device.stats import mean_interval, score

TEMPERATURES = np.geomspace(0.01, 1000, 116)  # a tenth apart, in the logarithm
SPREAD = 0.5  # nats: the standard deviation of one paired difference before any was seen ...
SPREAD_WEIGHT = 3  # ... worth so many observations


@dataclass(frozen=True)
class Prior:
    """What is expected of a gain, in nats, before the trial: normal with this mean and standard deviation.

    overstated: how much more than the full-length student's the gain of a short one is known to be.
    """

    mean: float
    sd: float
    overstated: float = 0.0


@dataclass(frozen=True)
class Judgement:
    """One way of making the student against the reference.

    score: {n, correct, accuracy, low, high} on the held-out supports, None without any. log_loss: nats per image.
    gain: (mean, low, high) of the paired difference in log loss, 95 % t-interval, > 0 is better than the reference;
    None with fewer than two. prior: what was expected of it. expected: the gain after the prior is weighed in.
    probability: that the gain is positive. bar: the probability that it must reach to be taken.
    """

    name: str
    score: dict | None
    log_loss: float | None
    gain: tuple[float, float, float] | None
    prior: Prior
    expected: float
    probability: float
    bar: float


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) nats for logits (n, N) at the temperature that suits them best.

    A share of 1 / (n + 2) of the probability is spread over all classes: n right answers do not prove certainty, and
    one wrong answer cannot outweigh all others.
    """
    n, num_classes = logits.shape
    share = 1 / (n + 2)

    def at(temperature: float) -> np.ndarray:
        scaled = logits / temperature
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        own = np.exp(scaled[np.arange(n), labels]) / np.exp(scaled).sum(axis=1)
        return -np.log((1 - share) * own + share / num_classes)

    return min((at(t) for t in TEMPERATURES), key=lambda losses: losses.mean())


def posterior(differences: np.ndarray, prior: Prior) -> tuple[float, float]:
    """(expected gain, probability that it is positive) after n paired differences.

    Normal prior and likelihood; the spread of the differences is their own, drawn towards SPREAD while they are few.
    Without differences it is the prior.
    """
    n = len(differences)
    if n == 0:
        return prior.mean, normal_cdf(prior.mean / prior.sd)
    squares = float(np.square(differences - differences.mean()).sum())
    variance = (squares + SPREAD_WEIGHT * SPREAD**2) / (n - 1 + SPREAD_WEIGHT) / n
    precision = 1 / prior.sd**2 + 1 / variance
    seen = float(differences.mean()) - prior.overstated
    expected = (prior.mean / prior.sd**2 + seen / variance) / precision
    return expected, normal_cdf(expected * math.sqrt(precision))


def normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def judge(
    answers: Mapping[str, np.ndarray],
    labels: np.ndarray,
    reference: str,
    priors: Mapping[str, Prior],
    bars: Mapping[str, float],
) -> list[Judgement]:
    """Every way in ``answers``, logits (n, N), against ``reference``, which comes first with gain 0.

    Where nothing could be held out (n = 0), each is judged by its prior alone. bars: see ``Judgement``.
    """
    n = len(labels)
    losses = {name: log_losses(logits, labels) if n else np.zeros(0) for name, logits in answers.items()}
    judged = []
    for name in sorted(answers, key=lambda name: name != reference):
        differences, same = losses[reference] - losses[name], name == reference
        expected, probability = (0.0, 0.5) if same else posterior(differences, priors[name])
        right = int((answers[name].argmax(axis=1) == labels).sum()) if n else 0
        gain = mean_interval(differences.tolist()) if n > 1 and not same else None
        mean = float(losses[name].mean()) if n else None
        counted = score(right, n) if n else None
        judged.append(Judgement(name, counted, mean, gain, priors[name], expected, probability, bars[name]))
    return judged


def choose(judged: list[Judgement]) -> str:
    """The largest expected gain among those that reach their bar and gain more than 0; else the reference, the
    first.
    """
    passed = [one for one in judged[1:] if one.probability >= one.bar and one.expected > 0]
    return max(passed, key=lambda one: one.expected).name if passed else judged[0].name

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyforge.distill.verdict import Prior, choose, judge, log_losses, posterior

NEUTRAL = Prior(0.0, 0.2)


def answers(right: int, n: int, loudness: float = 3.0, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which the first ``right`` name their class, and the labels."""
    labels = np.arange(n) % num_classes
    named = np.where(np.arange(n) < right, labels, (labels + 1) % num_classes)
    return loudness * np.eye(num_classes)[named], labels


@given(st.floats(0.1, 10.0), st.integers(4, 20))
def test_the_loss_does_not_reward_or_punish_being_loud(loudness, right):
    logits, labels = answers(right, 20)
    assert log_losses(loudness * logits, labels).mean() == pytest.approx(log_losses(logits, labels).mean(), abs=0.02)


def test_more_right_answers_lose_less():
    losses = [log_losses(*answers(right, 20)).mean() for right in range(5, 21)]
    assert losses == sorted(losses, reverse=True)


def test_nothing_known_is_no_worse_than_guessing():
    logits, labels = answers(0, 20)  # always wrong: the best temperature makes it a guess
    assert log_losses(logits, labels).mean() == pytest.approx(np.log(4), abs=0.05)


def test_without_evidence_the_prior_stands():
    assert posterior(np.zeros(0), Prior(0.1, 0.1))[0] == 0.1
    assert posterior(np.zeros(0), Prior(0.1, 0.1))[1] == pytest.approx(0.8413, abs=1e-4)


def test_evidence_overrules_the_prior_as_it_grows():
    expected = [posterior(np.full(n, -0.4), Prior(0.1, 0.1))[0] for n in (2, 10, 50, 1000)]
    assert expected == sorted(expected, reverse=True)
    assert expected[0] > -0.1
    assert expected[-1] == pytest.approx(-0.4, abs=0.01)


def test_what_a_short_student_overstates_is_taken_off():
    seen = posterior(np.full(1000, 0.3), Prior(0.0, 0.2, overstated=0.1))[0]
    assert seen == pytest.approx(posterior(np.full(1000, 0.2), Prior(0.0, 0.2))[0], abs=1e-6)
    assert posterior(np.zeros(0), Prior(0.1, 0.2, overstated=0.1))[0] == 0.1


def test_two_supports_that_agree_prove_little():
    assert posterior(np.array([0.3, 0.3]), NEUTRAL)[1] < 0.9


def judged(rights: dict[str, int], n: int, prior: Prior, least: float = 0.9) -> list:
    given = {name: answers(right, n)[0] for name, right in rights.items()}
    return judge(given, answers(0, n)[1], "plain", dict.fromkeys(rights, prior), dict.fromkeys(rights, least))


def test_the_reference_comes_first_and_gains_nothing():
    first = judged({"other": 20, "plain": 12}, 30, NEUTRAL)[0]
    assert (first.name, first.gain, first.expected) == ("plain", None, 0.0)
    assert first.score["correct"] == 12


def test_a_clear_win_is_chosen_and_a_clear_loss_is_not():
    rights = {"plain": 15, "better": 26, "worse": 5}
    assert choose(judged(rights, 30, NEUTRAL)) == "better"
    assert choose(judged({"plain": 15, "worse": 5}, 30, Prior(0.1, 0.1), 0.5)) == "plain"


def test_equal_students_leave_the_default_or_what_is_expected_to_gain():
    rights = {"plain": 15, "other": 15}
    assert choose(judged(rights, 30, NEUTRAL)) == "plain"
    assert choose(judged(rights, 30, Prior(0.1, 0.1), 0.5)) == "other"


def test_with_nothing_held_out_only_the_prior_decides():
    nothing = {name: np.zeros((0, 4)) for name in ("plain", "other")}
    no_labels = np.zeros(0, int)
    away = judge(nothing, no_labels, "plain", dict.fromkeys(nothing, NEUTRAL), dict.fromkeys(nothing, 0.9))
    home = judge(nothing, no_labels, "plain", dict.fromkeys(nothing, Prior(0.1, 0.1)), dict.fromkeys(nothing, 0.5))
    assert (choose(away), choose(home)) == ("plain", "other")
    assert all(one.score is None and one.gain is None and one.log_loss is None for one in home)


def test_noise_alone_is_rarely_taken_outside_the_domain():
    """Two students that are equally good on average, 200 trials of 30 supports each."""
    rng, wrongly = np.random.default_rng(0), 0
    labels = np.arange(30) % 5
    for _ in range(200):
        pair = {name: rng.normal(size=(30, 5)) + 1.2 * np.eye(5)[labels] for name in ("plain", "other")}
        wrongly += (
            choose(judge(pair, labels, "plain", dict.fromkeys(pair, NEUTRAL), dict.fromkeys(pair, 0.9))) == "other"
        )
    assert wrongly <= 30

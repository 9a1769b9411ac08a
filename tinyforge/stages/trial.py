"""The trial of a build: what shall the student learn from? Decided on the supports alone, never on the test set.

Every support is held out once. Short students, made in each of the ways that are open, learn from the rest and are
asked about it; so is a teacher that has not seen it. Where no class has a second support nothing can be held out, and
what was known before decides: the domain of the diffusion model.

::

    trial/<way>-<fold>.json      logits of one short student, or of the fold's teacher, for the supports held out
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tinyforge.distill.verdict import Judgement, Prior, choose, judge
from tinyforge.recipe import Trial
from tinyforge.stages.crew import Crew
from tinyforge.stages.inputs import input_size
from tinyforge.stages.invert import in_domain
from tinyforge.store import Partial

REFERENCE = "support-hard"
TAUGHT = ("support-kd", "tint-teacher")
"""With the teacher's labels."""
ABROAD = Prior(0.0, 0.2)
"""Outside the domain nothing is expected of any way, nor in it of a misleading teacher's labels."""
MIX = Prior(0.0, 0.05)
"""Other shares and blends change little, either way."""


@dataclass(frozen=True)
class Way:
    """A way of making the student. support_share: None is the recipe's. alpha: only synthetic images of this blend;
    None: all.
    """

    method: str
    support_share: float | None = None
    alpha: float | None = None

    @property
    def name(self) -> str:
        share = "" if self.support_share is None else f"-share{self.support_share:g}"
        return f"{self.method}{share}" + ("" if self.alpha is None else f"-alpha{self.alpha:g}")


def forced(labels: str, num_synthetic: int, num_unlabelled: int = 0) -> Way:
    """What ``distill.labels`` = 'class' or 'teacher' asks for. Without further images it is a baseline."""
    if labels == "class":
        return Way("tint-class" if num_synthetic else "support-hard")
    return Way("tint-teacher" if num_synthetic or num_unlabelled else "support-kd")


def first_round(num_synthetic: int, num_unlabelled: int = 0) -> list[Way]:
    """Both kinds of labels, on the supports and on all that each may be learned from: unlabelled images need the
    teacher.
    """
    further = [Way("tint-class")] * bool(num_synthetic) + [Way("tint-teacher")] * bool(num_synthetic or num_unlabelled)
    return [Way(REFERENCE), Way("support-kd"), *further]


def second_round(winner: Way, shares: Iterable[float], usual: float, alphas: Iterable[float]) -> list[Way]:
    """The winner, then other mixes of it: other shares of supports than the usual, and each of several alphas alone."""
    alphas = sorted(set(alphas))
    mixes = [Way(winner.method, support_share=share) for share in sorted(set(shares) - {usual})]
    return [winner, *mixes, *(Way(winner.method, alpha=alpha) for alpha in alphas if len(alphas) > 1)]


@dataclass(frozen=True)
class Hearing:
    """One build's trial under way. room: the images, the teacher and the settings (stages.distill.Classroom).
    hands: what works on it. labelled: fold -> the views as its teacher labels them.
    """

    room: Any
    partial: Partial
    hands: Crew
    labelled: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def court(self) -> Any:
        import torch

        from tinyforge.distill.students import STUDENTS, default_spec
        from tinyforge.distill.teacher import fold_of
        from tinyforge.distill.trial import Court

        room, road = self.room, self.room.road
        wanted, limits, support = road.recipe.distill, road.recipe.trial, road.inputs.support
        size = input_size(wanted, support)
        spec = default_spec(wanted.student, min(size, limits.input_size) if wanted.student in STUDENTS else size)
        brief = {"epochs": 1, "steps_per_epoch": limits.steps, "batch_size": limits.batch_size}
        origin = [*range(len(support)), *room.origins[room.kept], *[-1] * len(road.inputs.unlabelled)]
        return Court(
            room.training_set(spec), torch.tensor(origin), fold_of(torch.from_numpy(support.labels), limits.folds),
            spec, wanted.model_copy(update=brief), len(support.classes), road.recipe.seed, road.device, room.start,
        )  # fmt: skip

    @cached_property
    def views(self) -> Any:
        from tinyforge.distill.trial import draw_views

        return draw_views(self.court.data, self.court.settings, self.court.seed)

    @cached_property
    def view_features(self) -> Any:
        """Of a teacher that is not fine-tuned, and so the same for every fold; None of one that is."""
        from tinyforge.distill.trial import view_features

        if self.room.teacher.lr > 0:
            return None
        return view_features(self.room.road.extractor, self.views, self.court.device, each=self.hands.each)

    @cached_property
    def asked(self) -> np.ndarray:
        """The supports that are held out, fold by fold."""
        return np.concatenate(
            [np.zeros(0, int), *(self.court.held_out(i).numpy() for i in range(self.court.num_folds))]
        )

    def teacher(self, fold: int) -> Any:
        """Adapted to the supports of the other folds, at the learning rate that was chosen on all."""
        from tinyforge.distill.teacher import adapt

        road, held_out = self.room.road, set(self.court.held_out(fold).tolist())
        support = road.inputs.support.subset(i for i in range(len(road.inputs.support)) if i not in held_out)
        settings = road.recipe.teacher.model_copy(update={"fine_tune_lrs": [self.room.teacher.lr]})
        return adapt(road.extractor, support.rgb, support.labels, settings, seed=road.recipe.seed, device=road.device)

    def _label(self, fold: int) -> Any:
        """The views with the labels of the fold's teacher, whose own answers are written down on the way."""
        from tinyforge.distill.trial import label_views

        if fold not in self.labelled:
            teacher, support = self.teacher(fold), self.room.road.inputs.support
            answers = teacher.predict_logits(support.subset(self.court.held_out(fold)).rgb)
            self._write("teacher", fold, answers)
            self.labelled[fold] = label_views(teacher, self.views, self.court.device, self.view_features)
        return self.labelled[fold]

    def _file(self, name: str, fold: int) -> str:
        return f"trial/{name}-{fold}.json"

    def _write(self, name: str, fold: int, logits: np.ndarray) -> None:
        self.partial.write_json(self._file(name, fold), np.round(logits.astype(float), 6).tolist())

    def _read(self, name: str, fold: int) -> np.ndarray:
        return np.array(json.loads((self.partial.path / self._file(name, fold)).read_text(encoding="utf-8")))

    def _candidate(self, way: Way) -> Any:
        import torch

        from tinyforge.distill.train import methods
        from tinyforge.distill.trial import Candidate

        room, wanted, court = self.room, self.court.settings, self.court
        usable = torch.ones(len(court.data.labels), dtype=torch.bool)
        if way.alpha is not None:
            first = court.data.num_supports
            usable[first : first + len(room.kept)] = torch.from_numpy(room.alphas[room.kept] == way.alpha)
        share = wanted.support_share if way.support_share is None else way.support_share
        return Candidate({one.name: one for one in methods(wanted)}[way.method], share, usable)

    def _prepare(self, folds: Iterable[int]) -> None:
        """The views, labelled for these folds, before several students want them."""
        folds = list(folds)
        if folds:
            self.hands.ask(getattr, self, "views").result()
            self.view_features  # noqa: B018
            self.hands.each(self._label, folds)

    def _answer(self, way: Way, fold: int, tell: Callable[[], None]) -> None:
        from tinyforge.distill.trial import held_out_logits

        logits = held_out_logits(self.court, self._candidate(way), fold, self.views, self._label(fold))
        self._write(way.name, fold, logits)
        tell()

    def answers(self, ways: Sequence[Way]) -> dict[str, np.ndarray]:
        """Way -> logits (n, N) for ``asked``, 'teacher' among them. What is written already is not made again."""
        folds = range(self.court.num_folds)
        missing = [(way, i) for i in folds for way in ways if not self.partial.has(self._file(way.name, i))]
        unheard = {i for i in folds if not self.partial.has(self._file("teacher", i))}
        self._prepare(sorted(unheard | {i for _, i in missing}))
        progress, done = self.hands.watched(self.room.road.progress("trial")), itertools.count(1)

        def tell() -> None:
            progress(next(done), len(missing))

        self.hands.each(lambda one: self._answer(*one, tell), missing)
        empty, names = np.zeros((0, self.court.num_classes)), [*(way.name for way in ways), "teacher"]
        return {name: np.concatenate([empty, *(self._read(name, fold) for fold in folds)]) for name in names}


def prior(name: str, wanted: Trial, at_home: bool, misled: bool = False) -> Prior:
    """What is expected of a way before the trial. misled: by the labels of a teacher that was shown to know less."""
    if not at_home or misled:
        return ABROAD
    return Prior(wanted.expected_gains.get(name, 0.0), wanted.expected_sd, wanted.overstated_gains.get(name, 0.0))


def hold(room: Any, partial: Partial, hands: Crew) -> tuple[Way, dict[str, Any]]:
    """The way that ships, and what the report says of how it was chosen."""
    hearing, recipe, at_home = Hearing(room, partial, hands), room.road.recipe, in_domain(room.road)
    ways = {way.name: way for way in first_round(len(room.kept), len(room.road.inputs.unlabelled))}
    labels = room.road.inputs.support.labels[hearing.asked]
    answers = hearing.answers(list(ways.values()))
    least = recipe.trial.min_probability
    teacher = judge_teacher(answers.pop("teacher"), answers[REFERENCE], labels, least)
    lost = misleads(teacher)
    priors = {name: prior(name, recipe.trial, at_home, lost and way.method in TAUGHT) for name, way in ways.items()}
    bars = {name: bar(ways[name].method, priors[name], teacher, least) for name in ways}
    judged = judge(answers, labels, REFERENCE, priors, bars)
    winner = chosen = ways[choose(judged)]
    mixes: list[Judgement] = []
    if winner.method.startswith("tint") and len(labels):
        alphas = room.alphas[room.kept].tolist() if recipe.trial.single_alphas else []
        tried = {
            way.name: way
            for way in second_round(winner, recipe.trial.support_shares, recipe.distill.support_share, alphas)
        }
        others = hearing.answers(list(tried.values()))
        others.pop("teacher")
        mixes = judge(others, labels, winner.name, dict.fromkeys(tried, MIX), dict.fromkeys(tried, least))
        chosen = tried[choose(mixes)]
    return chosen, {
        "shipped": chosen.name,
        "in_domain": at_home,
        "held_out": len(labels),
        "folds": hearing.court.num_folds,
        "steps": recipe.trial.steps,
        "why": why(winner.name, judged, at_home),
        "ways": [asdict(one) for one in judged],
        "mixes": [asdict(one) for one in mixes],
        "teacher": asdict(teacher)
        | {
            "trusted": trusted(teacher),
            "misleads": lost,
            "lr": room.teacher.lr,
            "rates": room.teacher.record.get("accuracies", {}),
        },
    }


def judge_teacher(teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, bar: float) -> Judgement:
    """The teacher, on supports it has not seen, against the support-only student."""
    answers, nothing = {REFERENCE: student, "teacher": teacher}, {REFERENCE: ABROAD, "teacher": ABROAD}
    return judge(answers, labels, REFERENCE, nothing, dict.fromkeys(answers, bar))[1]


def trusted(teacher: Judgement) -> bool:
    """Whether the teacher was shown to know more than the student that has none."""
    return teacher.probability >= teacher.bar


def misleads(teacher: Judgement) -> bool:
    """Whether it was shown to know less."""
    return teacher.probability <= 1 - teacher.bar


def bar(method: str, expected: Prior, teacher: Judgement, least: float) -> float:
    """The probability of a gain that a way must reach: more likely than not where a gain is expected, of the stack in
    its domain or of a teacher that was shown to know more; ``least`` otherwise.
    """
    taught = method in TAUGHT and trusted(teacher)
    return 0.5 if taught or expected.mean > 0 else least


def why(winner: str, judged: Sequence[Judgement], at_home: bool) -> str:
    """The outcome in a sentence."""
    where = "in" if at_home else "outside"
    won = next(one for one in judged if one.name == winner)
    if won.score is None:
        known = f"nothing could be held out, with one support per class, and the images are {where} the model's domain"
        return f"{winner} ships: {known}"
    if winner == REFERENCE:
        best = max(judged[1:], key=lambda one: one.expected)
        return f"{winner} ships: no other way was shown to be better; the nearest was {best.name}, {evidence(best)}"
    return f"{winner} ships, against {REFERENCE}: {evidence(won)}; the images are {where} the model's domain"


def evidence(one: Judgement) -> str:
    """What was seen, what had been expected, and what follows from both."""
    mean, low, high = one.gain or (float("nan"),) * 3
    over = one.prior.overstated
    less = f" (short students {'over' if over > 0 else 'under'}state it by {abs(over):.2f})" if over else ""
    return (
        f"{mean:+.2f} nats [{low:+.2f}, {high:+.2f}] on {one.score['n']} held-out supports{less}, where "
        f"{one.prior.mean:+.2f} ± {one.prior.sd:.2f} were expected; together better with probability "
        f"{one.probability:.2f}"
    )

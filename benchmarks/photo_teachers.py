"""Stages of the photo teacher, each way trained from scratch for the same processor minutes, by its prototypes'
accuracy on CIFAR-FS's validation classes: 600 episodes, the same for all.

    python benchmarks/photo_teachers.py --pool photos/work/pool --out teachers
    python benchmarks/photo_teachers.py ... --only "classes alone" "with turns"     # some, in a process of their own

The network of tinyforge.embedded.pretrain.design, in float32 on one thread; how many steps fit is found by timing a few
of each kind. One JSON per way; what is there is kept.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from photo_designs import seconds_of, study

from tinyforge.device.report import table
from tinyforge.embedded.network import build
from tinyforge.embedded.pretrain import held_out_scores, loop, normalise, photos, teacher
from tinyforge.embedded.pretrain.design import DESIGNS
from tinyforge.embedded.pretrain.export import part
from tinyforge.embedded.pretrain.source import Source

DESIGN = DESIGNS["photos"]


@dataclass(frozen=True)
class Way:
    """Shares of the steps, in this order: classes at half size, classes at full size, ProtoNet episodes at full size.
    turned: of a classification batch, as much is turned and asked for its turn only.
    """

    half: float
    full: float
    episodes: float
    turned: float = 0.0
    seed: int = 0


WAYS = {
    "with episodes": Way(0.75, 0.10, 0.15),
    "with episodes, seed 1": Way(0.75, 0.10, 0.15, seed=1),
    "classes alone": Way(0.75, 0.25, 0.0),
    "full size throughout": Way(0.0, 0.85, 0.15),
    "more episodes": Way(0.60, 0.0, 0.40),
    "with turns": Way(0.75, 0.10, 0.15, turned=0.5),
}


class Turner(teacher.CosineClassifier):
    """Also tells by how many quarter turns an image was turned. Source: Gidaris et al. 2019, arXiv 1906.05186."""

    def __init__(self, network: torch.nn.Module, num_classes: int, width: int) -> None:
        super().__init__(network, num_classes, width)
        self.turns = torch.nn.Linear(width, 4)


def turned_loss(source: Source, view: str, share: float) -> loop.LossOf:
    """Of an upright part the class and that it is upright, of the rest by how much it was turned."""

    def loss_of(model: Any, step: int, gen: torch.Generator) -> torch.Tensor:
        batch = DESIGN.batch["teacher"]
        upright = batch - int(share * batch)
        labels = torch.multinomial(source.weights, batch, replacement=True, generator=gen)
        images, quarters = source.draw(labels, gen, view), torch.randint(1, 4, (batch,), generator=gen)
        quarters[:upright] = 0
        images = torch.stack([x.rot90(int(k), (-2, -1)) for x, k in zip(images, quarters, strict=True)])
        features = model.network(normalise(images)).float()
        cosines = F.normalize(features[:upright], dim=-1) @ F.normalize(model.weight, dim=-1).T
        classes = F.cross_entropy(model.log_scale.exp() * cosines, labels[:upright], label_smoothing=0.05)
        return classes + F.cross_entropy(model.turns(features), quarters)

    return loss_of


def kinds(source: Source, way: Way) -> dict[str, loop.LossOf]:
    """The losses of a step, by the names of Way's shares."""

    def of(view: str, supervised: int) -> loop.LossOf:
        if way.turned and supervised:
            return turned_loss(source, view, way.turned)

        def draw(labels: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
            return source.draw(labels, gen, view)

        stage = teacher.Stage(supervised, DESIGN.batch["teacher"])
        return teacher.loss_function(draw, source.weights, stage, normalise)

    always = 10**9
    return {"half": of("teacher, half size", always), "full": of("teacher", always), "episodes": of("teacher", 0)}


def in_order(losses: dict[str, loop.LossOf], ends: dict[str, int]) -> Callable[..., torch.Tensor]:
    """The loss of a step: of the first kind that ends after it."""
    return lambda model, step, gen: losses[next(k for k, end in ends.items() if step < end)](model, step, gen)


def measure(way: Way, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one way; {steps of each kind, core minutes, accuracies of every episode}."""
    source = photos.load_photos(options.pool, [])
    torch.manual_seed(way.seed)
    network = build("embedded:GlyphNet", DESIGN.network)
    head = Turner if way.turned else teacher.CosineClassifier
    model = head(network, len(source.names), DESIGN.network["embedding_dim"]).to(memory_format=torch.channels_last)
    losses, shares = kinds(source, way), {one: getattr(way, one) for one in ("half", "full", "episodes")}
    seconds = {one: seconds_of(model.train(), losses[one]) for one, share in shares.items() if share}
    total = options.minutes * 60 / sum(shares[one] * cost for one, cost in seconds.items())
    steps = {one: round(shares[one] * total) for one in seconds}
    ends = dict(zip(steps, np.cumsum(list(steps.values())).tolist(), strict=True))
    began, whole = time.process_time(), sum(steps.values())
    plan = loop.Plan(steps=whole, lr=2e-3, weight_decay=0.05, ema=0.998, clip=2.0, seed=way.seed)
    state = loop.train(model, in_order(losses, ends), plan, folder)
    minutes = (time.process_time() - began) / 60
    network.load_state_dict(part(state, "network."))
    scores = held_out_scores(network, source, DESIGN.ways, 600)
    return {
        "way": asdict(way), "steps": steps, "core_minutes": minutes,
        "scores": {name: each.mul(100).round(decimals=3).tolist() for name, each in scores.items()},
    }  # fmt: skip


def told(scores: np.ndarray) -> str:
    """Mean and half width of its 95 % interval over the episodes, in points."""
    return f"{scores.mean():+.1f} ± {1.96 * scores.std(ddof=1) / len(scores) ** 0.5:.1f}"


def summary(found: dict[str, dict[str, Any]]) -> str:
    """A row per way, with paired differences to the first of WAYS."""
    reference = found.get(next(iter(WAYS)), next(iter(found.values())))["scores"]
    rows = []
    for name, one in found.items():
        row = [name, " + ".join(str(n) for n in one["steps"].values()), f"{one['core_minutes']:.1f}"]
        for measure, values in one["scores"].items():
            mine = np.array(values)
            row += [told(mine).lstrip("+"), told(mine - reference[measure])]
        rows.append(row)
    heads = [text for name in reference for text in (f"{name}, %", "minus the first")]
    return table(["way", "steps", "core minutes", *heads], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study(parser, WAYS, measure, summary, minutes=10.0)


if __name__ == "__main__":
    main()

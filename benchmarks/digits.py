"""The sample task, measured: every method on the same supports and test images, over seeds and shots.

    python benchmarks/digits.py --seeds 0-9 --shots 1 5 --alphas 0.2 0.4 0.6 --out results/digits

One JSON per (seed, shots) with the share of right answers by method; rows already there are kept, so an interrupted run
goes on where it stopped. The table compares each row with the student on the supports alone (hard labels), paired by
seed: mean difference with its 95 % t-interval over the seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages import Job, advance, start
from tinyforge.stages.distill import Classroom, adapted_teacher, predictions, synthetic_images
from tinyforge.stages.trial import Way
from tinyforge.store import write_atomic

REFERENCE = "support-hard"
TEACHERS = {"teacher, prototypes": 0.0, "teacher, fine-tuned": 3e-4}
"""Rows for the teacher at one learning rate each, beside the rate that it chooses itself."""


def share(answers: dict[str, list[Any]]) -> float:
    hits = [label == found for label, found in zip(answers["labels"], answers["predicted"], strict=True)]
    return sum(hits) / len(hits)


def measure(
    recipe_name: str, seed: int, shots: int, alphas: list[float], out: Path, overrides: list[str], known: dict[str, Any]
) -> dict[str, Any]:
    """Accuracy of every method for one draw of supports: {'n', 'accuracy': {method: share}, 'seconds', 'teacher'}.

    known: what an earlier call found for the same draw; only what is missing is measured.
    """
    settings = [f"seed={seed}", f"data.shots={shots}", *overrides]
    road = built(recipe_name, settings, out, "compress")
    test, trained, found = road.inputs.test, road.done["distill"], dict(known.get("accuracy", {}))
    for stage in ("distill", "compress"):
        for file in (road.done[stage].path / "predictions").glob("*.json"):
            found[file.stem] = share(json.loads(file.read_bytes()))
    for name, lr in TEACHERS.items():
        if name not in found:
            fixed = built(recipe_name, [*settings, f"teacher.fine_tune_lrs=[{lr}]"], out, None)
            teacher = adapted_teacher(fixed, out / "teachers" / f"{name}-{seed}-{shots}")
            found[name] = share(predictions(test, teacher.predict_logits(test.rgb)))
    for alpha in alphas:
        if f"tint-teacher, alpha {alpha:g}" not in found:
            swept = built(recipe_name, [*settings, f"synthesize.alphas=[{alpha}]"], out, "synthesize")
            found |= students(swept, adapted_teacher(swept, trained.path / "teacher"), alpha)
    record = trained.json("distill.json")
    return {
        "seed": seed, "shots": shots, "n": len(test), "accuracy": found,
        "seconds": known.get("seconds", road.seconds),
        "teacher": record["teacher"], "agreement": record["agreement"],
    }  # fmt: skip


def built(recipe_name: str, settings: list[str], out: Path, until: str | None) -> Any:
    recipe = load_recipe(recipe_name, settings)
    road = start(Job(recipe, load_target(recipe.target), out, log=lambda text: None))
    if until is not None:
        advance(road, until)
    return road


def students(road: Any, teacher: Any, alpha: float) -> dict[str, float]:
    """Both label sources on synthetic images of one alpha, and how many of those the teacher agrees with."""
    from tinyforge.distill.train import predict_logits

    room = Classroom(road, teacher, *synthetic_images(road.done["synthesize"], road.inputs.support.classes))
    test, found = road.inputs.test, {}
    for method in ("tint-class", "tint-teacher"):
        logits = predict_logits(room.train(Way(method)).student, test.rgb, room.spec)
        found[f"{method}, alpha {alpha:g}"] = share(predictions(test, logits))
    agreed = teacher.predict_logits(room.images).argmax(axis=1) == room.labels
    return {**found, f"agreement, alpha {alpha:g}": float(agreed.mean())}


def summary(runs: list[dict[str, Any]]) -> str:
    """One table per number of shots."""
    parts = []
    for shots in sorted({run["shots"] for run in runs}):
        chosen = [run for run in runs if run["shots"] == shots]
        named = [name for name in chosen[0]["accuracy"] if not name.startswith("agreement")]
        names = [name for name in named if all(name in run["accuracy"] for run in chosen)]
        rows = [[name, *row(chosen, name)] for name in sorted(names)]
        seeds = ", ".join(str(run["seed"]) for run in chosen)
        head = ["method", "accuracy %", "95 % interval", f"minus {REFERENCE}", "95 % interval"]
        parts.append(
            f"{shots} shot(s), seeds {seeds}, n = {sum(run['n'] for run in chosen)} answers\n{table(head, rows)}"
        )
    return "\n\n".join(parts)


def row(runs: list[dict[str, Any]], name: str) -> list[str]:
    values = [100 * run["accuracy"][name] for run in runs]
    gains = [100 * (run["accuracy"][name] - run["accuracy"][REFERENCE]) for run in runs]
    if len(runs) < 2:
        return [f"{values[0]:.2f}", "", f"{gains[0]:+.2f}", ""]
    (mean, low, high), (gain, worst, best) = mean_interval(values), mean_interval(gains)
    return [f"{mean:.2f}", f"{low:.2f} to {high:.2f}", f"{gain:+.2f}", f"{worst:+.2f} to {best:+.2f}"]


def numbers(text: str) -> list[int]:
    """'0-9' or '0,3,5'."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="raspi")
    parser.add_argument("--seeds", type=numbers, default=numbers("0-9"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--alphas", type=float, nargs="*", default=[0.2, 0.4, 0.6])
    parser.add_argument("--out", type=Path, default=Path("results/digits"))
    parser.add_argument("-o", "--override", action="append", default=[])
    options = parser.parse_args()
    runs = []
    for shots in options.shots:
        for seed in options.seeds:
            file = options.out / f"shots{shots}-seed{seed}.json"
            known = json.loads(file.read_bytes()) if file.is_file() else {}
            run = measure(options.recipe, seed, shots, options.alphas, options.out / "forge", options.override, known)
            write_atomic(file, (json.dumps(run, indent=1) + "\n").encode())
            runs.append(run)
            print(f"{shots} shot(s), seed {seed}: {runs[-1]['accuracy']}", flush=True)
    print(summary(runs))


if __name__ == "__main__":
    main()

"""What a way of making the student gains on photos of classes that the shipped models have never seen: the prior of the
trial, measured on validation classes.

    python benchmarks/photo_folders.py --cifar cifar-100/ --mini mini-imagenet/ --split val --out folders
    python benchmarks/prior.py folders/* --out results/prior

A task is FOLDER with FOLDER-test beside it. Per task and way: the student in full length, its gain over the
support-only student on the test images in nats (each at its own best temperature, as the trial judges) and in points,
and the gain that the trial saw on held-out supports. One JSON per task; what is there already is kept. Of several tasks
the mean and the spread.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval
from tinyforge.distill.verdict import log_losses
from tinyforge.loading import load_recipe_and_target
from tinyforge.stages import Job, advance, start
from tinyforge.stages.distill import Classroom, adapted_teacher, synthetic_images
from tinyforge.stages.trial import REFERENCE, Way, first_round
from tinyforge.store import write_atomic


def measure(folder: Path, out: Path, overrides: list[str]) -> dict[str, Any]:
    """{task, classes, held_out, n, shipped, ways: {way: {accuracy, nats, points, trial: gain or None}}}."""
    data = [f"data.path={json.dumps(str(folder))}", f"data.test={json.dumps(str(folder) + '-test')}"]
    recipe, target = load_recipe_and_target("raspi", [*data, *overrides])
    road = start(Job(recipe, target, out / "forge" / folder.name, offline=True, log=lambda text: None))
    advance(road, "distill")
    trial, test = road.done["distill"].json("distill.json")["trial"], road.inputs.test
    logits = {way.name: answers(road, way) for way in first_round(len(road.done["synthesize"].json("index.json")))}
    losses = {name: log_losses(found, test.labels) for name, found in logits.items()}
    right = {name: float((found.argmax(axis=1) == test.labels).mean()) for name, found in logits.items()}
    seen = {one["name"]: one["gain"] for one in trial["ways"]}
    return {
        "task": folder.name, "classes": len(test.classes), "held_out": trial["held_out"], "n": len(test),
        "shipped": trial["shipped"], "seed": recipe.seed,
        "ways": {
            name: {
                "accuracy": right[name],
                "nats": float(losses[REFERENCE].mean() - losses[name].mean()),
                "points": 100 * (right[name] - right[REFERENCE]),
                "trial": seen[name],
            }
            for name in logits
        },
    }  # fmt: skip


def answers(road: Any, way: Way) -> np.ndarray:
    """Logits on the test images of the student that the build made in this way, or that is made now."""
    from safetensors.torch import load_file

    from tinyforge.distill.students import build_student
    from tinyforge.distill.train import predict_logits

    done, support = road.done["distill"], road.inputs.support
    file = done.path / f"students/{way.name}/student.safetensors"
    room = Classroom(road, adapted_teacher(road, done.path / "teacher"), *synthetic_images(road.done["synthesize"],
                     support.classes))  # fmt: skip
    if file.is_file():
        student = build_student(road.recipe.distill.student, len(support.classes), input_size=room.spec.size[0])
        student.load_state_dict(load_file(file))
    else:
        student = room.train(way).student
    return predict_logits(student.eval(), road.inputs.test.rgb, room.spec)


def summary(found: list[dict[str, Any]]) -> str:
    """Mean and spread over the tasks, per way; the last column is what the trial said less what was true."""
    rows = []
    for way in sorted({name for one in found for name in one["ways"]} - {REFERENCE}):
        ways = [one["ways"][way] for one in found]
        nats, points = [one["nats"] for one in ways], [one["points"] for one in ways]
        errors = [one["trial"][0] - one["nats"] for one in ways if one["trial"]]
        told = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in map(mean_interval, (nats, points))]
        rows.append([way, len(ways), *told, *(f"{np.std(x, ddof=1):.3f}" for x in (nats, errors)),
                     f"{np.mean(errors):+.3f}"])  # fmt: skip
    head = ["way", "tasks", "nats (95 %)", "points (95 %)", "sd of nats", "sd of the trial's error", "its mean"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/prior"))
    parser.add_argument("-o", "--override", action="append", default=[])
    options = parser.parse_args()
    found = []
    for folder in options.folders:
        if folder.name.endswith("-test"):
            continue
        file = options.out / f"{folder.name}.json"
        if not file.is_file():
            record = measure(folder, options.out, options.override)
            write_atomic(file, (json.dumps(record, indent=1) + "\n").encode())
        found.append(json.loads(file.read_bytes()))
        print(json.dumps(found[-1]), flush=True)
    if len(found) > 1:
        print(summary(found))


if __name__ == "__main__":
    main()

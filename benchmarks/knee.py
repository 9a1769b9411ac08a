"""What inversion, synthesis and training may leave out: a student's accuracy against its processor time.

    python benchmarks/knee.py --seeds 0-4 --shots 1 5 --out benchmarks/results/knee

One change at a time from the reference: ``raspi`` with the steps that it had before this table. A row is the student of
supports and synthetic images of the sample task, labelled by the teacher, made as a build makes it; the rows of a draw
share supports, teacher, views and seeds.
Seconds are of the processor (one thread, all of the stage), so that other work on the machine matters little. One JSON
per draw; what is there is kept, so an interrupted run goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from digits import numbers, share

from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval
from tinyforge.distill.train import predict_logits
from tinyforge.loading import load_recipe, load_target
from tinyforge.stages import Job, advance, start
from tinyforge.stages.distill import Classroom, adapted_teacher, predictions, synthetic_images
from tinyforge.stages.trial import Way
from tinyforge.store import write_atomic

REFERENCE, SETTINGS = "reference", ["invert.ti_steps=100", "invert.num_steps=15"]
VARIANTS: dict[str, list[str]] = {
    REFERENCE: [],
    "paper": ["preset=paper", "synthesize.images_per_class=100", "invert.ti_steps=5000", "invert.num_steps=25"],
    "25 steps of textual inversion": ["invert.ti_steps=25"],
    "50 steps of textual inversion": ["invert.ti_steps=50"],
    "200 steps of textual inversion": ["invert.ti_steps=200"],
    "25 steps of 16 samples": ["invert.ti_steps=25", "invert.ti_batch_size=16"],
    "textual inversion until 20 steps bring nothing": ["invert.ti_patience=20"],
    "textual inversion at a falling rate": ["invert.ti_schedule=cosine"],
    "7 denoising steps": ["invert.num_steps=7"],
    "10 denoising steps": ["invert.num_steps=10"],
    "25 denoising steps": ["invert.num_steps=25"],
    "10 denoising steps, 50 of textual inversion": ["invert.num_steps=10", "invert.ti_steps=50"],
    "no inner step": ["invert.nti_inner_steps=0"],
    "2 inner steps": ["invert.nti_inner_steps=2"],
    "inner steps from the condition": ["invert.nti_start=condition"],
    "the condition, no inner step": ["invert.nti_start=condition", "invert.nti_inner_steps=0"],
    "guidance from 0.3 to 0.8": ["invert.guidance_interval=[0.3, 0.8]"],
    "10 images a class": ["synthesize.images_per_class=10"],
    "60 images a class": ["synthesize.images_per_class=60"],
    "120 images a class": ["synthesize.images_per_class=120"],
    "6 epochs": ["distill.epochs=6"],
    "24 epochs": ["distill.epochs=24"],
    "supports alone": ["distill.labels='class'"],
}
"""Row -> what it changes of the recipe with SETTINGS. The last: the student without any synthetic image or teacher."""
ALONE = "supports alone"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its processor seconds."""
    started = time.process_time()
    return work(), round(time.process_time() - started, 2)


def measure(name: str, seed: int, shots: int, out: Path) -> dict[str, Any]:
    """One row of one draw: accuracy on the test images, processor seconds by stage, and the inversion's errors."""
    recipe = load_recipe("raspi", [f"seed={seed}", f"data.shots={shots}", *SETTINGS, *VARIANTS[name]])
    job = Job(recipe, load_target(recipe.target), out / "forge", resume=False, log=lambda text: None)  # timed whole
    road = start(job)
    seconds = {stage: staged(road, stage, out / "seconds") for stage in ("invert", "synthesize")}
    teacher = adapted_teacher(road, out / "teachers" / f"shots{shots}-seed{seed}")
    room = Classroom(road, teacher, *synthetic_images(road.done["synthesize"], road.inputs.support.classes))
    way = Way("support-hard" if name == ALONE else "tint-teacher")
    result, seconds["student"] = timed(lambda: room.train(way))
    if name == ALONE:
        seconds |= {"invert": 0.0, "synthesize": 0.0}
    test, inverted = road.inputs.test, road.done["invert"].json("invert.json")
    return {
        "accuracy": share(predictions(test, predict_logits(result.student, test.rgb, room.spec))),
        "n": len(test),
        "seconds": seconds,
        "kept": len(room.kept) / len(room.images),
        "latent_mse": median(inverted["latent_mse"]),
        "psnr_db": median(inverted["psnr_db"]),
    }


def staged(road: Any, stage: str, known: Path) -> float:
    """The processor seconds of a stage: those of now, or of when an earlier row made the very same folder."""
    _, seconds = timed(lambda: advance(road, stage))
    file = known / road.done[stage].path.name
    if not file.is_file():
        write_atomic(file, str(seconds).encode())
    return float(file.read_text())


def median(values: list[float]) -> float:
    return float(torch.tensor(values).median())


def summary(draws: list[dict[str, Any]]) -> str:
    """One table per number of shots: each row against the reference, paired by seed, on the draws that have the row."""
    parts = []
    for shots in sorted({draw["shots"] for draw in draws}):
        chosen = [draw for draw in draws if draw["shots"] == shots]
        have = {name: [draw for draw in chosen if name in draw["rows"]] for name in VARIANTS}
        n = chosen[0]["rows"][REFERENCE]["n"]
        head = ["row", "draws", "accuracy %", f"minus {REFERENCE} (95 %)", "invert s", "synthesize s", "student s",
                "all s", "points a minute", "PSNR dB", "kept %"]  # fmt: skip
        rows = [[name, str(len(own)), *row(own, name)] for name, own in have.items() if own]
        parts.append(f"{shots} shot(s), n = {n} answers a draw\n{table(head, rows)}")
    return "\n\n".join(parts)


def row(draws: list[dict[str, Any]], name: str) -> list[str]:
    own, others = ([draw["rows"][key] for draw in draws] for key in (name, REFERENCE))
    gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(own, others, strict=True)]
    gain = f"{gains[0]:+.2f}"
    if len(gains) > 1:
        mean, low, high = mean_interval(gains)
        gain = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    accuracy = 100 * mean_of(own, "accuracy")
    stages = [sum(one["seconds"][stage] for one in own) / len(own) for stage in ("invert", "synthesize", "student")]
    found = [f"{value:.1f}" for value in (*stages, sum(stages), 60 * accuracy / sum(stages))]
    return [f"{accuracy:.2f}", gain, *found, f"{mean_of(own, 'psnr_db'):.1f}", f"{100 * mean_of(own, 'kept'):.0f}"]


def mean_of(rows: list[dict[str, Any]], key: str) -> float:
    return sum(one[key] for one in rows) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=numbers("0-4"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rows", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="ROW")
    parser.add_argument("--out", type=Path, default=Path("results/knee"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = []
    for shots in options.shots:
        for seed in options.seeds:
            file = options.out / f"shots{shots}-seed{seed}.json"
            rows = json.loads(file.read_bytes())["rows"] if file.is_file() else {}
            for name in options.rows:
                if name not in rows:
                    rows[name] = measure(name, seed, shots, options.out)
                    draw = {"seed": seed, "shots": shots, "rows": rows}
                    write_atomic(file, (json.dumps(draw, indent=1) + "\n").encode())
                    print(f"{shots} shot(s), seed {seed}, {name}: {rows[name]}", flush=True)
            draws.append({"seed": seed, "shots": shots, "rows": rows})
    print(summary(draws))


if __name__ == "__main__":
    main()

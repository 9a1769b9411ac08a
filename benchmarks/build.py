"""The whole build, stage by stage, and how its time grows with classes, shots and images.

    python benchmarks/build.py --out benchmarks/results/build.json                   # many minutes: see --times
    python benchmarks/build.py --quick                                               # few steps: does it run?
    python benchmarks/build.py --data photos/ --classes 2 4 6 --shots 1 3 5 --images 0 60

Every build is ``tinyforge build --json`` in a fresh process and an empty folder; the seconds of the stages are those
that it reports. One factor is varied at a time, the others stay at the base: the largest number of classes and of
shots, and the middle number of images per class. ``other`` is what no stage accounts for (imports, reading, choosing
models); ``processor`` counts the seconds of all threads and children, which other programs hardly change. The
growth is a least-squares line through the builds that differ in one factor only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.machine import describe_machine
from tinyforge.device.report import table
from tinyforge.images import read_images
from tinyforge.stages.pictures import png
from tinyforge.store import write_atomic

STAGES = ("invert", "synthesize", "distill", "compress", "bench")
FACTORS = ("classes", "shots", "images")
ONE = {"classes": "class", "shots": "shot", "images": "image per class"}
FEW_STEPS = (
    "invert.ti_steps=2", "invert.num_steps=2", "invert.nti_inner_steps=1", "distill.epochs=1", "trial.steps=2",
    "teacher.fine_tune_steps=0", "compress.calibration_images=16", "compress.max_drop=1.0",
    "compress.min_agreement=0.0", "bench.seconds=0.05", "bench.min_runs=64",
)  # fmt: skip


def plan(classes: list[int], shots: list[int], images: list[int]) -> list[dict[str, int]]:
    """The builds: the base first, then one factor at a time, each only once."""
    base = {"classes": max(classes), "shots": max(shots), "images": sorted(images)[len(images) // 2]}
    values = zip(FACTORS, (classes, shots, images), strict=True)
    return [base, *({**base, name: value} for name, many in values for value in sorted(many) if value != base[name])]


def write_task(source: str, classes: int, folder: Path) -> None:
    """The first ``classes`` classes of the data as PNG files, <folder>/<class>/<number>.png."""
    images = read_images(source)
    for number, item in enumerate(images.items):
        if item.label < classes:
            file = folder / images.classes[item.label] / f"{number:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(item.rgb))


def command(recipe: str, data: Path, out: Path, task: dict[str, int], overrides: list[str]) -> list[str]:
    wanted = [f"data.shots={task['shots']}", f"synthesize.images_per_class={task['images']}", *overrides]
    options = [part for one in wanted for part in ("-o", one)]
    start = [sys.executable, "-m", "tinyforge", "build", "--json", "--offline", "--recipe", recipe]
    return [*start, "--data", str(data), "--out", str(out), *options]


def processor_seconds() -> float:
    """Of the children that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def build(arguments: list[str], task: dict[str, int]) -> dict[str, Any]:
    """One build: its task, its stages' seconds, and its own. Raises RuntimeError when it was not finished."""
    started, before = time.perf_counter(), processor_seconds()
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    wall, processor = time.perf_counter() - started, processor_seconds() - before
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)["result"]
    return row(task, found["seconds"], wall, processor) | {"warnings": found["warnings"]}


def row(task: dict[str, int], stages: dict[str, float], wall: float, processor: float) -> dict[str, Any]:
    """Raises KeyError when the build did not report a stage."""
    named = {name: stages[name] for name in STAGES}
    return {**task, "seconds": {**named, "other": wall - sum(named.values()), "all": wall}, "processor": processor}


def growth(rows: list[dict[str, Any]], factor: str, what: str) -> dict[str, float] | None:
    """{'per_unit', 'at_none'} of a line through the rows that differ from the first in ``factor`` alone; None: no two.

    what: a stage, 'other', 'all' or 'processor'.
    """
    others = [name for name in FACTORS if name != factor]
    chosen = [one for one in rows if all(one[name] == rows[0][name] for name in others)]
    if len({one[factor] for one in chosen}) < 2:
        return None
    x, y = [one[factor] for one in chosen], [seconds(one, what) for one in chosen]
    slope, start = np.polyfit(x, y, 1)
    return {"per_unit": float(slope), "at_none": float(start)}


def seconds(one: dict[str, Any], what: str) -> float:
    return one["processor"] if what == "processor" else one["seconds"][what]


def text(result: dict[str, Any]) -> str:
    """A row per build, and the growth."""
    columns = [*STAGES, "other", "all", "processor"]
    rows = [
        [*(str(one[name]) for name in FACTORS), *(f"{seconds(one, what):.1f}" for what in columns)]
        for one in result["builds"]
    ]
    lines = [
        [f"seconds per {ONE[name]}"]
        + ["" if one[what] is None else f"{one[what]['per_unit']:+.3f}" for what in columns]
        for name, one in result["growth"].items()
    ]
    return f"{table([*FACTORS, *columns], rows)}\n\n{table(['growth', *columns], lines)}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    whats = [*STAGES, "other", "all", "processor"]
    return {factor: {what: growth(rows, factor, what) for what in whats} for factor in FACTORS}


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Equal builds as one row of medians."""
    first = rows[0]
    middle = {name: statistics.median(one["seconds"][name] for one in rows) for name in first["seconds"]}
    return {**first, "seconds": middle, "processor": statistics.median(one["processor"] for one in rows)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All builds, the turns of ``times`` one after another, so that a busy spell does not hit one task alone."""
    tasks = plan(options.classes, options.shots, options.images)
    overrides = [*(FEW_STEPS if options.quick else ()), *options.override]
    made: list[list[dict[str, Any]]] = [[] for _ in tasks]
    for turn in range(options.times):
        for number, task in enumerate(tasks):
            with tempfile.TemporaryDirectory() as folder:
                data, out = Path(folder, "data"), Path(folder, "forge")
                write_task(options.data, task["classes"], data)
                made[number].append(build(command(options.recipe, data, out, task, overrides), task))
            print(f"turn {turn + 1}: {task} {made[number][-1]['seconds']['all']:.1f} s", flush=True)
    rows = [median(same) for same in made]
    about = {
        "machine": {**describe_machine(), "system": platform.system()},
        "recipe": options.recipe,
        "data": options.data,
        "overrides": overrides,
    }
    return {**about, "times": options.times, "builds": rows, "growth": summary(rows)}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="raspi")
    parser.add_argument("--data", default="digits", help="digits, or a folder with a folder for each class")
    parser.add_argument("--classes", type=int, nargs="+", help="default: 2 5 10, quick: 2 3")
    parser.add_argument("--shots", type=int, nargs="+", help="default: 1 5, quick: 1 2")
    parser.add_argument("--images", type=int, nargs="+", help="per class; default: 0 30 60, quick: 2 4")
    parser.add_argument("--times", type=int, default=1, help="each build so often")
    parser.add_argument("--quick", action="store_true", help="few steps of everything")
    parser.add_argument("-o", "--override", action="append", default=[], help="of the recipe, as in tinyforge build")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(argv)
    options.classes = options.classes or ([2, 3] if options.quick else [2, 5, 10])
    options.shots = options.shots or ([1, 2] if options.quick else [1, 5])
    options.images = options.images or ([2, 4] if options.quick else [0, 30, 60])
    return options


def main() -> None:
    options = parse()
    result = measure(options)
    if options.out:
        write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    print(text(result))


if __name__ == "__main__":
    main()

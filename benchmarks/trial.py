"""What the trial foretold of a student and what the test images said: one row per build.

    tinyforge distill --recipe raspi --data task-1 --test task-1-test --out forge-1      (as many as there are tasks)
    python benchmarks/trial.py forge-1 forge-2 ...

Reads distill.json and predictions/ of every finished distill stage. 'gain' is the accuracy of the student that ships
minus that of the support-only student, paired on the same test images, with its 95 % interval; 'regret' is the accuracy
of the best student that was made, minus that of the one that ships. The last lines correlate what was expected of each
way, in nats, with what it gained on the test images.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval, paired_difference

REFERENCE = "support-hard"


def right(file: Path) -> np.ndarray:
    """(n,) bool: which test images were answered rightly."""
    answers = json.loads(file.read_bytes())
    return np.array(answers["labels"]) == np.array(answers["predicted"])


def read(folder: Path) -> dict[str, Any] | None:
    """One finished distill stage; None where there was no trial or are no test images."""
    record = json.loads((folder / "distill.json").read_bytes())
    hits = {file.stem: right(file) for file in (folder / "predictions").glob("*.json")}
    return {**record, "hits": hits} if record.get("trial") and hits else None


def row(name: str, build: dict[str, Any]) -> list[Any]:
    trial, hits, shipped = build["trial"], build["hits"], build["shipped"]
    gain, low, high = (100 * value for value in paired_difference(hits[shipped], hits[REFERENCE]))
    students = {method: value.mean() for method, value in hits.items() if method != "teacher"}
    accuracies = [f"{100 * hits[method].mean():.1f}" for method in (REFERENCE, "support-kd", "teacher")]
    tint = f"{100 * hits['tint-teacher'].mean():.1f}" if "tint-teacher" in hits else None
    regret = 100 * (max(students.values()) - students[shipped])
    interval = f"{low:+.1f} to {high:+.1f}"
    where = "in" if trial["in_domain"] else "outside"
    return [name, where, trial["held_out"], shipped, len(hits[shipped]), *accuracies, tint, f"{gain:+.1f}", interval,
            f"{regret:.1f}"]  # fmt: skip


def foretold(builds: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(gain seen on held-out supports in nats, gain on the test images in points) of every way of every build."""
    pairs = []
    for build in builds:
        for way in build["trial"]["ways"]:
            if way["gain"] and way["name"] in build["hits"]:
                gain = build["hits"][way["name"]].mean() - build["hits"][REFERENCE].mean()
                pairs.append((way["gain"][0], 100 * float(gain)))
    return pairs


def summary(builds: dict[str, dict[str, Any]]) -> str:
    head = [
        "task",
        "domain",
        "held out",
        "ships",
        "n",
        "hard %",
        "kd %",
        "teacher %",
        "tint %",
        "gain",
        "95 %",
        "regret",
    ]
    parts = [table(head, [row(name, build) for name, build in builds.items()])]
    gains = [100 * float(one["hits"][one["shipped"]].mean() - one["hits"][REFERENCE].mean()) for one in builds.values()]
    if len(gains) > 1:
        mean, low, high = mean_interval(gains)
        parts.append(
            f"gain over {len(gains)} builds: {mean:+.2f} points [{low:+.2f}, {high:+.2f}], at worst {min(gains):+.1f}"
        )
    pairs = foretold(list(builds.values()))
    if len(pairs) > 2:
        correlation = np.corrcoef(np.array(pairs).T)[0, 1]
        parts.append(f"held-out gain against gain on test images: r = {correlation:.2f} over {len(pairs)} ways")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", type=Path, help="folders that were given as --out")
    found = {}
    for out in parser.parse_args().builds:
        for folder in sorted(out.glob("store/distill-*")):
            build = None if folder.suffix == ".partial" else read(folder)
            if build:
                found[f"{out.name} {folder.name[8:12]}"] = build
    print(summary(found) if found else "no finished distill stage with a trial and test images")


if __name__ == "__main__":
    main()

"""The accuracy of one method minus another's, in points, with its 95 % interval: on the same episodes or images.

    python benchmarks/paired.py benchmarks/results/cifar-fs-5shot tint-teacher+base+pretrained support-hard+pretrained
    python benchmarks/paired.py forge-cifar10/raspi-raspi4 tint-teacher support-hard
    python benchmarks/paired.py RESULTS/photo-folders/new5 tint-teacher support-hard --without 0
    python benchmarks/paired.py RESULTS/cifar-fs-5shot-lcnet support-hard support-hard RESULTS/cifar-fs-5shot
    python benchmarks/paired.py RESULTS/cifar-fs-5shot RESULTS/cifar-fs-5shot-tint --table support-hard
    python benchmarks/paired.py RESULTS/photo-folders/new5 RESULTS/photo-folders/new7 --mean onnx-fp32 support-hard

Of a results folder of `tinyforge evaluate` a t-interval over episodes; of a bundle an interval over its test images.
A second folder is where the second method's answers are: of the same episodes, another student.
With --without NUMBER the images of the class of that number, counted from 0 in the order of the names, are left out.
With --table every method of an evaluation: its accuracy, and its difference to each of the methods named. Of several
folders together, the last one's answers where more than one has a method. With --mean the differences on several
bundles' test images, each bundle counted once, with a t-interval over the bundles.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tinyforge.device.stats import mean_interval, paired_difference

Scores = dict[str, float]  # accuracy by episode, which its fingerprint names: the same task in every folder


def episode_scores(folder: Path) -> dict[str, Scores]:
    """Method -> its scores, in the order of the first episode."""
    found: dict[str, Scores] = {}
    for file in sorted((folder / "episodes").glob("*.json")):
        record = json.loads(file.read_text())
        labels = np.repeat(np.arange(len(record["queries"])), record["queries"])
        for name, answers in record["methods"].items():
            found.setdefault(name, {})[record["episode"]] = float(np.mean(np.array(answers["predicted"]) == labels))
    return found


def scores_of(folder: Path, name: str) -> Scores:
    """Those of one method; without it the program ends and says which there are."""
    scores = episode_scores(folder)
    if name not in scores:
        sys.exit(f"{folder} has no answers of {name!r}; it has {', '.join(scores) or 'no episodes'}")
    return scores[name]


def over_episodes(first: Scores, second: Scores) -> tuple[int, float, float, float]:
    """(episodes, difference, low, high), over the episodes that both have."""
    both = sorted(set(first) & set(second))
    if len(both) < 2:
        sys.exit("these two methods have fewer than two episodes in common: nothing to compare")
    return len(both), *mean_interval(np.array([first[one] - second[one] for one in both]))


def over_images(bundle: Path, a: str, b: str, without: int | None = None) -> tuple[int, float, float, float]:
    """(images, difference, low, high). without: the class whose images are left out."""
    first, second = (json.loads((bundle / "predictions" / f"{name}.json").read_text()) for name in (a, b))
    labels = np.array(first["labels"])
    asked = labels != without if without is not None else np.ones(len(labels), dtype=bool)
    right = [(np.array(one["predicted"]) == labels)[asked] for one in (first, second)]
    return int(asked.sum()), *paired_difference(*right)


def over_bundles(bundles: list[Path], a: str, b: str) -> tuple[int, float, float, float]:
    """(bundles, mean of their differences, low, high)."""
    if len(bundles) < 2:
        sys.exit("--mean takes two bundles or more")
    return len(bundles), *mean_interval([over_images(bundle, a, b)[1] for bundle in bundles])


def table(folders: list[Path], references: list[str]) -> str:
    """A row per method, in Markdown."""
    scores = {name: own for folder in folders for name, own in episode_scores(folder).items()}
    rows = [
        ["method", "episodes", "accuracy", *(f"minus `{name}`" for name in references)],
        ["---"] * (3 + len(references)),
    ]
    for name, own in scores.items():
        mean, low, high = (100 * value for value in mean_interval(np.array(list(own.values()))))
        differences = ["" if name == other else points(over_episodes(own, scores[other])) for other in references]
        rows.append([f"`{name}`", str(len(own)), f"{mean:.1f} [{low:.1f}, {high:.1f}]", *differences])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def points(found: tuple[int, float, float, float]) -> str:
    """A difference and its interval in points."""
    difference, low, high = (100 * value for value in found[1:])
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    if "--table" in sys.argv:
        split = sys.argv.index("--table")
        print(table([Path(one) for one in sys.argv[1:split]], sys.argv[split + 1 :]))
        return
    if "--mean" in sys.argv:
        split = sys.argv.index("--mean")
        names = sys.argv[split + 1 :]
        found = over_bundles([Path(one) for one in sys.argv[1:split]], *names[:2])
        print(f"{names[0]} - {names[1]}: {points(found)}, n = {found[0]} bundles")
        return
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    if (folder / "episodes").is_dir():
        other = Path(names[2]) if len(names) > 2 else folder
        found = over_episodes(scores_of(folder, names[0]), scores_of(other, names[1]))
    else:
        found = over_images(folder, *names[:2], int(names[3]) if names[2:3] == ["--without"] else None)
    print(f"{names[0]} - {names[1]}: {points(found)}, n = {found[0]}")


if __name__ == "__main__":
    main()

"""The accuracy of one method minus another's, in points, with its 95 % interval: on the same episodes or images.

    python benchmarks/paired.py benchmarks/results/cifar-fs-5shot tint-teacher+base+pretrained support-hard+pretrained
    python benchmarks/paired.py forge-cifar10/raspi-raspi4 tint-teacher support-hard

Of a results folder of `tinyforge evaluate` a t-interval over episodes; of a bundle an interval over its test images.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tinyforge.device.stats import mean_interval, paired_difference


def over_episodes(folder: Path, a: str, b: str) -> tuple[int, float, float, float]:
    """(episodes, difference, low, high)."""
    gains = []
    for file in sorted((folder / "episodes").glob("*.json")):
        record = json.loads(file.read_text())
        labels = np.repeat(np.arange(len(record["queries"])), record["queries"])
        right = [np.mean(np.array(record["methods"][name]["predicted"]) == labels) for name in (a, b)]
        gains.append(right[0] - right[1])
    return len(gains), *mean_interval(np.array(gains))


def over_images(bundle: Path, a: str, b: str) -> tuple[int, float, float, float]:
    """(images, difference, low, high)."""
    first, second = (json.loads((bundle / "predictions" / f"{name}.json").read_text()) for name in (a, b))
    labels = np.array(first["labels"])
    right = [np.array(one["predicted"]) == labels for one in (first, second)]
    return len(labels), *paired_difference(*right)


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    measure = over_episodes if (folder / "episodes").is_dir() else over_images
    count, *values = measure(folder, *names)
    difference, low, high = (100 * float(value) for value in values)
    print(f"{names[0]} - {names[1]}: {difference:+.1f} [{low:+.1f}, {high:+.1f}], n = {count}")


if __name__ == "__main__":
    main()

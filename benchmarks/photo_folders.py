"""Folders of photos for `tinyforge build`, of classes that the shipped photo models have never seen.

    python benchmarks/photo_folders.py --cifar cifar-100/ --mini mini-imagenet/ --out folders
    tinyforge build --recipe raspi --data folders/cifar10 --test folders/cifar10-test --out forge-cifar10

Of CIFAR-FS (32 px) and miniImageNet (84 px). --split test: six folders of the test classes, and mini10, to see how
long ten classes take; some of these had a part in choosing settings. --split val: five folders to choose by.
--split new: of the 50 training classes of miniImageNet that Tiny-ImageNet lacks, in an order that was drawn once: no
setting was chosen by them (what new5 led to was, by val), and no model has learned them, but for a tank, a dinosaur
(n01704323) and a snake (n01749939) among CIFAR-100's. Each class has 5 supports and 100 test images, by the seed.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from tinyforge.embedded.pretrain.photos import known_folders
from tinyforge.fewshot.datasets import read_classes

SUPPORTS, TESTS = 5, 100
CIFAR, MINI = "cifar-fs", "mini-imagenet"
FOLDERS = {  # split -> folder -> its classes, of those of the split in order
    "test": {
        "cifar10": (CIFAR, 0, 10), "mini5": (MINI, 0, 5), "mini8": (MINI, 5, 13),
        "cifar5": (CIFAR, 10, 15), "cifar5b": (CIFAR, 15, 20), "mini7": (MINI, 13, 20),
        "mini10": (MINI, 10, 20),
    },
    "val": {
        "cifar5v": (CIFAR, 0, 5), "cifar5w": (CIFAR, 5, 10), "cifar6v": (CIFAR, 10, 16),
        "mini8v": (MINI, 0, 8), "mini8w": (MINI, 8, 16),
    },
    "new": {
        "new5": (MINI, 0, 5), "new7": (MINI, 5, 12), "new10": (MINI, 12, 22),
        "new5b": (MINI, 22, 27), "new6": (MINI, 27, 33), "new7b": (MINI, 33, 40),
    },
}  # fmt: skip


def classes_of(root: Path, benchmark: str, split: str) -> list[tuple[str, tuple[str, ...]]]:
    """(class, its image files below root), in the order that FOLDERS counts in."""
    if split != "new":
        return sorted(read_classes(root, benchmark, split).items())
    found = sorted(read_classes(root, benchmark, "train").items())
    unseen = [one for one in found if one[0] not in known_folders()]
    return [unseen[i] for i in np.random.default_rng(0).permutation(len(unseen))]


def write(root: Path, benchmark: str, split: str, classes: slice, out: Path, seed: int) -> None:
    """out/<class>/ with the supports, out-test/<class>/ with the test images."""
    found = classes_of(root, benchmark, split)[classes]
    for number, (name, files) in enumerate(found):
        order = np.random.default_rng([seed, number]).permutation(len(files))[: SUPPORTS + TESTS]
        for place, index in enumerate(order):
            folder = out if place < SUPPORTS else out.with_name(f"{out.name}-test")
            (folder / name).mkdir(parents=True, exist_ok=True)
            source = root / files[index]
            shutil.copy(source, folder / name / f"{place:03d}{source.suffix}")
    print(f"{out}: {', '.join(name for name, _ in found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--mini", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=list(FOLDERS), default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    roots = {CIFAR: options.cifar, MINI: options.mini}
    for name, (benchmark, first, last) in FOLDERS[options.split].items():
        write(roots[benchmark], benchmark, options.split, slice(first, last), options.out / name, options.seed)


if __name__ == "__main__":
    main()

"""Three folders of photos for `tinyforge build`, of classes that the shipped photo models have never seen.

    python benchmarks/photo_folders.py --cifar cifar-100/ --mini mini-imagenet/ --out folders
    tinyforge build --recipe raspi --data folders/cifar10 --test folders/cifar10-test --out forge-cifar10

cifar10: 10 test classes of CIFAR-FS, 32 px. mini5, mini8: 5 and 8 test classes of miniImageNet, 84 px. Each class has
5 supports and 100 test images, drawn by the seed.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from tinyforge.fewshot.datasets import read_classes

SUPPORTS, TESTS = 5, 100


def write(root: Path, benchmark: str, classes: slice, out: Path, seed: int) -> None:
    """out/<class>/ with the supports, out-test/<class>/ with the test images."""
    found = sorted(read_classes(root, benchmark, "test").items())[classes]
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
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.cifar, "cifar-fs", slice(0, 10), options.out / "cifar10", options.seed)
    write(options.mini, "mini-imagenet", slice(0, 5), options.out / "mini5", options.seed)
    write(options.mini, "mini-imagenet", slice(5, 13), options.out / "mini8", options.seed)


if __name__ == "__main__":
    main()

"""A set of labelled images in two: supports and test images."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np

from tinyforge.device.report import counted
from tinyforge.images import ImageSet, raise_faults


def _shuffled(images: ImageSet, seed: int) -> list[list[int]]:
    """Per class, its indices in a seeded order that depends on the class name and its image names only."""
    order = []
    for label, name in enumerate(images.classes):
        members = sorted(
            (i for i, item in enumerate(images.items) if item.label == label), key=lambda i: images.items[i].name
        )
        digest = hashlib.sha256(json.dumps([seed, name]).encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
        order.append([members[i] for i in generator.permutation(len(members))])
    return order


def _parts(images: ImageSet, test_indices: Iterable[int]) -> tuple[ImageSet, ImageSet]:
    chosen = set(test_indices)
    return images.subset(i for i in range(len(images)) if i not in chosen), images.subset(sorted(chosen))


def k_shot_split(images: ImageSet, shots: int, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """(support with ``shots`` images per class, all others or None). Raises DataError: classes with too few images."""
    short = [
        f"class '{name}' has {counted(n, 'image')}, {shots} are needed"
        for name, n in images.counts().items()
        if n < shots
    ]
    raise_faults(f"{counted(shots, 'shot')} per class", short)
    support, test = _parts(images, (i for members in _shuffled(images, seed) for i in members[shots:]))
    return support, test if len(test) else None


def holdout_split(images: ImageSet, share: float, min_holdout: int, seed: int) -> tuple[ImageSet, ImageSet | None, str]:
    """(support, test or None, why): ``share`` of each class is held out if that gives each ``min_holdout`` images."""
    sizes = {name: int(share * n + 1e-9) for name, n in images.counts().items()}  # 0.29 * 100 is 28.999...
    poorest = min(sizes, key=sizes.get)
    if sizes[poorest] < min_holdout:
        n = images.counts()[poorest]
        why = f"{share:.0%} of the {n} of class '{poorest}' is {sizes[poorest]}, fewer than {min_holdout}"
        return images, None, f"no images held out: {why}"
    shuffled = _shuffled(images, seed)
    support, test = _parts(
        images, (i for members, k in zip(shuffled, sizes.values(), strict=True) for i in members[:k])
    )
    return support, test, f"{len(test)} of {len(images)} images held out for testing, {share:.0%} of every class"

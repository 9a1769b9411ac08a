"""What a build starts from: the support set, the test set, and what was noticed about them."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.preprocess import DecodeFault, decode
from tinyforge.errors import DataError
from tinyforge.images import (
    EXTENSIONS,
    ImageSet,
    exact_duplicates,
    holdout_split,
    k_shot_split,
    near_duplicates,
    read_images,
)
from tinyforge.recipe import Data, Distill

SAMPLE_TASK = "digits"
SAMPLE_SHOTS = 5


@dataclass(frozen=True)
class Inputs:
    """support: what every stage learns from. test: only ever scored, or None.
    unlabelled: sha256 -> uint8 (H, W, 3), further images for the teacher to label. notes and warnings: for the log and
    the report."""

    support: ImageSet
    test: ImageSet | None
    unlabelled: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    def describe(self) -> dict[str, Any]:
        """Counts for the report."""
        counts = np.bincount(self.support.labels, minlength=len(self.support.classes))
        return {
            "classes": list(self.support.classes),
            "support_images": len(self.support),
            "support_per_class": counts.tolist(),
            "test_images": 0 if self.test is None else len(self.test),
            "notes": list(self.notes),
        }


def gather(data: Data, unlabelled: str | None, seed: int) -> Inputs:
    """Read and split the images of a recipe. Raises DataError naming every faulty file and every train/test
    duplicate.
    """
    source = data.path or SAMPLE_TASK
    images = read_images(source, classes=data.classes, max_pixels=data.max_pixels)
    notes = [] if data.path else [f"no --data given: building the sample task '{SAMPLE_TASK}'"]
    support, test, note = _split(images, data, source, seed)
    notes.append(note)
    if images.ignored:
        notes.append(f"{images.ignored} files are no images by their extension and were ignored")
    test, warnings = _without_copies(support, test)
    return Inputs(support, test, read_unlabelled(unlabelled, data.max_pixels), tuple(notes), tuple(warnings))


def _split(images: ImageSet, data: Data, source: str, seed: int) -> tuple[ImageSet, ImageSet | None, str]:
    if data.test is not None:
        test = read_images(data.test, classes=list(images.classes), max_pixels=data.max_pixels, complete=False)
        return images, test, f"test images: {data.test}"
    shots = data.shots or (SAMPLE_SHOTS if source == SAMPLE_TASK else None)
    if shots is not None:
        support, test = k_shot_split(images, shots, seed)
        return support, test, f"{shots} supports per class by seed {seed}, all other images are the test set"
    return holdout_split(images, data.holdout, data.min_holdout, seed)


def _without_copies(support: ImageSet, test: ImageSet | None) -> tuple[ImageSet | None, list[str]]:
    """The test set without copies of supports, and what was found. Near-duplicates are told, not removed: they may be
    two shots of a burst.
    """
    if test is None:
        return None, []
    copies = {j for _, j in exact_duplicates(support, test)}
    similar = {j for _, j, _ in near_duplicates(support, test)} - copies
    warnings = []
    if copies:
        warnings.append(f"{len(copies)} test images are copies of supports and were left out: {_few(test, copies)}")
    if similar:
        warnings.append(f"{len(similar)} test images look nearly like a support: {_few(test, similar)}")
    kept = [i for i in range(len(test)) if i not in copies]
    return (test.subset(kept) if kept else None), warnings


def read_unlabelled(folder: str | None, max_pixels: int) -> dict[str, np.ndarray]:
    """All images below ``folder``, once each, by the sha256 of their bytes. Raises DataError naming every faulty
    file.
    """
    if folder is None:
        return {}
    files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower().lstrip(".") in EXTENSIONS)
    if not files:
        raise DataError(f"{folder}: no images there; distill.unlabelled must name a folder of images")
    found, faults = {}, []
    for path in files:
        encoded = path.read_bytes()
        try:
            found[hashlib.sha256(encoded).hexdigest()] = decode(encoded, max_pixels)
        except DecodeFault as fault:
            faults.append(f"  {path}: {fault}")
    if faults:
        raise DataError("\n".join([f"{folder}: {len(faults)} files cannot be used", *faults[:20]]))
    return dict(sorted(found.items()))


def input_size(settings: Distill, support: ImageSet) -> int:
    """The student's input in pixels: the recipe's, else the median short side of the supports within [32, 64], in
    steps of 16.
    """
    if settings.input_size is not None:
        return settings.input_size
    short = float(np.median([min(rgb.shape[:2]) for rgb in support.rgb]))
    return int(np.clip(16 * round(short / 16), 32, 64))


def _few(images: ImageSet, indices: set[int], most: int = 5) -> str:
    names = [images.names[i] for i in sorted(indices)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""What a build starts from: the support set, the test set, and what was noticed about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.pictures import is_image
from tinyforge.device.report import counted
from tinyforge.duplicates import exact_duplicates, near_duplicates
from tinyforge.errors import DataError
from tinyforge.images import (
    NO_IMAGES,
    ImageSet,
    files_below,
    read_files,
    read_images,
)
from tinyforge.recipe import Data, Distill
from tinyforge.splits import holdout_split, k_shot_split
from tinyforge.stages.starts import start_size

SAMPLE_TASK = "digits"
SAMPLE_SHOTS = 5
VIEW_BYTES = 1 << 30  # of training images kept larger than the student sees them


@dataclass(frozen=True)
class Inputs:
    """support: what every stage learns from. test: only ever scored, or None.
    unlabelled: further images, for the teacher to label; their own labels say nothing. notes and warnings: for the log
    and the report.
    """

    support: ImageSet
    test: ImageSet | None
    unlabelled: ImageSet = NO_IMAGES
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
    source = SAMPLE_TASK if data.path is None else data.path
    images = read_images(source, classes=data.classes, max_pixels=data.max_pixels)
    notes = [] if data.path is not None else [f"no --data given: building the sample task '{SAMPLE_TASK}'"]
    support, test, note = _split(images, data, source, seed)
    notes.append(note)
    if images.ignored:
        notes.append(f"{counted(images.ignored, 'file')} ignored: no images by their extension")
    test, warnings = _without_copies(support, test)
    if data.test is not None and test is None:
        raise DataError(f"{data.test}: every image is a copy of a support; give other images as --test, or none")
    warnings += _contradictions(support)
    further, more, found = _apart(read_unlabelled(unlabelled, data.max_pixels), support, test)
    return Inputs(support, test, further, (*notes, *more), (*warnings, *found))


def _split(images: ImageSet, data: Data, source: str, seed: int) -> tuple[ImageSet, ImageSet | None, str]:
    shots = data.shots or (SAMPLE_SHOTS if source == SAMPLE_TASK else None)
    if data.test is not None:
        try:
            test = read_images(data.test, classes=list(images.classes), max_pixels=data.max_pixels, complete=False)
        except DataError as fault:
            sample = f"\nno --data was given: these are to be test images of the sample task '{SAMPLE_TASK}'"
            raise DataError(f"{fault}{'' if data.path else sample}") from fault
        given = f"test images: {len(test)}, given apart from the supports"
        if shots is None:
            return images, test, given
        support, others = k_shot_split(images, shots, seed)
        left = 0 if others is None else len(others)
        return support, test, f"{given}; {counted(shots, 'support')} per class by seed {seed}, {left} others not used"
    if shots is not None:
        support, test = k_shot_split(images, shots, seed)
        return support, test, f"{counted(shots, 'support')} per class by seed {seed}, all other images are the test set"
    return holdout_split(images, data.holdout, data.min_holdout, seed)


def _without_copies(support: ImageSet, test: ImageSet | None) -> tuple[ImageSet | None, list[str]]:
    """The test set without copies of supports, and what was found. Near-duplicates are told, not removed: they may be
    two shots of a burst.
    """
    if test is None:
        return None, []
    copies, similar = _alike(support, test)
    warnings = []
    if copies:
        warnings.append(f"left out of the test images, being {_copies(copies)} of supports: {_few(test, copies)}")
    if similar:
        warnings.append(f"{counted(len(similar), 'test image')} nearly like a support: {_few(test, similar)}")
    kept = [i for i in range(len(test)) if i not in copies]
    return (test.subset(kept) if kept else None), warnings


def _alike(known: ImageSet, others: ImageSet) -> tuple[set[int], set[int]]:
    """Indices of ``others`` that are copies of ``known`` ones, and of those that are only nearly like them."""
    copies = {j for _, j in exact_duplicates(known, others)}
    return copies, {j for _, j, _ in near_duplicates(known, others)} - copies


def _apart(further: ImageSet, support: ImageSet, test: ImageSet | None) -> tuple[ImageSet, list[str], list[str]]:
    """Images without a label less copies of supports and of test images; notes and warnings. A student may not learn
    from test images, nor the trial from supports that it holds out.
    """
    if not len(further):
        return further, [], []
    given, notes, warnings = {j for _, j in exact_duplicates(support, further)}, [], []
    copies, similar = (set(), set()) if test is None else _alike(test, further)
    if given:
        notes.append(f"left out of distill.unlabelled: {_copies(given)} of supports")
    if copies:
        warnings.append(f"left out of distill.unlabelled: {_copies(copies)} of test images")
    if similar:
        warnings.append(f"{counted(len(similar), 'image')} of distill.unlabelled nearly like a test image")
    return further.subset(i for i in range(len(further)) if i not in given | copies), notes, warnings


def _copies(found: set[int]) -> str:
    return "a copy" if len(found) == 1 else f"{len(found)} copies"


def _contradictions(support: ImageSet) -> list[str]:
    """A warning where one picture is a support of two classes."""
    items = support.items
    pairs = [(i, j) for i, j in exact_duplicates(support, support) if items[i].label < items[j].label]
    told = [f"{items[i].name} and {items[j].name}" for i, j in pairs[:5]]
    more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return [f"the same picture in two classes, one label must be wrong: {'; '.join(told)}{more}"] if pairs else []


def read_unlabelled(folder: str | None, max_pixels: int) -> ImageSet:
    """All images below ``folder``, once each, in the order of the sha256 of their bytes. Raises DataError naming every
    faulty file.
    """
    if folder is None:
        return NO_IMAGES
    root = Path(folder)
    if folder.strip() and not root.is_dir():
        raise DataError(f"{folder}: is no folder; distill.unlabelled must name a folder of images")
    files, faults = files_below(root, root, {}) if folder.strip() else ([], [])
    files = [path for path in files if is_image(path)]
    if not files and not faults:
        raise DataError(
            f"{folder or 'an empty path'}: no images there; distill.unlabelled must name a folder of images"
        )
    items, unread = read_files(files, max_pixels)
    faults += unread
    if faults:
        raise DataError("\n  ".join([f"{folder}: {counted(len(faults), 'problem')}", *faults[:20]]))
    return ImageSet(("",), tuple(one for _, one in sorted({item.sha256: item for item in items}.items())))


def input_size(settings: Distill, support: ImageSet) -> int:
    """The student's input in pixels: the recipe's, else the median short side of the supports within [32, 64], in
    steps of 16, but not less than its starting weights were trained at.
    """
    if settings.input_size is not None:
        return settings.input_size
    return max(int(np.clip(16 * round(_short_side(support) / 16), 32, 64)), start_size(settings))


def view_size(student: int, teacher: int, support: ImageSet, count: int) -> int:
    """Pixels at which a teacher of ``teacher`` pixels labels the views that a student of ``student`` pixels then sees
    shrunk: as many as the supports have (median short side, whole steps of 16) and as ``count`` images may fill
    ``VIEW_BYTES`` with; never fewer than the student's.
    """
    room = int((VIEW_BYTES / (3 * max(1, count))) ** 0.5)
    return max(student, min(teacher, 16 * int(_short_side(support) // 16), room))


def _short_side(support: ImageSet) -> float:
    return float(np.median([min(rgb.shape[:2]) for rgb in support.rgb]))


def _few(images: ImageSet, indices: set[int], most: int = 5) -> str:
    names = [images.names[i] for i in sorted(indices)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

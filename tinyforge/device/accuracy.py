"""Accuracy on labelled images, here and now: on the board, not where the bundle was made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from unicodedata import normalize

from .bundle import Bundle
from .folder import BundleFault
from .pictures import is_hidden, is_picture
from .predict import open_bundle
from .preprocess import DecodeFault, decode, prepare
from .stats import mcnemar, paired_difference, score

MAX_TOLD = 5


def labelled_images(folder: str | Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path below ``folder``, class index) of ``folder``/<class>/**/<image>, sorted; hidden files and what is no image
    by its name aside, and folders named in another unicode form are the same, as for ``build``.

    Raises BundleFault when there is no folder or no image, or a folder is not a class.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleFault(f"{root}: there is no such folder of test images")
    folders = sorted(path for path in root.glob("*") if path.is_dir() and not is_hidden(path.name))
    labels = {name: label for label, name in enumerate(classes)}
    strange = [path.name for path in folders if normalize("NFC", path.name) not in labels]
    if strange:
        raise BundleFault(f"{root / strange[0]}: no class of this bundle, which has {', '.join(classes)}")
    found = [
        (path.relative_to(root).as_posix(), labels[normalize("NFC", kind.name)])
        for kind in folders
        for path in sorted(kind.rglob("*"))
        if path.is_file() and is_picture(path) and not any(map(is_hidden, path.relative_to(kind).parts))
    ]
    if not found:
        raise BundleFault(f"{root}: holds no images in folders named like the classes")
    return found


def bench_accuracy(bundle: Bundle, folder: str | Path, variants: Sequence[str] | None = None) -> dict[str, Any]:
    """Accuracy of ``variants`` (default: the chosen one) on the images below ``folder``, one folder per class.

    {variants: {name: {n, correct, accuracy, low, high}}, pairs: [{a, b, difference, low, high, p (McNemar)}],
    predictions: {name: {names, labels, predicted}}}. Raises BundleFault naming the images that cannot be decoded.
    """
    images = labelled_images(folder, bundle.classes)
    chosen = list(dict.fromkeys(variants or [bundle.chosen]))
    sessions = {name: open_bundle(bundle, name) for name in chosen}
    predicted: dict[str, list[int]] = {name: [] for name in chosen}
    faults = []
    for name, _ in images:
        try:
            x = prepare(decode(Path(folder) / name), bundle.spec)
        except DecodeFault as fault:
            faults.append(f"{name}: {fault}")
            continue
        for variant, session in sessions.items():
            predicted[variant].append(int(session.run(x)[0].argmax()))
    if faults:
        more = f"\nand {len(faults) - MAX_TOLD} more" if len(faults) > MAX_TOLD else ""
        raise BundleFault("\n".join(faults[:MAX_TOLD]) + more)
    labels = [label for _, label in images]
    right = {name: [a == b for a, b in zip(labels, found)] for name, found in predicted.items()}
    return {
        "variants": {name: score(sum(one), len(one)) for name, one in right.items()},
        "pairs": [_pair(a, b, right[a], right[b]) for a, b in combinations(chosen, 2)],
        "predictions": {
            name: {"names": [image for image, _ in images], "labels": labels, "predicted": found}
            for name, found in predicted.items()
        },
    }


def _pair(a: str, b: str, a_right: Sequence[bool], b_right: Sequence[bool]) -> dict[str, Any]:
    """How the accuracies of two models differ on the same images: a - b with its 95 % interval, and McNemar's p."""
    difference, low, high = (round(value, 6) for value in paired_difference(a_right, b_right))
    p = round(mcnemar(a_right, b_right), 6)
    return {"a": a, "b": b, "difference": difference, "low": low, "high": high, "p": p}

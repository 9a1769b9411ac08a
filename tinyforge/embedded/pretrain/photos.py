"""The photo domain: any folders of class folders, read once into one array of small images, without the classes that
the few-shot benchmarks keep for testing.

photos.tsv lists the known folder names: the word each stands for, and its role: 'train'; 'val' (CIFAR-FS validation
classes: never trained on, the teacher is measured on them); 'excluded' with the reason: every class that names,
contains or is contained in a validation or test class of CIFAR-FS or miniImageNet, by WordNet id (hypernyms of WordNet
3.0) and by name. Folders it does not know are trained on, under their own names; with ``every_class`` all are.
"""

from __future__ import annotations

import csv
import json
import logging
import string
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyforge.device.preprocess import DecodeFault, decode, resize
from tinyforge.device.spec import InputSpec

from .origin import keep_origin, origin_of, require_origin
from .source import Source

log = logging.getLogger(__name__)

SIZE = 64
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Known:
    """A row of photos.tsv."""

    folder: str
    name: str
    role: str
    why: str


@cache
def known_folders() -> dict[str, Known]:
    """Folder name → its row of photos.tsv."""
    file = Path(__file__).with_name("photos.tsv")
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["folder"]: Known(**row) for row in csv.DictReader(lines, delimiter="\t")}


def listed(roots: list[Path], every_class: bool = False) -> dict[tuple[str, str], list[Path]]:
    """(role, class name) → its image files, sorted; folders of the same name are one class. every_class: all are
    trained on.

    Raises ValueError for a root without class folders.
    """
    known, found = known_folders(), {}
    for root in roots:
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        if not folders:
            raise ValueError(f"{root}: no class folders; expected <folder>/<class>/**/*.jpg")
        for folder in folders:
            row = known.get(folder.name) or Known(folder.name, _word(folder.name), "train", "")
            role = "train" if every_class else row.role
            found.setdefault((role, row.name), []).extend(images_below(folder))
    return {key: files for key, files in sorted(found.items()) if files}


def word_of(folder: str) -> str:
    """The class that a folder's name stands for, WordNet ids included where photos.tsv has them."""
    row = known_folders().get(folder)
    return _word(folder) if row is None else row.name


def _word(folder: str) -> str:
    """A folder's name as one word of the letters a to z, which is what a tokenizer keeps whole: accents are dropped,
    digits spelled, and letters of other scripts become their numbers, spelled.
    """
    return "".join(map(_spelled, unicodedata.normalize("NFKD", folder.casefold()))) or "thing"


def _spelled(character: str) -> str:
    if character in string.ascii_lowercase:
        return character
    if not character.isalnum():
        return ""
    number = unicodedata.digit(character, ord(character))
    return "".join(SPELLED[int(digit)] for digit in str(number))


def images_below(folder: Path) -> list[Path]:
    """The image files of a class folder, at any depth, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def used(groups: dict[tuple[str, str], list[Path]]) -> dict[tuple[str, str], list[Path]]:
    """Of ``listed``, without the excluded classes."""
    return {(role, name): files for (role, name), files in groups.items() if role != "excluded"}


def kept_from_training(groups: dict[tuple[str, str], list[Path]]) -> str:
    """Which classes are not trained on because few-shot benchmarks test on them, in a sentence; '' for none."""
    names = {role: ", ".join(name for there, name in groups if there == role) for role in ("val", "excluded")}
    told = {"val": "only measured on", "excluded": "left out"}
    parts = "; ".join(f"{told[role]}: {those}" for role, those in names.items() if those)
    return f"not trained on, as few-shot benchmarks test on them (--every-class does): {parts}" if parts else ""


def build_pool(groups: dict[tuple[str, str], list[Path]], cache: Path) -> None:
    """Decode every image once: cache/images.npy uint8 (M, SIZE, SIZE, 3), labels.npy int64 (M,), classes.json.

    groups: of ``used``. Files that can't be read are left out and counted in the log. classes.json is written last.
    """
    keep_origin(cache, photo_origin(groups))
    files = [(label, file) for label, group in enumerate(groups.values()) for file in group]
    cache.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(cache / "images.npy", "w+", np.uint8, (len(files), SIZE, SIZE, 3))
    labels, place = np.full(len(files), -1, dtype=np.int64), 0
    for label, image in _read(files):
        if image is not None:
            pixels[place], labels[place], place = image, label, place + 1
    pixels.flush()
    np.save(cache / "labels.npy", labels[:place])
    log.info("photos: %d images of %d classes, %d unreadable", place, len(groups), len(files) - place)
    (cache / "classes.json").write_text(json.dumps([{"role": role, "name": name} for role, name in groups], indent=1))


def ensure_pool(
    roots: list[Path], cache: Path, *, every_class: bool = False, tell: Callable[[str], None] = log.info
) -> None:
    """Build the pool where it is not there yet. Raises ValueError without data or classes to train on, or when it is
    one of other data.
    """
    there = (cache / "classes.json").is_file()
    if not roots and not there:
        raise ValueError("photos need --data: a folder of class folders, repeatable")
    if not roots:
        return
    groups = listed(roots, every_class)
    kept = kept_from_training(groups)
    if not any(role == "train" for role, _ in groups):
        raise ValueError(f"--data: no class to train on{f'; {kept}' if kept else ', no image'}")
    if there:
        require_origin(cache, photo_origin(used(groups)))
        return
    if kept:
        tell(kept)
    build_pool(used(groups), cache)


def photo_origin(groups: dict[tuple[str, str], list[Path]]) -> dict[str, object]:
    """See ``origin``; groups: of ``used``."""
    return origin_of((f"{role} {name}", file) for (role, name), files in groups.items() for file in files)


def _read(files: list[tuple[int, Path]]) -> Iterator[tuple[int, np.ndarray | None]]:
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        yield from workers.map(_read_one, files, chunksize=256)


def _read_one(item: tuple[int, Path]) -> tuple[int, np.ndarray | None]:
    try:
        return item[0], resize(decode(item[1]), InputSpec((SIZE, SIZE), resize="bicubic"))
    except DecodeFault:
        return item[0], None


def load_photos(cache: Path, roots: list[Path], device: str = "cpu", *, every_class: bool = False) -> Source:
    """The photo domain from its cache, built on the first call (minutes). On a GPU all images are kept there."""
    ensure_pool(roots, cache, every_class=every_class)
    classes = json.loads((cache / "classes.json").read_text())
    labels = torch.from_numpy(np.load(cache / "labels.npy"))
    pixels = np.load(cache / "images.npy", mmap_mode="r")
    if device == "cpu":
        return photo_source(classes, labels, pixels.shape[1], lambda rows: torch.from_numpy(pixels[rows.numpy()]))
    there = torch.from_numpy(np.array(pixels[: len(labels)])).to(device)
    return photo_source(classes, labels, pixels.shape[1], lambda rows: there[rows.to(device)])


def photo_source(classes: list[dict[str, str]], labels: Tensor, size: int, read: Callable[[Tensor], Tensor]) -> Source:
    """Classes weighted by the square root of their number of images. labels (M,); read(rows (B,)) → (B, S, S, 3)."""
    counts = torch.bincount(labels, minlength=len(classes))
    order, first = torch.argsort(labels, stable=True), counts.cumsum(0) - counts
    weights = counts.float().sqrt()
    weights[[i for i, one in enumerate(classes) if one["role"] == "val"]] = 0

    def draw(wanted: Tensor, gen: torch.Generator, part: str) -> Tensor:
        if part == "held_out":
            place = distinct(wanted, counts, gen)
        else:
            place = (torch.rand(len(wanted), generator=gen) * counts[wanted]).long()
        x = read(order[first[wanted] + place]).permute(0, 3, 1, 2).float() / 255
        return VIEWS[part](x, gen)

    names = tuple(one["name"] for one in classes)
    return Source(names, tuple(one["role"] for one in classes), size, weights, counts, draw)


def distinct(wanted: Tensor, counts: Tensor, gen: torch.Generator) -> Tensor:
    """Classes (B,) → places among the originals of each (B,), every place once before any comes again."""
    place = torch.empty_like(wanted)
    for c in wanted.unique().tolist():
        rows, count = torch.nonzero(wanted == c).flatten(), int(counts[c])
        rounds = [torch.randperm(count, generator=gen) for _ in range(0, len(rows), count)]
        place[rows] = torch.cat(rounds)[: len(rows)]
    return place


def flipped(x: Tensor, gen: torch.Generator) -> Tensor:
    """Every other image mirrored, at random."""
    mirror = (torch.rand(len(x), generator=gen) < 0.5).to(x.device)
    return torch.where(mirror[:, None, None, None], x.flip(-1), x)


def varied(x: Tensor, gen: torch.Generator, size: int, least: float = 0.3) -> Tensor:
    """Random resized crop to size (area `least` … 1, aspect 3/4 … 4/3), mirror, brightness, contrast, saturation.

    Source: Szegedy et al. 2014, arXiv 1409.4842 (the crop); Krizhevsky et al. 2012 (mirror and colour).
    """
    b = len(x)
    area, ratio, dx, dy, mirror = torch.rand(5, b, generator=gen).to(x.device)
    scale, shape = (least + (1 - least) * area).sqrt(), ((ratio * 2 - 1) * np.log(4 / 3) / 2).exp()
    w, h = (scale * shape).clamp(max=1), (scale / shape).clamp(max=1)
    theta = torch.zeros(b, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = torch.where(mirror < 0.5, -w, w), h
    theta[:, 0, 2], theta[:, 1, 2] = (dx * 2 - 1) * (1 - w), (dy * 2 - 1) * (1 - h)
    grid = F.affine_grid(theta, [b, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    bright, contrast, saturation = (1 + 0.4 * (torch.rand(3, b, 1, 1, 1, generator=gen).to(x.device) * 2 - 1)).unbind(0)
    grey = x.mean(1, keepdim=True)
    x = grey + saturation * (x - grey)
    middle = x.mean((1, 2, 3), keepdim=True)
    return (bright * (middle + contrast * (x - middle))).clamp(0, 1)


VIEWS = {
    "autoencoder": flipped,
    "unet": flipped,
    "teacher": lambda x, gen: varied(x, gen, x.shape[-1]),
    "teacher, half size": lambda x, gen: varied(x, gen, x.shape[-1] // 2),
    "held_out": lambda x, gen: x,
}
"""How images are drawn for each part."""

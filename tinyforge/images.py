"""Labelled images: read and check a folder, a CSV or the sample task.

Shapes: H W pixels, always uint8 RGB (H, W, 3), decoded by ``tinyforge.device.preprocess.decode`` and nothing else.
"""

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyforge.device.pictures import READ, UNREAD, is_hidden, is_image, suffix
from tinyforge.device.preprocess import DecodeFault, decode, read_file
from tinyforge.device.report import counted
from tinyforge.errors import DataError, MissingError
from tinyforge.registry import near_miss

SPLITS = frozenset(("train", "training", "test", "testing", "val", "valid", "validation"))
DIGITS = "digits"
MAX_PIXELS = 100_000_000
_RESIDENT_BYTES = 512 * 2**20  # decoded pixels kept in memory per set; the rest is decoded again when asked for
_MAX_LISTED = 20


@dataclass(frozen=True, eq=False)
class Item:
    """One image. name: relative posix path, NFC, or 'digits/<n>'. label: index into the classes.

    sha256: of the encoded bytes (of the pixels for digits).
    pixels: uint8 (H, W, 3), None where the file is decoded when asked. file: where it was read, None for digits.
    """

    name: str
    label: int
    sha256: str
    pixels: np.ndarray | None
    max_pixels: int = MAX_PIXELS
    file: Path | None = None

    @property
    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3). Raises DataError when the file has changed since it was read."""
        return decode(self.encoded, self.max_pixels) if self.pixels is None else self.pixels

    @property
    def encoded(self) -> bytes:
        """The file's bytes, none where there is no file. Raises DataError like ``rgb``."""
        if self.file is None:
            return b""
        encoded = read_file(self.file) if self.file.is_file() else b""
        if hashlib.sha256(encoded).hexdigest() != self.sha256:
            raise DataError(f"{self.file}: changed or removed while it was being used; run the command again")
        return encoded


class Pixels(Sequence):
    """The pixels of some items, decoded when indexed: a folder of camera photos need not fit in memory."""

    def __init__(self, items: Sequence[Item]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index):
        return Pixels(self._items[index]) if isinstance(index, slice) else self._items[index].rgb


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels. classes: names in label order. ignored: number of files that are no images by extension."""

    classes: tuple[str, ...]
    items: tuple[Item, ...]
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> np.ndarray:
        """int64 (len,)."""
        return np.array([item.label for item in self.items], dtype=np.int64)

    @property
    def rgb(self) -> Pixels:
        """A sequence of uint8 (H, W, 3); iterate it, rather than hold all of it."""
        return Pixels(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.items)

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        return replace(self, items=tuple(self.items[int(i)] for i in indices))

    def counts(self) -> dict[str, int]:
        """Images per class, every class named."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, found, strict=True)}


NO_IMAGES = ImageSet((), ())


def content_hash(images: ImageSet) -> str:
    """sha256 hex over class order, names, labels and encoded bytes."""
    record = [list(images.classes), [[item.name, item.label, item.sha256] for item in images.items]]
    return hashlib.sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()


# Reading


@dataclass(frozen=True)
class _Entry:
    path: Path
    name: str
    label: str


@dataclass(frozen=True)
class _Listing:
    """What a source claims to hold, before any file is opened."""

    entries: tuple[_Entry, ...]
    labels: frozenset[str]
    faults: tuple[str, ...] = ()
    ignored: int = 0


def read_images(
    source: str | Path, *, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS, complete: bool = True
) -> ImageSet:
    """Read 'digits', a folder of class folders, or a CSV with the header path,label (paths relative to the CSV).

    A folder of one's own named digits is './digits'.
    classes: explicit order; default sorted names. complete=False allows classes without images (a test set).
    Items are sorted by (label, name). Raises DataError naming every faulty file with its reason, MissingError when
    'digits' needs scikit-learn.
    """
    if source == DIGITS:
        return _in_order(read_digits(), classes)
    path = Path(source)
    if not str(source).strip():
        raise DataError(f"an empty path was given; give a folder of class folders, a CSV (path,label) or '{DIGITS}'")
    if path.is_dir():
        listing = _list_folder(path)
    elif path.is_file() and path.suffix.lower() == ".csv":
        listing = _list_csv(path)
    else:
        raise DataError(
            f"{source}: {_why_not_a_source(path)}; give a folder of class folders, a CSV (path,label) or '{DIGITS}'"
        )
    order, order_faults = _class_order(listing.labels, classes, complete)
    items, file_faults = _read_entries(listing.entries, {name: i for i, name in enumerate(order)}, max_pixels)
    faults = [*listing.faults, *order_faults, *file_faults]
    raise_faults(source, faults if items or faults else ["holds no images"])
    return ImageSet(order, tuple(sorted(items, key=lambda item: (item.label, item.name))), listing.ignored)


def read_digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits: 8x8 grey 0..16 scaled to 0..255 RGB, named 'digits/<n>'."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingError("the sample task 'digits' needs scikit-learn: pip install \"tinyforge[host]\"") from error
    task = load_digits()
    grey = np.rint(task.images * (255 / 16)).astype(np.uint8)
    items = [
        Item(
            f"{DIGITS}/{n:04d}",
            int(label),
            hashlib.sha256(image.tobytes()).hexdigest(),
            np.repeat(image[:, :, None], 3, axis=2),
        )
        for n, (image, label) in enumerate(zip(grey, task.target, strict=True))
    ]
    return ImageSet(tuple(str(d) for d in range(10)), tuple(sorted(items, key=lambda item: (item.label, item.name))))


def _in_order(images: ImageSet, classes: Sequence[str] | None) -> ImageSet:
    order, faults = _class_order(frozenset(images.classes), classes, complete=True)
    raise_faults(DIGITS, faults)
    new = {images.classes.index(name): i for i, name in enumerate(order)}
    items = [replace(item, label=new[item.label]) for item in images.items]
    return ImageSet(order, tuple(sorted(items, key=lambda item: (item.label, item.name))))


def _why_not_a_source(path: Path) -> str:
    return "is neither a folder nor a .csv file" if path.exists() else "does not exist"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def files_below(root: Path, folder: Path, met: dict[tuple[int, int], Path]) -> tuple[list[Path], list[str]]:
    """(files, faults) of ``folder``, hidden ones aside; links are followed, and each real folder is read once.

    root: what names in faults are relative to. met: real folder -> where it was met first; filled.
    """
    files, faults, waiting = [], [], [folder]
    while waiting:
        here = waiting.pop()
        name = here.relative_to(root).as_posix()
        try:
            about = here.stat()
            first = met.setdefault((about.st_dev, about.st_ino), here)
            above = here != root and root.resolve().is_relative_to(here.resolve())
            if first != here or above:
                twin = f"the folder {first.relative_to(root).as_posix()}" if first != here else "a folder above these"
                faults.append(f"{name}/: leads to {twin}; remove the link, so that every image is read once")
                continue
            inside = sorted(path for path in here.iterdir() if not is_hidden(path.name))
        except OSError as error:
            faults.append(f"{name}/: cannot be read: {error.strerror}")
            continue
        faults += [f"{path.name!a}: its name is not UTF-8; rename it" for path in inside if not _is_text(path.name)]
        waiting += [path for path in reversed(inside) if path.is_dir() and _is_text(path.name)]
        files += [path for path in inside if not path.is_dir() and _is_text(path.name)]
    return files, faults


def _is_text(name: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def _list_folder(root: Path) -> _Listing:
    entries, ignored, about = [], 0, root.stat()
    met = {(about.st_dev, about.st_ino): root}
    visible = sorted(path for path in root.iterdir() if not is_hidden(path.name))
    faults = [f"{path.name!a}: its name is not UTF-8; rename it" for path in visible if not _is_text(path.name)]
    folders = [path for path in visible if path.is_dir() and _is_text(path.name)]
    for path in visible:
        if path.is_file() and is_image(path):
            faults.append(f"{path.name}: lies outside any class folder")
        elif path.is_file():
            ignored += 1
    for folder in folders:
        files, strange = files_below(root, folder, met)
        found = [_Entry(path, _nfc(path.relative_to(root).as_posix()), _nfc(folder.name)) for path in files]
        strange += [
            f"{entry.name}: {entry.path.suffix} is not read; convert it to JPEG or PNG"
            for entry in found
            if suffix(entry.path) in UNREAD
        ]
        found = [entry for entry in found if is_image(entry.path)]
        ignored += len(files) - len(found)
        entries += found
        faults += strange or ([] if found else [f"{folder.name}/: no images in it ({', '.join(sorted(READ))})"])
    faults += _look_alikes([folder.name for folder in folders])
    if folders and {folder.name.casefold() for folder in folders} <= SPLITS:
        names = ", ".join(folder.name for folder in folders)
        faults = [f"its folders ({names}) are parts of a data set, not classes: give one as --data, another as --test"]
    return _Listing(tuple(entries), frozenset(_nfc(folder.name) for folder in folders), tuple(faults), ignored)


def _look_alikes(names: Iterable[str]) -> list[str]:
    """Names that differ only in case or in unicode normalisation: on another file system they are one."""
    groups = defaultdict(set)
    for name in names:
        groups[_nfc(name).casefold()].add(name)
    return [
        f"classes {', '.join(map(ascii, sorted(group)))} differ only in case or unicode form; merge or rename them"
        for group in groups.values()
        if len(group) > 1
    ]


def _list_csv(path: Path) -> _Listing:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        header = reader.fieldnames = [name.strip().casefold() for name in reader.fieldnames or []]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num + 1}: {error}; is this a CSV (path,label)?") from error
    if not header.count("path") == header.count("label") == 1:
        raise DataError(f"{path}: the first line must be the header 'path,label', not '{','.join(header)}'")
    entries, faults, lines = [], [], {}
    for number, row in rows:
        where = f"line {number}"
        relative, label = (row["path"] or "").strip(), _nfc((row["label"] or "").strip())
        file = _on_disk(path.parent, relative)
        name = _nfc(Path(os.path.relpath(file, path.parent)).as_posix())
        if not relative or not label:
            faults.append(f"{where}: needs both a path and a label")
        elif name in lines:
            faults.append(f"{where}: {relative} is already listed on {lines[name]}")
        else:
            lines[name] = where
            entries.append(_Entry(file, name, label))
    labels = frozenset(entry.label for entry in entries)
    return _Listing(tuple(entries), labels, (*faults, *_look_alikes(labels)))


def _on_disk(folder: Path, relative: str) -> Path:
    """The file that a line of a CSV means, written on another system: other unicode form, other slashes."""
    for slashed in (relative, relative.replace("\\", "/")):
        for form in (slashed, _nfc(slashed), unicodedata.normalize("NFD", slashed)):
            if os.path.isfile(folder / form):  # noqa: PTH113 - False too of a name that no file can have
                return folder / form
    return folder / relative


def _class_order(
    found: frozenset[str], classes: Sequence[str] | None, complete: bool
) -> tuple[tuple[str, ...], list[str]]:
    """The class order, and what is wrong with it. complete: every class of the order must be found."""
    order = tuple(_nfc(name) for name in classes) if classes is not None else tuple(sorted(found))
    faults = [
        f"class '{name}' is listed {order.count(name)} times" for name in sorted(set(order)) if order.count(name) > 1
    ]
    faults += [f"'{name}' is not among the classes{near_miss(name, order)}" for name in sorted(found - set(order))]
    if complete:
        faults += [
            f"class '{name}' has no images{near_miss(name, found - {name})}" for name in order if name not in found
        ]
    if len(set(order)) < 2:
        faults.append(f"needs at least two classes, found {len(set(order))}: one folder (or label) per class")
    return order, faults


def read_files(files: Iterable[Path], max_pixels: int) -> tuple[list[Item], list[str]]:
    """Images without a class, label 0, by the names of their files; and what is wrong with the others."""
    return _read_entries((_Entry(path, str(path), "") for path in files), {"": 0}, max_pixels)


def _read_entries(entries: Iterable[_Entry], labels: dict[str, int], max_pixels: int) -> tuple[list[Item], list[str]]:
    items, faults, resident = [], [], 0
    for entry in entries:
        try:
            encoded = read_file(entry.path)
            rgb = decode(encoded, max_pixels)
        except DecodeFault as fault:
            faults.append(f"{entry.name}: {fault}")
        else:
            keep = resident + rgb.nbytes <= _RESIDENT_BYTES
            resident += rgb.nbytes if keep else 0
            digest = hashlib.sha256(encoded).hexdigest()
            pixels, label = rgb if keep else None, labels.get(entry.label, -1)
            items.append(Item(entry.name, label, digest, pixels, max_pixels, entry.path))
    return items, faults


def raise_faults(source: str | Path, faults: list[str]) -> None:
    if not faults:
        return
    listed = [f"  {fault}" for fault in faults[:_MAX_LISTED]]
    if len(faults) > _MAX_LISTED:
        listed.append(f"  ... and {len(faults) - _MAX_LISTED} more")
    raise DataError("\n".join([f"{source}: {counted(len(faults), 'problem')}", *listed]))

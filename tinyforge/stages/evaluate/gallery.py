"""Images of a benchmark as tensors, class by class: read once, kept on disk, whichever episode asks."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.preprocess import DecodeFault, decode
from tinyforge.errors import DataError
from tinyforge.fewshot.datasets import Files
from tinyforge.images import ImageSet, Item
from tinyforge.store import write_atomic


@dataclass(frozen=True)
class Gallery:
    """whole: take all images of a class at once and keep them; else only those asked for, and keep nothing. Either way
    an image is always computed in the same batch, so the numbers do not depend on who asks first.
    """

    root: Path
    files: Files
    cache: Path
    whole: bool

    def rows(self, kind: str, name: str, wanted: Sequence[str], compute: Callable[[Iterator[np.ndarray]], Any]) -> Any:
        """One row per wanted file of class ``name``, of the tensor that ``compute`` makes of images uint8 (H, W, 3).

        kind: names what is computed, all that it depends on included.
        """
        if not self.whole:
            return compute(decoded(self.root, wanted))
        listed = self.files[name]
        place = {file: row for row, file in enumerate(listed)}
        everything = self._kept(kind, listed, compute)
        return everything[[place[file] for file in wanted]]

    def _kept(self, kind: str, listed: Sequence[str], compute: Callable[[Iterator[np.ndarray]], Any]) -> Any:
        from safetensors.torch import load_file, save

        found = [(file, (self.root / file).stat()) for file in listed]
        states = [(file, one.st_size, one.st_mtime_ns) for file, one in found]
        key = hashlib.sha256(json.dumps([kind, states]).encode()).hexdigest()
        kept = self.cache / f"{key[:32]}.safetensors"
        if not kept.is_file():
            write_atomic(kept, save({"rows": compute(decoded(self.root, listed)).contiguous()}))
        return load_file(kept)["rows"]


def decoded(root: Path, names: Iterable[str]) -> Iterator[np.ndarray]:
    """The images one by one, uint8 (H, W, 3). Raises DataError naming the file that cannot be used."""
    for name in names:
        yield _read(root / name)[0]


def read_set(root: Path, classes: Sequence[str], files: Sequence[Sequence[str]]) -> ImageSet:
    """Images with labels, read whole: ``files`` per class. Raises DataError naming the file that cannot be used."""
    items = []
    for label, names in enumerate(files):
        for name in names:
            rgb, sha256 = _read(root / name)
            items.append(Item(name, label, sha256, rgb))
    return ImageSet(tuple(classes), tuple(items))


def _read(path: Path) -> tuple[np.ndarray, str]:
    """The pixels, and the sha256 of the file."""
    try:
        encoded = path.read_bytes()
        return decode(encoded), hashlib.sha256(encoded).hexdigest()
    except (DecodeFault, OSError) as fault:
        raise DataError(f"{path}: {fault}; episodes need all of their images") from fault

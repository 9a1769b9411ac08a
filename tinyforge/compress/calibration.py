"""The images that quantisation sees: support and synthetic ones, prepared one by one; no validation or test image."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinyforge.device.preprocess import prepare
from tinyforge.device.spec import InputSpec


@dataclass(frozen=True)
class Picked(Sequence):
    """Some images of a sequence, by their numbers; looked up when indexed."""

    images: Sequence[np.ndarray]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[self.numbers[index]]


@dataclass(frozen=True)
class Prepared:
    """Images as a student's inputs, made when asked for: a set of camera photos need not fit in memory.

    images: uint8 (H, W, 3) of any sizes; a sequence that decodes when indexed will do. Iterating gives float32
    (1, 3, h, w), or (1, h, w, 3) for layout NHWC, and can be done again.
    """

    images: Sequence[np.ndarray]
    spec: InputSpec

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self.images)):
            yield prepare(self.images[index], self.spec)

    def like(self, images: Sequence[np.ndarray]) -> "Prepared":
        """Other images, prepared the same way."""
        return Prepared(images, self.spec)

    def array(self) -> np.ndarray:
        """All of it at once, (n, ...). Raises ValueError when there is none."""
        return np.concatenate(list(self))

    @cached_property
    def hashes(self) -> list[str]:
        """sha256 of the bytes of each input, in order: equal for files that differ but look the same to the student."""
        return [hashlib.sha256(row.tobytes()).hexdigest() for row in self]

    def without(self, others: "Prepared") -> tuple["Prepared", list[int]]:
        """The inputs that look like none of the others, and their numbers here."""
        known = set(others.hashes)
        kept = [index for index, digest in enumerate(self.hashes) if digest not in known]
        return (self if len(kept) == len(self) else self.like(Picked(self.images, tuple(kept)))), kept


@dataclass(frozen=True)
class Calibration:
    """inputs: what ranges and bias corrections are measured on. supports: real ones alone, for range coverage, with
    views of them that ``inputs`` has not: the supports themselves are among those, and min-max ranges hold them.
    """

    inputs: Prepared
    supports: Prepared

"""N-way K-shot episodes: which classes, which supports, which queries. Drawn from a seed, saved, replayed.

An episode does not depend on how many others are drawn: a longer list begins with the shorter one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.errors import DataError
from tinyforge.fewshot.datasets import Files
from tinyforge.store import write_atomic

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Protocol:
    """way: classes. shot: supports per class. extra: further images per class, for methods that may use them and never
    asked. queries: per class; None: all images that remain.
    """

    way: int
    shot: int
    extra: int = 0
    queries: int | None = None


@dataclass(frozen=True)
class Episode:
    """Per class its files' relative names, in the order of the classes. A class's label is its position."""

    index: int
    classes: tuple[str, ...]
    support: tuple[tuple[str, ...], ...]
    extra: tuple[tuple[str, ...], ...]
    queries: tuple[tuple[str, ...], ...]

    @property
    def labels(self) -> np.ndarray:
        """int64 (M,) of the queries, class after class."""
        return np.repeat(np.arange(len(self.classes)), [len(names) for names in self.queries])

    @property
    def fingerprint(self) -> str:
        """sha256 hex of all of it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class EpisodeList:
    """Episodes over the classes of one split. ``draws``: per episode the classes, and the files of its supports and
    extra images as indices into ``files``; the queries follow from these.
    """

    benchmark: str
    split: str
    seed: int
    protocol: Protocol
    files: Files
    draws: tuple[dict[str, list[Any]], ...]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> Episode:
        draw, classes = self.draws[index], tuple(self.draws[index]["classes"])
        picked = {part: draw[part] for part in ("support", "extra")}
        queries = draw.get("queries") or [
            sorted(set(range(len(self.files[name]))).difference(support, extra))
            for name, support, extra in zip(classes, picked["support"], picked["extra"], strict=True)
        ]
        names = {
            part: tuple(tuple(self.files[name][i] for i in rows) for name, rows in zip(classes, lists, strict=True))
            for part, lists in (picked | {"queries": queries}).items()
        }
        return Episode(index, classes, **names)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def draw_episodes(benchmark: str, split: str, files: Files, protocol: Protocol, seed: int, count: int) -> EpisodeList:
    """``count`` episodes. Raises DataError naming the classes that have too few images."""
    check(files, protocol)
    draws = tuple(_draw(files, protocol, seed, index) for index in range(count))
    return EpisodeList(benchmark, split, seed, protocol, dict(files), draws)


def check(files: Files, protocol: Protocol) -> None:
    if len(files) < protocol.way:
        raise DataError(f"{protocol.way}-way episodes need {protocol.way} classes; there are {len(files)}")
    need = protocol.shot + protocol.extra + (protocol.queries or 1)
    few = [f"{name} ({len(found)})" for name, found in files.items() if len(found) < need]
    if few:
        what = f"{protocol.shot} supports, {protocol.extra} extra images, {protocol.queries or 1} or more queries"
        more = f" and {len(few) - 8} more" if len(few) > 8 else ""
        raise DataError(f"classes with fewer than {need} images ({what}): {', '.join(few[:8])}{more}")


def _draw(files: Files, protocol: Protocol, seed: int, index: int) -> dict[str, list[Any]]:
    digest = hashlib.sha256(f"episode {seed} {index}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    names = list(files)
    classes = [names[i] for i in rng.permutation(len(names))[: protocol.way]]
    orders = [rng.permutation(len(files[name])).tolist() for name in classes]
    first, last = protocol.shot, protocol.shot + protocol.extra
    draw = {"classes": classes, "support": [o[:first] for o in orders], "extra": [o[first:last] for o in orders]}
    if protocol.queries is not None:
        draw["queries"] = [sorted(o[last : last + protocol.queries]) for o in orders]
    return draw


def episode_seed(seed: int, index: int) -> int:
    """In [0, 2**32): what an episode's inversions and students are drawn from."""
    return int.from_bytes(hashlib.sha256(f"learn {seed} {index}".encode()).digest()[:4], "little")


def save_episodes(episodes: EpisodeList, file: Path) -> None:
    write_atomic(file, (json.dumps(episodes.to_json(), separators=(",", ":"), ensure_ascii=False) + "\n").encode())


def load_episodes(file: Path) -> EpisodeList:
    """Raises DataError for a file that is no episode list of this version."""
    try:
        record = json.loads(file.read_bytes())
        if record.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema_version")
        files = {name: tuple(names) for name, names in record.pop("files").items()}
        protocol = Protocol(**record.pop("protocol"))
        loaded = EpisodeList(**record | {"files": files, "protocol": protocol, "draws": tuple(record["draws"])})
        for index in range(len(loaded)):
            loaded[index]
        if not loaded.draws:
            raise ValueError("it is empty")
    except (OSError, AttributeError, ValueError, KeyError, TypeError, IndexError) as fault:
        raise DataError(f"{file}: not an episode list ({type(fault).__name__}: {fault})") from fault
    return loaded


def extended(saved: EpisodeList, wanted: EpisodeList) -> EpisodeList:
    """The longer of two lists that agree as far as both go. Raises DataError when they do not."""
    for field in ("benchmark", "split", "seed", "protocol", "files"):
        if getattr(saved, field) != getattr(wanted, field):
            raise DataError(f"the results there are of other episodes: their {field} differs; choose another --out")
    common = min(len(saved), len(wanted))
    if saved.draws[:common] != wanted.draws[:common]:
        raise DataError("the results there are of other episodes, drawn differently; choose another --out")
    return max(saved, wanted, key=len)

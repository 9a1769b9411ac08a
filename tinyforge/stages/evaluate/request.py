"""What an evaluation was asked for, read and checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyforge.errors import DataError, UsageError
from tinyforge.fewshot.datasets import BENCHMARKS, find_classes, read_classes
from tinyforge.fewshot.episodes import EpisodeList, Protocol, draw_episodes, load_episodes
from tinyforge.fewshot.methods import REFERENCE, Method, expand, parse
from tinyforge.folders import check_out
from tinyforge.recipe import Recipe
from tinyforge.stages.starts import ABOUT, shipped_start

WAY, SHOT = 5, 5
EXTRA = 100  # real images per class for 'real-extra' at most, unless said otherwise


@dataclass(frozen=True)
class Base:
    """Images of base classes. files: class -> files relative to ``root``. picked: those that the teacher labels."""

    root: Path
    files: dict[str, tuple[str, ...]]
    picked: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """root: the benchmark's folder. count: episodes to measure, the first of ``episodes``. start: folder of a student's
    starting weights. threads: of torch, per process. reference: the method that the others are compared with.
    """

    root: Path
    out: Path
    episodes: EpisodeList
    count: int
    methods: tuple[Method, ...]
    recipe: Recipe
    reference: str = REFERENCE
    base: Base | None = None
    start: Path | None = None
    start_epochs: int = 30
    offline: bool = False
    threads: int = 1
    pictures: bool = False
    keep_work: bool = False

    @property
    def indices(self) -> range:
        return range(self.count)


def prepare(
    benchmark: str,
    root: Path,
    out: Path,
    recipe: Recipe,
    *,
    methods: Sequence[str],
    alphas: Sequence[float] = (),
    reference: str | None = None,
    split: str = "test",
    splits_file: Path | None = None,
    way: int | None = None,
    shot: int | None = None,
    count: int | None = None,
    queries: int | None = None,
    extra: int | None = None,
    episodes_file: Path | None = None,
    base_root: Path | None = None,
    base_images: int = 2000,
    **how: object,
) -> Request:
    """Read the folders, draw or load the episodes, and check that all methods can run. Opens no image.

    way, shot: default 5. count: default 20. extra: default 0, or for 'real-extra' as many as synthetic ones. With
    ``episodes_file`` all of these, and the seed, are the list's.
    Raises DataError, UsageError.
    """
    check_out(out)
    wanted = expand(methods, alphas)
    if not wanted:
        raise UsageError("no method given")
    compared = REFERENCE if reference is None else parse(reference).name
    if reference is not None and compared not in (one.name for one in wanted):
        raise UsageError(f"--reference {compared}: not among the methods asked for; add it to --methods")
    if episodes_file is not None:
        episodes = _replayed(load_episodes(episodes_file), benchmark, root)
        _check_protocol(episodes.protocol, {"way": way, "shot": shot, "extra": extra, "queries": queries})
    else:
        files = read_classes(root, benchmark, split, splits_file)
        way, shot = way or WAY, shot or SHOT
        protocol = Protocol(way, shot, _extra(extra, wanted, recipe, files, shot), queries)
        episodes = draw_episodes(benchmark, split, files, protocol, recipe.seed, count or 20)
    if count is not None and count > len(episodes):
        raise UsageError(f"{count} episodes asked for, but {episodes_file} holds {len(episodes)}")
    if any(_is_real(one) for one in wanted) and episodes.protocol.extra == 0:
        raise UsageError("real-extra needs episodes with extra images: give --extra, or another episode list")
    base = None
    known = how.get("start") or shipped_start(recipe.distill.student)
    untrained = any(one.pretrained for one in wanted) and not (known and Path(known, ABOUT).is_file())
    if any(one.base for one in wanted) or untrained:
        base = _base(benchmark, base_root or root, splits_file, base_root is not None, base_images, episodes)
    return Request(root, out, episodes, count or len(episodes), wanted, recipe, compared, base, **how)


def _is_real(method: Method) -> bool:
    return method.is_student and method.row.images == "real"


def _extra(given: int | None, methods: Sequence[Method], recipe: Recipe, files: dict, shot: int) -> int:
    if given is not None:
        return given
    if not any(map(_is_real, methods)):
        return 0
    spare = (min(map(len, files.values())) - shot) // 2
    return max(1, min(recipe.synthesize.images_per_class, EXTRA, spare))


def _replayed(episodes: EpisodeList, benchmark: str, root: Path) -> EpisodeList:
    """A loaded list, checked against what is in ``root``."""
    if episodes.benchmark != benchmark:
        raise UsageError(f"the episode list is of {episodes.benchmark}, not of {benchmark}")
    found = find_classes(root, benchmark)
    missing = [
        f"{name}: {file}"
        for name, files in episodes.files.items()
        for file in sorted(set(files).difference(found.get(name, ())))
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise DataError(f"{root}: {len(missing)} files of the episode list are not there: {shown}")
    return episodes


def _check_protocol(listed: Protocol, asked: dict[str, int | None]) -> None:
    """Raises UsageError where something else is asked for than the episode list has."""
    for what, value in asked.items():
        own = getattr(listed, what)
        if value not in (None, own):
            told = "all that remain" if own is None else own
            raise UsageError(f"--{what} {value}: the episode list has {told}; leave it out, or draw other episodes")


def _base(benchmark: str, root: Path, splits_file: Path | None, given: bool, count: int, episodes: EpisodeList) -> Base:
    """Base classes: the benchmark's train split below ``root``; of a plain folder, all that is in it."""
    if not BENCHMARKS[benchmark].has_splits and splits_file is None:
        if not given:
            raise UsageError("+base and +pretrained need images of other classes: name their folder with --base")
        files = find_classes(root, benchmark)
    else:
        files = read_classes(root, benchmark, "train", splits_file)
    both = sorted(set(files) & set(episodes.files))
    if both:
        raise DataError(f"base classes must not be evaluated: {', '.join(both[:8])} are in both")
    names = [name for listed in files.values() for name in listed]
    rng = np.random.default_rng(episodes.seed)
    picked = sorted(rng.permutation(len(names))[:count].tolist())
    return Base(root, files, tuple(names[i] for i in picked))

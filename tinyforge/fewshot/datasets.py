"""Few-shot benchmarks as folders of images: which files a class has, and which classes a split has.

Nothing is opened here: a class is a name and a sorted list of files relative to the benchmark's folder.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tinyforge.device.pictures import is_hidden, is_image
from tinyforge.errors import DataError
from tinyforge.registry import near_miss, unknown

SPLITS = ("train", "val", "test")
Files = Mapping[str, tuple[str, ...]]  # class name -> files relative to the benchmark's folder, '/' between the parts


def class_by_folder(path: PurePosixPath) -> str:
    """The folder that holds the image, wherever that is: train/apple and test/apple are one class."""
    return path.parent.name


def class_by_number(path: PurePosixPath) -> str:
    """'017' of images/017.Cardinal/x.jpg."""
    number, dot, _ = path.parent.name.partition(".")
    return number if dot else ""


def class_by_top_folder(path: PurePosixPath) -> str:
    """The outermost folder, below train/, val/ and test/ where there are such: 'cup' of cup/kitchen/x.jpg."""
    folders = path.parent.parts
    return "".join((folders[1:] if folders[:1] in [(name,) for name in SPLITS] else folders)[:1])


@dataclass(frozen=True)
class Benchmark:
    """class_of: a file's class by its relative path, '' for a file of none. has_splits: its class splits ship with
    TinyForge.
    """

    title: str
    class_of: Callable[[PurePosixPath], str]
    has_splits: bool = True


BENCHMARKS = {
    "cifar-fs": Benchmark("CIFAR-FS: CIFAR-100 as PNG, train/<class>/*.png and test/<class>/*.png", class_by_folder),
    "mini-imagenet": Benchmark("miniImageNet, any tree of <WordNet id> folders", class_by_folder),
    "cub": Benchmark("CUB-200-2011, images/NNN.Name/*.jpg", class_by_number),
    "folder": Benchmark("a folder of class folders", class_by_top_folder, has_splits=False),
}


def find_classes(root: Path, benchmark: str) -> dict[str, tuple[str, ...]]:
    """Every class below ``root`` with its image files, both sorted. Raises DataError when there is none."""
    if benchmark not in BENCHMARKS:
        raise DataError(unknown("benchmark", benchmark, BENCHMARKS))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --data must name {BENCHMARKS[benchmark].title}")
    found = defaultdict(list)
    for path in image_paths(root):
        found[BENCHMARKS[benchmark].class_of(path)].append(path.as_posix())
    found.pop("", None)
    if not found:
        raise DataError(f"{root}: no class folders with images there; expected {BENCHMARKS[benchmark].title}")
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


def image_paths(root: Path) -> Iterator[PurePosixPath]:
    """Image files by their extension, relative to ``root``; nothing hidden."""
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in names:
            if not is_hidden(name) and is_image(Path(name)):
                yield PurePosixPath(Path(folder, name).relative_to(root).as_posix())


def read_splits(file: Path) -> dict[str, tuple[str, ...]]:
    """Split -> classes, from lines '[train]', '[val]', '[test]' with one class name a line below each; '#' comments.

    Raises DataError for a class that is named twice, or before any split.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{file}: cannot be read as a split list ({fault})") from fault
    splits: dict[str, list[str]] = {}
    names: list[str] | None = None
    for line in (line for line in lines if line and not line.startswith("#")):
        if line.startswith("[") and line.endswith("]"):
            names = splits.setdefault(line[1:-1].strip(), [])
        elif names is None:
            raise DataError(f"{file}: '{line}' comes before any [split] line; write [train], [val] or [test] above it")
        else:
            names.append(line)
    everything = [name for listed in splits.values() for name in listed]
    twice = sorted({name for name in everything if everything.count(name) > 1})
    if twice:
        raise DataError(f"{file}: named more than once: {_few(twice)}")
    return {split: tuple(listed) for split, listed in splits.items()}


def split_classes(benchmark: str, split: str, splits_file: Path | None) -> tuple[str, ...] | None:
    """The classes of a split: of the file given, else of the list that ships; None: all there are."""
    if splits_file is None:
        if not BENCHMARKS[benchmark].has_splits:
            if split != "test":
                raise DataError(f"a folder has no '{split}' split of its own; name its classes in a file (--splits)")
            return None
        splits_file = Path(__file__).parent / "splits" / f"{benchmark}.txt"
    splits = read_splits(splits_file)
    if split not in splits:
        raise DataError(f"{splits_file}: {unknown('split', split, splits)}")
    return splits[split]


def read_classes(root: Path, benchmark: str, split: str, splits_file: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The classes of one split with their files. Raises DataError naming every class of the split that is not there."""
    found = find_classes(root, benchmark)
    wanted = split_classes(benchmark, split, splits_file)
    if wanted is None:
        return found
    missing = [name for name in wanted if name not in found]
    if missing:
        hint = near_miss(missing[0], found)
        raise DataError(
            f"{root}: {len(missing)} of the {len(wanted)} classes of {benchmark}'s '{split}' split are missing: "
            f"{_few(missing)}{hint}; expected {BENCHMARKS[benchmark].title}"
        )
    return {name: found[name] for name in wanted}


def _few(names: Sequence[str] | Iterable[str], most: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

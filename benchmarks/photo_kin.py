"""Checks that no class which the photo models learn is kin to one that the few-shot benchmarks keep for validation or
testing, by WordNet 3.0 and by name; and gives the reason for every class that is left out.

    python benchmarks/photo_kin.py --wordnet /usr/share/wordnet        # Debian: apt install wordnet-base
    python benchmarks/photo_kin.py --folders new/new5b new/new6        # which learned classes are kin to these

Kin are two classes of which one is, or contains, the other: the same synset, or one above the other by hypernyms; and
a class whose name has the other's whole name as one of its words. ImageNet's ids are offsets in data.noun. A word of
CIFAR-100 stands for its first sense, and for a class that is left out, to be safe, for any of its senses. Exit code 1
when a learned class is kin, or a class left out is not.
"""

import argparse
import re
import sys
from functools import cache
from itertools import product
from pathlib import Path

from tinyforge.embedded.pretrain.photos import Known, known_folders
from tinyforge.fewshot.datasets import split_classes

BENCHMARKS = ("cifar-fs", "mini-imagenet")
SENSES = {"maple_tree": "maple", "aquarium_fish": "goldfish"}
"""Classes that WordNet has under another word."""


class Nouns:
    """WordNet's nouns: synsets by their offsets, eight digits."""

    def __init__(self, folder: Path) -> None:
        self.words: dict[str, list[str]] = {}
        self._above: dict[str, list[str]] = {}
        for line in self._lines(folder / "data.noun"):
            fields = line.partition(" | ")[0].split()
            count = int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            self.words[fields[0]] = [word.replace("_", " ").lower() for word in fields[4 : 4 + 2 * count : 2]]
            kinds = zip(pointers[::4], pointers[1::4], strict=False)
            self._above[fields[0]] = [offset for kind, offset in kinds if kind in ("@", "@i")]
        rows = (line.split() for line in self._lines(folder / "index.noun"))
        self._senses = {row[0]: row[6 + int(row[3]) :] for row in rows}

    @staticmethod
    def _lines(file: Path) -> list[str]:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]

    def synsets(self, name: str) -> list[str]:
        """What a class, a WordNet id or a word, may mean; the usual first."""
        return [name[1:]] if re.fullmatch(r"n\d{8}", name) else self._senses[SENSES.get(name, name)]

    def names(self, name: str) -> list[str]:
        """What a class is called."""
        return self.words[name[1:]] if re.fullmatch(r"n\d{8}", name) else [name.replace("_", " ")]

    def above(self, synset: str) -> set[str]:
        """The synset and all that it is a kind of."""
        return {synset}.union(*(self.above(one) for one in self._above[synset]))


def kinship(nouns: Nouns, one: str, novel: str, senses: int | None) -> str:
    """How a class is kin to a novel one, '' if it is not. senses: of each that are looked at; None: all."""
    for a, b in product(nouns.synsets(one)[:senses], nouns.synsets(novel)[:senses]):
        if a == b:
            return "is"
        if b in nouns.above(a):
            return "is a kind of"
        if a in nouns.above(b):
            return "contains"
    words = {word for name in nouns.names(one) for word in re.split("[ -]", name)}
    return "has the word" if words & set(nouns.names(novel)) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--folders", type=Path, nargs="+", help="only say to which learned classes these are kin")
    options = parser.parse_args()
    nouns = Nouns(options.wordnet)
    novel = [
        name for benchmark in BENCHMARKS for split in ("val", "test") for name in split_classes(benchmark, split, None)
    ]
    nouns.above = cache(nouns.above)  # type: ignore[method-assign]
    if options.folders:
        learned = [row for row in known_folders().values() if row.role == "train"]
        for name in sorted(path.name for folder in options.folders for path in folder.iterdir()):
            found = [(row.name, kinship(nouns, row.folder, name, 1)) for row in learned]
            kin_to = [f"{other} {how} it" for other, how in found if how]
            print(f"{nouns.names(name)[0]}: {', '.join(kin_to) or 'no kin'}")
        return

    def kin(row: Known) -> list[str]:
        senses = 1 if row.role == "train" else None
        found = ((kinship(nouns, row.folder, name, senses), nouns.names(name)[0]) for name in novel)
        return [f"{how} {name}" for how, name in found if how]

    rows = [row for row in known_folders().values() if row.role != "val" and row.folder not in novel]
    wrong = 0
    for row in rows:
        found = kin(row)
        wrong += bool(found) == (row.role == "train")
        if found or row.role != "train":
            print(f"{row.role}  {row.name}: {', '.join(found) or 'kin to none'}")
    learned = sum(row.role == "train" for row in rows)
    print(f"{learned} learned and {len(rows) - learned} left out, against {len(novel)} novel classes: {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

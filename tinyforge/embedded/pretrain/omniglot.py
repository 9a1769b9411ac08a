"""Omniglot's pen strokes, redrawn by many hands.

The archives of pen trajectories (strokes_background_small1.zip, ..._small2.zip) give, for each drawing, a list of
strokes; moving, turning and scaling each stroke a little gives new drawings of the same character.
Source: Lake, Salakhutdinov & Tenenbaum 2015, "Human-level concept learning through probabilistic program induction"
(data under the MIT licence).
"""

from __future__ import annotations

import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .fonts import FILL, RENDER

Strokes = list[np.ndarray]
"""One drawing: a list of (P, 2) arrays of x, y (y down), in pixels of Omniglot's 105 x 105 page."""

LATIN = "abcdefghijklmnopqrstuvwxyz"
GREEK = "αβγδεζηθικλμνξοπρστυφχψω"


def parse(text: str) -> Strokes:
    """START / "x,y,time" / BREAK lines → strokes."""
    strokes: Strokes = []
    points: list[tuple[float, float]] = []
    for line in text.splitlines():
        if line.startswith(("START", "BREAK")):
            if points:
                strokes.append(np.array(points, np.float32))
            points = []
        elif line.strip():
            x, y, *_ = line.split(",")
            points.append((float(x), -float(y)))
    if points:
        strokes.append(np.array(points, np.float32))
    return strokes


def archives(sources: list[Path]) -> list[Path]:
    """The archives among files and below folders. Raises ValueError for what is none, or holds none."""
    found = []
    for source in sources:
        mine = sorted(source.rglob("strokes_*.zip")) if source.is_dir() else [source]
        wrong = [one for one in mine if not (one.is_file() and zipfile.is_zipfile(one))]
        if wrong or not mine:
            raise ValueError(f"{(wrong or [source])[0]}: no strokes_*.zip of Omniglot")
        found += mine
    return found


def read(sources: list[Path]) -> dict[str, list[Strokes]]:
    """ "alphabet/character" → its drawings, from strokes_*.zip files or folders holding them."""
    drawings: dict[str, dict[str, Strokes]] = defaultdict(dict)
    for archive in archives(sources):
        with zipfile.ZipFile(archive) as handle:
            for name in sorted(handle.namelist()):
                parts = name.split("/")
                if name.endswith(".txt") and len(parts) == 4 and "__MACOSX" not in name:
                    drawings[f"{parts[1]}/{parts[2]}"][parts[3]] = parse(handle.read(name).decode())
    return {key: [value[k] for k in sorted(value)] for key, value in sorted(drawings.items())}


def another_hand(strokes: Strokes, rng: np.random.Generator, strength: float = 1.0) -> Strokes:
    """The same character with each stroke turned (σ 5°), scaled (σ 7 %) and moved (σ 3 % of the drawing)."""
    size = float(np.ptp(np.concatenate(strokes), axis=0).max()) + 1e-6
    moved = []
    for points in strokes:
        centre = points.mean(0)
        angle = rng.normal(0, np.deg2rad(5) * strength)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        scale = np.exp(rng.normal(0, 0.07 * strength, 2))
        moved.append(((points - centre) * scale) @ turn.T + centre + rng.normal(0, 0.03 * strength * size, 2))
    return moved


def draw(strokes: Strokes) -> np.ndarray:
    """A one-pixel line drawing, aspect kept, filling the middle of (96, 96) uint8."""
    points = np.concatenate(strokes)
    low, high = points.min(0), points.max(0)
    scale = FILL / max(float((high - low).max()), 1e-6)
    offset = RENDER / 2 - scale * (low + high) / 2
    canvas = Image.new("L", (RENDER, RENDER))
    pen = ImageDraw.Draw(canvas)
    for stroke in strokes:
        line = [tuple(p) for p in (stroke * scale + offset).round(1).tolist()]
        pen.line(line if len(line) > 1 else line * 2, fill=255, width=1)
    return np.asarray(canvas)


def name_of(key: str) -> str:
    """ "Latin/character01" → the character "a" (shared with the fonts), else a name of letters only."""
    alphabet, character = key.split("/")
    number = int(character.removeprefix("character")) - 1
    if alphabet == "Latin":
        return LATIN[number]
    if alphabet == "Greek":
        return GREEK[number]
    word = alphabet.lower().replace("_", "").replace("(", "").replace(")", "")
    return f"omniglot{word}{chr(97 + number // 26)}{chr(97 + number % 26)}"

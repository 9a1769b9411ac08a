"""Characters and fonts: which glyphs are drawn, and their bitmaps.

Digits are excluded on purpose: a character of Unicode category N*, one whose NFKC form contains a digit, or one with
a numeric value (the ideographs for one, two, three) never becomes a class: handwritten digits stay unseen.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

log = logging.getLogger(__name__)

RENDER = 96
"""Pixels of the square a glyph is rendered in; its longer side fills FILL of it."""
FILL = 80

BLOCKS: tuple[tuple[str, int, int, int], ...] = (
    ("latin", 0x41, 0x7A, 60),
    ("latin-1", 0xC0, 0xFF, 20),
    ("latin-ext", 0x180, 0x24F, 40),
    ("ipa", 0x250, 0x2AF, 80),
    ("greek", 0x391, 0x3C9, 60),
    ("cyrillic", 0x400, 0x4FF, 110),
    ("armenian", 0x531, 0x587, 80),
    ("hebrew", 0x5D0, 0x5EA, 30),
    ("arabic", 0x621, 0x64A, 40),
    ("nko", 0x7CA, 0x7EA, 33),
    ("devanagari", 0x904, 0x939, 52),
    ("bengali", 0x985, 0x9B9, 50),
    ("gurmukhi", 0xA05, 0xA39, 40),
    ("gujarati", 0xA85, 0xAB9, 50),
    ("oriya", 0xB05, 0xB39, 45),
    ("tamil", 0xB85, 0xBB9, 40),
    ("telugu", 0xC05, 0xC39, 50),
    ("kannada", 0xC85, 0xCB9, 50),
    ("malayalam", 0xD05, 0xD39, 50),
    ("sinhala", 0xD85, 0xDC6, 40),
    ("thai", 0xE01, 0xE2E, 46),
    ("lao", 0xE81, 0xEAE, 30),
    ("tibetan", 0xF40, 0xF6C, 25),
    ("myanmar", 0x1000, 0x102A, 42),
    ("georgian", 0x10D0, 0x10F0, 33),
    ("ethiopic", 0x1200, 0x1350, 40),
    ("cherokee", 0x13A0, 0x13F4, 85),
    ("canadian", 0x1401, 0x15C0, 60),
    ("runic", 0x16A0, 0x16EA, 60),
    ("khmer", 0x1780, 0x17A2, 35),
    ("glagolitic", 0x2C00, 0x2C2E, 40),
    ("coptic", 0x2C80, 0x2CB1, 30),
    ("tifinagh", 0x2D30, 0x2D65, 50),
    ("hiragana", 0x3041, 0x3093, 50),
    ("katakana", 0x30A1, 0x30F3, 50),
    ("hangul", 0x3131, 0x3163, 50),
    ("old-italic", 0x10300, 0x1031F, 30),
    ("gothic", 0x10330, 0x1034A, 26),
    ("deseret", 0x10400, 0x1044F, 40),
    ("shavian", 0x10450, 0x1047F, 46),
    ("osmanya", 0x10480, 0x1049D, 30),
    ("phoenician", 0x10900, 0x10915, 22),
    ("old-turkic", 0x10C00, 0x10C48, 30),
    ("lycian", 0x10280, 0x1029C, 20),
    ("ascii-signs", 0x21, 0x7E, 40),
    ("latin-signs", 0xA1, 0xBF, 20),
    ("punctuation", 0x2010, 0x205E, 20),
    ("currency", 0x20A0, 0x20BF, 25),
    ("letterlike", 0x2100, 0x214F, 25),
    ("arrows", 0x2190, 0x21FF, 40),
    ("math", 0x2200, 0x22FF, 80),
    ("technical", 0x2300, 0x23FF, 25),
    ("shapes", 0x25A0, 0x25FF, 30),
    ("symbols", 0x2600, 0x26FF, 30),
    ("dingbats", 0x2701, 0x27BF, 30),
)
IDEOGRAPHS = (
    "人入口土女子山川工己巾干弓手文方日月木水火犬王玉田目石矢立竹米羊羽"
    "耳虫衣見言谷豆貝走足車大小上下中左右天力刀又夕寸心戸止父牛生用白皮"
)


@dataclass(frozen=True)
class Glyphs:
    """Rendered glyphs: bitmaps (N, 96, 96) uint8 light on dark, label (N,) into names, font (N,) index."""

    bitmaps: np.ndarray
    label: np.ndarray
    font: np.ndarray
    characters: tuple[str, ...]


def allowed(char: str) -> bool:
    """A letter, punctuation mark or sign, and in no way a number."""
    if unicodedata.category(char)[0] not in "LPS" or unicodedata.numeric(char, None) is not None:
        return False
    return not any(unicodedata.category(c)[0] == "N" for c in unicodedata.normalize("NFKC", char))


def candidates() -> list[str]:
    """The characters tried, evenly thinned to each block's limit; no accented and no small-kana forms."""
    chosen: list[str] = []
    for name, first, last, limit in BLOCKS:
        signs = name in {"ascii-signs", "latin-signs"}
        chars = [chr(code) for code in range(first, last + 1)]
        chars = [c for c in chars if allowed(c) and not unicodedata.decomposition(c)]
        chars = [
            c for c in chars if "SMALL" not in unicodedata.name(c, "SMALL") or name not in {"hiragana", "katakana"}
        ]
        chars = [
            c for c in chars if (unicodedata.category(c)[0] != "L") == signs or name not in {"latin", "ascii-signs"}
        ]
        keep = np.unique(np.linspace(0, len(chars) - 1, min(limit, len(chars))).round().astype(int)) if chars else []
        chosen += [chars[i] for i in keep]
    chosen += [c for c in IDEOGRAPHS if allowed(c)]
    return list(dict.fromkeys(chosen))


def font_files(roots: list[Path], seed: int) -> list[Path]:
    """TrueType and OpenType files below the roots: one of each family first, the rest after, shuffled by the seed.

    Raises ValueError when there is none, or a root is no folder.
    """
    rng = np.random.default_rng(seed)
    files = sorted(p for root in roots for p in root.rglob("*") if p.suffix.lower() in {".ttf", ".otf"})
    files = [p for p in files if p.stat().st_size < 12_000_000 and "emoji" not in p.name.lower()]
    absent = [root for root in roots if not root.is_dir()]
    if absent or not files:
        named = ", ".join(map(str, absent or roots))
        raise ValueError(f"no fonts below {named}: name folders of .ttf or .otf files with --fonts")
    order = rng.permutation(len(files))
    seen: Counter[str] = Counter()
    ranked = []
    for i in order:
        family = files[i].parent.name + files[i].stem.split("-")[0][:8].lower()
        ranked.append((seen[family], len(ranked), files[i]))
        seen[family] += 1
    return [path for _, _, path in sorted(ranked)]


def characters_of(path: Path) -> set[int]:
    """Code points a font maps; empty when the file cannot be read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            return set(font.getBestCmap() or ())
    except Exception as error:  # a damaged font file is skipped, never fatal
        log.info("font %s skipped: %s", path.name, error)
        return set()


def draw(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """One glyph, tightly cropped, aspect kept, centred in (96, 96) uint8; None when blank or tiny (dots, accents)."""
    mask = font.getmask(char, mode="L")
    width, height = mask.size
    if not width or not height or max(width, height) > 512:
        return None
    image = Image.frombytes("L", (width, height), bytes(mask))
    box = image.point(lambda v: 255 * (v > 64)).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < 0.22 * font.size:
        return None
    image = image.crop(box)
    scale = FILL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("L", (RENDER, RENDER))
    canvas.paste(image, ((RENDER - image.width) // 2, (RENDER - image.height) // 2))
    return np.asarray(canvas)


def render(roots: list[Path], *, per_class: int, seed: int, chars: list[str] | None = None) -> Glyphs:
    """Every candidate character in up to per_class fonts."""
    chars = candidates() if chars is None else chars
    count: Counter[str] = Counter()
    bitmaps, labels, fonts = [], [], []
    for number, path in enumerate(font_files(roots, seed)):
        wanted = [i for i, c in enumerate(chars) if count[c] < per_class]
        have = characters_of(path) if wanted else set()
        wanted = [i for i in wanted if ord(chars[i]) in have]
        if not wanted:
            continue
        try:
            font = ImageFont.truetype(str(path), 72, layout_engine=ImageFont.Layout.BASIC)
            drawn = [(i, draw(font, chars[i])) for i in wanted]
        except (OSError, ValueError) as error:
            log.info("font %s skipped: %s", path.name, error)
            continue
        for i, bitmap in drawn:
            if bitmap is not None:
                bitmaps.append(bitmap)
                labels.append(i)
                fonts.append(number)
                count[chars[i]] += 1
    if not bitmaps:
        raise ValueError(f"none of the fonts below {', '.join(map(str, roots))} draws a character that is wanted")
    return Glyphs(np.stack(bitmaps), np.array(labels, np.int64), np.array(fonts, np.int64), tuple(chars))


def _unit(bitmaps: np.ndarray) -> np.ndarray:
    """(N, 96, 96) → centred unit vectors (N, 576), blurred by 4x4 pooling."""
    small = bitmaps.reshape(-1, 24, 4, 24, 4).mean((2, 4)).reshape(len(bitmaps), -1).astype(np.float32)
    small -= small.mean(1, keepdims=True)
    return small / (np.linalg.norm(small, axis=1, keepdims=True) + 1e-6)


def faithful(glyphs: Glyphs) -> np.ndarray:
    """(N,) bool: drop blank boxes and fancy fonts whose drawing is not the character (dingbats mapped to letters).

    In classes of at least 12 fonts the own class mean must be among the 12 most similar class means; a font of which
    less than 60 % pass is dropped whole.
    """
    features = _unit(glyphs.bitmaps)
    counts = np.bincount(glyphs.label, minlength=len(glyphs.characters))
    big = np.flatnonzero(counts >= 12)
    keep = np.ones(len(features), bool)
    if not len(big):
        return keep
    means = np.stack([np.median(features[glyphs.label == c], axis=0) for c in big])
    means /= np.linalg.norm(means, axis=1, keepdims=True) + 1e-6
    place = {int(c): i for i, c in enumerate(big)}
    rows = np.flatnonzero(np.isin(glyphs.label, big))
    similar = features[rows] @ means.T
    own = similar[np.arange(len(rows)), [place[int(c)] for c in glyphs.label[rows]]]
    keep[rows] = (similar > own[:, None]).sum(1) < 12
    for number in np.unique(glyphs.font[rows]):
        mine = rows[glyphs.font[rows] == number]
        if keep[mine].mean() < 0.6:
            keep[mine] = False
    return keep


def merged(glyphs: Glyphs, threshold: float = 0.93) -> np.ndarray:
    """(C,) representative class of each: characters that the same fonts draw alike (o O о, A А Α) are one class."""
    num = len(glyphs.characters)
    total, seen = np.zeros((num, num), np.float32), np.zeros((num, num), np.float32)
    features = _unit(glyphs.bitmaps)
    for number in np.unique(glyphs.font):
        mine = np.flatnonzero(glyphs.font == number)
        cells = np.ix_(glyphs.label[mine], glyphs.label[mine])
        total[cells] += features[mine] @ features[mine].T
        seen[cells] += 1
    alike = np.argwhere(np.triu(total > threshold * np.maximum(seen, 1), 1))
    parent = np.arange(num)
    for a, b in alike:
        low, high = sorted((parent[a], parent[b]))
        parent[parent == high] = low
    return parent

"""Which files are pictures, by their names."""

from __future__ import annotations

from pathlib import PurePath

READ = frozenset(("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"))
UNREAD = frozenset(("heic", "heif", "avif", "jp2", "jxl", "dng", "cr2", "cr3", "nef", "arw", "raf", "psd", "svg"))
"""Pictures that are not read: an error where they are met, not a file among others."""


def suffix(path: PurePath) -> str:
    """'jpg' of 'a.JPG'."""
    return path.suffix.lower().lstrip(".")


def is_image(path: PurePath) -> bool:
    """Of a kind that is read."""
    return suffix(path) in READ


def is_picture(path: PurePath) -> bool:
    """Also of a kind that is not read."""
    return suffix(path) in READ | UNREAD


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"

"""The shipped backbone and teacher of each domain: where they are and what their cards say. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PARTS = ("backbone", "teacher")
HERE = Path(__file__).parent


def path(domain: str, part: str) -> Path:
    """The folder of a domain's part, such as path("glyphs", "backbone"); it need not exist.

    Raises ValueError for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: one of {', '.join(PARTS)}")
    return HERE / domain / part


def domains() -> dict[str, dict[str, Any]]:
    """Domain name → its card (card.json: title, image size, measures, licence, parts that are shipped)."""
    cards = {}
    for file in sorted(HERE.glob("*/card.json")):
        card = json.loads(file.read_text(encoding="utf-8"))
        cards[file.parent.name] = card | {"parts": [p for p in PARTS if (file.parent / p).is_dir()]}
    return cards

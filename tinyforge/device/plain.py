"""Text of a stranger, made fit for a terminal."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # of Persian and Indian scripts, and of emoji


def plain(text: object) -> str:
    """``text`` on one line, with what steers a terminal or reorders the line written out: escapes, bidi marks."""
    return "".join(_shown(sign) for sign in str(text))


def _shown(sign: str) -> str:
    hidden = unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in JOINERS
    return sign.encode("unicode_escape").decode("ascii") if hidden else sign

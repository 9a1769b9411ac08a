"""Names that people type, and what they probably meant."""

import difflib
from collections.abc import Iterable


def near_miss(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'epochs'?)`` when a known name is close to ``name``, case aside; else the empty string."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean '{by_folded[close[0]]}'?)" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence for a name that a table does not hold: what it is, what it may have been, and all that is known."""
    names = sorted(known)
    return f"unknown {kind} '{name}'{near_miss(name, names)}; known: {', '.join(names) or 'none'}"

"""How long to measure."""

from __future__ import annotations

# Seconds and runs, both at least: 64 runs for a p90, 662 for a p99.
LONGEST = 86400  # seconds
TIERS = {"quick": (6.0, 64), "normal": (60.0, 662), "soak": (600.0, 662)}


def tiers_text() -> str:
    """'quick: 6 s and 64 runs, ...', for help texts."""
    told = (f"{name}: {seconds:.0f} s and {runs} runs" for name, (seconds, runs) in TIERS.items())
    return f"at least {', '.join(told)}"

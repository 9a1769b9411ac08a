"""Which model the bundle ships: by measurement, among those that are legal for the target and passed their gates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tinyforge.errors import GateError

TIE = 0.05  # latencies closer than this are equal; the smaller file wins


@dataclass(frozen=True)
class Contender:
    """A model with what was measured of it.

    reason: why its gate failed, '' when it passed. p50_ms: None when not measured. why_lost: filled by
    ``choose_variant``, '' for the chosen one.
    """

    name: str
    model_bytes: int
    p50_ms: float | None
    accuracy: float | None = None
    reason: str = ""
    why_lost: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose_variant(contenders: Sequence[Contender], allowed: Sequence[str]) -> tuple[str, list[Contender]]:
    """Smallest p50 latency among the eligible; within 5 % of it, the smaller file; then the target's preference.

    Eligible: passed its gate, legal for the target, measured. Returns the chosen name and all contenders, in their
    order, each with why it lost. Raises GateError when none is eligible.
    """
    ruled_out = {one.name: _why_not(one, allowed) for one in contenders}
    eligible = [one for one in contenders if not ruled_out[one.name]]
    if not eligible:
        reasons = "; ".join(f"{name}: {why}" for name, why in ruled_out.items())
        raise GateError(f"no model can be shipped: {reasons or 'none was made'}")
    fastest = min(one.p50_ms for one in eligible)
    ties = [one for one in eligible if one.p50_ms <= fastest * (1 + TIE)]
    chosen = min(ties, key=lambda one: (one.model_bytes, list(allowed).index(one.name)))
    table = [replace(one, why_lost=ruled_out[one.name] or _why_lost(one, chosen, ties)) for one in contenders]
    return chosen.name, table


def _why_not(one: Contender, allowed: Sequence[str]) -> str:
    if one.reason:
        return f"failed its gate: {one.reason}"
    if one.name not in allowed:
        return "not among the models this target may run"
    return "its latency was not measured" if one.p50_ms is None else ""


def _why_lost(one: Contender, chosen: Contender, ties: Sequence[Contender]) -> str:
    if one.name == chosen.name:
        return ""
    if one in ties:
        return f"as fast as {chosen.name} (within {TIE:.0%}), {one.model_bytes / chosen.model_bytes:.2f} times its size"
    return f"{one.p50_ms / chosen.p50_ms:.2f} times the latency of {chosen.name}"

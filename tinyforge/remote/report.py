"""What boards gave, as plain text and as one verdict."""

from collections.abc import Sequence
from typing import Any

from tinyforge.device.bench_report import bench_text
from tinyforge.device.report import outcome_text
from tinyforge.errors import DeviceError, GateError, MissingError, TinyForgeError, UsageError


def boards_text(found: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(_board_text(one) for one in found)


def _board_text(one: dict[str, Any]) -> str:
    if "error" in one:
        return f"== {one['address']}\nfailed, as told at the end"
    sent = f"{one['sent']['files']} files sent, {one['sent']['there_before']} there before"
    parts = [f"== {one['address']}, {one['board']['model'] or one['board']['architecture']}; {sent}"]
    parts += [f"note: {text}" for text in one["warnings"]]
    parts.append(outcome_text(one["selftest"], "selftest"))
    if one["bench"]:
        parts.append(bench_text(one["bench"]))
    return "\n\n".join(parts)


def failure(found: Sequence[dict[str, Any]]) -> TinyForgeError | None:
    """One error for all boards: one that failed outright before a gate, of several kinds the one that came first."""
    errors = [one["error"] for one in found if "error" in one]
    if errors:
        kinds = {kind.exit_code: kind for kind in (TinyForgeError, UsageError, MissingError, DeviceError)}
        return kinds[errors[0]["exit_code"]]("\n".join(error["message"] for error in errors))
    gates = [f"{one['address']}: {text}" for one in found if (text := _gate(one))]
    return GateError("\n".join(gates)) if gates else None


def _gate(one: dict[str, Any]) -> str | None:
    if not one["selftest"]["ok"]:
        return f"the self-test fails: {one['selftest']['faults'][0]['message']}"
    reasons = one["bench"]["conditions"]["reasons"]
    return f"the measurement is not valid: {', '.join(reasons)}" if reasons else None

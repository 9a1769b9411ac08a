"""Plain text for a terminal on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .plain import plain


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right, '-' for None."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    right = [
        bool(rows) and all(isinstance(value, (int, float, type(None))) for value in column) for column in zip(*rows)
    ]
    right = right or [False] * len(header)
    lines = [list(header), ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(line, widths, right)
        ).rstrip()
        for line in lines
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else plain(value)


def counted(number: int, noun: str) -> str:
    """'1 image', '2 images'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(record: dict[str, Any]) -> str:
    """A score as '85.0 % (79.4-89.3), n = 200'."""
    accuracy, low, high = (100 * record[key] for key in ("accuracy", "low", "high"))
    return f"{accuracy:.1f} % ({low:.1f}-{high:.1f}), n = {record['n']}"


def scores_text(scores: dict[str, dict[str, Any]]) -> str:
    return table(["method", "accuracy (95 % interval)"], [[name, percent(record)] for name, record in scores.items()])


def outcome_text(outcome: dict[str, Any], what: str) -> str:
    """Facts, faults and notes, a line each; last the verdict: 'selftest passed, 12 checks'."""
    lines = [f"{name}: {outcome[name]}" for name in ("digest", "certificate") if name in outcome]
    lines += [f"{fault['check']}: {fault['message']}" for fault in outcome["faults"]]
    lines += [f"note: {note}" for note in outcome["notes"]]
    lines = [plain(line) for line in lines]
    verdict = "passed" if outcome["ok"] else f"FAILED, {counted(len(outcome['faults']), 'fault')}"
    return "\n".join([*lines, f"{what} {verdict}, {counted(outcome['checks'], 'check')}"])


def predictions_text(results: Sequence[dict[str, Any]]) -> str:
    """One line per image: its answers, best first."""
    lines = []
    for result in results:
        answers = [f"{answer['class']} {100 * answer['probability']:.1f} %" for answer in result.get("answers", ())]
        if answers:
            lines.append(plain(f"{result['image']}: {', '.join(answers)}"))
    return "\n".join(lines)

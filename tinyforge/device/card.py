"""The numbers in a bundle's README.md, as Markdown: written with the card, worked out again by ``verify``.

They are the certificate's statement and the rows of every table. How they look is part of the bundle's format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MARKUP = re.compile(r"[\\`*\[\]|]|<(?=[A-Za-z/!?])|(?<![^\W_])_|_(?![^\W_])|^[#>+-]")  # but no _ inside of a word
CERTIFICATE = "## Certificate\n\n"
MEASURED = ("p50_ms", "p90_ms", "p99_ms", "runs", "peak_rss_mib")


def one_line(value: Any) -> str:
    """Text of the user inside Markdown: no markup, no line break, no table cell."""
    return escaped(" ".join(str(value).split()))


def escaped(text: str) -> str:
    return MARKUP.sub(lambda found: f"\\{found[0]}", text)


def statement(claimed: Mapping[str, Any]) -> str:
    return f"{one_line(claimed['certificate']['statement'])}."


def accuracy_rows(claimed: Mapping[str, Any], chosen: str) -> list[str]:
    """Lines of the table; none where nothing was scored."""
    rows = ["| method | n | correct | accuracy % | 95 % interval |", "|---|---:|---:|---:|---:|"]
    for method, one in claimed["scores"].items():
        name = f"**{one_line(method)}** (shipped)" if method == chosen else one_line(method)
        interval = f"{100 * one['low']:.1f} – {100 * one['high']:.1f}"
        rows.append(f"| {name} | {one['n']} | {one['correct']} | {100 * one['accuracy']:.1f} | {interval} |")
    return rows if claimed["scores"] else []


def speed_rows(claimed: Mapping[str, Any]) -> list[str]:
    """Lines of the table; none where nothing was measured."""
    rows = ["| model | p50 ms | p90 ms | p99 ms | runs | peak RSS MiB |", "|---|---:|---:|---:|---:|---:|"]
    for name, one in claimed["latency"].items():
        rows.append(f"| {one_line(name)} | {' | '.join(_number(one.get(key)) for key in MEASURED)} |")
    return rows if claimed["latency"] else []


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "–"


def numbers(claimed: Mapping[str, Any], chosen: str) -> list[str]:
    """All such lines in their order. claimed: at least ``claims.SECTIONS``; chosen: the shipped model."""
    return [statement(claimed), *accuracy_rows(claimed, chosen), *speed_rows(claimed)]


def numbers_in(card: str) -> list[str]:
    """Those lines that README.md holds where ``numbers`` stand in it."""
    lines = card.split("\n")
    said = card.partition(CERTIFICATE)[2].split("\n")[0]
    return [said, *(line for line in lines if line.lstrip().startswith("|"))]

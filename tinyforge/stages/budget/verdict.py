"""What a race showed: which candidates keep the limits, which are beaten, which ships, or what binds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyforge.compress.pareto import Entry, accuracy_bound, beaten_by, p90_interval, ships
from tinyforge.device.certificate import certificate
from tinyforge.device.stats import percentile
from tinyforge.stages.budget.entrants import Entered
from tinyforge.stages.budget.limits import FLAGS, Row, binding, missed
from tinyforge.stages.budget.race import Measured


@dataclass(frozen=True)
class Verdict:
    """rows: all candidates, by latency. lost: name -> the limits it misses. beaten: name -> who beats it.

    winner: None when no candidate keeps all limits; then ``binding`` says why. why: of the winner.
    models: how many different models the test images chose among; accuracies are claimed of all of them at once.
    """

    limits: Mapping[str, float]
    rows: tuple[Row, ...]
    lost: Mapping[str, list[str]]
    beaten: Mapping[str, str]
    winner: Row | None
    why: str
    binding: tuple[str, ...]
    models: int

    @property
    def failure(self) -> str:
        """'' when there is a winner."""
        if self.winner:
            return ""
        asked = ", ".join(f"{FLAGS[limit]} {value:g}" for limit, value in self.limits.items())
        return "\n".join([f"no candidate keeps {asked}:", *(f"  {text}" for text in self.binding)])


def rows_of(one: Entered, measured: Measured, answers: Mapping[str, Any], *, raced: bool) -> list[Row]:
    """A row for every arm. answers: variant -> raw predictions on the test images, where there are some."""
    variants, rows = {variant.name: variant for variant in one.legal()}, []
    for arm, report in measured.reports.items():
        name, _, threads = arm.rpartition("@")
        own = answers.get(name)
        asked = {name: list(zip(own["names"], own["labels"], own["predicted"], strict=True))} if own else {}
        claims = certificate(name, asked, {name: {**report, "machine": measured.machine}})
        rows.append(
            Row(
                one.net.student,
                one.net.input_size,
                name,
                int(threads),
                variants[name].runtime,
                variants[name].precision,
                variants[name].model_bytes,
                report["peak_rss_mib"],
                p90_interval(report["raw_us"]["infer"]),
                percentile(report["raw_us"]["infer"], 0.5) / 1000,
                claims["latency"],
                claims["accuracy"],
                tuple(a == b for a, b in zip(own["labels"], own["predicted"], strict=True)) if own else None,
                raced,
            )
        )
    return rows


def judge(rows: Sequence[Row], limits: Mapping[str, float], max_drop: float) -> Verdict:
    """rows: in the order of preference of their nets, which decides where accuracy is unknown."""
    models = len({(row.net, row.model) for row in rows if row.raced and row.accuracy})
    rows = [claimed_of_all(row, models) for row in rows]
    raced = [row for row in rows if row.raced]
    lost = {row.name: missed(row, limits) for row in rows}
    kept = [row for row in raced if not lost[row.name]]
    winner, why = _winner(kept, max_drop)
    return Verdict(
        limits,
        tuple(sorted(rows, key=lambda row: row.p90_ms[0])),
        lost,
        beaten_by([entry(row) for row in raced]),
        winner,
        why,
        () if winner else tuple(binding(rows, limits)),
        models,
    )


def claimed_of_all(row: Row, models: int) -> Row:
    """The row with the bound of accuracy that its certificate will claim: corrected for the choice among ``models``."""
    if row.accuracy is None:
        return row
    bound = accuracy_bound(row.accuracy["correct"], row.accuracy["n"], models)
    return replace(row, accuracy={**row.accuracy, "at_least": math.floor(bound * 1e6) / 1e6})


def entry(row: Row) -> Entry:
    return Entry(row.name, row.model_bytes, *row.p90_ms, row.right)


def _winner(kept: Sequence[Row], max_drop: float) -> tuple[Row | None, str]:
    """And why it is the one."""
    if not kept:
        return None, ""
    if any(row.right is None for row in kept):
        first = kept[0].net
        own = [row for row in kept if row.net == first]
        why = f"there are no test images, so the first net of the list that keeps the limits ships, {first[0]}"
        winner = ships([entry(row) for row in own], max_drop).name
        return next(row for row in own if row.name == winner), f"{why}, in its fastest form"
    name = ships([entry(row) for row in kept], max_drop).name
    winner, most = next(row for row in kept if row.name == name), max(kept, key=lambda row: sum(row.right))
    less = (sum(most.right) - sum(winner.right)) / len(winner.right)
    if winner.accuracy["correct"] == most.accuracy["correct"]:
        return winner, f"{name} is the most accurate of {len(kept)} that keep the limits; among equals, the fastest"
    return winner, (
        f"{name} is {100 * less:.1f} points less accurate than the most accurate of {len(kept)} that keep the limits, "
        f"{most.name}, and the fastest of those that are at most {100 * max_drop:g} below"
    )

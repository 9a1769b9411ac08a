"""A build within limits: candidates student x input size x precision x runtime x threads, raced on the target.

1. ``screen``: untrained nets are measured; one that clearly cannot keep the limits is not trained.
2. Inversions and synthetic images are made once; every net left learns from them and is compressed.
3. Every model with every number of threads is measured, here or on the board.
4. ``compress.pareto`` says who is beaten and who ships; ``limits`` what binds when none can.

Stages that are done are found again in the store; latencies are measured anew each time.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyforge.compress.place import check_place
from tinyforge.errors import DataError, GateError
from tinyforge.folders import check_out
from tinyforge.recipe import Recipe
from tinyforge.remote import parse_address
from tinyforge.stages import advance, bench, check_models, in_use, nothing_downloaded, plan, telling
from tinyforge.stages.bench import Raced, raw_predictions
from tinyforge.stages.budget.account import plot, record, remarks, write
from tinyforge.stages.budget.entrants import Entered, Net, nets_of, road_of, threads_of
from tinyforge.stages.budget.limits import FLAGS, Row, clearly_misses
from tinyforge.stages.budget.race import Board, Ground, Here, Measured
from tinyforge.stages.budget.screen import untrained
from tinyforge.stages.budget.verdict import Verdict, judge, rows_of
from tinyforge.stages.compress import check_kinds
from tinyforge.stages.inputs import gather
from tinyforge.stages.road import Job, Road, equip
from tinyforge.target import Target

__all__ = ["Here", "board", "dry_run", "forge_within"]

SCREEN_RUNS = 64


def board(url: str, *, config: Path | None = None, **how: Any) -> Board:
    """A board to race on. how: python, wheels, any_board of ``remote.Wish``. Raises UsageError."""
    return Board(parse_address(url), how, config)


def forge_within(recipe: Recipe, target: Target, out: Path, ground: Ground, **how: Any) -> dict[str, Any]:
    """As ``stages.forge``, within ``recipe.budget``; 'budget' of the result is the record of the race.

    failure: '' or why no candidate keeps the limits; then there is no bundle. Raises tinyforge.errors.*.
    """
    road = begin(Job(recipe, target, Path(out), **how))
    nets = nets_of(road.recipe, road.inputs)
    check_place(road.bundle_path, road.recipe.name, target.name, overwrite=road.job.overwrite)
    try:
        with in_use(road):
            return race(road, nets, ground)
    finally:
        ground.close()


def begin(job: Job) -> Road:
    """The images and models. Raises DataError before anything is computed where accuracy cannot be known."""
    check_kinds(job.recipe, job.target)
    inputs = gather(job.recipe.data, job.recipe.distill.unlabelled, job.recipe.seed)
    if "min_accuracy" in job.recipe.budget.limits and inputs.test is None:
        raise DataError("--min-accuracy needs test images, and there are none: give some with --test")
    return equip(job, inputs)


def race(road: Road, nets: Sequence[Net], ground: Ground) -> dict[str, Any]:
    """The whole way, from nets to the winner's bundle."""
    limits, reports = road.recipe.budget.limits, {}
    kept, rows = screened(road, nets, ground, reports)
    entered, dropped = trained(road, kept)
    machine: dict[str, Any] = {}
    for one in entered:
        road.job.log(f"budget: measuring {one.net}")
        measured = ground.measure(one, threads_of(road), road.recipe.bench.min_runs)
        dropped += [f"{one.net}: {measured.fault}"] if measured.fault else []
        machine = dict(measured.machine) or machine
        rows += keep(rows_of(one, measured, raw_predictions(one.road), raced=True), measured, reports)
    if not rows:
        raise GateError("\n".join(["no candidate could be measured:", *dropped]))
    verdict = judge(rows, limits, road.recipe.compress.max_drop)
    machine = machine or next(iter(reports.values()))["machine"]
    found = record(road, verdict, dropped, machine, ground.name)
    folder = road.bundle_path.with_name(f"{road.bundle_path.name}-budget")
    found["files"] = write(folder, found, plot(verdict), reports)
    result = {"budget": found, "failure": verdict.failure}
    winner = verdict.winner and next(
        one for one in entered if (one.net.student, one.net.input_size) == verdict.winner.net
    )
    return result | (shipped(winner, verdict, found, reports, ground.name) if winner else told(road))


def keep(rows: Sequence[Row], measured: Measured, reports: dict[str, Any]) -> list[Row]:
    """Remember the report behind each row, by its name."""
    for row in rows:
        reports[row.name] = {**measured.reports[f"{row.model}@{row.threads}"], "machine": dict(measured.machine)}
    return list(rows)


def screened(road: Road, nets: Sequence[Net], ground: Ground, reports: dict[str, Any]) -> tuple[list[Net], list[Row]]:
    """The nets that may keep the limits, and rows of the others. Nothing is measured where only accuracy is limited and
    the board need not be tried out.
    """
    limits, kept, rows = road.recipe.budget.limits, [], []
    if not ground.name and not limits.keys() & {"max_ms", "max_mib"}:
        return list(nets), []
    for net in nets:
        one = untrained(road_of(road, net), net)
        road.job.log(f"budget: what {net} costs, untrained")
        measured = ground.measure(one, threads_of(road), SCREEN_RUNS)
        own = rows_of(one, measured, {}, raced=False)
        reasons = [clearly_misses(row, limits) for row in own]
        if own and all(reasons):
            road.job.log(f"budget: {net} is not trained: it clearly misses the limits")
            why = [f"clearly misses {' and '.join(FLAGS[limit] for limit in reason)}" for reason in reasons]
            rows += keep([replace(row, why=text) for row, text in zip(own, why, strict=True)], measured, reports)
        else:
            kept.append(net)
    return kept, rows


def trained(road: Road, nets: Sequence[Net]) -> tuple[list[Entered], list[str]]:
    """The nets, distilled and compressed, and what did not pass its gate."""
    entered, dropped = [], []
    if nets:
        advance(road, "synthesize")
        road.job.log(f"budget: {len(nets)} nets learn from the teacher {road.extractor.name}, loaded once")
    for net in nets:
        own = road_of(road, net)
        road.job.log(f"budget: {net}")
        try:
            advance(own, "compress")
        except GateError as error:
            dropped.append(f"{net}: {error}")
            continue
        one = Entered.of(net, own)
        dropped += [f"{net} {variant.name}: {variant.failure}" for variant in one.made if variant.failure]
        entered.append(one)
    return entered, dropped


def shipped(
    one: Entered, verdict: Verdict, found: dict[str, Any], reports: dict[str, Any], device: str
) -> dict[str, Any]:
    """The winner's bundle, with the latencies of the race."""
    road, winner = one.road, verdict.winner
    target = road.job.target.model_copy(update={"threads": winner.threads})
    road.job = replace(road.job, target=target)
    own = {
        row.model: reports[row.name] for row in verdict.rows if row.net == winner.net and row.threads == winner.threads
    }
    latency = {
        model: {key: value for key, value in report.items() if key != "machine"} for model, report in own.items()
    }
    machine = own[winner.model]["machine"]
    section = {"record": found, "plot": plot(verdict, inside_html=True)}
    candidates = verdict.models if verdict.winner.accuracy else 1
    raced = Raced(winner.model, latency, machine, remarks(road, verdict, machine, device), section, candidates)
    made = bench.run(road, raced)
    return {**told(road), "trial": telling.trial(road), **made}


def told(road: Road) -> dict[str, Any]:
    """What every build tells."""
    stages = {name: str(one.path) for name, one in road.done.items()}
    return {"stages": stages, "choices": road.choices(), "warnings": road.warnings, "seconds": road.seconds}


def dry_run(recipe: Recipe, target: Target, out: Path, ground: Ground, **how: Any) -> list[dict[str, Any]]:
    """The stages of every net, with what is done of them; which nets are dropped untrained shows only in a race."""
    steps, known = [], set()
    with nothing_downloaded(Job(recipe, target, Path(out), **how)) as job:
        check_out(job.out)
        road = begin(job)
        for net in nets_of(road.recipe, road.inputs):
            own = road_of(road, net)
            check_models(own, fetch=False)
            steps += [step for step in plan(own) if step["key"] not in known]
            known |= {step["key"] for step in steps}
    name = f"race {ground.name or 'here'}"
    return [*steps, {"stage": name, "key": None, "folder": str(road.bundle_path), "state": "never cached"}]

"""evaluate: few-shot episodes, every method on the same ones.

::

    episodes.json            the episodes: classes, supports, extra images; with --queries the queries too
    episodes/<NNNNN>.json    what one episode found (fewshot/results.py); written whole when the episode is done
    summary.json             the statistics over episodes
    pictures/<NNNNN>/        with pictures: a sheet per set of synthetic images
    cache/ work/             pixels and features by class; inversions of episodes under way

request.py says what is asked, lab.py loads the models, episode.py measures one episode, workers.py runs many.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyforge import embedded
from tinyforge.errors import UsageError
from tinyforge.fewshot.episodes import extended, load_episodes, save_episodes
from tinyforge.fewshot.results import plan, read_records, summarise
from tinyforge.recipe import Recipe
from tinyforge.stages.evaluate.request import Request, prepare
from tinyforge.stages.road import Road
from tinyforge.store import Store, write_atomic

__all__ = ["Request", "evaluate", "plan_from", "prepare"]


def evaluate(
    request: Request,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> dict[str, Any]:
    """Measure what is missing of the episodes asked for; return the summary over all that are there.

    workers: processes on this machine. ray_address: a Ray cluster instead: 'local', 'auto' or its address.
    overwrite: measure everything again.
    Raises DataError when ``request.out`` holds results of other episodes, UsageError when of other settings, or when
    another process is at work there.
    """
    with Store(request.out).in_use(alone=True):
        return _evaluate(request, workers, ray_address, overwrite, log, progress)


def _evaluate(
    request: Request,
    workers: int,
    ray_address: str | None,
    overwrite: bool,
    log: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    from tinyforge.distill.students import check_student
    from tinyforge.stages.evaluate import workers as run
    from tinyforge.stages.evaluate.lab import equipped
    from tinyforge.stages.evaluate.start import check_novel, make_start, start_folder

    file, episodes = request.out / "episodes.json", request.episodes
    if file.is_file() and not overwrite:
        episodes = extended(load_episodes(file), episodes)
    request = replace(request, recipe=with_names(equipped(request, log, progress)))
    if any(one.is_student for one in request.methods):
        check_student(request.recipe.distill.student, pretrained=request.recipe.distill.pretrained)
    make_start(request, log, progress)
    check_novel(request)
    request = replace(request, start=start_folder(request))
    if overwrite:  # only now: a model that is not there must not cost what was measured
        forget(request.out)
    save_episodes(episodes, file)
    if ray_address is not None:
        run.on_ray(request, ray_address, progress)
    elif workers > 1:
        run.in_processes(request, workers, progress)
    else:
        run.here(request, progress)
    summary = describe(request) | summarise(read_records(request.out), request.reference)
    write_atomic(request.out / "summary.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
    return summary


def with_names(road: Road) -> Recipe:
    """The road's recipe with the models that were chosen here by name, so that no other machine chooses again: what
    ships by its domain, anything else by its source.
    """
    named = {
        "backbone": road.recipe.backbone.model_copy(update={"name": _portable(road.backbone_choice.source)}),
        "teacher": road.recipe.teacher.model_copy(update={"name": _portable(road.teacher_choice.source)}),
    }
    return road.recipe.model_copy(update=named)


def _portable(source: str) -> str:
    return Path(source).parent.name if Path(source).is_relative_to(embedded.HERE) else source


def forget(out: Path) -> None:
    """Remove the results in ``out``, and nothing else."""
    for file in (*(out / "episodes").glob("*.json"), out / "episodes.json", out / "summary.json"):
        file.unlink(missing_ok=True)


def describe(request: Request) -> dict[str, Any]:
    """What was evaluated, for the summary. No path of this machine."""
    episodes, protocol = request.episodes, request.episodes.protocol
    return {
        "benchmark": episodes.benchmark, "split": episodes.split, "seed": episodes.seed,
        "way": protocol.way, "shot": protocol.shot, "extra": protocol.extra, "queries_per_class": protocol.queries,
        "classes": list(episodes.files), "threads": request.threads,
    }  # fmt: skip


def plan_from(request: Request, wanted: float) -> list[dict[str, Any]]:
    """The plan for ±``wanted`` (a share of 1) from the results in ``request.out``."""
    records = read_records(request.out)
    if not records:
        raise UsageError(f"{request.out}: no results to plan from; measure a few episodes first")
    return plan(records, wanted, request.reference)

"""The five stages and ``forge()``: the pipeline on one screen.

Stages meet only through folders on disk (``store.py``): a stage that is done is not made again, and inside a stage the
unit of
resumption is a file. What a stage's key depends on is exactly what its ``settings`` returns, and the keys of the stages
it needs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyforge.compress.place import check_place
from tinyforge.errors import MissingError, NotDownloadedError
from tinyforge.folders import check_out
from tinyforge.recipe import Recipe
from tinyforge.stages import bench, compress, distill, invert, synthesize, telling
from tinyforge.stages.road import Artifact, Job, Road, start
from tinyforge.stages.starts import start_folder
from tinyforge.store import Partial, Store, stage_key
from tinyforge.target import Target

__all__ = ["STAGES", "Job", "advance", "check_models", "dry_run", "forge", "in_use", "nothing_downloaded", "start"]


@dataclass(frozen=True)
class Stage:
    """settings: everything the result depends on, as JSON values. work: fills what is missing of the partial folder."""

    name: str
    version: int
    needs: tuple[str, ...]
    settings: Callable[[Road], dict[str, Any]]
    work: Callable[[Road, Partial], None]


CACHED = (
    Stage("invert", 1, (), invert.settings, invert.work),
    Stage("synthesize", 2, ("invert",), synthesize.settings, synthesize.work),
    Stage("distill", 4, ("synthesize",), distill.settings, distill.work),
    Stage("compress", 2, ("synthesize", "distill"), compress.settings, compress.work),
)
STAGES = (*(stage.name for stage in CACHED), "bench")


def forge(recipe: Recipe, target: Target, out: Path, *, until: str = "bench", **how: Any) -> dict[str, Any]:
    """Run the stages up to ``until``; return what was made: stage folders, bundle, scores, variants, warnings, seconds.

    ``how``: the other fields of ``Job``. Raises tinyforge.errors.*, GateError when something promised was missed.
    """
    road = start(Job(recipe, target, Path(out), **how))
    if until == "bench":
        check_place(road.bundle_path, road.recipe.name, target.name, overwrite=road.job.overwrite)
    check_models(road, fetch=True)  # ``advance`` does too, but here nothing has been written yet
    with in_use(road):
        advance(road, until)
        result: dict[str, Any] = {"stages": {name: str(one.path) for name, one in road.done.items()}}
        if "distill" in road.done:
            result["trial"] = telling.trial(road)
        if until == "bench":
            result |= bench.run(road)
    return result | {"choices": road.choices(), "warnings": road.warnings, "seconds": road.seconds}


def in_use(road: Road) -> AbstractContextManager[None]:
    """For as long as the stages of ``road`` are made and read. Raises UsageError while another build is in the way."""
    return _store(road).in_use(alone=road.job.overwrite)


def advance(road: Road, until: str) -> None:
    """Run the cached stages up to and with ``until``, or all of them for 'bench', but for those that ``road.done``
    holds; then it holds their folders.
    """
    if not road.done:
        check_models(road, fetch=True)
    for stage in CACHED[: STAGES.index(until) + 1]:
        if stage.name in road.done:
            continue
        _run(road, stage)
        if stage.name == "invert":
            invert.check_domain(road)


def check_models(road: Road, *, fetch: bool) -> None:
    """Raise what later stages would, of models and words that are not there, before anything is computed.

    fetch: downloads what has to be downloaded; otherwise only what is here is looked at.
    """
    from tinyforge.diffusion.textual_inversion import initial_rows
    from tinyforge.diffusion.upscale import check_upscale
    from tinyforge.distill.extractor import check_teacher
    from tinyforge.distill.students import check_student
    from tinyforge.distill.timm_models import find_weights

    recipe, offline = road.recipe, road.job.offline
    compress.check_kinds(road.recipe, road.job.target)
    check_student(recipe.distill.student, pretrained=recipe.distill.pretrained)
    start_folder(recipe.distill)
    if road.upscaler is not None:
        check_upscale(road.upscaler)
    check_teacher(road.teacher_choice.source, offline=offline, fetch=fetch)
    if recipe.distill.pretrained and (offline or fetch):
        find_weights(recipe.distill.student.removeprefix("timm:"), offline=offline)
    initial_rows(road.backbone, list(road.inputs.support.classes), recipe.invert)


def dry_run(recipe: Recipe, target: Target, out: Path, *, until: str = "bench", **how: Any) -> list[dict[str, Any]]:
    """What ``forge`` would do, without doing it: each stage with its key, its folder and whether that is done,
    partial or missing. Raises what ``forge`` would before its first stage.
    """
    with nothing_downloaded(Job(recipe, target, Path(out), **how)) as job:
        check_out(job.out)
        road = start(job)
        if until == "bench":
            check_place(road.bundle_path, road.recipe.name, target.name, overwrite=job.overwrite)
        check_models(road, fetch=False)
        end = {"stage": "bench", "key": None, "folder": str(road.bundle_path), "state": "never cached"}
        return [*plan(road, until), *([end] if until == "bench" else [])]


@contextmanager
def nothing_downloaded(job: Job) -> Iterator[Job]:
    """``job`` for a dry run. Weights are in the keys: where they are not here, that is told."""
    try:
        yield replace(job, offline=True)
    except NotDownloadedError as fault:
        if job.offline:
            raise
        how = f"'hf download {fault.repository}', or the build itself, downloads it"
        raise MissingError(f"{fault.what}, and a dry run downloads nothing: {how}") from fault


def plan(road: Road, until: str = "bench") -> list[dict[str, Any]]:
    """The cached stages up to ``until`` that ``road.done`` does not hold, as ``dry_run`` tells them; then it does,
    made or not.
    """
    store, steps = _store(road), []
    for stage in CACHED[: STAGES.index(until) + 1]:
        if stage.name in road.done:
            continue
        key = _key(road, stage)
        folder = store.folder(stage.name, key)
        road.done[stage.name] = Artifact(key, folder)
        steps.append({"stage": stage.name, "key": key, "folder": str(folder), "state": store.state(stage.name, key)})
    return steps


def _store(road: Road) -> Store:
    return Store(road.job.out / "store")


def _key(road: Road, stage: Stage) -> str:
    return stage_key(stage.name, stage.version, stage.settings(road), [road.done[name].key for name in stage.needs])


def _run(road: Road, stage: Stage) -> None:
    job, started, key, store = road.job, time.monotonic(), _key(road, stage), _store(road)
    describe = {"settings": stage.settings(road), "needs": {name: road.done[name].key for name in stage.needs}}
    job.log(f"{stage.name}: {store.folder(stage.name, key)}")
    path, was_there = store.build(
        stage.name, key, describe, lambda partial: stage.work(road, partial), overwrite=job.overwrite, resume=job.resume
    )
    road.seconds[stage.name] = round(time.monotonic() - started, 2)
    job.log(f"{stage.name}: {'was done before' if was_there else f'done in {road.seconds[stage.name]:.1f} s'}")
    road.done[stage.name] = Artifact(key, path)

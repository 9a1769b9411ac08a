"""`build`, and each stage alone."""

import os
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click

from tinyforge.errors import GateError, UsageError

from .boards import BOARD_OPTIONS, counts
from .progress import Progress
from .running import PATH, Answer, as_typed, options, program

FLAGS = {"data": "data.path", "test": "data.test", "backbone": "backbone.name", "teacher": "teacher.name"}
FLAGS |= {"target": "target", "seed": "seed"}
BUDGET = {key: f"budget.{key}" for key in ("max_ms", "max_mib", "min_accuracy", "students", "input_sizes", "threads")}
KEYS = FLAGS | BUDGET
PLACE = ("device", "offline_wheels", "board_python", "any_board", "ssh_config")
STAGES = {
    "build": "Everything: from images to a tested bundle for a device.",
    "invert": "Only up to the inversions of the supports.",
    "synthesize": "Only up to the synthetic images.",
    "distill": "Only up to the students: label the images, train on them.",
    "compress": "Only up to the exported and quantised models.",
}

_build_options = (
    click.option("--recipe", default="raspi", show_default=True, metavar="NAME|FILE", help="What to make."),
    click.option("--data", metavar="PATH", help="Folder of class folders, a CSV (path,label), or 'digits'."),
    click.option("--test", metavar="PATH", help="Test images, given like --data."),
    click.option("--target", metavar="NAME|FILE", help="The device, instead of the recipe's."),
    click.option("--backbone", metavar="NAME|FOLDER", help="auto, glyphs, photos, sd15, a hub name or a folder."),
    click.option("--teacher", metavar="NAME|FOLDER", help="auto, glyphs, photos, timm:<model>, a folder or file."),
    click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help="E.g. distill.epochs=5."),
    click.option("--seed", type=int, help="Another seed than the recipe's."),
    click.option("--out", default="forge", show_default=True, type=PATH, help="Results folder."),
    click.option("--offline", is_flag=True, help="Use the network for nothing."),
    click.option("--overwrite", is_flag=True, help="Make again what is already done."),
    click.option("--resume/--no-resume", default=True, help="Continue an interrupted stage, or start it anew."),
    click.option("--dry-run", is_flag=True, help="Only show what would be made."),
)


def _words(context: click.Context, parameter: click.Parameter, text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


_budget_options = (
    click.option("--max-ms", type=float, help="Limit: p90 latency on the target (upper bound at 99 %)."),
    click.option("--max-mib", type=float, help="Limit: the model's files, in MiB."),
    click.option("--min-accuracy", type=float, help="Limit: top-1 on test images (exact lower bound at 95 %), 0 to 1."),
    click.option("--students", callback=_words, metavar="NAME,NAME", help="Candidates for limits: conv4,timm:<model>."),
    click.option("--input-sizes", callback=counts, metavar="N,N", help="Candidates for limits, pixels: 32,48."),
    click.option("--threads", callback=counts, metavar="N,N", help="Candidates for limits, threads: 1,2,4."),
    click.option("--device", metavar="URL", help="Race candidates there: ssh://user@host[:port]."),
    *BOARD_OPTIONS,
)


def _add_stage(name: str, summary: str) -> None:
    @program.command(name, help=summary)
    @options(*_build_options, *(_budget_options if name == "build" else ()))
    def run(recipe: str, overrides: tuple[str, ...], out: Path, dry_run: bool, **asked: Any) -> Answer:
        from tinyforge.loading import load_recipe_and_target

        how = {key: asked.pop(key) for key in ("offline", "overwrite", "resume")}
        given = {key: value for key, value in asked.items() if value is not None and value is not False}
        typed = as_typed({key: given[key] for key in given.keys() & KEYS}, KEYS)
        loaded, target = load_recipe_and_target(recipe, overrides, typed)
        within = bool(loaded.budget.limits) and name == "build"
        if not within and (stray := given.keys() & {*BUDGET, *PLACE}):
            flag = min(stray).replace("_", "-")
            raise UsageError(f"--{flag} is of a build within limits: give --max-ms, --max-mib or --min-accuracy too")
        calm_libraries(how["offline"])
        place = {key: given.get(key) for key in PLACE}
        until = "bench" if name == "build" else name
        with closing(Progress()) as progress, redirect_stdout(sys.stderr):
            how |= {"log": progress.log, "progress": progress.count}
            progress.log("loading the libraries")
            if within:
                return _within(loaded, target, out, dry_run, place, how)
            return _forge(loaded, target, out, dry_run, until, how)


def _forge(recipe: Any, target: Any, out: Path, dry_run: bool, until: str, how: dict[str, Any]) -> Answer:
    from tinyforge import stages
    from tinyforge.summary import forged_text, plan_text

    if dry_run:
        plan = stages.dry_run(recipe, target, out, until=until, **how)
        return Answer(plan, plan_text(plan))
    result = stages.forge(recipe, target, out, until=until, **how)
    return Answer(result, forged_text(result))


def _within(recipe: Any, target: Any, out: Path, dry_run: bool, place: dict[str, Any], how: dict[str, Any]) -> Answer:
    """A build within limits, here or on a board."""
    from tinyforge.stages import budget
    from tinyforge.summary import budget_text, plan_text

    ground = _ground(place)
    if dry_run:
        plan = budget.dry_run(recipe, target, out, ground, **how)
        return Answer(plan, plan_text(plan))
    result = budget.forge_within(recipe, target, out, ground, **how)
    return Answer(result, budget_text(result), GateError(result["failure"]) if result["failure"] else None)


def _ground(place: dict[str, Any]) -> Any:
    from tinyforge.stages import budget

    url = place.pop("device")
    if url is None:
        if asked := [key for key, value in place.items() if value]:
            raise UsageError(f"--{asked[0].replace('_', '-')} is of boards: it needs --device")
        return budget.Here()
    how = {"wheels": place["offline_wheels"], "python": place["board_python"], "any_board": bool(place["any_board"])}
    return budget.board(url, config=place["ssh_config"], **how)


for _name, _summary in STAGES.items():
    _add_stage(_name, _summary)


def calm_libraries(offline: bool) -> None:
    """What libraries read from the environment when first imported: no telemetry, no chatter, no network if asked."""
    os.environ.update({"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {})
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")

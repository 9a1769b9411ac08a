"""`build`, and each stage alone."""

import os
import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click

from .progress import Progress
from .running import PATH, Answer, options, program

FLAGS = {"data": "data.path", "test": "data.test", "backbone": "backbone.name", "teacher": "teacher.name"}
FLAGS |= {"target": "target", "seed": "seed"}
STAGES = {
    "build": "Everything: from images to a tested bundle for a device.",
    "invert": "Only up to the inversions of the supports.",
    "synthesize": "Only up to the synthetic images.",
    "distill": "Only up to the students: label the images, train on them.",
    "compress": "Only up to the exported and quantised models.",
}

_build_options = options(
    click.option("--recipe", default="raspi", show_default=True, metavar="NAME|FILE", help="What to make."),
    click.option("--data", metavar="PATH", help="Folder of class folders, a CSV (path,label), or 'digits'."),
    click.option("--test", metavar="PATH", help="Test images, given like --data."),
    click.option("--target", metavar="NAME|FILE", help="The device, instead of the recipe's."),
    click.option("--backbone", metavar="NAME|FOLDER", help="auto, glyphs, sd15, a hub name or a diffusers folder."),
    click.option("--teacher", metavar="NAME|FOLDER", help="auto, glyphs, timm:<model>, a folder or a checkpoint."),
    click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help="E.g. distill.epochs=5."),
    click.option("--seed", type=int, help="Another seed than the recipe's."),
    click.option("--out", default="forge", show_default=True, type=PATH, help="Results folder."),
    click.option("--offline", is_flag=True, help="Use the network for nothing."),
    click.option("--overwrite", is_flag=True, help="Make again what is already done."),
    click.option("--resume/--no-resume", default=True, help="Continue an interrupted stage, or start it anew."),
    click.option("--dry-run", is_flag=True, help="Only show what would be made."),
)


def _add_stage(name: str, summary: str) -> None:
    @program.command(name, help=summary)
    @_build_options
    def run(recipe: str, overrides: tuple[str, ...], out: Path, dry_run: bool, **options: Any) -> Answer:
        from tinyforge.loading import load_recipe, load_target, toml_value
        from tinyforge.summary import forged_text, plan_text

        given = {key: options.pop(flag) for flag, key in FLAGS.items()}
        flags = [f"{key}={toml_value(value)}" for key, value in given.items() if value is not None]
        loaded = load_recipe(recipe, [*overrides, *flags])
        target = load_target(loaded.target)
        calm_libraries(options["offline"])
        from tinyforge import stages  # after the recipe: its faults are told at once

        with closing(Progress()) as progress, redirect_stdout(sys.stderr):
            how = {**options, "log": progress.log, "progress": progress.count}
            if dry_run:
                plan = stages.dry_run(loaded, target, out, **how)
                return Answer(plan, plan_text(plan))
            result = stages.forge(loaded, target, out, until="bench" if name == "build" else name, **how)
        return Answer(result, forged_text(result))


for _name, _summary in STAGES.items():
    _add_stage(_name, _summary)


def calm_libraries(offline: bool) -> None:
    """What libraries read from the environment when first imported: no telemetry, no chatter, no network if asked."""
    os.environ.update({"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {})
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")

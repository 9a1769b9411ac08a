"""What there is: recipes, targets, and this machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tinyforge.errors import MissingError

from .running import HOST_ADVICE, Answer, options, program

_catalogue_options = options(
    click.argument("name", required=False),
    click.option("--schema", is_flag=True, help="The JSON schema of such a file."),
)


@program.command()
@_catalogue_options
def recipes(name: str | None, schema: bool) -> Answer:
    """List the recipes, or show one."""
    from tinyforge import recipe
    from tinyforge.loading import load_recipe, shipped_recipes

    return _schema(recipe) if schema else _catalogue(name, shipped_recipes(), load_recipe, "description")


@program.command()
@_catalogue_options
def targets(name: str | None, schema: bool) -> Answer:
    """List the devices, or show one."""
    from tinyforge import target
    from tinyforge.loading import load_target, shipped_targets

    return _schema(target) if schema else _catalogue(name, shipped_targets(), load_target, "title")


def _schema(module: Any) -> Answer:
    schema = module.schema()
    return Answer(schema, json.dumps(schema, indent=1))


def _catalogue(name: str | None, files: dict[str, Path], load: Callable[[str], Any], summary: str) -> Answer:
    from tinyforge.device.report import table

    if name:
        loaded = load(name).model_dump(mode="json")
        return Answer(loaded, files.get(name, Path(name)).read_text(encoding="utf-8").rstrip())
    found = {key: load(key).model_dump(mode="json") for key in files}
    return Answer(found, table(["name", summary], [[key, value[summary]] for key, value in found.items()]))


@program.command()
@options(click.option("--deep", is_flag=True, help="Also import torch, and show what it sees."))
def doctor(deep: bool) -> Answer:
    """Show what this machine offers, and what is missing."""
    from tinyforge.doctor import as_text, examine

    report = examine(deep)
    missing = report["missing"]
    failure = MissingError(f"missing or too old: {', '.join(missing)}; {HOST_ADVICE}") if missing else None
    return Answer(report, as_text(report), failure)

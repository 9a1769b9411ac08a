"""`pretrain`: the embedded models."""

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click

from tinyforge.errors import DataError

from .progress import Progress
from .running import PATH, Answer, options, program


@program.command()
@options(
    click.argument("domain", type=click.Choice(["glyphs", "photos"])),
    click.option("--fonts", multiple=True, type=PATH, help="Folder of fonts, repeatable; default: /usr/share/fonts."),
    click.option(
        "--data",
        multiple=True,
        type=PATH,
        help="Folder of class folders; glyphs: Omniglot's strokes_*.zip. Repeatable.",
    ),
    click.option("--out", required=True, type=PATH, help="Where the weights go."),
    click.option("--minutes", type=click.FloatRange(0, min_open=True), help="In all; default: 90 glyphs, 110 photos."),
    click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the drawings and the training."),
)
def pretrain(
    domain: str, fonts: tuple[Path, ...], data: tuple[Path, ...], out: Path, minutes: float | None, **how: Any
) -> Answer:
    """Train an embedded backbone and teacher from fonts or photos."""
    from tinyforge.embedded import pretrain as module

    usual = module.DESIGNS[domain].minutes
    shares = None if minutes is None else {part: minutes * usual[part] / sum(usual.values()) for part in usual}
    with closing(Progress()) as progress, redirect_stdout(sys.stderr):
        how = {**how, "fonts": list(fonts) or None, "minutes": shares, "log": progress.log}
        try:
            folder = module.pretrain(domain, list(data), out, **how)
        except ValueError as fault:
            raise DataError(str(fault)) from fault
    return Answer({"out": str(folder)}, f"weights: {folder}")

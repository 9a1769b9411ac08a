"""`pretrain`: the embedded models."""

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path

import click

from .progress import Progress
from .running import PATH, Answer, options, program


@program.command()
@options(
    click.argument("domain", type=click.Choice(["glyphs"])),
    click.option("--fonts", multiple=True, type=PATH, help="Folder of fonts, repeatable; default: /usr/share/fonts."),
    click.option("--data", multiple=True, type=PATH, help="Omniglot's strokes_*.zip, or folders of them, repeatable."),
    click.option("--out", required=True, type=PATH, help="Where the weights go."),
    click.option("--minutes", type=click.FloatRange(0, min_open=True), default=90.0, show_default=True, help="In all."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the drawings and the training."),
)
def pretrain(
    domain: str, fonts: tuple[Path, ...], data: tuple[Path, ...], out: Path, minutes: float, seed: int
) -> Answer:
    """Train an embedded backbone and teacher from fonts."""
    from tinyforge.embedded import pretrain as module

    usual = module.DEFAULT_MINUTES
    shares = {part: minutes * usual[part] / sum(usual.values()) for part in usual}
    with closing(Progress()) as progress, redirect_stdout(sys.stderr):
        how = {"fonts": list(fonts) or None, "minutes": shares, "seed": seed, "log": progress.log}
        folder = module.pretrain(domain, list(data), out, **how)
    return Answer({"out": str(folder)}, f"weights: {folder}")

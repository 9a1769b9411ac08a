"""`pretrain`: the embedded models."""

import sys
from contextlib import closing, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import click

from tinyforge.errors import DataError, UsageError

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
    click.option(
        "--minutes",
        type=click.FloatRange(0, min_open=True),
        help="In all; default: 90 glyphs, 110 photos, on a GPU 20.",
    ),
    click.option(
        "--part",
        "parts",
        multiple=True,
        type=click.Choice(["teacher", "autoencoder", "unet"]),
        help="Train only this one, repeatable, and what it lacks.",
    ),
    click.option(
        "--from",
        "initial",
        type=PATH,
        help="Go on from the weights in this folder, made by this command.",
    ),
    click.option(
        "--every-class", is_flag=True, help="photos: also classes like those that few-shot benchmarks test on."
    ),
    click.option("--student", metavar="NAME", help="photos: train only this student's starting weights."),
    click.option("--epochs", type=click.IntRange(1), help="Of --student; default: 12."),
    click.option("--size", type=click.IntRange(8), help="Of --student: its pixels; default: 32."),
    click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the drawings and the training."),
)
def pretrain(
    domain: str,
    fonts: tuple[Path, ...],
    data: tuple[Path, ...],
    out: Path,
    minutes: float | None,
    parts: tuple[str, ...],
    student: str | None,
    epochs: int | None,
    size: int | None,
    initial: Path | None,
    **how: Any,
) -> Answer:
    """Train an embedded backbone and teacher from fonts or photos."""
    if fonts and domain != "glyphs":
        raise UsageError("--fonts is for glyphs: photos are read from --data")
    if how["every_class"] and domain != "photos":
        raise UsageError("--every-class is for photos: glyphs hold no class of a benchmark back")
    if student is not None:
        if parts or initial or minutes is not None:
            raise UsageError(
                "--part, --from and --minutes are of the backbone and the teacher: leave them out with --student"
            )
        return _pretrain_student(domain, student, list(data), out, epochs=epochs or 12, size=size or 32, **how)
    if epochs or size:
        raise UsageError("--epochs and --size are of --student: leave them out without it")
    from tinyforge.distill.arithmetic import settled_dtype
    from tinyforge.embedded import pretrain as module

    parts = parts or module.PARTS
    usual = module.design_for(domain, how["device"]).minutes
    whole = sum(usual[part] for part in parts)
    shares = None if minutes is None else {part: minutes * usual[part] / whole for part in parts}
    with closing(Progress()) as progress, redirect_stdout(sys.stderr):
        how |= {
            "fonts": list(fonts) or None,
            "minutes": shares,
            "parts": parts,
            "initial": initial,
            "dtype": settled_dtype("auto", how["device"].partition(":")[0]) if domain == "photos" else "float32",
            "log": progress.log,
        }
        try:
            folder = module.pretrain(domain, list(data), out, **how)
        except ValueError as fault:
            raise DataError(str(fault)) from fault
    return Answer({"out": str(folder)}, f"weights: {folder}")


def _pretrain_student(domain: str, student: str, data: list[Path], out: Path, **how: Any) -> Answer:
    if domain != "photos":
        raise UsageError("--student is for photos: glyphs have no starting weights")
    from tinyforge.stages.starts import pretrain_student

    with closing(Progress()) as progress, redirect_stdout(sys.stderr):
        counted = partial(progress.count, f"student {student}")
        try:
            folder = pretrain_student(student, data, out, log=progress.log, progress=counted, **how)
        except ValueError as fault:
            raise DataError(str(fault)) from fault
    return Answer({"out": str(folder)}, f"weights: {folder}")

"""Options that `bench` and `build` share: how to get onto a board."""

import click

from tinyforge.device.tiers import LONGEST

from .running import PATH


def counts(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int] | None:
    """'1,2,4' -> [1, 2, 4]."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r}: whole numbers with commas between, like 1,2,4")
    return [int(part) for part in parts]


def duration(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Seconds, as the device's own command takes them."""
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of seconds") from None
    if seconds is not None and not 0 <= seconds <= LONGEST:
        raise click.BadParameter(f"{text} is not between 0 and {LONGEST} seconds")
    return seconds


BOARD_OPTIONS = (
    click.option("--offline-wheels", type=PATH, metavar="FOLDER", help="Wheels for the board, instead of its network."),
    click.option("--board-python", metavar="PATH", help="A Python there that has the packages already."),
    click.option("--any-board", is_flag=True, help="Also a board of another architecture than the target's."),
    click.option("--ssh-config", type=PATH, metavar="FILE", help="Instead of ~/.ssh/config."),
)

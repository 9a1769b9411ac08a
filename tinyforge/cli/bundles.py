"""What is done with a finished bundle. Nothing here imports torch."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from tinyforge.device.tiers import TIERS, tiers_text
from tinyforge.errors import DataError, GateError, UsageError

from .boards import BOARD_OPTIONS, counts, duration
from .progress import Progress
from .running import PATH, Answer, options, program

_bundle = click.argument("bundle", type=PATH)


@program.command()
@options(
    _bundle,
    click.option(
        "--variant",
        "variants",
        multiple=True,
        help="A model of the bundle, repeatable; 'all' for all that can run there.",
    ),
    click.option("--threads", callback=counts, metavar="N,N", help="Inference threads, each in turn: 1,2,4."),
    click.option("--images", multiple=True, type=PATH, metavar="FILE", help="Images to measure on, repeatable."),
    click.option("--test", type=PATH, metavar="FOLDER", help="Labelled images, FOLDER/<class>/*: accuracy there."),
    click.option("--tier", type=click.Choice(list(TIERS)), default="quick", show_default=True, help=tiers_text()),
    click.option("--seconds", callback=duration, metavar="S", help="At least this long, instead of the tier's ..."),
    click.option("--runs", type=click.IntRange(1), help="... and this often: 64 for a p90, 662 for a p99."),
    click.option("--warmup", type=click.IntRange(1), default=20, show_default=True, help="Runs per warm-up window."),
    click.option(
        "--device", "devices", multiple=True, metavar="URL", help="A board: ssh://user@host[:port], repeatable."
    ),
    *BOARD_OPTIONS,
    click.option("--keep", is_flag=True, help="Leave everything on the board, for the next run."),
)
def bench(bundle: Path, devices: tuple[str, ...], ssh_config: Path | None, **how: Any) -> Answer:
    """Measure a bundle on this machine, or on your boards."""
    seconds, runs = TIERS[how.pop("tier")]
    seconds, runs = seconds if how["seconds"] is None else how["seconds"], how["runs"] or runs
    how |= {"seconds": seconds, "runs": runs, "variants": list(how["variants"])}
    if devices:
        return _bench_there(bundle, devices, ssh_config, how)
    asked = [name for name in ("offline_wheels", "board_python", "any_board", "keep") if how.pop(name)]
    if asked or ssh_config:
        raise UsageError(f"--{(asked or ['ssh_config'])[0].replace('_', '-')} is of boards: it needs --device")
    return _bench_here(bundle, **how)


def _bench_here(bundle: Path, variants: list[str], runs: int, **how: Any) -> Answer:
    from tinyforge.device.bench import bench_bundle
    from tinyforge.device.bench_report import bench_text
    from tinyforge.device.bundle import load_bundle

    report = bench_bundle(load_bundle(bundle), variants=variants, min_runs=runs, **how)
    return Answer(report, bench_text(report), _throttled(report))


def _throttled(report: dict[str, Any]) -> GateError | None:
    reasons = report["conditions"]["reasons"]
    return GateError(f"the measurement is not valid: {', '.join(reasons)}") if reasons else None


def _bench_there(bundle: Path, devices: tuple[str, ...], ssh_config: Path | None, how: dict[str, Any]) -> Answer:
    from tinyforge import remote

    wish = remote.Wish(
        bundle,
        variants=[name for name in how["variants"] if name != "all"],
        options=remote.bench_options(how["variants"], how["threads"], how["seconds"], how["runs"], how["warmup"]),
        images=how["images"],
        test=how["test"],
        wheels=how["offline_wheels"],
        python=how["board_python"],
        keep=how["keep"],
        any_board=how["any_board"],
    )
    addresses = [remote.parse_address(text) for text in devices]
    with closing(Progress()) as progress:
        found = remote.bench_boards(addresses, wish, config=ssh_config, log=progress.log)
    return Answer({"devices": found}, remote.boards_text(found), remote.failure(found))


@program.command()
@options(
    _bundle,
    click.argument("images", nargs=-1, required=True),
    click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Answers per image."),
    click.option("--variant", help="Another model of the bundle than the chosen one."),
)
def predict(bundle: Path, images: tuple[str, ...], top: int, variant: str | None) -> Answer:
    """Classify image files with a bundle."""
    from tinyforge.device.bundle import load_bundle
    from tinyforge.device.predict import open_bundle
    from tinyforge.device.predict import predict as answers
    from tinyforge.device.report import predictions_text

    loaded = load_bundle(bundle)
    results = answers(loaded, open_bundle(loaded, variant), images, top)
    faults = [f"{result['image']}: {result['error']}" for result in results if "error" in result]
    failure = DataError("\n".join(faults)) if faults else None
    return Answer({"predictions": results}, predictions_text(results), failure)


@program.command()
@options(_bundle)
def inspect(bundle: Path) -> Answer:
    """Show what a bundle holds, without running it."""
    from tinyforge.device.bundle import load_bundle
    from tinyforge.summary import bundle_text

    loaded = load_bundle(bundle)
    return Answer(loaded.record, bundle_text(loaded))


@program.command()
@options(
    _bundle,
    click.option("--digest", metavar="SHA256", help="What its builder says that `sha256sum bundle.json` prints."),
)
def verify(bundle: Path, digest: str | None) -> Answer:
    """Check a bundle: hashes, golden vectors, every number."""
    from tinyforge.device.report import counted, outcome_text
    from tinyforge.device.verify import verify_bundle

    if digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", digest.strip()):
        raise UsageError(f"--digest {digest}: is no sha256, which has 64 hexadecimal digits")
    outcome = verify_bundle(bundle, digest).to_json()
    failure = None if outcome["ok"] else GateError(f"{counted(len(outcome['faults']), 'check')} failed")
    return Answer(outcome, outcome_text(outcome, "verify"), failure)

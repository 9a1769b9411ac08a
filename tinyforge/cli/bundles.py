"""What is done with a finished bundle. Nothing here imports torch."""

from pathlib import Path
from typing import Any

import click

from tinyforge.errors import DataError, GateError

from .running import PATH, Answer, options, program

_bundle = click.argument("bundle", type=PATH)


@program.command()
@options(
    _bundle,
    click.option(
        "--variant", "variants", multiple=True, help="A model of the bundle, repeatable; 'all' for every one."
    ),
    click.option("--images", multiple=True, metavar="FILE", help="Images to measure on, repeatable."),
    click.option("--seconds", type=click.FloatRange(0), default=6.0, show_default=True, help="At least this long ..."),
    click.option("--runs", type=click.IntRange(1), default=662, show_default=True, help="... and this often."),
    click.option("--warmup", type=click.IntRange(1), default=20, show_default=True, help="Runs per warm-up window."),
)
def bench(bundle: Path, variants: tuple[str, ...], images: tuple[str, ...], runs: int, **how: Any) -> Answer:
    """Measure a bundle's latency and memory on this machine."""
    from tinyforge.device.bench import bench_bundle
    from tinyforge.device.bundle import load_bundle
    from tinyforge.device.report import bench_text

    loaded = load_bundle(bundle)
    names = list(loaded.variants) if variants == ("all",) else list(variants)
    report = bench_bundle(loaded, variants=names or None, images=list(images) or None, min_runs=runs, **how)
    return Answer(report, bench_text(report))


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
@options(_bundle)
def verify(bundle: Path) -> Answer:
    """Check a bundle: hashes, golden vectors, every number."""
    from tinyforge.device.report import outcome_text
    from tinyforge.device.verify import verify_bundle

    outcome = verify_bundle(bundle).to_json()
    failure = None if outcome["ok"] else GateError(f"{len(outcome['faults'])} checks failed")
    return Answer(outcome, outcome_text(outcome, "verify"), failure)

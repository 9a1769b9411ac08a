"""`evaluate`: few-shot episodes."""

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import click

from .build import FLAGS, calm_libraries
from .progress import Progress
from .running import PATH, Answer, as_typed, options, program

BENCHMARKS = ("cifar-fs", "mini-imagenet", "cub", "folder")
NUMBER = click.IntRange(1)


@program.command()
@options(
    click.argument("benchmark", type=click.Choice(BENCHMARKS)),
    click.option("--data", required=True, type=PATH, help="The benchmark's folder of images."),
    click.option("--split", default="test", show_default=True, help="Whose classes: train, val or test."),
    click.option("--splits", "splits_file", type=PATH, help="Own class lists: [train], [val], [test], a class a line."),
    click.option("--way", type=NUMBER, help="Classes of an episode; default: 5."),
    click.option("--shot", type=NUMBER, help="Supports per class; default: 5."),
    click.option("--queries", type=NUMBER, help="Queries per class; default: all images that remain."),
    click.option("--num-episodes", "count", type=NUMBER, help="How many; default: 20, or all of --episodes."),
    click.option("--episodes", "episodes_file", type=PATH, help="Replay the episodes.json of another run."),
    click.option("-m", "--methods", multiple=True, metavar="NAMES", help="Separated by commas; see above."),
    click.option("--alphas", metavar="NUMBERS", help="Sweep the tint methods over these, e.g. 0.2,0.4,0.6."),
    click.option("--reference", metavar="NAME", help="Compare with this method of -m; default: support-hard."),
    click.option("--extra", type=NUMBER, help="Real extra images per class for real-extra, never asked."),
    click.option("--base", "base_root", type=PATH, help="Folder of the base classes' images; default: --data."),
    click.option("--base-images", type=NUMBER, default=2000, show_default=True, help="How many of them +base uses."),
    click.option("--start", type=PATH, help="Student's weights for +pretrained; trained and saved if not there."),
    click.option("--start-epochs", type=NUMBER, default=30, show_default=True, help="How long they are trained."),
    click.option("--recipe", default="raspi", show_default=True, metavar="NAME|FILE", help="Settings of the methods."),
    click.option("--backbone", metavar="NAME|FOLDER", help="As for build."),
    click.option("--teacher", metavar="NAME|FOLDER", help="As for build."),
    click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help="E.g. distill.epochs=5."),
    click.option("--seed", type=int, help="Of the episodes, and all that is learned in them."),
    click.option("--out", default="evaluation", show_default=True, type=PATH, help="Results folder; continues there."),
    click.option("--workers", type=NUMBER, default=1, show_default=True, help="Processes on this machine."),
    click.option("--threads", type=NUMBER, help="Of each process; default: the cores shared out."),
    click.option("--ray-address", metavar="ADDRESS", help="Run on a Ray cluster: 'local', 'auto' or its address."),
    click.option("--plan", "wanted", type=click.FloatRange(0, 100, min_open=True), help="Then tell the episodes and "
                 "queries needed for an interval of plus or minus so many points."),
    click.option("--pictures", is_flag=True, help="Sheets of images as they are made, a file per method and alpha."),
    click.option("--keep-work", is_flag=True, help="Keep inversions and synthetic images."),
    click.option("--offline", is_flag=True, help="Use the network for nothing."),
    click.option("--overwrite", is_flag=True, help="Measure again what is already measured."),
)  # fmt: skip
def evaluate(
    benchmark: str,
    data: Path,
    out: Path,
    recipe: str,
    backbone: str | None,
    teacher: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    methods: tuple[str, ...],
    alphas: str | None,
    **rest: Any,
) -> Answer:
    """Measure methods on few-shot episodes, with intervals.

    Students: support-hard and support-kd (the supports alone; with the teacher's labels too), ti and nti (textual or
    null-text inversion only), tint-class and tint-teacher (both, by label source), real-extra (real images instead);
    ti-class, nti-class and real-extra-class without the teacher's labels. build: what a build ships, its trial
    included. Teachers: teacher (prototypes), teacher-tuned.

    A name may end in @ALPHA (teacher-tuned: @RATE), then +base (base-class images that the teacher labels), then
    +pretrained (starting weights from the base classes): tint-teacher@0.4+base.

    The results folder continues where it stopped; it holds one file per episode and summary.json.
    """
    from tinyforge.fewshot.methods import DEFAULT
    from tinyforge.loading import load_recipe

    given = {"backbone": backbone, "teacher": teacher, "seed": seed}
    given = {key: value for key, value in given.items() if value is not None}
    loaded = load_recipe(recipe, overrides, as_typed(given, FLAGS))
    names = [name for listed in methods for name in listed.split(",")] or list(DEFAULT)
    calm_libraries(rest["offline"])
    return _run(benchmark, data, out, loaded, names, _numbers(alphas), **rest)


def _run(
    benchmark: str,
    data: Path,
    out: Path,
    recipe: Any,
    names: list[str],
    alphas: list[float],
    *,
    workers: int,
    threads: int | None,
    ray_address: str | None,
    wanted: float | None,
    overwrite: bool,
    **asked: Any,
) -> Answer:
    from tinyforge.cores import granted_cores
    from tinyforge.errors import UsageError
    from tinyforge.fewshot.results import plan_text, summary_text
    from tinyforge.stages import evaluate as stage

    threads = threads or max(1, granted_cores() // workers)
    request = stage.prepare(benchmark, data, out, recipe, methods=names, alphas=alphas, threads=threads, **asked)
    with closing(Progress()) as progress, redirect_stdout(sys.stderr):
        how = {"log": progress.log, "progress": progress.count, "overwrite": overwrite}
        summary = stage.evaluate(request, workers=workers, ray_address=ray_address, **how)
    plan, failure = None, None
    try:
        plan = None if wanted is None else stage.plan_from(request, wanted / 100)
    except UsageError as fault:  # what was measured is told all the same
        failure = fault
    text = summary_text(summary) + (f"\n\n{plan_text(plan, wanted / 100)}" if plan else "")
    return Answer({"out": str(out), "summary": summary, "plan": plan}, text, failure)


def _numbers(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(f"'{text}' is no list of numbers such as 0.2,0.4", param_hint="--alphas") from None

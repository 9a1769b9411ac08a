"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr.

Only click is imported at the top; all else inside the command that needs it, so that ``--help`` is quick.
"""

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tinyforge import __version__
from tinyforge.errors import DataError, GateError, MissingError, TinyForgeError

HOST_ADVICE = 'pip install "tinyforge[host]"'
SECONDS_BETWEEN_LINES = 10.0
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Answer:
    """What a command returns. failure: it answered, and yet its exit code is not 0."""

    result: Any
    text: str
    failure: TinyForgeError | None = None


class Program(click.Group):
    """Runs a command and turns its answer or its error into output and an exit code, all in one place."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> None:  # type: ignore[override]
        args = list(sys.argv[1:] if args is None else args)
        flags = args[: args.index("--")] if "--" in args else args
        verbose = not {"-v", "--verbose"}.isdisjoint(flags)
        command = next((arg for arg in args if not arg.startswith("-")), None)
        extra["standalone_mode"] = False
        try:
            with warnings.catch_warnings():
                if not verbose:
                    warnings.simplefilter("ignore")
                answer = super().main(args, prog_name or "tinyforge", **extra)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_fail(error, command, "--json" in flags, verbose))
        sys.exit(_print(answer, command, "--json" in flags) if isinstance(answer, Answer) else 0)


def _print(answer: Answer, command: str | None, as_json: bool) -> int:
    """Print an answer; returns the exit code."""
    if not as_json:
        click.echo(answer.text)
    elif not answer.failure:
        click.echo(json.dumps({"ok": True, "command": command, "result": answer.result}, indent=1, ensure_ascii=False))
    return _report(answer.failure, command, as_json, details=answer.result) if answer.failure else 0


def _fail(error: BaseException, command: str | None, as_json: bool, verbose: bool) -> int:
    """Report an error; returns the exit code."""
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, click.UsageError) and not as_json:
        error.show(sys.stderr)
        return 2
    return _report(error, command, as_json)


def _report(error: BaseException, command: str | None, as_json: bool, **details: Any) -> int:
    record = {"type": type(error).__name__, "message": _message(error), "exit_code": _exit_code(error), **details}
    if as_json:
        click.echo(json.dumps({"ok": False, "command": command, "error": record}, indent=1, ensure_ascii=False))
    else:
        click.echo(f"error: {record['message']}", err=True)
    return record["exit_code"]


def _exit_code(error: BaseException) -> int:
    """See ``tinyforge.errors``; the device package, which travels alone, has errors of its own."""
    if isinstance(error, TinyForgeError):
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130
    if isinstance(error, click.ClickException):
        return 2
    if _missing_module(error):
        return 3
    from tinyforge.device.bundle import BundleFault
    from tinyforge.device.preprocess import DecodeFault
    from tinyforge.device.runtime import MissingRuntime, RuntimeFault

    if isinstance(error, MissingRuntime):
        return 3
    return 2 if isinstance(error, BundleFault | DecodeFault | RuntimeFault) else 5


def _missing_module(error: BaseException) -> str | None:
    """The module of somebody else that could not be found."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name if name and name.partition(".")[0] != "tinyforge" else None


def _message(error: BaseException) -> str:
    code = _exit_code(error)
    if code == 130:
        return "interrupted; the same command continues where this one stopped"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if module := _missing_module(error):
        return f"{module} is not installed: {HOST_ADVICE}"
    if code == 5:
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first} (run again with -v for the traceback)"
    return str(error)


class Progress:
    """Log lines and counters on stderr: bars on a terminal, else plain lines, one per counter in ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, terminal: bool | None = None):
        self._clock, self._start = clock, clock()
        self._last: dict[str, float] = {}
        self._tasks: dict[str, Any] = {}
        self._bars: Any = None
        if sys.stderr.isatty() if terminal is None else terminal:
            from rich import console, progress

            self._bars = progress.Progress(console=console.Console(stderr=True), transient=True)
            self._bars.start()

    def log(self, line: str) -> None:
        text = f"[{self._clock() - self._start:6.1f} s] {line}"
        if self._bars:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    def count(self, label: str, done: int, total: int) -> None:
        if self._bars:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total)
            self._bars.update(self._tasks[label], completed=done, total=total)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(label))
        elif self._clock() - self._last.setdefault(label, self._start) >= SECONDS_BETWEEN_LINES:
            self._last[label] = self._clock()
            self.log(f"{label}: {done} of {total}")

    def close(self) -> None:
        if self._bars:
            self._bars.stop()


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tinyforge")
def program() -> None:
    """A handful of labelled images in, a tested, compressed classifier bundle for a small device out."""


def main() -> None:
    """The command ``tinyforge``."""
    program.main()


def _options(*options: Callable) -> Callable:
    """Several decorators as one, in reading order, and --json and -v, which ``Program.main`` reads."""
    common = (
        click.option("--json", is_flag=True, expose_value=False, help="One JSON object on stdout, for programs."),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Warnings, and tracebacks of errors."),
    )

    def decorate(function: Callable) -> Callable:
        for option in reversed((*options, *common)):
            function = option(function)
        return function

    return decorate


FLAGS = {"data": "data.path", "test": "data.test", "backbone": "backbone.name", "teacher": "teacher.name"}
FLAGS |= {"target": "target", "seed": "seed"}
STAGES = {
    "build": "Everything: from images to a tested bundle for a device.",
    "invert": "Only up to the inversions of the supports.",
    "synthesize": "Only up to the synthetic images.",
    "distill": "Only up to the students: label the images, train on them.",
    "compress": "Only up to the exported and quantised models.",
}

_build_options = _options(
    click.option("--recipe", default="raspi", show_default=True, metavar="NAME|FILE", help="What to make."),
    click.option("--data", metavar="PATH", help="Folder of class folders, a CSV (path,label), or 'digits'."),
    click.option("--test", metavar="PATH", help="Test images, given like --data."),
    click.option("--target", metavar="NAME|FILE", help="The device, instead of the recipe's."),
    click.option("--backbone", metavar="NAME|FOLDER", help="auto, glyphs, sd15, a hub name or a diffusers folder."),
    click.option("--teacher", metavar="NAME|FOLDER", help="auto, glyphs, timm:<model>, a folder or a checkpoint."),
    click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help="E.g. distill.epochs=5."),
    click.option("--seed", type=int, help="Another seed than the recipe's."),
    click.option("--out", default="forge", show_default=True, type=_PATH, help="Results folder."),
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
        _calm_libraries(options["offline"])
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


def _calm_libraries(offline: bool) -> None:
    """What libraries read from the environment when first imported: no telemetry, no chatter, no network if asked."""
    os.environ.update({"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} if offline else {})
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")


# Bundles: nothing here imports torch

_bundle = click.argument("bundle", type=_PATH)


@program.command()
@_options(
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
@_options(
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
@_options(_bundle)
def inspect(bundle: Path) -> Answer:
    """Show what a bundle holds, without running it."""
    from tinyforge.device.bundle import load_bundle
    from tinyforge.summary import bundle_text

    loaded = load_bundle(bundle)
    return Answer(loaded.record, bundle_text(loaded))


@program.command()
@_options(_bundle)
def verify(bundle: Path) -> Answer:
    """Check a bundle: hashes, golden vectors, every number."""
    from tinyforge.device.report import outcome_text
    from tinyforge.device.verify import verify_bundle

    outcome = verify_bundle(bundle).to_json()
    failure = None if outcome["ok"] else GateError(f"{len(outcome['faults'])} checks failed")
    return Answer(outcome, outcome_text(outcome, "verify"), failure)


_catalogue_options = _options(
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
@_options(click.option("--deep", is_flag=True, help="Also import torch, and show what it sees."))
def doctor(deep: bool) -> Answer:
    """Show what this machine offers, and what is missing."""
    from tinyforge.doctor import as_text, examine

    report = examine(deep)
    missing = report["missing"]
    failure = MissingError(f"missing or too old: {', '.join(missing)}; {HOST_ADVICE}") if missing else None
    return Answer(report, as_text(report), failure)


@program.command()
@_options(
    click.argument("domain", type=click.Choice(["glyphs"])),
    click.option("--fonts", multiple=True, type=_PATH, help="Folder of fonts, repeatable; default: /usr/share/fonts."),
    click.option("--data", multiple=True, type=_PATH, help="Omniglot's strokes_*.zip, or folders of them, repeatable."),
    click.option("--out", required=True, type=_PATH, help="Where the weights go."),
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

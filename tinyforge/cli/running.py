"""Runs a command and turns its answer or its error into output and an exit code.

Results go to stdout, everything else to stderr. Only click is imported at the top, here and in the files of the
commands; all else inside the command that needs it, so that ``--help`` is quick.
"""

import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from tinyforge import __version__
from tinyforge.errors import StorageError, TinyForgeError, storage_error

HOST_ADVICE = 'pip install "tinyforge[host]"'
IN_ONE_GO = ("bench", "predict", "inspect", "verify")
AFRESH = ("--overwrite", "--no-resume")
PATH = click.Path(path_type=Path)


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
        with guarded_streams() as stdout:
            try:
                with warnings.catch_warnings():
                    if not verbose:
                        warnings.simplefilter("ignore")
                    answer = super().main(args, prog_name or "tinyforge", **extra)
                code = _print(answer, command, "--json" in flags) if isinstance(answer, Answer) else 0
            except (Exception, KeyboardInterrupt) as error:
                code = _fail(error, command, "--json" in flags, verbose, _continues(command, flags))
            stdout.flush()
            if stdout.fault and not isinstance(stdout.fault, BrokenPipeError):
                print(f"error: the answer could not be written: {stdout.fault.strerror}", file=sys.stderr)
                code = code or StorageError.exit_code
        sys.exit(code)


def _print(answer: Answer, command: str | None, as_json: bool) -> int:
    """Print an answer; returns the exit code."""
    if not as_json and answer.text:
        print(answer.text)
    elif as_json and not answer.failure:
        print(json.dumps({"ok": True, "command": command, "result": answer.result}, indent=1))
    return _report(answer.failure, command, as_json, details=answer.result) if answer.failure else 0


def _continues(command: str | None, flags: Sequence[str]) -> str:
    """What an interrupted command is told about being given again."""
    if command in IN_ONE_GO:
        return ""
    afresh = " and ".join(flag for flag in AFRESH if flag in flags)
    return f"; {f'without {afresh} ' if afresh else ''}the same command continues where this one stopped"


def _fail(error: BaseException, command: str | None, as_json: bool, verbose: bool, continues: str = "") -> int:
    """Report an error; returns the exit code. continues: what is said of an interruption."""
    if isinstance(error, OSError):
        error = (storage_error(error) or error).with_traceback(error.__traceback__)
    if verbose and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, click.UsageError) and not as_json:
        error.show(sys.stderr)
        return 2
    return _report(error, command, as_json, continues)


def _report(error: BaseException, command: str | None, as_json: bool, continues: str = "", **details: Any) -> int:
    code = _exit_code(error)
    message = _message(error) + (continues if code == 130 else "")
    record = {"type": type(error).__name__, "message": message, "exit_code": code, **details}
    if as_json:
        print(json.dumps({"ok": False, "command": command, "error": record}, indent=1))
    else:
        print(f"error: {record['message']}", file=sys.stderr)
    return record["exit_code"]


def _exit_code(error: BaseException) -> int:
    """See ``tinyforge.errors``; the device package, which travels alone, has errors of its own."""
    if isinstance(error, TinyForgeError):
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130
    if isinstance(error, click.ClickException):
        return 2
    if missing_module(error):
        return 3
    from tinyforge.device.bundle import BundleFault
    from tinyforge.device.preprocess import DecodeFault
    from tinyforge.device.runtime import MissingRuntime, ProcessKilled, RuntimeFault

    if isinstance(error, MissingRuntime):
        return 3
    if isinstance(error, ProcessKilled):
        return 4
    return 2 if isinstance(error, BundleFault | DecodeFault | RuntimeFault) else 5


def missing_module(error: BaseException) -> str | None:
    """The module of somebody else that could not be found."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return name if name and name.partition(".")[0] != "tinyforge" else None


def _message(error: BaseException) -> str:
    code = _exit_code(error)
    if code == 130:
        return "interrupted"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if module := missing_module(error):
        return f"{module} is not installed: {HOST_ADVICE}"
    if code == 5:
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first} (run again with -v for the traceback)"
    return str(error)


class GuardedStream:
    """A text stream that outlives its reader: once it cannot be written, all goes nowhere and ``fault`` says why."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.fault: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            if self.fault is None:
                call(*arguments)
        except OSError as fault:
            self.fault = fault
            with suppress(OSError), Path(os.devnull).open("w") as nowhere:  # also what is still in the buffer
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def guarded_streams() -> Iterator[GuardedStream]:
    """Nothing that is printed can fail: a closed stream is opened on nothing, a broken one falls silent. Yields stdout.

    Numbers 0 to 2 are taken first, so that no file of ours becomes the stderr of a library.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        GuardedStream(stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")) for stream in before
    )
    try:
        yield sys.stdout
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tinyforge")
def program() -> None:
    """A handful of labelled images in, a tested, compressed classifier bundle for a small device out."""


def options(*options: Callable) -> Callable:
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


def as_typed(given: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Options with the recipe keys that they set, for ``load_recipe``: '--seed 5' -> ('seed', 5)."""
    shown = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    return {f"--{name.replace('_', '-')} {shown[name]}": (keys[name], value) for name, value in given.items()}

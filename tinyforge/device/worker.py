"""One model in a fresh process, so that loading is cold and nothing else counts as its memory.

The measuring process sends jobs, a line of JSON each, on the worker's stdin: first the model, then blocks of runs
whenever it is this worker's turn; it answers each with a line, and ends when stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import peak_rss_mib
from .preprocess import decode, prepare
from .runtime import MissingRuntime, ProcessKilled, RuntimeFault, effective_precision, import_runtime, open_session
from .spec import InputSpec
from .timing import record, timed_runs, warm_up

UNTIMED_RUNS = 2  # at the start of each block, to fetch into the caches what another worker put out of them


@dataclass(frozen=True)
class Arm:
    """What is measured: a model in a runtime with so many threads, on the first of ``providers`` that is there.

    exact_int8: see ``runtime.open_session``.
    """

    name: str
    model: Path
    runtime: str
    threads: int
    providers: tuple[str, ...] = ()
    exact_int8: bool = False


class Worker:
    """The process of one arm. ``ready``: import_ms, load_ms, first_ms, warm-up, peak_rss_mib, model_bytes, ``info()``
    with the effective precision.

    Raises MissingRuntime, RuntimeFault, or ProcessKilled.
    """

    def __init__(self, arm: Arm, images: Sequence[Path], spec: InputSpec, warmup: int) -> None:
        home = str(Path(__file__).resolve().parents[len(__package__.split("."))])
        self.arm = arm
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=home,  # python -m looks there first: not in the folder that the user happens to be in
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))},
        )
        try:
            self.ready = self._ask(
                model=str(arm.model.resolve()),
                runtime=arm.runtime,
                threads=arm.threads,
                providers=list(arm.providers),
                exact_int8=arm.exact_int8,
                images=[str(path.resolve()) for path in images],
                spec=spec.to_json(),
                warmup=warmup,
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def block(self, seconds: float, runs: int) -> dict[str, list[int]]:
        """Microseconds per stage of at least so many runs and seconds."""
        return self._ask(seconds=seconds, runs=runs)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _ask(self, **job: Any) -> Any:
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or ["no message"])[-1]
            if code < 0:
                what = "too little memory?" if code == -signal.SIGKILL else last
                raise ProcessKilled(f"the measuring process was ended by signal {-code}: {what}") from None
            raise RuntimeFault(f"the measuring process ended with code {code}: {last}") from None
        if "fault" in answer:
            raise (MissingRuntime if answer["missing"] else RuntimeFault)(answer["fault"])
        return answer


def _serve(lines: Any, answer: Any) -> None:
    """In the fresh process."""
    job = json.loads(next(lines))
    spec, model = InputSpec.from_json(job["spec"]), Path(job["model"])
    images = [Path(path).read_bytes() for path in job["images"]]
    first = prepare(decode(images[0]), spec)
    forget(model)
    start = time.perf_counter_ns()
    import_runtime(job["runtime"])
    imported = time.perf_counter_ns()
    session = open_session(model, job["runtime"], job["threads"], job["providers"], exact_int8=job["exact_int8"])
    loaded = time.perf_counter_ns()
    session.run(first)
    answered = time.perf_counter_ns()
    steps = {"import_ms": imported - start, "load_ms": loaded - imported, "first_ms": answered - loaded}
    turns = timed_runs(session, images, spec, time.perf_counter_ns)
    ready = {
        **{name: round(nanoseconds / 1e6, 3) for name, nanoseconds in steps.items()},
        **warm_up(turns, job["warmup"]),
        "peak_rss_mib": peak_rss_mib(),
        "model_bytes": model_bytes(model),
        **session.info(),
        "precision": effective_precision(session),
    }
    answer(ready)
    for line in lines:
        block = json.loads(line)
        for _ in range(UNTIMED_RUNS):
            next(turns)
        answer(record(turns, block["seconds"], block["runs"], time.perf_counter_ns))


def forget(path: Path) -> None:
    """Ask the system to drop a model's files from its cache, so that they are read from the disk; without effect
    elsewhere.
    """
    for file in (path, path.with_suffix(".bin")):
        if hasattr(os, "posix_fadvise") and file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def model_bytes(path: Path) -> int:
    """Size of a model: its file, and the weights beside an OpenVINO .xml."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def main() -> None:
    """Answers go to stdout; what libraries print there is sent to stderr."""
    with os.fdopen(os.dup(1), "w") as stream:
        os.dup2(2, 1)

        def answer(value: dict[str, Any]) -> None:
            stream.write(json.dumps(value) + "\n")
            stream.flush()

        try:
            _serve(iter(sys.stdin.readline, ""), answer)
        except MissingRuntime as fault:
            answer({"fault": str(fault), "missing": True})
        except (RuntimeFault, ValueError) as fault:
            answer({"fault": str(fault), "missing": False})


if __name__ == "__main__":
    main()

"""Run many episodes: here, in processes of this machine, or on a Ray cluster. The results are the same files."""

import json
import multiprocessing
import os
import queue
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyforge.allocator import keep_freed_memory
from tinyforge.errors import MissingError, TinyForgeError, UsageError, storage_error
from tinyforge.fewshot.results import read_record, record_file
from tinyforge.stages.evaluate.episode import Outcome, measure
from tinyforge.stages.evaluate.lab import Lab, open_lab
from tinyforge.stages.evaluate.request import Request
from tinyforge.store import write_atomic

Progress = Callable[[str, int, int], None]
LOOK_S = 1.0  # how often a waiting parent looks whether its workers live


def here(request: Request, progress: Progress) -> None:
    """One episode after the other, in this process."""
    lab = open_lab(request, progress)
    for done, index in enumerate(request.indices):
        known = read_record(request.out, index)
        save(request, index, measure(lab, index, known, work_folder(request.out, index)))
        progress("episodes", done + 1, request.count)


def work_folder(out: Path, index: int) -> Path:
    return out / "work" / f"{index:05d}"


def save(request: Request, index: int, outcome: Outcome | None) -> None:
    """Pictures first, so that an episode with a record has them."""
    if outcome is None:
        return
    for name, content in outcome.pictures.items():
        write_atomic(request.out / "pictures" / f"{index:05d}" / name, content)
    text = json.dumps(outcome.record, separators=(",", ":"), ensure_ascii=False) + "\n"
    write_atomic(record_file(request.out, index), text.encode())


def in_processes(request: Request, workers: int, progress: Progress) -> None:
    """``workers`` fresh processes take episodes from one list. Raises what a worker raised, after stopping the rest."""
    context = multiprocessing.get_context("spawn")
    todo, told = context.Queue(), context.Queue()
    workers = min(workers, request.count)
    for index in (*request.indices, *[None] * workers):
        todo.put(index)
    crew = [context.Process(target=_work, args=(request, todo, told), daemon=True) for _ in range(workers)]
    for one in crew:
        one.start()
    try:
        for done in range(request.count):
            fault = _next(told, crew)
            if fault is not None:
                raise fault
            progress("episodes", done + 1, request.count)
        for one in crew:
            one.join()
    finally:
        for one in crew:
            one.terminate()
            one.join()
        for channel in (todo, told):
            channel.cancel_join_thread()
            channel.close()


def _next(told: Any, crew: list[Any]) -> BaseException | None:
    """What the next episode ended with, None for success. Raises TinyForgeError when a worker died without a word."""
    while True:
        try:
            return told.get(timeout=LOOK_S)
        except queue.Empty:
            dead = [one for one in crew if one.exitcode not in (None, 0)]
            if dead:
                raise TinyForgeError(
                    f"a worker died with code {dead[0].exitcode} (killed, or out of memory?); "
                    "the same command, without --overwrite, continues, perhaps with fewer --workers"
                ) from None


def _work(request: Request, todo: Any, told: Any) -> None:
    """A worker process: one answer in ``told`` per episode."""
    keep_freed_memory()
    try:
        lab = open_lab(request)
        while (index := todo.get()) is not None:
            known = read_record(request.out, index)
            save(request, index, measure(lab, index, known, work_folder(request.out, index)))
            told.put(None)
    except KeyboardInterrupt:
        return
    except TinyForgeError as fault:
        told.put(fault)
    except ModuleNotFoundError as fault:
        told.put(MissingError(f"in a worker: {fault}"))
    except Exception as fault:
        known = storage_error(fault) if isinstance(fault, OSError) else None
        told.put(known or TinyForgeError(f"in a worker: {type(fault).__name__}: {fault}"))


class Actor:
    """A Ray worker, its models loaded at the first episode. It keeps what it needs in a folder of its own machine and
    returns outcomes; images and weights must be at the same paths on every machine.
    """

    def __init__(self, request: Request) -> None:
        keep_freed_memory()
        self.folder = tempfile.TemporaryDirectory(prefix="tinyforge-")
        self.request = replace(request, out=Path(self.folder.name), keep_work=False)

    @cached_property
    def lab(self) -> Lab:
        return open_lab(self.request)

    def measure(self, index: int, known: dict[str, Any] | None) -> tuple[int, Outcome | None]:
        return index, measure(self.lab, index, known, work_folder(self.request.out, index))


def places(machines: Sequence[Mapping[str, float]], threads: int) -> int:
    """How many workers of so many CPUs fit on the machines of a cluster, with a GPU each where there are any. An actor
    that fits nowhere would be waited for without end.

    machines: Ray's resources of each. Raises UsageError where none fits.
    """
    with_gpu = [one for one in machines if int(one.get("GPU", 0))]
    most = max((int(one.get("CPU", 0)) for one in with_gpu or machines), default=0)
    if threads > most:
        where = " that has a GPU" if with_gpu else ""
        raise UsageError(f"no machine of the cluster{where} has {threads} CPUs: give --threads {most} or fewer")
    if with_gpu:
        return sum(min(int(one.get("CPU", 0)) // threads, int(one["GPU"])) for one in with_gpu)
    return sum(int(one.get("CPU", 0)) // threads for one in machines)


def on_ray(request: Request, address: str, progress: Progress) -> None:
    """Episodes as tasks of a Ray cluster, each with ``request.threads`` CPUs and, where the cluster has GPUs, one GPU.

    address: 'local' starts a cluster on this machine, 'auto' finds a running one. Raises MissingError without Ray or
    without a cluster there, UsageError where no machine of it has so many CPUs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as fault:
        raise MissingError('Ray is not installed: pip install "tinyforge[ray]"') from fault
    from ray.util import ActorPool

    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, ValueError) as fault:
        raise MissingError(f"no Ray cluster at '{address}' ({fault}); 'local' starts one on this machine") from fault
    try:
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        gpus = any(int(one.get("GPU", 0)) for one in machines)
        kind = ray.remote(num_cpus=request.threads, num_gpus=int(gpus))(Actor)
        count = min(request.count, places(machines, request.threads))
        pool = ActorPool([kind.remote(request) for _ in range(count)])
        known = [(index, read_record(request.out, index)) for index in request.indices]
        results = pool.map_unordered(lambda actor, one: actor.measure.remote(*one), known)
        for done, (index, outcome) in enumerate(results):
            save(request, index, outcome)
            progress("episodes", done + 1, request.count)
    except ray.exceptions.RayTaskError as fault:
        raise fault.cause if isinstance(fault.cause, TinyForgeError) else fault from None
    finally:
        ray.shutdown()

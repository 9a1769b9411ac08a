"""Independent pieces of work side by side on the cores of a CPU, and files written beside a GPU's work.

The networks of a small task do not keep several cores busy with one piece at a time; one piece for each core does.
A piece runs on its own number of threads of torch, so that its bytes do not depend on how many run beside it.
A GPU takes one piece after another, and does not wait for the CPU to compress and write what it has made.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, TypeVar

from tinyforge.cores import MOST_HANDS, granted_cores

A, R = TypeVar("A"), TypeVar("R")
MOST_UNWRITTEN = 64
"""Pieces of writing that may wait, each with its pixels in memory."""


class Stopped(Exception):
    """Raised within a piece of work after another has failed, or the user has interrupted."""


class Crew:
    """Hands that take pieces of work in the order in which they are asked; without a pool, at once and one by one.

    writers: hands for what no later piece of work waits for; without them it is done at once.
    """

    def __init__(self, pool: ThreadPoolExecutor | None = None, writers: ThreadPoolExecutor | None = None):
        self._pool, self._writers, self.stop = pool, writers, Event()
        self._unwritten: deque[Future[Any]] = deque()

    def ask(self, work: Callable[..., R], *arguments: Any) -> "Future[R]":
        """The work's result in the future. Raises what the work raises: here without a pool, else from the future."""
        if self._pool is not None:
            return self._pool.submit(work, *arguments)
        done: Future[R] = Future()
        done.set_result(work(*arguments))
        return done

    def each(self, work: Callable[[A], R], items: Iterable[A]) -> list[R]:
        """Like ``list(map(work, items))``; what the work put off with ``later`` is done, too."""
        results = [one.result() for one in [self.ask(work, item) for item in items]]
        self._write(leave=0)
        return results

    def later(self, write: Callable[..., Any], *arguments: Any) -> None:
        """``write(*arguments)`` soon, before ``each`` returns, which raises what it raises."""
        if self._writers is None:
            write(*arguments)
            return
        self._unwritten.append(self._writers.submit(write, *arguments))
        self._write(leave=MOST_UNWRITTEN)

    def _write(self, leave: int) -> None:
        while len(self._unwritten) > leave:
            self._unwritten.popleft().result()

    def watched(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """``progress`` that ends its work once the crew is stopped."""

        def tell(done: int, total: int) -> None:
            if self.stop.is_set():
                raise Stopped
            progress(done, total)

        return tell


@contextmanager
def crew(side_by_side: bool, device: str) -> Iterator[Crew]:
    """A crew for this device. Where work is to run side by side: on a CPU as many hands as cores, on a GPU as many
    writers; else neither.

    Within it the caller, too, has the threads of one hand: on several, torch's sums were seen to differ from run to run
    of a busy machine.
    """
    import torch

    threads = torch.get_num_threads()
    cores = min(threads, granted_cores())
    if side_by_side and device != "cpu":
        with ThreadPoolExecutor(min(granted_cores(), MOST_HANDS)) as writers:
            yield Crew(writers=writers)
        return
    hands = min(cores, MOST_HANDS) if side_by_side else 1
    each = max(1, cores // MOST_HANDS) if side_by_side else cores
    pool = ThreadPoolExecutor(hands, initializer=torch.set_num_threads, initargs=(each,)) if hands > 1 else None
    crew = Crew(pool)
    torch.set_num_threads(each)
    try:
        yield crew
    except BaseException:
        crew.stop.set()
        raise
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

"""How far the work has come, on stderr."""

import sys
import time
from collections.abc import Callable
from typing import Any

SECONDS_BETWEEN_LINES = 10.0


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
            print(text, file=sys.stderr)

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

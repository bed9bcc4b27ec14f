"""A thread that does a page's work, so that the page itself never waits: of each kind of job the latest counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Worker:
    """Runs jobs one after another. A job replaces one of the same kind that has not begun."""

    def __init__(self, name: str, on_error: Callable[[Exception], None]) -> None:
        """``on_error`` is told of what a job raises; the next job runs all the same."""
        self._jobs: dict[str, tuple[float, Callable[[], None]]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._on_error = on_error
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, kind: str, job: Callable[[], None], delay_s: float = 0.0) -> None:
        """Run a job as soon as ``delay_s`` are over and the jobs before it; without effect after ``stop``."""
        with self._changed:
            self._jobs.pop(kind, None)
            self._jobs[kind] = (time.monotonic() + delay_s, job)
            self._changed.notify()

    def cancel(self, kind: str) -> None:
        """Forget a job that has not begun."""
        with self._changed:
            self._jobs.pop(kind, None)

    def waiting(self, kind: str) -> bool:
        """Whether a newer job of a kind is waiting: the one that runs may give up."""
        with self._changed:
            return self._stopped or kind in self._jobs

    def stop(self) -> None:
        """Begin no further job."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                due = [kind for kind, (start, _) in self._jobs.items() if start <= now]
                if due:
                    return self._jobs.pop(due[0])[1]
                starts = [start for start, _ in self._jobs.values()]
                self._changed.wait(min(starts) - now if starts else None)
            return None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            # whatever goes wrong with one job must be told and must not end the page
            except Exception as error:
                self._on_error(error)

"""Work for the visitors of the page: one job at a time, others wait in line; all can be stopped, and end in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from vqhps.errors import VqhpsError

Outcome = TypeVar("Outcome")


class Stopped(VqhpsError):
    """The visitor wanted no more of a job."""


class Job(Generic[Outcome]):
    """One file at work or in line. Those who do the work call `done` and `at`, those who wait `over` and `result`.

    Attributes:
        owner: whose it is.
        times: finished stages and ms, in order.
        doing: what is done now, how much of it, and of how much; 0 where nobody knows.
    """

    def __init__(self, owner: str, seconds: float) -> None:
        """A job that has not begun; `seconds` is how long it may take once it has."""
        self.owner = owner
        self.times: dict[str, float] = {}
        self.doing: tuple[str, int, int] = ("", 0, 0)
        self.future: Future[Outcome] = Future()
        self._seconds = seconds
        self._began: float | None = None
        self._stage = 0.0
        self._end: tuple[type[VqhpsError], str] | None = None  # why there will be no result

    def begin(self) -> None:
        """Start the clock."""
        self._began = self._stage = time.perf_counter()

    def done(self, stage: str) -> None:
        """The stage `stage` ends here."""
        self.check()
        now = time.perf_counter()
        self.times[stage] = (now - self._stage) * 1000
        self._stage = now

    def at(self, what: str, count: int, total: int) -> None:
        """Tell how far the work is."""
        self.check()
        self.doing = (what, count, total)

    def check(self) -> None:
        """Raise where the job must end: it was stopped, or its time is up."""
        self._watch_time()
        if self._end is not None:
            kind, message = self._end
            raise kind(message)

    def stop(self) -> None:
        """End it at its next call of `check`, or before it begins."""
        if not self.future.done():
            self._end = self._end or (Stopped, "stopped")
            self.future.cancel()

    def over(self) -> bool:
        """Whether `result` answers."""
        self._watch_time()
        return self._end is not None or self.future.done()

    def result(self) -> Outcome:
        """What came of it, once it is `over`; raises `VqhpsError` if nothing did, `Stopped` if it was stopped."""
        self.check()
        return self.future.result()

    def good(self) -> bool:
        """Whether there is a result and somebody who wants it."""
        return self._end is None and not self.future.cancelled() and self.future.exception() is None

    def _watch_time(self) -> None:
        late = self._began is not None and time.perf_counter() - self._began > self._seconds
        if late and not self.future.done() and self._end is None:
            message = (
                f"this took longer than {self._seconds:g} seconds and was stopped: give something smaller or shorter"
            )
            self._end = (VqhpsError, message)


class Line:
    """The one thread that works, and who waits for it. Thread-safe."""

    def __init__(self, waiting: int) -> None:
        """Let so many jobs wait."""
        self._waiting = waiting
        self._pool = ThreadPoolExecutor(1, "vqhps")
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def add(
        self, owner: str, seconds: float, work: Callable[[Job], Outcome], finished: Callable[[bool], None]
    ) -> Job[Outcome]:
        """Put a job at the end of the line; others of the same owner are stopped.

        Args:
            owner: whose it is.
            seconds: how long it may take.
            work: does it.
            finished: told at its very end, when nothing works on it any more, whether there is a result.

        Raises:
            VqhpsError: too many wait already.
        """
        self.stop(owner)
        job: Job[Outcome] = Job(owner, seconds)
        with self._lock:
            if len(self._jobs) > self._waiting:
                raise VqhpsError("too many files wait here already: try again later")
            self._jobs.append(job)
        job.future = self._pool.submit(_run, job, work)
        job.future.add_done_callback(lambda future: self._leave(job, finished))
        return job

    def ahead(self, job: Job) -> int:
        """How many jobs are before it; 0 for the one at work."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def has(self, owner: str) -> bool:
        """Whether somebody has a job here that was not stopped."""
        with self._lock:
            return any(job.owner == owner and not job.over() for job in self._jobs)

    def stop(self, owner: str) -> None:
        """Stop the jobs of an owner."""
        with self._lock:
            mine = [job for job in self._jobs if job.owner == owner]
        for job in mine:
            job.stop()

    def close(self) -> None:
        """Stop all jobs, and return when nothing works any more."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _leave(self, job: Job, finished: Callable[[bool], None]) -> None:
        with self._lock:
            self._jobs.remove(job)
        finished(job.good())


def _run(job: Job[Outcome], work: Callable[[Job[Outcome]], Outcome]) -> Outcome:
    job.begin()
    job.check()
    return work(job)

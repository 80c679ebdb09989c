"""Trainings of a table: several at once where the device is the CPU, each thread with jobs of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xlstm_jax.evaluation.suite import Record
from xlstm_jax.evaluation.table.table import Job
from xlstm_jax.machine.progress import Progress


class GivenUp(BaseException):
    """The table is not wanted any more; no `Exception`, which whoever hears of a training must not raise."""


def run_jobs(
    jobs: Sequence[Job], seeds: Sequence[int], known: Mapping[str, Record], workers: int, progress: Progress
) -> Iterator[list[Record]]:
    """Make all trainings but those that are known.

    Args:
        known: what was measured before, by `Job.key`.
        workers: jobs at once.

    Yields:
        All that is measured so far, in the order of the jobs; at least once.
    """
    done = {job.key(seed): known[job.key(seed)] for job in jobs for seed in seeds if job.key(seed) in known}

    def measured() -> list[Record]:
        return [done[job.key(seed)] for job in jobs for seed in seeds if job.key(seed) in done]

    yield measured()
    waiting = [(job, [seed for seed in seeds if job.key(seed) not in done]) for job in jobs]
    waiting = [(job, own) for job, own in waiting if own]
    total = len(jobs) * len(seeds)
    if not waiting:
        return
    with progress.bar("trainings", total, len(done)) as bar, _Workers(waiting, workers) as work:
        for found in work:
            if found is not None:
                done[found["key"]] = found
                yield measured()
            bar.to(len(done), work.standing)


class _Workers:
    """Threads that take one job after another; iterates over what they found, with None when nothing is new."""

    def __init__(self, waiting: Sequence[tuple[Job, list[int]]], workers: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, list[int]]] = queue.SimpleQueue()
        for item in waiting:
            self._jobs.put(item)
        self._found: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
        self._given_up = threading.Event()
        self._standing: dict[int, str] = {}
        count = min(workers, len(waiting))
        self._threads = [threading.Thread(target=self._work, args=(i,)) for i in range(count)]

    @property
    def standing(self) -> str:
        """What is being done."""
        return "; ".join(text for _, text in sorted(self._standing.items()))

    def __enter__(self) -> _Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._given_up.set()
        for thread in self._threads:
            thread.join()  # a compilation ends first: it cannot be told to

    def __iter__(self) -> Iterator[Record | None]:
        ended = 0
        while ended < len(self._threads):
            try:
                found = self._found.get(timeout=0.5)
            except queue.Empty:
                yield None
                continue
            if isinstance(found, BaseException):
                raise found
            ended += found is None
            if found is not None:
                yield found

    def _work(self, number: int) -> None:
        try:
            while not self._given_up.is_set():
                try:
                    job, seeds = self._jobs.get_nowait()
                except queue.Empty:
                    break
                self._run(number, job, seeds)
        except GivenUp:
            pass
        except BaseException as error:
            self._found.put(error)
        self._standing.pop(number, None)
        self._found.put(None)

    def _run(self, number: int, job: Job, seeds: Sequence[int]) -> None:
        from xlstm_jax.training.errors import NotFiniteError

        measure = None
        for seed in seeds:

            def tell(text: str, seed: int = seed) -> None:
                if self._given_up.is_set():
                    raise GivenUp
                self._standing[number] = f"{job.title} seed {seed} {text}".rstrip()

            tell("compiling")
            began = time.perf_counter()
            entry: dict[str, Any] = {
                **{"row": job.row, "columns": list(job.columns), "choice": job.choice, "seed": seed},
                **{"key": job.key(seed), "job": job.digest, "error": None},
            }
            try:
                measure = measure or job.start()
                found = measure(seed, tell)
                entry |= {"values": dict(found.values), "selection": found.selection}
                entry |= {"curve": [list(point) for point in found.curve], "facts": dict(found.facts)}
            except NotFiniteError as error:
                entry |= {"error": str(error), "values": {}, "selection": None, "curve": [], "facts": {}}
            self._found.put({**entry, "seconds": time.perf_counter() - began})

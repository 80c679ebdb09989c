"""Batches made ahead of the steps that need them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over `(step, load(step))` from `start_step` on, made by a thread up to `depth` steps ahead.

    Close it (or leave its `with` block) to end the thread. What `load` raises is raised by the step that it belongs to.

    Args:
        load: usually a `Loader`, or a function of the step that also puts the batch on the devices.
        start_step: the first step.
        depth: batches that wait at most.
        end_step: the step to stop before; None means never.
    """

    def __init__(self, load: Callable[[int], T], start_step: int = 0, depth: int = 2, end_step: int | None = None):
        if depth < 1:
            raise ValueError(f"depth is {depth}, but must be >= 1")
        self._load, self._end = load, end_step
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._work, args=(start_step,), daemon=True, name="prefetch")
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return self

    def __next__(self) -> tuple[int, T]:
        if self._finished or self._closed.is_set():
            raise StopIteration
        step, batch, error = self._ready.get()
        if error is not None:
            self._finished = True
            raise error
        return step, batch

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; batches made ahead are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            # The thread may wait for room in the queue.
            try:
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(0.01)

    def _work(self, step: int) -> None:
        while not self._closed.is_set():
            if step == self._end:
                self._ready.put((step, None, StopIteration()))
                return
            try:
                self._ready.put((step, self._load(step), None))
            except BaseException as error:  # handed to the thread that asked for the step
                self._ready.put((step, None, error))
                return
            step += 1

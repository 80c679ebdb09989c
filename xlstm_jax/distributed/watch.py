"""Ends a process whose group has failed, is silent, or gets no further: within a bounded time, with the reason.

XLA waits for ever in a collective that somebody does not come to, and JAX's own heartbeat ends a process by abort,
without a word that a person could use. So each process sends a pulse; the leader looks whether all others do and
whether steps still end, the others whether the leader answers.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from xlstm_jax.distributed.processes import Processes

PULSES = 6
"""So many are sent in the time after which a process counts as silent."""
GRACE_SECONDS = 2.0
"""So long a process that hears of a failure may still end by itself: it may be about to tell of the same."""
PACE = 10
"""A step may take so many times as long as the longest one before, whatever else the limit is."""
PACKAGE = str(Path(__file__).parents[1])


class Watch:
    """As a context, watches over a group of processes; nothing for one alone.

    Args:
        processes: the group.
        silent: seconds without a sign of life after which a process counts as dead.
        stuck: seconds without progress after which all are ended, while `steps` are being made.
        end: ends this process with an exit code.
    """

    def __init__(
        self, processes: Processes, silent: float, stuck: float, end: Callable[[int], object] = os._exit
    ) -> None:
        self._all, self._silent, self._stuck, self._exit = processes, silent, stuck, end
        self._over, self._lock = threading.Event(), threading.Lock()
        self._main = threading.main_thread().ident
        self._heard = self._moved = time.monotonic()
        self._longest, self._beats, self._stepping = 0.0, 0, False

    def __enter__(self) -> Self:
        if self._all.count > 1:
            for call in (self._pulse, self._listen, self._look):
                threading.Thread(target=call, daemon=True, name=f"watch{call.__name__}").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """The process got further."""
        now = time.monotonic()
        if self._beats:
            self._longest = max(self._longest, now - self._moved)
        self._moved, self._beats = now, self._beats + 1

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """Inside, beats are expected from the first one on."""
        self._beats, self._stepping = 0, True
        try:
            yield
        finally:
            self._stepping = False

    # -- threads ------------------------------------------------------------------------------------------------------

    def _pulse(self) -> None:
        """Send pulses; a call that comes back shows that the leader lives."""
        number = 0
        while not self._over.wait(self._silent / PULSES):
            number += 1
            try:
                self._all.put(f"pulse/{self._all.index}", [number, self._place()], again=True)
                self._heard = time.monotonic()
            except Exception:  # the service is gone, and with it the leader: JAX ends this process
                return

    def _listen(self) -> None:
        """Wait for a failure that somebody tells of."""
        while not self._over.is_set():
            try:
                failure = self._all.failure(self._silent / PULSES)
            except Exception:
                return
            if failure is not None and failure["who"] != self._all.index:
                with contextlib.suppress(Exception):
                    self._all.put(f"gone/{self._all.index}", True)
                if not self._over.wait(GRACE_SECONDS):
                    self._end(f"{failure['name']} has ended: {failure['why']}", failure["code"])
                return

    def _look(self) -> None:
        """Look for silence, and for steps that do not end."""
        seen: dict[str, tuple[int, float]] = {}
        while not self._over.wait(self._silent / PULSES):
            now = time.monotonic()
            if now - self._heard > self._silent:
                leader = "the service of this process" if self._all.leader else f"process 0 of {self._all.count}"
                self._end(f"{leader} has not answered for {self._silent:g} s (stopped, hung or cut off)", 1)
            if not self._all.leader:
                continue
            try:
                pulses = self._all.listing("pulse")
            except Exception:
                continue
            for index in map(str, range(1, self._all.count)):
                number = pulses.get(index, (0, ""))[0]
                if seen.setdefault(index, (number, now))[0] != number:
                    seen[index] = (number, now)
                elif now - seen[index][1] > self._silent:
                    self._fail(
                        f"process {index} of {self._all.count} has shown no sign of life for {self._silent:g} s "
                        "(killed, stopped or cut off)"
                    )
            all_beat = all(now - since < 2 * self._silent / PULSES for _, since in seen.values())  # else one is silent
            limit = max(self._stuck, PACE * self._longest)
            if all_beat and self._stepping and self._beats and now - self._moved > limit:
                faulthandler.dump_traceback(all_threads=True)
                places = ", ".join(f"{index} at {place}" for index, (_, place) in sorted(pulses.items()))
                self._fail(f"no step has ended for {now - self._moved:.0f} s; the processes are: {places}")

    def _fail(self, sentence: str) -> None:
        self._all.tell_failure(sentence)
        self._end(sentence, 1)

    def _end(self, sentence: str, code: int) -> None:
        with self._lock:  # never given back: who comes second says nothing
            if self._over.is_set():
                return
            if self._all.index <= 1:
                show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
                with contextlib.suppress(OSError):
                    os.write(2, f"{show_cursor}\nxlstm: {sentence}\n".encode())
            self._exit(code)
            self._over.set()  # where the exit is a test's

    def _place(self) -> str:
        """Where in the package the main thread is."""
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is None:
            return "?"
        return f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"


def wait_for_the_others(processes: Processes, seconds: float = 3.0) -> None:
    """After a failure of this process: let the others hear of it, which they cannot when the leader is gone."""
    if not processes.leader or processes.count == 1:
        return
    deadline = time.monotonic() + seconds
    with contextlib.suppress(Exception):
        while len(processes.listing("gone")) < processes.count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)

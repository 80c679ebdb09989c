"""Ctrl-C and SIGTERM while a verb runs: what ends it, and the exit code that says so."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_INTERRUPT, EXIT_TERMINATED = 130, 143


class Interrupts:
    """As a context, raises `KeyboardInterrupt` on Ctrl-C and `SystemExit` on SIGTERM, and remembers which came first.

    What they raise does not always arrive: in the middle of an import it comes out as an error of what was being
    imported. Handlers that somebody else has set for Ctrl-C stay.
    """

    exit_code: int | None = None
    """130 or 143 once there was a signal."""

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._stop)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        terminated = number == signal.SIGTERM
        self.exit_code = self.exit_code or (EXIT_TERMINATED if terminated else EXIT_INTERRUPT)
        if terminated:
            sys.exit(EXIT_TERMINATED)
        raise KeyboardInterrupt

"""Ctrl-C and SIGTERM: what they end at once, what they ask to stop, and the exit codes that say so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn, Self

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
EXIT_INTERRUPT = EXIT_CODES[signal.SIGINT]


class _Signals:
    """As a context, gets both signals; the handlers from before come back after it. Other threads get none."""

    exit_code: int | None = None
    """130 or 143 once there was a signal: that of the first."""

    def __enter__(self) -> Self:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                if self._takes(number):
                    self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _takes(self, number: signal.Signals) -> bool:
        return True

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Interrupts(_Signals):
    """Raises `KeyboardInterrupt` on Ctrl-C and `SystemExit` on SIGTERM, and remembers which came first.

    What they raise does not always arrive: in the middle of an import it comes out as an error of what was being
    imported. Handlers that somebody else has set for Ctrl-C stay.
    """

    def _takes(self, number: signal.Signals) -> bool:
        return number == signal.SIGTERM or signal.getsignal(number) is signal.default_int_handler

    def _arrived(self, number: int, frame: FrameType | None) -> NoReturn:
        self.exit_code = self.exit_code or EXIT_CODES[signal.Signals(number)]
        if number == signal.SIGTERM:
            sys.exit(EXIT_CODES[signal.SIGTERM])
        raise KeyboardInterrupt


class StopRequest(_Signals):
    """Notes both signals instead of dying of them: the first asks, a second Ctrl-C leaves at once."""

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        # Not through a console: the signal may have come in the middle of its printing.
        if self.exit_code is None:
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            os.write(2, f"\nstopping: this step is finished first, then saved{again}\n".encode())
            self.exit_code = EXIT_CODES[signal.Signals(number)]
        elif number == signal.SIGINT:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h")  # a live display hides the cursor
            os._exit(EXIT_INTERRUPT)

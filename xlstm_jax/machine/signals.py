"""Ctrl-C, SIGTERM and SIGHUP: what they end at once, what they ask to stop, and the exit codes that say so."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR2: 140}
"""SIGUSR2 is what a scheduler such as SLURM sends some time before it ends a job."""
EXIT_INTERRUPT = EXIT_CODES[signal.SIGINT]
AGAIN_SECONDS = 0.05


class _Signals:
    """As a context, gets the signals; the handlers from before come back after it. Other threads get none."""

    exit_code: int | None = None
    """130, 143 or 129 once there was a signal: that of the first."""

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
        # `nohup` has it ignored.
        return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class Interrupts(_Signals):
    """Raises `KeyboardInterrupt` on Ctrl-C and `SystemExit` on the others, and remembers which came first.

    In the middle of an import it leaves the process at once, for what is raised there comes out as an error of what was
    being imported, if not as a print of it; so does a second signal, for whom the end takes too long. Where Python
    ignores what is raised (destructors, callbacks of the garbage collector), the signal comes again a moment later.
    Handlers that somebody else has set for Ctrl-C stay.

    Args:
        last: the process ends next, and Ctrl-C then ends it without a word of Python's.
    """

    def __init__(self, *, last: bool = False) -> None:
        self._last = last
        self._raised: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._ignored
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        sys.unraisablehook = self._hook_before
        if self._last and signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _takes(self, number: signal.Signals) -> bool:
        return super()._takes(number) and (
            number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler
        )

    def _arrived(self, number: int, frame: FrameType | None) -> NoReturn:
        again, code = self.exit_code is not None, EXIT_CODES[signal.Signals(number)]
        self.exit_code = self.exit_code or code
        if again or _importing(frame):
            _write("xlstm: interrupted\n")
            os._exit(self.exit_code)
        self._raised = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(code)
        raise self._raised

    def _ignored(self, what: sys.UnraisableHookArgs) -> None:
        if self._raised is None or what.exc_value is not self._raised:
            self._hook_before(what)
            return
        number = next(number for number, code in EXIT_CODES.items() if code == self.exit_code)
        self.exit_code = self._raised = None
        again = functools.partial(signal.pthread_kill, self._thread, number)
        threading.Timer(AGAIN_SECONDS, again).start()


class StopRequest(_Signals):
    """Notes the signals instead of dying of them: the first asks, a second Ctrl-C leaves at once.

    Args:
        say: shows a sentence from a thread of its own, where a live display would overwrite what is written to standard
            error.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is None:
            again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
            sentence = f"stopping: this step is finished first, then saved{again}"
            self.exit_code = EXIT_CODES[signal.Signals(number)]
            if self._say is None:
                _write(f"\n{sentence}\n")
            else:
                # The signal may have come in the middle of its printing, whose lock another thread waits for.
                threading.Thread(target=self._say, args=(sentence,), daemon=True).start()
        elif number == signal.SIGINT:
            if sys.stderr.isatty():
                _write("\x1b[?25h")  # a live display hides the cursor
            os._exit(EXIT_INTERRUPT)


def _write(text: str) -> None:
    # Not through `sys.stderr` or a console: the signal may have come in the middle of its printing.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

"""The three standard streams of a process that may have been started without one, or lose it."""

from __future__ import annotations

import errno
import functools
import io
import os
import sys
from typing import Any, TextIO


def fill_closed(*, output_matters: bool) -> None:
    """Put something in the place of each standard stream that is closed, before a file that is opened gets its number
    and with it what is meant for the stream.

    Messages go nowhere then, and so does output unless it matters: to write it fails. `sys.stdin` stays None, by which
    one who wants to read can tell.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = name == "stderr" or (name == "stdout" and not output_matters)
            os.open(os.devnull, os.O_WRONLY if nowhere else os.O_RDONLY)  # gets the lowest number that is free
            os.set_inheritable(number, True)
            if name != "stdin":
                setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", errors="replace", closefd=False))


class Terminal(io.FileIO):
    """A terminal that may be closed while it is written to: it takes what is written then, and shows it nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def outlive_terminals() -> None:
    """Let standard output and error be `Terminal`s where they are terminals: who closes the window sends SIGHUP, and
    to print before it has come, or while it is obeyed, must not fail."""
    for name in ("stdout", "stderr"):
        stream: TextIO = getattr(sys, name)
        if stream.isatty():
            stream.flush()
            setattr(sys, name, _terminal(stream.fileno(), stream))


def keep_to_python() -> None:
    """Give standard output to what Python prints alone: Gloo, which connects processes on CPUs, talks of it there."""
    stream = sys.stdout
    stream.flush()
    own, nowhere = os.dup(stream.fileno()), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    plain = functools.partial(os.fdopen, own, "w", encoding=stream.encoding, errors=stream.errors)
    sys.stdout = _terminal(own, stream) if os.isatty(own) else plain()


def _terminal(number: int, like: TextIO) -> TextIO:
    raw = io.BufferedWriter(Terminal(number, "w", closefd=False))
    return io.TextIOWrapper(raw, like.encoding, like.errors, line_buffering=True)


def flush(stream: TextIO, name: str) -> None:
    """Let what is in the buffer meet a pipe without a reader, or a full disk, here rather than at exit.

    Raises:
        OSError: with the stream's name as that of the file; what could not be written is dropped.
    """
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        raise OSError(error.errno, error.strerror, name) from error

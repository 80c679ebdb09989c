"""Bytes of tokens in, text that can be shown out: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one row as it grows.

    Bytes that may still become a character, and text that may still become a stop string, are held back. Bytes that
    cannot become a character come out as U+FFFD. However the bytes are cut into calls, the same text comes out: the
    stop string that is complete first ends it (of several at one place, the longest).
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop string has come."""
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """What can be shown after these bytes; nothing once a stop string has come."""
        return "" if self.stopped else self._release(self._decoder.decode(data))

    def close(self, *, cut_off: bool = False) -> str:
        """What was held back, at the end of the row.

        Args:
            cut_off: the row could have gone on, so that a character that is not complete is no error: it is dropped.
        """
        if self.stopped:
            return ""
        shown = "" if cut_off else self._release(self._decoder.decode(b"", final=True))
        shown, self._held = shown + self._held, ""
        return shown

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, short of the whole, that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)

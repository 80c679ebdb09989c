"""What a tokenizer is: bytes to token ids and back, every byte.

Its end-of-document id (EOD) stands between documents and is never produced by encoding, whatever the text says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from xlstm_jax.data.errors import TokenizerError

INFO_FILE = "tokenizer_info.json"
"""What `Tokenizer.save` writes for every kind: which it is, and its fingerprint."""
TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(ABC):
    """Bytes to token ids and back."""

    kind: str
    """`"bytes"` or `"bpe"`."""
    vocab_size: int
    """Number of ids, EOD included; every id is below it."""
    eod_id: int
    """The id that opens and closes a document."""
    eod_text: str
    """How the EOD is written for a reader."""
    fingerprint: str
    """SHA-256 of all that decides the mapping; equal fingerprints mean equal ids."""

    @abstractmethod
    def encode_array(self, text: bytes | str) -> Int32[np.ndarray, " tokens"]:
        """The ids of one document's bytes (a `str` stands for its UTF-8), without EOD."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one id, possibly a part of a character; empty for EOD and other special tokens."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what `load_tokenizer(folder)` needs."""

    def encode(self, text: bytes | str) -> list[int]:
        """The ids of `text` as a list, without EOD."""
        return self.encode_array(text).tolist()

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for: `decode(encode(b)) == b` for every `b`, EODs vanish."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        if array.size:
            self._check_id(int(array.min()))
            self._check_id(int(array.max()))
        return self._decode(array)

    @abstractmethod
    def _decode(self, ids: np.ndarray) -> bytes:
        """The bytes of ids that are all in the vocabulary."""

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is outside of the vocabulary, which has {self.vocab_size} ids")


def as_bytes(text: bytes | str) -> bytes:
    """UTF-8 of a `str`; half surrogate pairs, which JSON can carry, pass as three bytes each."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def first_difference(text: bytes, back: bytes) -> str:
    """Where and how a text differs from what came back of it: `at byte 4, 'law § 12' returned as 'law  12'`."""
    ends = min(len(text), len(back))
    at = next((n for n in range(ends) if text[n] != back[n]), ends)
    shown = (repr(one[max(0, at - 10) : at + 20].decode("utf-8", "replace")) for one in (text, back))
    return f"at byte {at}, {' returned as '.join(shown)}"

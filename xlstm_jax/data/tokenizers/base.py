"""Tokenizers that give every byte back: the interface, plain bytes, and loading from disk.

A tokenizer maps bytes to ids and ids to bytes. Its end-of-document id (EOD) stands between documents and is never
produced by encoding, whatever the text says. The other kind, byte-level BPE, is in `byte_level`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from xlstm_jax.data.errors import TokenizerError, reason
from xlstm_jax.files import write_json

INFO_FILE = "tokenizer_info.json"
TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(ABC):
    """Bytes to token ids and back.

    Attributes:
        kind: `"bytes"` or `"bpe"`.
        vocab_size: number of ids, EOD included; every id is below it.
        eod_id: the id that opens and closes a document.
        eod_text: how the EOD is written for a reader.
        fingerprint: SHA-256 of all that decides the mapping; equal fingerprints mean equal ids.
    """

    kind: str
    vocab_size: int
    eod_id: int
    eod_text: str
    fingerprint: str

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
        return b"".join(self.token_bytes(int(i)) for i in ids)

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise TokenizerError(f"token id {token_id} is outside of the vocabulary, which has {self.vocab_size} ids")


class ByteTokenizer(Tokenizer):
    """Every byte is its own id; the EOD is 256."""

    kind = "bytes"
    vocab_size = 257
    eod_id = 256
    eod_text = "<|endoftext|>"
    fingerprint = hashlib.sha256(b"xlstm_jax tokenizer bytes 1").hexdigest()

    def encode_array(self, text: bytes | str) -> Int32[np.ndarray, " tokens"]:
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32)

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        return bytes([token_id]) if token_id < 256 else b""

    def decode(self, ids: Iterable[int]) -> bytes:
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64)
        if array.size:
            self._check_id(int(array.min()))
            self._check_id(int(array.max()))
        return array[array < 256].astype(np.uint8).tobytes()

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / INFO_FILE, {"kind": self.kind, "fingerprint": self.fingerprint})


def as_bytes(text: bytes | str) -> bytes:
    """UTF-8 of a `str`; half surrogate pairs, which JSON can carry, pass as three bytes each."""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)


def load_tokenizer(path: str | Path, *, eod: str | None = None, drop_normalizer: bool = False) -> Tokenizer:
    """The tokenizer of a store, run or Hugging Face folder, of a `tokenizer.json`, or the one called `"bytes"`.

    Args:
        path: the word `bytes`, a folder that `Tokenizer.save` wrote, a folder with a `tokenizer.json`, or such a file.
        eod: the token that ends documents, where `tokenizer.json` leaves it open.
        drop_normalizer: use a tokenizer that normalises its text (and so cannot give bytes back) without that step.

    Raises:
        TokenizerError: for a missing or damaged file, and for a tokenizer that does not give bytes back or has no
            evident EOD.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    path = Path(path)
    if path.is_dir() and (path / INFO_FILE).exists():
        return _load_saved(path)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        found = f"folder {path} holds no {TOKENIZER_FILE}" if path.is_dir() else f"there is no tokenizer at {path}"
        raise TokenizerError(f"{found}; give 'bytes', 'bpe' or the path of a tokenizer.json")
    from xlstm_jax.data.tokenizers.byte_level import ByteLevelTokenizer

    return ByteLevelTokenizer.from_file(file, eod=eod, drop_normalizer=drop_normalizer)


def _load_saved(folder: Path) -> Tokenizer:
    info_path = folder / INFO_FILE
    try:
        info = json.loads(info_path.read_text("utf-8"))
        kind, fingerprint = info["kind"], info["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{info_path} is damaged: {reason(error)}") from error
    if kind == ByteTokenizer.kind:
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "bpe":
        from xlstm_jax.data.tokenizers.byte_level import ByteLevelTokenizer

        tokenizer = ByteLevelTokenizer.from_file(
            folder / TOKENIZER_FILE, eod=info.get("eod"), drop_normalizer=bool(info.get("drop_normalizer"))
        )
    else:
        raise TokenizerError(f"{info_path} says kind {kind!r}, but must say 'bytes' or 'bpe'")
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            f"the tokenizer in {folder} is not the one that was saved there: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}, {INFO_FILE} says {str(fingerprint)[:12]}"
        )
    return tokenizer

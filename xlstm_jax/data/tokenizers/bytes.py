"""The tokenizer without a vocabulary to learn: every byte is its own id."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from xlstm_jax.data.tokenizers.base import INFO_FILE, Tokenizer, as_bytes
from xlstm_jax.files import write_json


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

    def _decode(self, ids: np.ndarray) -> bytes:
        return ids[ids < 256].astype(np.uint8).tobytes()

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / INFO_FILE, {"kind": self.kind, "fingerprint": self.fingerprint})

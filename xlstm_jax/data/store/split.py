"""The documents of one split as one row of tokens, wherever the parts of it lie.

The tokens form one concatenation, EOD d0 EOD d1 EOD ... dn EOD: each document stands between two EODs and shares them
with its neighbours.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Integer

from xlstm_jax.data.errors import StoreError
from xlstm_jax.data.tokenizers.base import Tokenizer


class TokenArray:
    """Arrays read as one: the shards of a split, without copying more than is asked for."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self._shards = list(shards)
        self._starts = [0, *np.cumsum([len(s) for s in self._shards]).tolist()]
        self.dtype = self._shards[0].dtype if self._shards else np.dtype(np.uint16)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            start, stop, stride = key.indices(len(self))
            return self.read(start, stop) if stride == 1 else np.asarray(self)[key]
        index = range(len(self))[key]
        shard = bisect.bisect_right(self._starts, index) - 1
        return self._shards[shard][index - self._starts[shard]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(0, len(self)), dtype)

    def shards(self, start: int = 0) -> list[np.ndarray]:
        """The arrays it is made of, without the first `start` tokens of the first."""
        return [self._shards[0][start:], *self._shards[1:]]

    def read(self, start: int, stop: int) -> Integer[np.ndarray, " tokens"]:
        """Tokens `start` to `stop`; a view of the file where they lie in one shard."""
        if start >= stop:
            return np.empty(0, self.dtype)
        shard = bisect.bisect_right(self._starts, start) - 1
        if stop <= self._starts[shard + 1]:
            base = self._starts[shard]
            return self._shards[shard][start - base : stop - base]
        end = self._starts[shard + 1]
        return np.concatenate([self.read(start, end), self.read(end, stop)])


@dataclass(eq=False)
class Split:
    """The documents of one split, in the order fixed when the store was prepared."""

    name: str
    """For messages."""
    tokens: TokenArray
    """The concatenation EOD d0 EOD ... dn EOD, indexed and sliced like an array; empty without documents."""
    offsets: Integer[np.ndarray, " borders"]
    """Where each document's opening EOD stands, and last the closing EOD."""
    sizes: Integer[np.ndarray, " documents"]
    """Raw bytes of each document."""
    _: KW_ONLY
    eod_id: int
    """The token that opens and closes documents."""
    tokenizer: Tokenizer | None = None
    fingerprint: str = ""
    """Of the tokens and the tokenizer."""
    turns: Sequence[int] | None = None
    """The order in which to take documents if not all are read; their own if None."""
    raw_bytes: int = field(init=False)
    """Of all documents."""

    def __post_init__(self) -> None:
        self.raw_bytes = int(np.sum(self.sizes, dtype=np.uint64))

    @classmethod
    def from_documents(
        cls, documents: Sequence[Sequence[int] | np.ndarray], *, eod_id: int, name: str = "memory"
    ) -> Split:
        """A split in memory, of documents given as token ids without EOD; raw bytes are counted one a token."""
        lengths = [len(document) for document in documents]
        offsets = np.cumsum([0, *(length + 1 for length in lengths)], dtype=np.uint64)
        eod = np.array([eod_id], np.uint32)
        parts = [part for document in documents for part in (eod, np.asarray(document, np.uint32))]
        tokens = np.concatenate([*parts, eod]) if documents else np.empty(0, np.uint32)
        digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        return cls(name, TokenArray([tokens]), offsets, np.array(lengths, np.uint64), eod_id=eod_id, fingerprint=digest)

    @property
    def num_documents(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        """Length of the concatenation, EODs included."""
        return len(self.tokens)

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.tokenizer.fingerprint if self.tokenizer else ""

    def document(self, index: int) -> Integer[np.ndarray, " tokens"]:
        """The tokens of a document with the EOD before and the EOD after it."""
        index = range(self.num_documents)[index]
        return self.tokens.read(int(self.offsets[index]), int(self.offsets[index + 1]) + 1)

    def document_bytes(self, index: int) -> bytes:
        """The document exactly as it was in its source."""
        if self.tokenizer is None:
            raise StoreError(f"the split {self.name} has no tokenizer to turn tokens into bytes")
        return self.tokenizer.decode(self.document(index)[1:-1])


def join(splits: Sequence[Split]) -> Split:
    """The documents of several splits, one split after another; they must be of one tokenizer.

    The EOD that closes one split opens the next. Documents take `turns`: the first of each split, the second of each.
    """
    full = [split for split in splits if split.num_documents]
    if len(full) < 2:
        return (full or list(splits))[0]
    shards = [shard for n, split in enumerate(full) for shard in split.tokens.shards(start=min(n, 1))]
    offsets = [full[0].offsets]
    for split in full[1:]:
        offsets.append(split.offsets[1:] + offsets[-1][-1])
    places = np.concatenate([np.arange(split.num_documents) for split in full])
    return dataclasses.replace(
        full[0],
        name=", ".join(split.name for split in full),
        tokens=TokenArray(shards),
        offsets=np.concatenate(offsets),
        sizes=np.concatenate([split.sizes for split in full]),
        fingerprint=hashlib.sha256("".join(split.fingerprint for split in full).encode()).hexdigest(),
        turns=np.argsort(places, kind="stable").tolist(),
    )

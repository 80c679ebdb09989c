"""Token stores on disk: memory-mapped shards, document offsets, raw byte counts, tokenizer, index.

The tokens of a split form one concatenation, EOD d0 EOD d1 EOD ... dn EOD: each document stands between two EODs and
shares them with its neighbours. It lies in shard files one after another, little-endian uint16 or uint32. `index.json`
is written last: a folder without it is not a store yet.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from xlstm_jax.config import near_miss
from xlstm_jax.data.errors import (
    DamagedStoreError,
    MissingStoreError,
    StoreError,
    StoreVersionError,
    TokenizerError,
    TruncatedStoreError,
    reason,
)
from xlstm_jax.data.tokenizers.base import Tokenizer, load_tokenizer
from xlstm_jax.files import sha256_of

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
WORK_FOLDER = "work"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "validation")


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


class Split:
    """The documents of one split, in the order fixed when the store was prepared.

    Attributes:
        name: for messages.
        tokens: the concatenation EOD d0 EOD ... dn EOD, indexed and sliced like an array; empty without documents.
        offsets: where each document's opening EOD stands, and last the closing EOD; `num_documents + 1` numbers.
        sizes: raw bytes of each document.
        eod_id: the token that opens and closes documents.
        fingerprint: of the tokens and the tokenizer.
    """

    def __init__(
        self,
        name: str,
        tokens: TokenArray,
        offsets: Integer[np.ndarray, " documents+1"],
        sizes: Integer[np.ndarray, " documents"],
        *,
        eod_id: int,
        tokenizer: Tokenizer | None = None,
        fingerprint: str = "",
    ):
        self.name, self.tokens, self.offsets, self.sizes = name, tokens, offsets, sizes
        self.eod_id, self.tokenizer, self.fingerprint = eod_id, tokenizer, fingerprint
        self.raw_bytes = int(np.sum(sizes, dtype=np.uint64))

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

    def document(self, index: int) -> Integer[np.ndarray, " tokens+2"]:
        """The tokens of a document with the EOD before and the EOD after it."""
        index = range(self.num_documents)[index]
        return self.tokens.read(int(self.offsets[index]), int(self.offsets[index + 1]) + 1)

    def document_bytes(self, index: int) -> bytes:
        """The document exactly as it was in its source."""
        if self.tokenizer is None:
            raise StoreError(f"the split {self.name} has no tokenizer to turn tokens into bytes")
        return self.tokenizer.decode(self.document(index)[1:-1])


class TokenStore:
    """An open store.

    Attributes:
        path: its folder.
        tokenizer: the one that made the tokens.
        vocab_size: the tokenizer's.
        fingerprint: SHA-256 over tokens, document borders and tokenizer; equal for equal content, wherever it lies.
        index: what `index.json` says.
    """

    def __init__(self, path: Path, index: dict[str, Any], tokenizer: Tokenizer):
        self.path, self.index, self.tokenizer = path, index, tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.fingerprint: str = index["fingerprint"]
        self._splits = {name: self._open_split(name) for name in SPLITS}

    def split(self, name: str) -> Split:
        """The split called `"train"` or `"validation"`."""
        if name not in self._splits:
            listed = " and ".join(repr(s) for s in self._splits)
            raise StoreError(f"store {self.path} has no split {name!r}{near_miss(name, self._splits)}; it has {listed}")
        return self._splits[name]

    @property
    def disk_bytes(self) -> int:
        """Size of all files that `verify` reads."""
        entries = self.index["splits"].values()
        return sum(f["bytes"] for e in entries for f in (*e["shards"], e["offsets"], e["sizes"]))

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the index.

        Raises:
            DamagedStoreError: naming the first file that differs.
        """
        for entry in self.index["splits"].values():
            for file in (*entry["shards"], entry["offsets"], entry["sizes"]):
                if sha256_of(self.path / file["file"]) != file["sha256"]:
                    raise DamagedStoreError(
                        f"{self.path / file['file']} is damaged: its SHA-256 is not the one in {INDEX_FILE}; "
                        "delete the store and prepare it again"
                    )

    def _open_split(self, name: str) -> Split:
        entry, dtype = self.index["splits"][name], np.dtype(self.index["dtype"])
        shards = [np.memmap(self._sized(file), dtype, "r") for file in entry["shards"]]
        offsets, sizes = self._array(entry["offsets"]), self._array(entry["sizes"])
        tokens = TokenArray(shards)
        wanted = (entry["tokens"], entry["documents"], entry["documents"] + 1)
        if (len(tokens), len(sizes), len(offsets)) != wanted:
            raise DamagedStoreError(
                f"{self.path / INDEX_FILE} counts {wanted[0]} tokens and {wanted[1]} documents in {name}, "
                f"but its files hold {len(tokens)} and {len(sizes)}"
            )
        fingerprint = f"{self.fingerprint}:{name}"
        return Split(
            f"{self.path}:{name}",
            tokens,
            offsets,
            sizes,
            eod_id=self.tokenizer.eod_id,
            tokenizer=self.tokenizer,
            fingerprint=fingerprint,
        )

    def _array(self, file: dict[str, Any]) -> np.ndarray:
        path = self._sized(file)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy takes a header apart with Python's own parser, whose errors are many
            raise DamagedStoreError(
                f"{path} is damaged ({reason(error)}); delete the store and prepare it again"
            ) from error

    def _sized(self, file: dict[str, Any]) -> Path:
        path = self.path / file["file"]
        found = path.stat().st_size if path.is_file() else None
        if found != file["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes"
            raise TruncatedStoreError(
                f"{path} {state}, but {INDEX_FILE} says {file['bytes']} bytes; delete the store and prepare it again"
            )
        return path


def open_store(path: str | Path) -> TokenStore:
    """Open a finished store; checks the index, the tokenizer and the length of every file (`verify` reads them all).

    Raises:
        MissingStoreError: there is no store, or one whose preparation did not finish.
        TruncatedStoreError: a file is missing or too short or long.
        DamagedStoreError: index or tokenizer are not what was written.
        StoreVersionError: another version of the format.
    """
    path = Path(path)
    if not (path / INDEX_FILE).is_file():
        if not path.exists():
            raise MissingStoreError(
                f"there is no token store at {path}; `xlstm data prepare SOURCE --out {path}` makes one"
            )
        if (path / WORK_FOLDER).is_dir():
            raise MissingStoreError(
                f"the token store at {path} is not finished; run the `xlstm data prepare` that began it again"
            )
        raise MissingStoreError(f"{path} is not a token store: it has no {INDEX_FILE}")
    index = read_index(path)
    try:
        tokenizer = load_tokenizer(path / TOKENIZER_FOLDER)
    except TokenizerError as error:
        raise DamagedStoreError(f"the tokenizer of store {path} is damaged: {error}") from error
    if tokenizer.fingerprint != index["tokenizer"]:
        raise DamagedStoreError(f"the tokenizer in store {path} is not the one that made its tokens")
    return TokenStore(path, index, tokenizer)


def read_index(path: Path) -> dict[str, Any]:
    """The checked content of a store's `index.json`."""
    file = path / INDEX_FILE
    try:
        index = json.loads(file.read_bytes())
        version, checksum = index["format_version"], index.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedStoreError(
            f"{file} is damaged ({reason(error)}); delete the store and prepare it again"
        ) from error
    if version != FORMAT_VERSION:
        raise StoreVersionError(
            f"{file} is of format version {version}, but this program reads {FORMAT_VERSION}; prepare again"
        )
    if checksum != index_checksum(index):
        raise DamagedStoreError(f"{file} is damaged: its content does not match its checksum; prepare the store again")
    return index


def index_checksum(index: dict[str, Any]) -> str:
    """SHA-256 of an index without its own checksum."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()

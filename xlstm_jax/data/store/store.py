"""Token stores on disk: memory-mapped shards, document offsets, raw byte counts, tokenizer, index.

The tokens of a split lie in shard files one after another, little-endian uint16 or uint32. `index.json` is written
last: a folder without it is not a store yet.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from xlstm_jax.data.store.split import Split, TokenArray
from xlstm_jax.data.tokenizers import Tokenizer, load_tokenizer
from xlstm_jax.files import sha256_of

if TYPE_CHECKING:
    from xlstm_jax.data.store.mixture import Mixture

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
WORK_FOLDER = "work"
JOB_FILE = "plan.json"
"""In the work folder: what an unfinished preparation is to do."""
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "validation")


class TokenStore:
    """An open store."""

    path: Path
    """Its folder."""
    tokenizer: Tokenizer
    """The one that made the tokens."""
    fingerprint: str
    """SHA-256 over tokens, document borders and tokenizer; equal for equal content, wherever it lies."""

    def __init__(self, path: Path, index: dict[str, Any], tokenizer: Tokenizer):
        self.path, self._index, self.tokenizer = path, index, tokenizer
        self.fingerprint = index["fingerprint"]
        self._splits = {name: self._open_split(name) for name in SPLITS}

    def __str__(self) -> str:
        return str(self.path)

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return self.tokenizer.vocab_size

    @property
    def train(self) -> Split | Mixture:
        """What a `Loader` reads."""
        return self.split("train")

    def split(self, name: str) -> Split:
        """The split called `"train"` or `"validation"`."""
        if name not in self._splits:
            listed = " and ".join(repr(s) for s in self._splits)
            raise StoreError(f"store {self} has no split {name!r}{near_miss(name, self._splits)}; it has {listed}")
        return self._splits[name]

    @property
    def disk_bytes(self) -> int:
        """Size of all files that `verify` reads."""
        entries = self._index["splits"].values()
        return sum(f["bytes"] for e in entries for f in (*e["shards"], e["offsets"], e["sizes"]))

    def verify(self) -> None:
        """Read every file and compare its SHA-256 with the index.

        Raises:
            DamagedStoreError: naming the first file that differs.
        """
        for entry in self._index["splits"].values():
            for file in (*entry["shards"], entry["offsets"], entry["sizes"]):
                if sha256_of(self.path / file["file"]) != file["sha256"]:
                    raise DamagedStoreError(
                        f"{self.path / file['file']} is damaged: its SHA-256 is not the one in {INDEX_FILE}; "
                        "delete the store and prepare it again"
                    )

    def _open_split(self, name: str) -> Split:
        entry, dtype = self._index["splits"][name], np.dtype(self._index["dtype"])
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
        if (path / WORK_FOLDER / JOB_FILE).is_file():
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

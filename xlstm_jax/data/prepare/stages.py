"""The stages of a preparation, one task at a time; each reads files, writes files, and can be done anywhere.

`scan` hashes the documents of a task, `train` makes the tokenizer if it is to be trained, `encode` turns the documents
of a task into tokens in the order of the source, `merge` gathers the tokens of one shard of the store in its final
order. A result is there once its last file is: `.npy` after `.bin`, a `.json` after a shard.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm_jax.data.errors import SourceError, TokenizerError
from xlstm_jax.data.prepare.job import Job
from xlstm_jax.data.tokenizers import Tokenizer, load_tokenizer, train_byte_level
from xlstm_jax.files import open_atomic, sha256_of, write_array, write_json

# Of a document: what orders it, what decides its split, its raw bytes, its tokens (0 until encoded).
DOCUMENT = np.dtype([("order", "<u8"), ("split", "<u8"), ("bytes", "<u8"), ("tokens", "<u8")])
# Where a document of the final order lies: task, first token in that task's file, tokens, raw bytes.
PLACED = np.dtype([("task", "<u4"), ("start", "<u8"), ("tokens", "<u8"), ("bytes", "<u8")])

PROGRESS_BYTES = 1 << 20


def document_hashes(content: bytes, seed: int) -> tuple[int, int]:
    """Two 64-bit hashes of a document: its place in the order for this seed, and its place between the splits."""
    digest = hashlib.blake2b(content, digest_size=32).digest()
    order = hashlib.blake2b(digest, digest_size=8, key=repr(seed).encode()[:64], person=b"order").digest()
    split = hashlib.blake2b(digest, digest_size=8, person=b"split").digest()
    return int.from_bytes(order, "little"), int.from_bytes(split, "little")


class Worker:
    """Does work on one work folder; keeps the job and the tokenizer in between."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.job = Job.read(folder)
        self._tokenizer: Tokenizer | None = None

    def do(self, work: dict[str, Any], advance: Callable[[int], None] | None = None) -> None:
        """Carry out `{"do": name, ...arguments}`; `train` tells `advance` how many bytes it has read since."""
        actions: dict[str, Callable[..., None]] = {
            "scan": self.scan,
            "train": functools.partial(self.train, advance=advance or (lambda size: None)),
            "encode": self.encode,
            "merge": self.merge,
        }
        actions[work["do"]](**{key: value for key, value in work.items() if key != "do"})

    def scan(self, task: int) -> None:
        rows = []
        for _, content in self.job.task_documents(task):
            order, split = document_hashes(content, self.job.config.seed)
            rows.append((order, split, len(content), 0))
        write_array(scan_path(self.folder, task), np.array(rows, DOCUMENT))

    def train(self, threshold: int, limit: int, advance: Callable[[int], None]) -> None:
        """Train a byte-level BPE on the documents from split hash `threshold` on and below order hash `limit`."""
        assert self.job.config.vocab_size is not None
        documents = self._training_documents(threshold, limit, advance)
        train_byte_level(documents, self.job.config.vocab_size).save(tokenizer_path(self.folder))

    def _training_documents(self, threshold: int, limit: int, advance: Callable[[int], None]) -> Iterator[bytes]:
        unreported = 0
        for task in range(len(self.job.tasks)):
            for _, content in self.job.task_documents(task):
                order, split = document_hashes(content, self.job.config.seed)
                if split >= threshold and order < limit:
                    yield content
                    unreported += len(content)
                    if unreported >= PROGRESS_BYTES:
                        advance(unreported)
                        unreported = 0

    def encode(self, task: int) -> None:
        scanned = np.load(scan_path(self.folder, task))
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(tokenizer_path(self.folder))
        dtype = token_dtype(self._tokenizer.vocab_size)
        rows: list[tuple[int, int, int, int]] = []
        with open_atomic(tokens_path(self.folder, task)) as file:
            for source, content in self.job.task_documents(task):
                order, split = document_hashes(content, self.job.config.seed)
                if len(rows) >= len(scanned) or scanned["order"][len(rows)] != order:
                    raise SourceError(f"{source.path} changed while it was being read; run the same command again")
                try:
                    tokens = self._tokenizer.encode_array(content)
                except ValueError as error:
                    raise SourceError(f"a document of {source.path} cannot be encoded: {error}") from error
                # A few texts have shown that bytes come back; what counts is these.
                if self._tokenizer.decode(tokens) != content:
                    raise TokenizerError(f"the tokenizer does not give a document of {source.path} back as it was")
                file.write(tokens.astype(dtype).tobytes())
                rows.append((order, split, len(content), len(tokens)))
        if len(rows) != len(scanned):
            raise SourceError("the sources changed while they were being read; run the same command again")
        write_array(encoded_path(self.folder, task), np.array(rows, DOCUMENT))

    def merge(self, split: str, shard: int, first: int, last: int, closing: bool, eod: int, dtype: str) -> None:
        """Write documents `first` to `last` of a split as one shard, each after its opening EOD."""
        placed = np.load(placed_path(self.folder, split), mmap_mode="r")[first:last]
        kind = np.dtype(dtype)
        opening = np.array([eod], kind).tobytes()
        parts: dict[int, np.ndarray] = {}
        path = self.folder.parent / shard_name(split, shard)
        with open_atomic(path) as file:
            for task, start, tokens, _ in placed.tolist():
                if task not in parts:
                    parts[task] = np.memmap(tokens_path(self.folder, task), kind, "r")
                file.write(opening)
                file.write(parts[task][start : start + tokens].tobytes())
            if closing:
                file.write(opening)
        entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        write_json(merged_path(self.folder, split, shard), entry)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type of a store whose ids are below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def scan_path(folder: Path, task: int) -> Path:
    return folder / f"scan-{task:05d}.npy"


def tokens_path(folder: Path, task: int) -> Path:
    return folder / f"tokens-{task:05d}.bin"


def encoded_path(folder: Path, task: int) -> Path:
    return folder / f"tokens-{task:05d}.npy"


def placed_path(folder: Path, split: str) -> Path:
    return folder / f"placed-{split}.npy"


def merged_path(folder: Path, split: str, shard: int) -> Path:
    return folder / f"merged-{split}-{shard:05d}.json"


def tokenizer_path(folder: Path) -> Path:
    return folder / "tokenizer"


def shard_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.bin"

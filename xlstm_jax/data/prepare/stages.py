"""The stages of a preparation, one task at a time; each reads files, writes files, and can be done anywhere.

`scan` hashes the documents of a task, `train` makes the tokenizer if it is to be trained, `encode` turns the documents
of a task into tokens in the order of the source, `merge` gathers the tokens of one shard of the store in its final
order. A result is there once its last file is: `.npy` after `.bin`, a `.json` after a shard.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from xlstm_jax.data.errors import SourceError, TokenizerError
from xlstm_jax.data.prepare.job import Job
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.sources import SourceFile
from xlstm_jax.data.tokenizers import Tokenizer, first_difference, load_tokenizer, train_byte_level
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


LEARNT, HELD_OUT = (1 << 64) - 1, 0
"""In place of a split hash: of a document whose side is settled otherwise. Any threshold above 0 parts them."""


def cut_tail(content: bytes, fraction: float, *, to_the_byte: bool = False) -> tuple[bytes, bytes]:
    """A document without its last part, and that part: about `fraction` of it, or up to twice as much so that it begins
    a line; or just as many bytes. The second is empty if there is nothing to cut."""
    if to_the_byte:
        # As the decimal that it was given as: a tenth of a hundred bytes is ten.
        at = len(content) - math.ceil(len(content) * Fraction(str(fraction)))
        return (content[:at], content[at:]) if at > 0 else (content, b"")
    size = max(1, round(len(content) * fraction))
    at = content.rfind(b"\n", max(0, len(content) - 2 * size), len(content) - size) + 1
    if at == 0:
        at = len(content) - size
        while at > 0 and content[at] & 0xC0 == 0x80 and len(content) - at < size + 4:  # inside a character of UTF-8
            at -= 1
    return (content[:at], content[at:]) if at > 0 else (content, b"")


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
        rows, notes = [], Notes()
        for source, content in self.job.task_documents(task, notes):
            rows.append((*self._hashes(source, content), len(content), 0))
        write_json(notes_path(self.folder, task), notes.found)
        write_array(scan_path(self.folder, task), np.array(rows, DOCUMENT))

    def _hashes(self, source: SourceFile, content: bytes) -> tuple[int, int]:
        order, split = document_hashes(content, self.job.config.seed)
        if self.job.holds_out:
            split = HELD_OUT if source.held_out else LEARNT
        return order, split

    def _parts(self, source: SourceFile, content: bytes, tail: float) -> Iterator[tuple[bytes, int, int]]:
        """A document, or what becomes of it if a `tail` is held out; and its hashes."""
        if not tail:
            yield content, *self._hashes(source, content)
            return
        parts = cut_tail(content, tail, to_the_byte=self.job.config.validation_tail > 0)
        for part, side in zip(parts, (LEARNT, HELD_OUT), strict=True):
            if part:
                yield part, document_hashes(part, self.job.config.seed)[0], side

    def train(self, threshold: int, limit: int, tail: float, advance: Callable[[int], None]) -> None:
        """Train a byte-level BPE on the documents from split hash `threshold` on and below order hash `limit`."""
        assert self.job.config.vocab_size is not None
        documents = self._training_documents(threshold, limit, tail, advance)
        train_byte_level(documents, self.job.config.vocab_size).save(tokenizer_path(self.folder))

    def _training_documents(
        self, threshold: int, limit: int, tail: float, advance: Callable[[int], None]
    ) -> Iterator[bytes]:
        tasks, unreported = range(len(self.job.tasks)), 0
        held_out = set()
        if self.job.holds_out:
            scanned = np.concatenate([np.load(scan_path(self.folder, task)) for task in tasks])
            held_out = set(scanned["order"][scanned["split"] < threshold].tolist())
        for task in tasks:
            for source, content in self.job.task_documents(task):
                if self._hashes(source, content)[0] >= limit:
                    continue
                for part, order, split in self._parts(source, content, tail):
                    if split < threshold or order in held_out:
                        continue
                    yield part[: self.job.config.training_bytes]
                    unreported += len(part)
                    if unreported >= PROGRESS_BYTES:
                        advance(unreported)
                        unreported = 0

    def encode(self, task: int, tail: float) -> None:
        scanned = iter(np.load(scan_path(self.folder, task))["order"].tolist())
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(tokenizer_path(self.folder))
        dtype = token_dtype(self._tokenizer.vocab_size)
        rows: list[tuple[int, int, int, int]] = []
        with open_atomic(tokens_path(self.folder, task)) as file:
            for source, content in self.job.task_documents(task):
                if next(scanned, None) != self._hashes(source, content)[0]:
                    raise SourceError(f"{source.path} changed while it was being read; run the same command again")
                for part, order, split in self._parts(source, content, tail):
                    tokens = self._encoded(part, source)
                    file.write(tokens.astype(dtype).tobytes())
                    rows.append((order, split, len(part), len(tokens)))
        if next(scanned, None) is not None:
            raise SourceError("the sources changed while they were being read; run the same command again")
        write_array(encoded_path(self.folder, task), np.array(rows, DOCUMENT))

    def _encoded(self, content: bytes, source: SourceFile) -> Int32[np.ndarray, " tokens"]:
        assert self._tokenizer is not None
        try:
            tokens = self._tokenizer.encode_array(content)
        except ValueError as error:
            raise SourceError(f"a document of {source.path} cannot be encoded: {error}") from error
        # A few texts have shown that bytes come back; what counts is these.
        back = self._tokenizer.decode(tokens)
        if back != content:
            what = first_difference(content, back)
            raise TokenizerError(f"the tokenizer does not give a document of {source.path} back as it was: {what}")
        return tokens

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


def notes_path(folder: Path, task: int) -> Path:
    return folder / f"scan-{task:05d}.json"


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

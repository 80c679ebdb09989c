"""What a preparation is to do, written down before it starts so that a killed one goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlstm_jax.config import from_json, to_json
from xlstm_jax.data.errors import PrepareError
from xlstm_jax.data.prepare.sources import Reading, SourceFile, can_cut, documents
from xlstm_jax.files import write_json

PLAN_VERSION = 1
PLAN_FILE = "plan.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a store's content beside the documents.

    Attributes:
        tokenizer: `bytes`, `bpe` or the fingerprint of a given tokenizer.
        vocab_size: wanted of a `bpe`; None for the others.
        training_bytes: text that a `bpe` is trained on at most.
        validation_fraction: share of the documents that go to the validation split.
        seed: of the documents' order.
        shard_tokens: tokens a shard file holds before the next one begins.
    """

    tokenizer: str
    vocab_size: int | None
    training_bytes: int
    validation_fraction: float
    seed: int
    shard_tokens: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """A file of the plan, or the stretch of it that begins in [start, end)."""

    file: int
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The files, cut into tasks of similar size, and the settings."""

    version: int
    settings: Settings
    reading: Reading
    files: list[SourceFile]
    tasks: list[list[Piece]]

    def task_documents(self, task: int) -> Iterator[tuple[SourceFile, bytes]]:
        """The documents of one task, with the file that each comes from."""
        for piece in self.tasks[task]:
            file = self.files[piece.file]
            for document in documents(file, self.reading, piece.start, piece.end):
                yield file, document

    def task_bytes(self, task: int) -> int:
        """Size of a task on disk."""
        return sum((self.files[p.file].size if p.end is None else p.end) - p.start for p in self.tasks[task])

    def files_key(self) -> str:
        """Changes when a file is added, taken away, or written to."""
        listed = [to_json(self.reading), *(to_json(file) for file in self.files)]
        return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()

    def is_edited(self, other: Plan) -> bool:
        """Whether this is a plan of the same files as another, of which some have been written to since."""
        paths = [[file.path for file in plan.files] for plan in (self, other)]
        return paths[0] == paths[1] and self.reading == other.reading and self.files_key() != other.files_key()

    def write(self, folder: Path) -> None:
        write_json(folder / PLAN_FILE, to_json(self))

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in a work folder.

        Raises:
            PrepareError: if it was not written by this version.
        """
        try:
            return from_json(cls, json.loads((folder / PLAN_FILE).read_bytes()))
        except ValueError as error:
            raise PrepareError(
                f"{folder / PLAN_FILE} is not a plan that this version wrote; delete {folder.parent} and start again"
            ) from error


def make_plan(files: list[SourceFile], reading: Reading, settings: Settings, task_bytes: int | None = None) -> Plan:
    """Cut `files` into tasks of about `task_bytes` (by default a 64th of all, between 1 and 64 MiB)."""
    total = sum(file.size for file in files)
    wanted = task_bytes or min(max(total // 64, 1 << 20), 64 << 20)
    tasks: list[list[Piece]] = [[]]
    filled = 0
    for number, file in enumerate(files):
        if can_cut(file) and file.size > wanted:
            cuts = [*range(0, file.size, wanted), file.size]
            pieces = [(Piece(number, a, b), b - a) for a, b in itertools.pairwise(cuts)]
        else:
            pieces = [(Piece(number), file.size)]
        for piece, size in pieces:
            if tasks[-1] and filled + size > wanted:
                tasks.append([])
                filled = 0
            tasks[-1].append(piece)
            filled += size
    return Plan(PLAN_VERSION, settings, reading, files, tasks)


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """`seed (asked for 1, there 0), ...` for the entries in which two requests differ; empty if equal."""
    keys = [key for key in wanted if wanted[key] != found.get(key)]
    return ", ".join(f"{key} (asked for {wanted[key]!r}, there {found.get(key)!r})" for key in keys)

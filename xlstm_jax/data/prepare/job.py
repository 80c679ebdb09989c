"""What a preparation is to do, written down before it starts so that a killed one goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlstm_jax.config import from_json, to_json
from xlstm_jax.data.errors import PrepareError
from xlstm_jax.data.prepare.config import PrepareConfig
from xlstm_jax.data.prepare.notes import Notes
from xlstm_jax.data.prepare.sources import SourceFile, documents
from xlstm_jax.data.store.store import JOB_FILE
from xlstm_jax.files import write_json

JOB_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A file of the job, or the part of it whose documents begin in the bytes [start, end)."""

    file: int
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """The files, cut into tasks of similar size, and what decides what becomes of them."""

    version: int
    settings: dict[str, Any]
    """`PrepareConfig.content`."""
    reading: dict[str, Any]
    """`PrepareConfig.reading`."""
    files: list[SourceFile]
    tasks: list[list[Stretch]]

    @functools.cached_property
    def config(self) -> PrepareConfig:
        """What was asked for, as far as workers must know it; its tokenizer may be a fingerprint."""
        return PrepareConfig(**self.settings | self.reading)

    @property
    def holds_out(self) -> bool:
        """Whether files are held out by their name, in place of a share of the documents."""
        return any(file.held_out for file in self.files)

    def task_documents(self, task: int, notes: Notes | None = None) -> Iterator[tuple[SourceFile, bytes]]:
        """The documents of one task, with the file that each comes from; `notes` counts what is left out."""
        for stretch in self.tasks[task]:
            file = self.files[stretch.file]
            for document in documents(file, self.config, stretch.start, stretch.end, notes):
                yield file, document

    def task_bytes(self, task: int) -> int:
        """Size of a task on disk."""
        return sum((self.files[s.file].size if s.end is None else s.end) - s.start for s in self.tasks[task])

    def files_key(self) -> str:
        """Changes when a file is added, taken away, or written to."""
        listed = [self.reading, *(to_json(file) for file in self.files)]
        return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()

    def is_edited(self, other: Job) -> bool:
        """Whether this is a job on the same files as another, of which some have been written to since."""
        paths = [[(file.path, file.held_out) for file in job.files] for job in (self, other)]
        return paths[0] == paths[1] and self.reading == other.reading and self.files_key() != other.files_key()

    def write(self, folder: Path) -> None:
        write_json(folder / JOB_FILE, to_json(self))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job in a work folder.

        Raises:
            PrepareError: if it was not written by this version.
        """
        file = folder / JOB_FILE
        start_again = f"delete {folder.parent} and start again"
        try:
            data = json.loads(file.read_bytes())
            version = data["version"]
            if version == JOB_VERSION:
                job = from_json(cls, data)
                job.config  # noqa: B018  refuses values that no config has
                return job
        except (ValueError, KeyError, TypeError) as error:
            raise PrepareError(f"{file} is not a plan that this version wrote; {start_again}") from error
        raise PrepareError(
            f"{file} is of version {version!r}, but this program goes on with version {JOB_VERSION} only; {start_again}"
        )


def make_job(files: list[SourceFile], config: PrepareConfig, tokenizer: str, task_bytes: int | None = None) -> Job:
    """Cut `files` into tasks of about `task_bytes` (by default a 64th of all, between 1 and 64 MiB)."""
    total = sum(file.size for file in files)
    wanted = task_bytes or min(max(total // 64, 1 << 20), 64 << 20)
    tasks: list[list[Stretch]] = [[]]
    filled = 0
    for number, file in enumerate(files):
        if file.can_cut and file.size > wanted:
            cuts = [*range(0, file.size, wanted), file.size]
            stretches = [(Stretch(number, a, b), b - a) for a, b in itertools.pairwise(cuts)]
        else:
            stretches = [(Stretch(number), file.size)]
        for stretch, size in stretches:
            if tasks[-1] and filled + size > wanted:
                tasks.append([])
                filled = 0
            tasks[-1].append(stretch)
            filled += size
    return Job(JOB_VERSION, config.content(tokenizer), config.reading(), files, tasks)


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """`seed (asked for 1, there 0), ...` for the entries in which two requests differ; empty if equal."""
    keys = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    return ", ".join(f"{key} (asked for {wanted.get(key)!r}, there {found.get(key)!r})" for key in keys)

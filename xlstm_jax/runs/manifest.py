"""What a finished checkpoint consists of: every file's size and SHA-256 sum, the arrays, and what was saved beside.

A checkpoint is as good as its manifest: Orbax restores a flipped bit without a word. The manifest holds its own sum,
and its bytes must be exactly those that writing its content again would give, so that no flipped bit in it passes.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xlstm_jax.files import sha256_of, write_atomic
from xlstm_jax.runs.errors import CheckpointError, DamagedCheckpointError
from xlstm_jax.runs.tree import Layout, Names

MANIFEST_NAME = "manifest.json"
STATE_FOLDER = "state"
_FORMAT = 1
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    `files` maps a path inside the checkpoint to (bytes, SHA-256 in hex); `arrays` maps a part of the state to the
    layouts of its arrays; `extra` is the caller's.
    """

    step: int
    files: dict[str, tuple[int, str]]
    arrays: dict[str, dict[Names, Layout]]
    extra: dict[str, Any]

    def to_bytes(self) -> bytes:
        content = {
            "format": _FORMAT,
            "step": self.step,
            "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in self.files.items()},
            "arrays": {
                part: [[list(names), list(a.shape), a.dtype] for names, a in arrays.items()]
                for part, arrays in self.arrays.items()
            },
            "extra": self.extra,
        }
        return _sealed(content)

    def check_files(self, folder: Path, parts: Iterable[str] | None = None, share: tuple[int, int] = (0, 1)) -> None:
        """Compare the files of a checkpoint with their sums.

        Args:
            parts: only the files that these parts of the state need; all if None.
            share: (number, of how many) shares of these files to look at, where several processes do so together.

        Raises:
            DamagedCheckpointError: for the first file that is missing or is not what it was.
        """
        left_out = () if parts is None else tuple(f"{STATE_FOLDER}/{p}/" for p in set(self.arrays) - set(parts))
        number, shares = share
        wanted = [path for path in self.files if not (left_out and path.startswith(left_out))]
        for path in wanted[number::shares]:
            size, digest = self.files[path]
            file = folder / path
            try:
                found = file.stat().st_size
                if found != size:
                    raise DamagedCheckpointError(f"{file} has {found} bytes instead of {size}")
                if sha256_of(file) != digest:
                    raise DamagedCheckpointError(f"{file} is not what was written (its SHA-256 sum differs)")
            except OSError as error:
                if error.errno in _MISSING:
                    raise DamagedCheckpointError(f"{file} is missing") from None
                if error.errno == errno.EIO:
                    raise DamagedCheckpointError(f"{file} cannot be read from its disk") from None
                raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error


Sums = dict[str, tuple[int, str]]
"""Bytes and SHA-256 sum of files, by their paths inside a checkpoint."""


def sums_of(folder: Path, files: Iterable[Path]) -> Sums:
    """Sum up files that lie in `folder`, and see that they reach the disk."""
    return {f.relative_to(folder).as_posix(): (f.stat().st_size, sha256_of(f, sync=True)) for f in sorted(files)}


def own_files(folder: Path, process: int) -> list[Path]:
    """What one of several processes has written of a checkpoint."""
    return [
        f for part in folder.glob(f"{STATE_FOLDER}/*/ocdbt.process_{process}") for f in part.rglob("*") if f.is_file()
    ]


def write_manifest(
    folder: Path,
    step: int,
    arrays: dict[str, dict[Names, Layout]],
    extra: dict[str, Any],
    sums: Mapping[str, tuple[int, str]] = MappingProxyType({}),
) -> Manifest:
    """Sum up what lies in `folder`, see that it reaches the disk, and write the manifest.

    Args:
        sums: of files that others have seen to already.

    Raises:
        CheckpointError: if one of these is not there, as on a disk that is not shared.
    """
    found = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    if missing := sorted(set(sums) - set(found)):
        raise CheckpointError(
            f"{folder / missing[0]} was written by another process, but is not to be seen by this one"
        )
    rest = sums_of(folder, (file for path, file in found.items() if path not in sums))
    files = dict(sorted({**sums, **rest}.items()))
    manifest = Manifest(step, files, arrays, extra)
    write_atomic(folder / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
        DamagedCheckpointError: if it is missing, or not what was written.
        CheckpointError: if it was written by a later version of this package.
    """
    path = folder / MANIFEST_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno in (*_MISSING, errno.EIO):
            raise DamagedCheckpointError(f"{path} is missing or unreadable") from None
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DamagedCheckpointError(f"{path} is not a manifest any more") from None
    if digest != _sum_of(content) or _sealed(content) != data:
        raise DamagedCheckpointError(f"{path} is not what was written (its SHA-256 sum differs)")
    if content["format"] != _FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {content['format']}, but this version of xlstm-jax reads {_FORMAT}"
        )
    return Manifest(
        step=content["step"],
        files={path: (file["bytes"], file["sha256"]) for path, file in content["files"].items()},
        arrays={
            part: {tuple(names): Layout(tuple(shape), dtype) for names, shape, dtype in arrays}
            for part, arrays in content["arrays"].items()
        },
        extra=content["extra"],
    )


def replace_extra(folder: Path, extra: Mapping[str, Any]) -> None:
    """Put values into the manifest of a checkpoint that nobody else can see yet, beside or in place of those it has."""
    manifest = read_manifest(folder)
    changed = replace(manifest, extra=checked_extra({**manifest.extra, **extra}))
    write_atomic(folder / MANIFEST_NAME, changed.to_bytes())


def checked_extra(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's values for a manifest, as they will be read back.

    Raises:
        CheckpointError: if JSON cannot hold them, or would give back something else.
    """
    try:
        kept = json.loads(json.dumps(dict(extra or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the extra values of a checkpoint must be what JSON can hold: {error}") from error
    if kept != dict(extra or {}):
        raise CheckpointError(
            "the extra values of a checkpoint must come back from JSON as they are (lists, text keys)"
        )
    return kept


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _sealed(content: dict[str, Any]) -> bytes:
    return _canonical({**content, "sha256": _sum_of(content)})

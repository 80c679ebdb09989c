"""Folders and glob patterns to the files in them: links are followed, and each real folder is read once.

Loops of links end by that, and nothing is lost: what lies in a folder does not depend on the way that led there.
"""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from xlstm_jax.data.errors import SourceError

_OURS = (("index.json", "tokenizer"), ("work/plan.json",), ("config.json", "checkpoints"))
"""What is in a token store, in one that is being made, and in a run: made of texts, they are none themselves."""


def walk(folder: str) -> list[str]:
    """Everything below a folder that is none itself, without what is hidden, `__pycache__`, token stores and runs.

    Raises:
        SourceError: for a folder that may not be read.
    """
    return [entry.path for inner in _folders([folder]) for entry in _entries(inner) if not os.path.isdir(entry.path)]


def matches(pattern: str) -> list[str]:
    """What a glob pattern matches and is no folder, like `glob.glob`; `**` goes down as `walk` does.

    Raises:
        SourceError: for a folder that may not be read.
    """
    found = [os.sep if pattern.startswith(os.sep) else ""]
    parts = [part for part in pattern.split(os.sep) if part]
    if parts[-1] == "**":
        parts.append("*")
    for part in parts:
        folders = [place for place in found if os.path.isdir(place or ".")]
        if part == "**":
            found = list(_folders(folders))
        elif glob.has_magic(part):
            found = [
                e.path for folder in folders for e in _entries(folder, part[0] == ".") if fnmatchcase(e.name, part)
            ]
        else:
            found = [path for folder in folders if os.path.lexists(path := os.path.join(folder, part))]
    return [path for path in found if not os.path.isdir(path)]


def _folders(bases: Iterable[str]) -> Iterator[str]:
    """The folders and those below them, each real one once."""
    waiting, seen = deque(bases), set()
    while waiting:
        folder = waiting.popleft()
        state = os.stat(folder or ".")
        if (state.st_dev, state.st_ino) not in seen:
            seen.add((state.st_dev, state.st_ino))
            yield folder
            inner = [entry for entry in _entries(folder) if os.path.isdir(entry.path) and entry.name != "__pycache__"]
            waiting.extend(entry.path for entry in inner if not _is_ours(entry.path))


def _is_ours(folder: str) -> bool:
    return any(all(os.path.exists(os.path.join(folder, name)) for name in names) for names in _OURS)


def _entries(folder: str, hidden: bool = False) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as entries:
            found = [entry for entry in entries if hidden or not entry.name.startswith(".")]
    except OSError as error:
        raise SourceError(f"cannot read the folder {folder}: {error.strerror}") from error
    # Links last: a file that is here and linked to is known by its own name.
    return sorted(found, key=lambda entry: (entry.is_symlink(), entry.name))

"""Compiled programs are kept in the user's cache folder, so that the next start of a command need not compile them."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

LARGEST = 1 << 30
"""Bytes that the programs may take, of all processors together; those that were used longest ago go first."""

SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
"""JAX's own: whoever sets one of them has decided."""


def keep_programs() -> Path | None:
    """Let JAX keep what it compiles, and read what it has kept; to be called before JAX is imported.

    Returns:
        The folder, or None where there is no place for it, or the user has decided otherwise.
    """
    if any(name in os.environ for name in SETTINGS):
        return None
    try:
        folder = cache_folder()
        # Programs are run as they lie there: no one else may write to the folder.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK) or folder.stat().st_uid != os.getuid():
            return None
        prune(folder.parent.glob("programs-*"), LARGEST)
    except (OSError, RuntimeError):
        return None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    # A program that cannot be read or kept is compiled.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    return folder


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/xlstm_jax/programs-...`, a folder a kind of processor: machines share homes, and code for one
    processor may be none for another."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(os.path.expanduser("~"))
    if not os.path.isabs(given) and not (home.is_absolute() and home.is_dir()):
        raise RuntimeError("this user has no home")
    caches = Path(given) if os.path.isabs(given) else home / ".cache"
    return caches / "xlstm_jax" / f"programs-{hashlib.sha256(_processor().encode()).hexdigest()[:12]}"


def _processor() -> str:
    """What tells processors apart whose code is not the same."""
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = platform.processor()
    kinds = r"^(?:vendor_id|cpu family|model|model name|flags|Features|CPU \w+)\s*:.*$"
    lines = re.findall(kinds, described, re.MULTILINE)
    return "\n".join([platform.system(), platform.machine(), *sorted(set(lines or [described]))])


def prune(folders: Iterable[Path], largest: int) -> None:
    """Remove the files of folders that were read longest ago, until the others are half as large as allowed."""
    found = []
    for entry in itertools.chain.from_iterable(map(os.scandir, folders)):
        if entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            found.append((max(status.st_atime, status.st_mtime), status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= largest:
        return
    for _, size, path in sorted(found):
        if total <= largest // 2:
            return
        Path(path).unlink(missing_ok=True)  # another process may have been faster
        total -= size

"""The folder of compiled programs that tests and the processes they start share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = "import jax; print(jax.jit(lambda x: 3 * x)(2.0))"


def run(folder: Path) -> tuple[str, str]:
    """(what is printed, what is said beside it) of a process whose compiled programs go to a folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    return done.stdout, done.stderr


def test_a_process_finds_what_another_compiled_and_compiles_again_what_was_cut_short(tmp_path: Path) -> None:
    assert run(tmp_path) == ("6.0\n", "")
    programs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-cache")}
    assert programs
    assert run(tmp_path) == ("6.0\n", "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-cache")} == programs
    for path in programs:
        path.write_bytes(path.read_bytes()[:-20])  # as a process that was killed leaves it
    assert run(tmp_path) == ("6.0\n", "")

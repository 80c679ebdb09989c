"""Standard streams that are closed, full or without a reader, and signals at any moment: a code, never a traceback."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlstm_jax.machine.streams import outlive_terminals

COMMAND = f"{sys.executable} -c 'import sys; from xlstm_jax.cli import main; sys.exit(main())'"
VERBS = ["--help", "version", "plan", "data prepare no-such-file --out store", "generate no-such-run"]


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"])
def test_no_stream_that_is_missing_or_full_gives_a_traceback(streams: str, tmp_path: Path) -> None:
    # One shell for all: what counts is what each says and how it ends.
    lines = "; ".join(f"{COMMAND} {verb} {streams}; echo code $? >&7" for verb in VERBS)
    done = shell(f"exec 7>codes; {lines}", tmp_path)
    assert "Traceback" not in done.stdout + done.stderr
    codes = [int(line.split()[1]) for line in (tmp_path / "codes").read_text().splitlines()]
    lost = ">&-" in streams.split() or "/dev/full" in streams
    # What cannot say what it was asked for has failed; a wrong call has failed in any case.
    assert [code != 0 for code in codes] == [lost] * 3 + [True] * 2
    assert not (tmp_path / "store").exists()


def test_what_is_printed_to_a_terminal_that_was_closed_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        outlive_terminals()
        print("here", flush=True)
        assert os.read(master, 100) == b"here\r\n"
        os.close(master)
        print("gone", flush=True)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(slave, b"gone")


def test_a_reader_that_goes_early_ends_it_quietly(tmp_path: Path) -> None:
    done = shell(f"{COMMAND} train --help | head -1", tmp_path)
    assert done.stdout.startswith("usage:")
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("wait", [0.3, 0.8])
def test_a_signal_while_modules_are_imported(number: signal.Signals, code: int, wait: float, tmp_path: Path) -> None:
    # Of a shell in the background Ctrl-C would be ignored, and so of its children.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from xlstm_jax.cli import main; print(end='.', flush=True); sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "train", "tiny"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1) == b"."
    time.sleep(wait)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in said

"""Real processes, really killed: what they leave is gone on from to the same numbers."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_helpers import write_corpus

from xlstm_jax.runs.folder import RunFolder

STEPS = 120
COMMAND = [sys.executable, "-c", "import sys; from xlstm_jax.cli import main; sys.exit(main())", "train"]
FIELDS = [
    *("--steps", str(STEPS), "--embedding_dim", "16", "--num_blocks", "1", "--context_length", "16"),
    *("--checkpoint_every", "10", "--eval_every", "30", "--eval_tokens", "300", "--dropout", "0.1"),
]


def start(run: Path, corpus: Path, *more: str) -> subprocess.Popen:
    words = [
        *COMMAND,
        "tiny",
        "--run",
        str(run),
        *FIELDS,
        "--sources",
        str(corpus),
        "--data.store",
        f"{run}.store",
        *more,
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def numbers(run: Path) -> list[tuple]:
    names = ("step", "loss", "tokens", "tokens_seen", "lr", "grad_norm", "update_norm", "validation_loss")
    return [tuple(record.get(name) for name in names) for record in RunFolder(run).metrics().read()]


def wait_for(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def lines(run: Path) -> int:
    path = RunFolder(run).metrics_path
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.unfinished"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(run, corpus))
    assert len(numbers(run)) == STEPS
    return run


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_to_the_same_numbers(whole: Path, corpus: Path, tmp_path: Path) -> None:
    run, rng = tmp_path / "killed", random.Random()
    moment = rng.randrange(5, STEPS - 15)
    print("killed at", moment)
    process = start(run, corpus)
    wait_for(process, lambda: lines(run) >= moment)
    process.kill()
    process.communicate()
    process = start(run, corpus)
    wait_for(process, lambda: saving(run))
    process.kill()
    process.communicate()
    finish(start(run, corpus))
    assert numbers(run) == numbers(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, code: int, whole: Path, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "stopped"
    process = start(run, corpus)
    wait_for(process, lambda: lines(run) >= 13)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    saved = RunFolder(run).checkpoints(read_only=True).latest_step()
    assert saved == lines(run)
    assert saved is not None
    assert 13 <= saved < STEPS
    assert f"saved at step {saved}; `xlstm train {run}` goes on from there" in output
    assert "Traceback" not in output
    if number == signal.SIGINT:
        # The run's own folder is enough to go on; then it is finished and says so.
        finish(subprocess.Popen([*COMMAND, str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        assert numbers(run) == numbers(whole)
        assert f"{run} is finished: it has made {STEPS} of {STEPS} steps" in finish(start(run, corpus))


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "closed"
    master, slave = pty.openpty()
    # The first terminal that a session opens is its own: closed, it sends SIGHUP.
    own = "import os, sys; os.open(os.ttyname(1), os.O_RDWR); from xlstm_jax.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", own, "train", "tiny", "--run", str(run), *FIELDS, "--sources", str(corpus)]
    process = subprocess.Popen(
        [*words, "--data.store", f"{run}.store", "--checkpoint_every", "0"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        start_new_session=True,
    )
    os.close(slave)
    with contextlib.suppress(OSError):  # the process has ended, which its code tells of
        while lines(run) < 13:
            os.read(master, 1 << 16)
    os.close(master)
    assert process.wait(timeout=120) == 129
    saved = RunFolder(run).checkpoints(read_only=True).latest_step()
    assert saved == lines(run)
    assert saved is not None
    assert 13 <= saved < STEPS

"""A preparation that is killed: finished tasks stay, are not made again, and the result is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xlstm_jax.data.errors import MissingStoreError, PrepareError
from xlstm_jax.data.prepare import prepare
from xlstm_jax.data.store import open_store

# Slowed down so that the kill comes in the middle; otherwise the command itself.
PROGRAM = """
import sys, time
from xlstm_jax.data.prepare import pool, prepare, stages

name, source, out, count = sys.argv[1:]
def slowed(function):
    def slow(*args, **kwargs):
        time.sleep(0.05)
        return function(*args, **kwargs)
    return slow
if count == "1":
    setattr(stages.Worker, name, slowed(getattr(stages.Worker, name)))
else:
    pool._ask = slowed(pool._ask)
prepare(source, out, progress=False, workers=int(count), format="text", task_bytes=2000, shard_tokens=2000)
"""
SETTINGS = {"format": "text", "progress": False, "workers": 1, "task_bytes": 2000, "shard_tokens": 2000}


@pytest.fixture
def source(tmp_path):
    rng = random.Random(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(80):
        (folder / f"{number}.txt").write_bytes(rng.randbytes(rng.randrange(200, 900)))
    return folder


def start(method: str, source: Path, out: Path, workers: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, method, str(source), str(out), str(workers)])


def wait_for(out: Path, pattern: str, count: int, process: subprocess.Popen) -> list[Path]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = sorted(out.glob(pattern))
        if len(found) >= count:
            return found
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError(f"no {count} files {pattern} in {out}")


@pytest.mark.parametrize(
    ("method", "marks", "results"),
    [("encode", "work/tokens-*.npy", "work/tokens-*.bin"), ("merge", "work/merged-train-*.json", "train-*.bin")],
)
def test_finished_tasks_survive_a_kill_and_are_not_made_again(source, tmp_path, method, marks, results):
    whole = prepare(source, tmp_path / "whole", **SETTINGS)
    out = tmp_path / "out"
    process = start(method, source, out, workers=1)
    finished = wait_for(out, marks, 5, process)
    process.kill()
    process.wait()
    assert not (out / "index.json").exists()
    with pytest.raises(MissingStoreError, match="not finished"):
        open_store(out)
    kept = {path: path.stat().st_mtime_ns for path in sorted(out.glob(results))[: len(finished)]}
    with pytest.raises(PrepareError, match="unfinished preparation of another request, which differs in seed"):
        prepare(source, out, seed=5, **SETTINGS)

    # A result that was there is taken as it is: a mark left in one of them turns up in the store.
    marked = next(iter(kept))
    content = bytearray(marked.read_bytes())
    original = bytes(content[2:4])
    content[2:4] = b"\x2a\x00" if original != b"\x2a\x00" else b"\x2b\x00"
    marked.write_bytes(content)
    store = prepare(source, out, **SETTINGS)
    differing = [
        (path.name, at)
        for path in sorted(out.glob("*.bin"))
        for at, (a, b) in enumerate(zip(path.read_bytes(), (tmp_path / "whole" / path.name).read_bytes(), strict=True))
        if a != b
    ]
    assert 1 <= len(differing) <= 2
    assert store.split("train").num_tokens == whole.split("train").num_tokens


def test_a_killed_run_with_processes_goes_on_to_the_same_store_and_leaves_no_process(source, tmp_path):
    whole = prepare(source, tmp_path / "whole", **SETTINGS)
    out = tmp_path / "out"
    process = start("", source, out, workers=2)
    wait_for(out, "work/tokens-*.npy", 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while workers_of(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not workers_of(out)
    store = prepare(source, out, **SETTINGS)
    assert store.fingerprint == whole.fingerprint
    assert not list(out.glob(".*.tmp"))
    store.verify()


TRAIN = """
import sys
from xlstm_jax.cli import main
sys.exit(main(["data", "prepare", sys.argv[1], "--out", sys.argv[2], "--tokenizer", "bpe", "--vocab-size", "60000"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_training_of_a_tokenizer_hears_signals_and_goes_on_later(number, code, tmp_path):
    # Half a minute of merges.
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1 << 20))
    (tmp_path / "a.txt").write_text(text)
    out = tmp_path / "out"
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "a.txt"), str(out), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(out, "work/scan-*.npy", 1, process)
    time.sleep(1)
    assert workers_of(out)
    process.send_signal(number)
    begin = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    while workers_of(out):
        time.sleep(0.05)
        assert time.monotonic() - begin < 10, "a worker trains on"
    assert not (out / "work" / "tokenizer").exists()
    assert (out / "work" / "scan-00000.npy").exists()


def workers_of(out: Path) -> list[str]:
    """Command lines of processes that work for this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "xlstm_jax.data.prepare.pool" in line and str(out) in line:
            found.append(line)
    return found

import json
import os
import subprocess
import sys

import pytest

from xlstm_jax.runs.errors import RunLockedError, RunNotFoundError
from xlstm_jax.runs.lock import RunLock

HOLDER = """
import sys
from xlstm_jax.runs.lock import RunLock
with RunLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path, holder):
    with pytest.raises(RunLockedError, match=f"is being written by process {holder.pid} on .* since "):
        RunLock(tmp_path / "lock").acquire()


def test_the_lock_of_a_dead_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    with RunLock(tmp_path / "lock") as lock:
        assert lock.held
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not lock.held


def test_one_process_cannot_hold_it_twice(tmp_path):
    with RunLock(tmp_path / "lock") as lock:
        with pytest.raises(RunLockedError, match=str(os.getpid())):
            RunLock(tmp_path / "lock").acquire()
        with pytest.raises(RunLockedError, match="this very process"):
            lock.acquire()
    RunLock(tmp_path / "lock").acquire().release()


def test_an_unreadable_note_does_not_hide_the_holder(tmp_path):
    with RunLock(tmp_path / "lock"):
        (tmp_path / "lock").write_text("[not a note")
        with pytest.raises(RunLockedError, match="another process"):
            RunLock(tmp_path / "lock").acquire()


def test_a_forked_child_that_outlives_its_parent_does_not_keep_it(tmp_path):
    program = HOLDER.replace("sys.stdin.read()", "import os, time\n    if os.fork() == 0:\n        time.sleep(30)")
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    # The child inherits the pipe; reading one line is all that can be waited for.
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"locked\n"
        process.wait(timeout=30)
        try:
            with RunLock(tmp_path / "lock") as lock:
                assert lock.held
        finally:
            os.killpg(process.pid, 9)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(RunNotFoundError, match="nowhere"):
        RunLock(tmp_path / "nowhere" / "lock").acquire()

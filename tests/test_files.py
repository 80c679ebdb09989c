"""Files and folders are whole or absent; a full disk is one sentence; locks go with their process."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from xlstm_jax import files
from xlstm_jax.files import (
    DiskFullError,
    ExistsError,
    Lock,
    LockedError,
    LostError,
    WriteError,
    appearing_folder,
    copy_folder,
    held_folder,
    open_atomic,
    write_array,
    write_atomic,
    write_json,
)

HOLDER = """
import sys
from xlstm_jax.files import Lock
with Lock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_at_the_end_of_its_block_or_not_at_all(tmp_path):
    path = tmp_path / "a.bin"
    write_atomic(path, "old")

    def fail_halfway():
        with open_atomic(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert path.read_text() == "old"
    with open_atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_what_is_written_has_the_rights_of_any_other_file_and_folder(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    write_atomic(tmp_path / "a", "")
    with appearing_folder(tmp_path / "b"):
        pass
    modes = {name: (tmp_path / name).stat().st_mode for name in os.listdir(tmp_path)}
    assert (modes["a"], modes["b"]) == (modes["plain"], modes["folder"])


def test_json_and_arrays_come_back(tmp_path):
    value = {"größe": [1, 2.5, None], "half a character": "\udcff"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
    write_array(tmp_path / "a.npy", np.arange(5))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2, 3, 4]


def test_a_full_disk_is_one_sentence_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"no space left on the disk while writing .*/a \(.* free\); free some"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteError, match=r"nowhere/a cannot be written: No such file or directory"):
        write_atomic(tmp_path / "nowhere" / "a", "x")


def test_an_error_about_another_file_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), open_atomic(tmp_path / "a") as file:
        file.write((tmp_path / "other").read_bytes())
    assert os.listdir(tmp_path) == []


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    out = tmp_path / "new" / "out"

    def fail_halfway():
        with appearing_folder(out) as folder:
            (folder / "half").write_text("")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
    needs = r"out needs .* TB, but the disk of .*out has .* free"
    with pytest.raises(DiskFullError, match=needs), appearing_folder(out, needed=10**18):
        pass
    assert list(tmp_path.iterdir()) == []
    with appearing_folder(out) as folder:
        (folder / "whole").write_text("")
        assert not out.exists()
    assert [p.name for p in out.iterdir()] == ["whole"]
    with pytest.raises(ExistsError, match="there already"), appearing_folder(out):
        pass
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}").rpartition(".tmp")[2], (tmp_path / "b").exists()))
        real(handle)

    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "file").write_text("x")
    monkeypatch.setattr(os, "fsync", fsync)
    copy_folder(tmp_path / "a", tmp_path / "b")
    assert {("", False), ("/inner", False), ("/inner/file", False), (str(tmp_path), True)} == set(synced)
    assert (tmp_path / "b" / "inner" / "file").read_text() == "x"


def test_a_disk_that_fills_up_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")])

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(DiskFullError, match=r"no space left on the disk while writing .*/b "):
        copy_folder(tmp_path / "a", tmp_path / "b")
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/out cannot be made: "), appearing_folder(tmp_path / "file" / "out"):
        pass
    assert os.listdir(tmp_path) == ["file"]


# -- space ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_recognised_in_the_words_of_tensorstore():
    assert files.is_disk_full(
        ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")
    )
    assert not files.is_disk_full(ValueError("RESOURCE_EXHAUSTED: something else"))
    assert [files.bytes_in_words(n) for n in (999, 1536, 2.5e9, 3e15)] == ["999 bytes", "1.5 kB", "2.5 GB", "3000.0 TB"]


# -- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path, holder):
    with pytest.raises(LockedError, match=f"is being written by process {holder.pid} on .* since "):
        Lock(tmp_path / "lock").acquire()


def test_the_lock_of_a_dead_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    with Lock(tmp_path / "lock") as lock:
        assert lock.held
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not lock.held


def test_one_process_cannot_hold_it_twice(tmp_path):
    with Lock(tmp_path / "lock") as lock:
        with pytest.raises(LockedError, match=str(os.getpid())):
            Lock(tmp_path / "lock").acquire()
        with pytest.raises(LockedError, match="this very process"):
            lock.acquire()
    Lock(tmp_path / "lock").acquire().release()


def test_an_unreadable_note_does_not_hide_the_holder(tmp_path):
    with Lock(tmp_path / "lock"):
        (tmp_path / "lock").write_text("[not a note")
        with pytest.raises(LockedError, match="another process"):
            Lock(tmp_path / "lock").acquire()


def test_a_forked_child_that_outlives_its_parent_does_not_keep_it(tmp_path):
    program = HOLDER.replace("sys.stdin.read()", "import os, time\n    if os.fork() == 0:\n        time.sleep(30)")
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    # The child inherits the pipe; reading one line is all that can be waited for.
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"locked\n"
        process.wait(timeout=30)
        try:
            with Lock(tmp_path / "lock") as lock:
                assert lock.held
        finally:
            os.killpg(process.pid, 9)


def test_the_missing_folder_of_a_lock_is_named(tmp_path):
    with pytest.raises(WriteError, match="nowhere is not a folder"):
        Lock(tmp_path / "nowhere" / "lock").acquire()


def test_a_folder_is_removed_only_when_nobody_reads_it(tmp_path):
    with held_folder(tmp_path, alone=False) as first, held_folder(tmp_path, alone=False) as second:
        assert first
        assert second
        with held_folder(tmp_path, alone=True) as removed:
            assert not removed
    with held_folder(tmp_path, alone=True) as removed, held_folder(tmp_path, alone=False) as read:
        assert removed
        assert not read
    with held_folder(tmp_path / "gone", alone=False) as read:
        assert not read


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_that_is_taken_away_from_under_its_lock_is_noticed(how, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with Lock(folder / "lock") as lock:
        lock.check()
        folder.rename(tmp_path / "other")
        if how == "removed":
            shutil.rmtree(tmp_path / "other")
        if how == "replaced":
            folder.mkdir()
            (folder / "lock").touch()
        with pytest.raises(LostError, match="folder was removed, renamed or replaced"):
            lock.check()
        if how == "renamed":
            (tmp_path / "other").rename(folder)
            lock.check()

"""What processes say to each other, and whom a watch ends: threads in place of processes, a dict in place of JAX's
coordination service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed.processes import ALONE, Processes, one_fails_all_fail, see_the_same
from xlstm_jax.distributed.watch import Watch
from xlstm_jax.runs.checkpoints import Checkpoints


class Memory:
    """A coordination service; `stopped` is one whose calls do not come back."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()
        self.stopped = threading.Event()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        if self.stopped.is_set():
            time.sleep(60)
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        with self.changed:
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]

    def key_value_delete(self, key: str) -> None:
        with self.changed:
            for name in [name for name in self.values if name.startswith(key)]:
                del self.values[name]


def in_all(count: int, call: Callable[[Processes], object]) -> list[object]:
    """What a call gives in each of so many processes; an error is given, too."""
    service, found = Memory(), [None] * count  # type: list[object]

    def run(index: int) -> None:
        try:
            found[index] = call(Processes(index, count, service))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def test_the_leader_decides_and_all_are_heard() -> None:
    def call(processes: Processes) -> object:
        called = []
        talk = processes.talk("aside")
        first = processes.agree(lambda: called.append(1) or [processes.index, "a"])
        return first, processes.gather(processes.index * 2), talk.gather("x"), talk.agree(lambda: 7), called

    zero, one, two = in_all(3, call)
    assert zero == ([0, "a"], [0, 2, 4], ["x", "x", "x"], 7, [1])
    assert one == two == ([0, "a"], [0, 2, 4], ["x", "x", "x"], 7, [])
    assert ALONE.agree(lambda: 5) == 5
    assert ALONE.gather(5) == [5]


def test_a_folder_that_one_process_does_not_see_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_jax.distributed.processes.SHARED_SECONDS", 0.5)
    assert in_all(2, lambda processes: see_the_same(tmp_path, processes)) == [None, None]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    errors = in_all(2, lambda processes: see_the_same(folders[processes.index], processes))
    assert all(isinstance(error, ConfigError) and "but process 1 of 2" in str(error) for error in errors)
    assert not any(list(folder.iterdir()) for folder in (tmp_path / "one", tmp_path / "two"))


SILENT = 0.6


def ends(count: int, call: Callable[[Processes, Watch], None]) -> tuple[list[object], list[tuple[int, int]]]:
    """What `call` does in each process under a watch, and which processes the watch has ended, with their codes."""
    ended: list[tuple[int, int]] = []

    def run(processes: Processes) -> None:
        over = threading.Event()

        def end(code: int) -> None:
            ended.append((processes.index, code))
            over.set()

        with Watch(processes, SILENT, 0.5, end) as watch:
            call(processes, watch)
            deadline = time.monotonic() + 10 * SILENT
            while time.monotonic() < deadline and not over.is_set() and not watch._over.is_set():
                time.sleep(0.01)

    return in_all(count, run), sorted(ended)


def test_the_failure_of_one_ends_the_others_with_its_reason_and_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xlstm_jax.distributed.watch.GRACE_SECONDS", 0.1)

    def call(processes: Processes, watch: Watch) -> None:
        with one_fails_all_fail(processes):
            if processes.index == 1:
                raise ArithmeticError("one and one is three")

    found, ended = ends(3, call)
    assert isinstance(found[1], ArithmeticError)
    assert ended == [(0, 1), (2, 1)]
    assert capfd.readouterr().err.count("has ended: one and one is three") == 1  # the leader speaks for all


def test_a_process_that_falls_silent_ends_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xlstm_jax.distributed.watch.GRACE_SECONDS", 0.1)
    begun = time.monotonic()

    def call(processes: Processes, watch: Watch) -> None:
        if processes.index == 2:
            monkeypatch.setattr(watch, "_pulse", None)
            watch._over.set()  # as if it were killed: no thread of its goes on

    _, ended = ends(3, call)
    assert ended == [(0, 1), (1, 1)]
    assert time.monotonic() - begun < 10 * SILENT + 2
    said = capfd.readouterr().err
    assert "process 2 of 3 has shown no sign of life for 0.6 s (killed, stopped or cut off)" in said


def test_a_leader_that_does_not_answer_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    def call(processes: Processes, watch: Watch) -> None:
        if processes.leader:
            assert isinstance(processes._service, Memory)
            processes._service.stopped.set()
            watch._over.set()

    _, ended = ends(2, call)
    assert ended == [(1, 1)]
    assert "process 0 of 2 has not answered for 0.6 s (stopped, hung or cut off)" in capfd.readouterr().err


def test_steps_that_do_not_end_any_more_end_all_and_say_where_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    def call(processes: Processes, watch: Watch) -> None:
        with watch.steps():
            for _ in range(3):
                watch.beat()
                time.sleep(0.02)
            watch._over.wait(6)

    _, ended = ends(2, call)
    assert ended[0] == (0, 1)
    said = capfd.readouterr().err
    assert "no step has ended for " in said
    assert "s; the processes are: 0 at " in said


def test_one_that_waits_before_its_first_step_is_left_alone() -> None:
    def call(processes: Processes, watch: Watch) -> None:
        with watch.steps():
            time.sleep(1.2)
            watch._over.set()

    assert ends(2, call)[1] == []


def test_a_step_that_one_process_alone_finds_damaged_is_set_aside_once(tmp_path: Path) -> None:
    import numpy as np

    state = {"params": {f"w{n}": np.full(3, n) for n in range(9)}}
    with Checkpoints(tmp_path) as alone:
        for step in (1, 2):
            alone.save(step, state)
    files = sorted(path for path in (tmp_path / "00000002" / "state").rglob("*") if path.is_file())
    for file in files:  # whichever process looks at it
        copy = file.read_bytes()
        file.write_bytes(copy + b"x")
        said: list[str] = []

        def call(processes: Processes, said: list[str] = said) -> object:
            found = Checkpoints(tmp_path, processes=processes, say=said.append, read_only=True)
            return found._processes.gather(found.restore(state)[0])

        assert in_all(2, call) == [[1, 1], [1, 1]]
        assert len(said) == 1
        file.write_bytes(copy)
    assert len(files) > 3

"""What a loop makes of steps that are not finite, and of saves that fail: with steps that compute nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_helpers import Recorder

from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.runs.errors import CheckpointError
from xlstm_jax.runs.storage import AsyncWriter
from xlstm_jax.training import loop
from xlstm_jax.training.errors import NotFiniteError
from xlstm_jax.training.step import StepMetrics, TrainState


class Steps:
    """Steps of a `Loop` that are finite or not, as told, with nothing computed."""

    def __init__(self, finite: str) -> None:
        self.finite = finite

    def __call__(self, state: Any, rows: Any) -> Any:
        good, one = self.finite[rows] == "+", np.float32(1)
        loss = one if good else np.float32(np.nan)
        return state, StepMetrics(loss, np.int32(1), one, one, one, one, np.bool_(good))


def made(finite: str, folder: Path, may_skip: int, every: int = 2) -> tuple[Recorder, Checkpoints]:
    recorder, checkpoints = Recorder(), Checkpoints(folder, keep=9)
    steps = loop.Loop(
        Steps(finite),  # type: ignore[arg-type]
        [(number, number) for number in range(len(finite))],  # type: ignore[misc]
        lambda step: loop.Due(False, step % every == 0 or step == len(finite)),
        recorder.handle,
        checkpoints=checkpoints,
        may_skip=may_skip,
    )
    with checkpoints:
        steps.run(TrainState(np.int32(0), {"w": np.ones(2)}, ()), 0)  # type: ignore[arg-type]
    return recorder, checkpoints


def test_steps_that_are_not_finite_are_skipped_as_often_as_allowed(tmp_path: Path) -> None:
    recorder, checkpoints = made("++-+--++", tmp_path / "a", may_skip=2)
    assert recorder.steps == list(range(1, 9))
    assert recorder.said == [
        "note: step 3 made no update: the loss is nan (1 in a row of 2)",
        "note: step 5 made no update: the loss is nan (1 in a row of 2)",
        "note: step 6 made no update: the loss is nan (2 in a row of 2)",
    ]
    assert checkpoints.steps() == [2, 4, 7, 8]  # 6 would leave no way back
    assert made("+---", tmp_path / "b", may_skip=3, every=9)[1].steps() == [4]  # the last state is saved in any case


def test_after_too_many_steps_that_are_not_finite_the_run_is_where_it_was_before_them(tmp_path: Path) -> None:
    with pytest.raises(
        NotFiniteError, match="stopped at step 7: the loss is nan, after 3 steps in a row that were not"
    ):
        made("+++----+", tmp_path, may_skip=3)
    assert Checkpoints(tmp_path).steps() == [2]


def test_a_save_that_fails_once_is_told_of_and_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [2, 7]  # of the saves in turn: one in the middle, the last one
    finish = AsyncWriter.finish
    calls = iter(range(100))

    def fails(self: AsyncWriter) -> None:
        finish(self)
        if next(calls) in failures:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(AsyncWriter, "finish", fails)
    recorder, checkpoints = made("+" * 16, tmp_path / "once", may_skip=0)
    assert [s for s in recorder.said if "was not saved" in s] == [
        f"note: the checkpoint of step {step} was not saved in {tmp_path / 'once'}: [Errno 5] Input/output error; "
        "it is tried once more"
        for step in (6, 16)
    ]
    assert checkpoints.steps() == [2, 4, 8, 10, 12, 14, 16]

    failures[:] = range(100)
    with pytest.raises(CheckpointError, match="was not saved"):
        made("++++++", tmp_path / "again", may_skip=0)


def test_a_file_system_that_fails_once_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_jax.runs.checkpoints.PAUSE_SECONDS", 0)
    rename, failed, said = os.rename, [], []

    def fails(source: Any, target: Any) -> None:
        if not failed and str(source).endswith(".unfinished"):
            failed.append(source)
            raise OSError(errno.ESTALE, "Stale file handle")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        checkpoints.save(1, {"params": {"w": np.ones(2)}})
    assert said == [f"note: the file system of {tmp_path} failed (Stale file handle); it is tried once more"]
    assert checkpoints.steps() == [1]

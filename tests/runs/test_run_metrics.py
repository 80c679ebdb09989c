import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.files import DiskFullError, WriteError, write_atomic
from xlstm_jax.runs.errors import DamagedRunError
from xlstm_jax.runs.metrics import MetricsLog


@pytest.fixture
def log(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        yield log


def test_what_is_appended_is_read_at_once_by_others(log):
    records = [{"step": 1, "loss": 2.5, "note": "ü"}, {"step": 2, "loss": 0.1, "shape": [1, 2], "more": {"a": None}}]
    for record in records:
        log.append(record)
        assert MetricsLog(log.path).read()[-1] == record
    assert log.read() == records


def test_there_is_nothing_in_a_log_that_was_never_written(log):
    assert log.read() == []
    assert log.cut_after(3) == 0


def test_nan_and_infinity_become_null_and_array_scalars_numbers(log):
    log.append(
        {"a": float("nan"), "b": -np.inf, "c": jnp.float32(0.5), "d": np.int64(7), "e": [jnp.nan, np.bool_(True)]}
    )
    (line,) = log.path.read_text().splitlines()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(line, parse_constant=refuse) == {"a": None, "b": None, "c": 0.5, "d": 7, "e": [None, True]}


def test_a_value_that_json_cannot_hold_is_named(log):
    with pytest.raises(TypeError, match=r"'norms\.weights' is of type ndarray"):
        log.append({"norms": {"weights": np.zeros(3)}})
    assert log.read() == []


def test_a_torn_last_line_is_left_out_and_replaced(log):
    log.append({"step": 1})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert log.read() == [{"step": 1}]
    log.append({"step": 2})
    assert log.read() == [{"step": 1}, {"step": 2}]


def test_a_damaged_line_in_the_middle_is_named_and_a_cut_removes_it(log):
    log.path.write_text('{"step": 1}\n[3]\n{"step": 2}\n')
    with pytest.raises(DamagedRunError, match="line 2"):
        log.read()
    log.cut_after(2)
    assert log.read() == [{"step": 1}, {"step": 2}]


def test_a_cut_keeps_what_belongs_to_the_checkpoint(log):
    for step in range(1, 6):
        log.append({"step": step, "loss": 1 / step})
    log.append({"note": "no step"})
    before = log.path.read_bytes().splitlines()
    assert log.cut_after(3) == 2
    assert log.path.read_bytes().splitlines() == [*before[:3], before[5]]
    log.append({"step": 4})
    assert [r.get("step") for r in log.read()] == [1, 2, 3, None, 4]


def test_a_cut_that_fails_leaves_the_log_as_it_was(log, monkeypatch):
    for step in range(3):
        log.append({"step": step})
    before = log.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"no space left on the disk while writing .*metrics\.jsonl"):
        log.cut_after(1)
    assert log.path.read_bytes() == before
    assert [p.name for p in log.path.parent.iterdir()] == [log.path.name]


def test_a_file_that_cannot_be_written_is_named(log):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        for step in range(4):
            log.append({"step": step})
        with pytest.raises(WriteError, match=r"metrics\.jsonl cannot be written: File too large"):
            log.append({"step": 4, "note": "x" * 50})
        with pytest.raises(WriteError, match=r"other\.json cannot be written: File too large"):
            write_atomic(log.path.with_name("other.json"), "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [r["step"] for r in log.read()] == [0, 1, 2, 3]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_taken_away_while_it_is_written_comes_back_whole(log, replaced):
    log.append({"step": 1})
    log.path.unlink()
    if replaced:
        log.path.write_text('{"step": 7}\n')
    log.append({"step": 2})
    log.append({"step": 3})
    assert log.read() == [{"step": 1}, {"step": 2}, {"step": 3}]

"""The prefetcher: the same batches in the same order, errors where they belong, threads that end."""

import itertools
import threading
import time

import pytest

from xlstm_jax.data.store import Prefetcher


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_steps_come_in_order_and_the_thread_ends():
    with Prefetcher(lambda step: step * step, start_step=5, depth=3) as batches:
        assert list(itertools.islice(batches, 4)) == [(5, 25), (6, 36), (7, 49), (8, 64)]
    assert not prefetch_threads()
    assert list(batches) == []


def test_it_stops_before_the_end_step():
    with Prefetcher(lambda step: step, end_step=3) as batches:
        assert [step for step, _ in batches] == [0, 1, 2]


def test_an_error_is_raised_by_its_own_step():
    def load(step):
        if step == 2:
            raise RuntimeError("broken at 2")
        return step

    with Prefetcher(load, depth=5) as batches:
        assert [next(batches)[0], next(batches)[0]] == [0, 1]
        with pytest.raises(RuntimeError, match="broken at 2"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


def test_it_runs_no_further_ahead_than_asked():
    loaded = []
    with Prefetcher(loaded.append, depth=2) as batches:
        next(batches)
        time.sleep(0.05)
        assert len(loaded) <= 4  # one taken, two waiting, one in hand


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth is 0"):
        Prefetcher(lambda step: step, depth=0)

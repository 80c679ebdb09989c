"""The permutation, the batch schedule and the mixture: closed forms against counting."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError, from_json, to_json
from xlstm_jax.data.store.loader import Mixture
from xlstm_jax.data.store.mixture import PARTS, rows_of_sources, shares
from xlstm_jax.data.store.permutation import permute
from xlstm_jax.data.store.schedule import BatchSchedule
from xlstm_jax.data.store.store import Split


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_permutation_reaches_every_row_once(size, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


@given(st.integers(1, 2**62), st.data())
def test_permutation_of_huge_ranges_stays_inside_and_apart(size, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50)), np.int64)
    out = permute(index, size, 1, 2)
    assert len(set(out.tolist())) == len(index)
    assert ((out >= 0) & (out < size)).all()


def test_permutation_depends_on_every_part_of_its_key():
    one, other, third = (permute(np.arange(1000), 1000, *key) for key in ((0, 0), (0, 1), (1, 0)))
    assert (one != other).mean() > 0.9
    assert (one != third).mean() > 0.9


def test_permutation_looks_shuffled():
    # Neighbours end up far apart, and no place keeps its rows: as far as a uniform permutation would, within 5 sigma.
    size = 10_000
    out = permute(np.arange(size), size, 7).astype(float)
    assert np.abs(np.diff(out)).mean() == pytest.approx(size / 3, rel=0.05)
    assert abs(np.corrcoef(np.arange(size), out)[0, 1]) < 0.05


def test_permutation_refuses_an_empty_range():
    with pytest.raises(ValueError, match="size from 1"):
        permute(np.arange(0), 0, 1)


pieces = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), min_size=1, max_size=5).map(
    lambda gaps: tuple(zip([0, *itertools.accumulate(g for g, _ in gaps[1:])], [b for _, b in gaps], strict=True))
)


@given(pieces, st.integers(0, 120))
def test_rows_before_a_step_are_the_sum_of_the_batches_before(pieces, step):
    schedule = BatchSchedule(pieces)
    assert schedule.rows_before(step) == sum(schedule.batch_size(s) for s in range(step))


def test_schedule_goes_through_json():
    schedule = BatchSchedule(((0, 4), (10, 8)))
    assert from_json(BatchSchedule, to_json(schedule)) == schedule
    assert BatchSchedule.of(3) == BatchSchedule(((0, 3),))


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ((), "start at step 0"),
        (((1, 2),), "start at step 0"),
        (((0, 2), (0, 3)), "must grow"),
        (((0, 0),), "batch size 0"),
    ],
)
def test_schedule_names_what_is_wrong(pieces, says):
    with pytest.raises(ConfigError, match=says):
        BatchSchedule(pieces)


weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


@given(weights, st.integers(0, 10**12))
def test_each_row_has_one_source(weights, row):
    parts = shares(weights)
    counts = rows_of_sources(np.arange(row, row + 200), parts)
    assert (counts.sum(0) == np.arange(row, row + 200)).all()
    steps = np.diff(counts, axis=1)
    assert ((steps == 0) | (steps == 1)).all()


@given(weights, st.integers(0, 10**12))
def test_counts_stay_close_to_the_shares(weights, row):
    parts = shares(weights)
    assert sum(parts) == PARTS
    counts = rows_of_sources(np.array([row]), parts)[:, 0]
    assert (np.abs(counts - row * np.array(parts) / PARTS) <= (len(parts) + 1) / 2).all()


def test_simple_weights_are_exact():
    assert shares([0.7, 0.2, 0.1]) == [700_000, 200_000, 100_000]
    assert shares([1, 1, 1]) == [333_334, 333_333, 333_333]
    assert shares([1e-9, 1]) == [1, 999_999]


def test_mixture_names_what_is_wrong():
    split, other = (Split.from_documents([[1, 2]], eod_id=e) for e in (0, 9))
    with pytest.raises(ConfigError, match="2 splits got 1 weights"):
        Mixture([split, split], [1])
    with pytest.raises(ConfigError, match=r"0\.0"):
        Mixture([split], [0.0])
    with pytest.raises(ConfigError, match="different tokenizers"):
        Mixture([split, other], [1, 1])

"""Mixtures: which row comes from which source, closed forms against counting; and several stores read as one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import Mixture, Split
from xlstm_jax.data.store.mixture import PARTS, rows_of_sources, shares

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

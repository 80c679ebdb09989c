"""Mixtures: which row comes from which source, closed forms against counting; and several stores read as one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import HeldoutDocuments, Mixture, Split
from xlstm_jax.data.store.mixture import PARTS, rows_of_sources, shares
from xlstm_jax.data.store.split import join
from xlstm_jax.scoring.heldout import first_documents

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


@given(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=4), st.integers(1, 5))
def test_joined_splits_are_a_split_of_all_documents(lengths, rows):
    numbers = iter(range(1, 1000))
    given_documents = [[[next(numbers) for _ in range(n)] for n in split] for split in lengths]
    joined = join([Split.from_documents(documents, eod_id=0) for documents in given_documents])
    expected = [document for documents in given_documents for document in documents]
    whole = Split.from_documents(expected, eod_id=0)
    assert np.array_equal(joined.tokens, whole.tokens)
    assert np.array_equal(joined.offsets, whole.offsets)
    assert np.array_equal(joined.sizes, whole.sizes)
    assert joined.raw_bytes == whole.raw_bytes
    if expected:
        read = [list(HeldoutDocuments(split, batch_size=rows, seq_len=3)) for split in (joined, whole)]
        assert all(map(np.array_equal, *((array for b in bs for array in (*b.rows, b.documents)) for bs in read)))


def test_documents_of_joined_splits_take_turns():
    joined = join([Split.from_documents([[1]] * n, eod_id=0) for n in (3, 0, 1, 2)])
    assert joined.turns == [0, 3, 4, 1, 5, 2]
    assert first_documents(joined, 5) == [0, 3]

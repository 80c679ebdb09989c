"""Held-out documents: each whole, each target once, in rows whose state is carried."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.data.store import HeldoutDocuments, Split


def split_of(lengths):
    numbers = iter(range(1, 1 + sum(lengths)))
    return Split.from_documents([[next(numbers) for _ in range(n)] for n in lengths], eod_id=0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=15), st.integers(1, 6), st.integers(1, 9))
def test_every_document_is_read_whole_in_one_row(lengths, batch_size, seq_len):
    split = split_of(lengths)
    reader = HeldoutDocuments(split, batch_size=batch_size, seq_len=seq_len)
    batches = list(reader)
    assert len(batches) == len(reader) == reader.num_batches
    inputs, targets, borders, mask, documents = (
        np.concatenate(parts, axis=1) for parts in zip(*((*b.rows, b.documents) for b in batches), strict=True)
    )
    assert {b.rows.inputs.shape for b in batches} == {(reader.batch_size, seq_len)}
    assert mask.sum() == reader.num_targets == sum(lengths) + len(lengths)
    assert ((documents >= 0) == mask).all()
    for number in range(len(lengths)):
        places = np.argwhere(documents == number)
        row, first, last = places[0, 0], places[0, 1], places[-1, 1]
        assert (places[:, 0] == row).all()
        assert len(places) == last - first + 1
        assert inputs[row, first : last + 1].tolist() == split.document(number)[:-1].tolist()
        assert targets[row, first : last + 1].tolist() == split.document(number)[1:].tolist()
        assert borders[row, first : last + 1].tolist() == [True] + [False] * (last - first)
    assert borders.sum() == len(lengths)


def test_rows_are_filled_evenly():
    split = split_of([99] + [9] * 22)
    reader = HeldoutDocuments(split, batch_size=4, seq_len=10)
    assert reader.num_batches == 10


def test_some_documents_can_be_chosen():
    split = split_of([3, 5, 7])
    reader = HeldoutDocuments(split, batch_size=8, seq_len=4, documents=[2, 0])
    assert (reader.num_targets, reader.raw_bytes, reader.batch_size) == (12, 10, 2)
    assert {int(d) for b in reader for d in np.unique(b.documents)} == {-1, 0, 2}


def test_a_uniform_model_of_bytes_needs_log2_of_its_ids():
    split = split_of([10, 20])
    reader = HeldoutDocuments(split, batch_size=2, seq_len=8)
    nats = sum(float(b.rows.loss_mask.sum()) * math.log(256) for b in reader)
    assert nats / math.log(2) / reader.raw_bytes == pytest.approx(8 * 32 / 30)


def test_wrong_requests_are_named():
    with pytest.raises(ConfigError, match="no document to read"):
        HeldoutDocuments(split_of([]), batch_size=1, seq_len=1)
    with pytest.raises(ConfigError, match="no document 3"):
        HeldoutDocuments(split_of([1, 2]), batch_size=1, seq_len=1, documents=[3])
    with pytest.raises(ConfigError, match="seq_len is 0"):
        HeldoutDocuments(split_of([1]), batch_size=1, seq_len=0)

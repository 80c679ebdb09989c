"""Batches: exact content, exact coverage, and nothing but the step decides."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.config import ConfigError
from xlstm_jax.data.errors import DamagedStoreError
from xlstm_jax.data.store import Batch, Loader, Mixture, Split, TokenArray
from xlstm_jax.data.tokenizers import ByteTokenizer

EOD = 0


def numbered(lengths, start=1):
    """A split whose tokens are all different, so that each can be recognised."""
    numbers = iter(range(start, start + sum(lengths)))
    return Split.from_documents([[next(numbers) for _ in range(n)] for n in lengths], eod_id=EOD)


def equal(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


lengths = st.lists(st.integers(0, 12), min_size=1, max_size=12)
sizes = st.integers(1, 7)


def test_a_batch_holds_the_windows_of_the_concatenation():
    split = Split.from_documents([[1, 2, 3], [4, 5]], eod_id=EOD)  # 0 1 2 3 0 4 5 0
    batch = Loader(split, seq_len=4, batch_size=2)(0)
    batch = Batch(*(array[np.argsort(batch.inputs[:, 1])] for array in batch))  # an epoch has an order of its own
    expected = ([[0, 1, 2, 3], [0, 4, 5, 0]], [[1, 2, 3, 0], [4, 5, 0, 0]])
    assert np.array_equal(batch.inputs, expected[0])
    assert np.array_equal(batch.targets, expected[1])
    assert batch.document_borders.tolist() == [[True, False, False, False]] * 2
    assert batch.loss_mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert [a.dtype for a in batch] == [np.int32, np.int32, bool, bool]


@given(lengths, sizes, sizes, st.integers(0, 3))
def test_an_epoch_scores_every_target_once(lengths, seq_len, batch_size, seed):
    split = numbered(lengths)
    loader = Loader(split, seq_len=seq_len, batch_size=batch_size, seed=seed)
    rows = [row for step in range(3 * loader.rows_per_epoch) for row in zip(*loader(step), strict=True)]
    stream = np.asarray(split.tokens)
    for epoch in range(2):
        pairs = [
            (i, t)
            for inputs, targets, _, mask in rows[epoch * loader.rows_per_epoch : (epoch + 1) * loader.rows_per_epoch]
            for i, t in zip(inputs[mask].tolist(), targets[mask].tolist(), strict=True)
        ]
        assert sorted(pairs) == sorted(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))


@given(lengths, sizes, st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_alone(lengths, seq_len, steps):
    mixture = Mixture([numbered(lengths), numbered(lengths[::-1], 1000)], [2, 1])
    walked = Loader(mixture, seq_len=seq_len, batch_size=3, seed=3)
    in_order = [walked(step) for step in range(max(steps) + 1)]
    jumped = Loader(mixture, seq_len=seq_len, batch_size=3, seed=3)
    assert all(equal(jumped(step), in_order[step]) for step in steps)


@given(lengths, st.integers(0, 20), st.integers(1, 8))
def test_hosts_together_read_the_batch(lengths, step, hosts):
    loader = Loader(numbered(lengths), seq_len=3, batch_size=8)
    bounds = np.linspace(0, 8, hosts + 1).astype(int)
    shares = [loader(step, rows=slice(a, b)) for a, b in itertools.pairwise(bounds)]
    assert equal(Batch(*(np.concatenate(arrays) for arrays in zip(*shares, strict=True))), loader(step))


def test_a_batch_of_twice_the_rows_is_two_batches():
    split = numbered([50] * 9)
    small, large = (Loader(split, seq_len=4, batch_size=size, seed=1) for size in (2, 4))
    assert np.array_equal(large(3).inputs, np.concatenate([small(6).inputs, small(7).inputs]))


def test_a_mixture_reads_each_split_by_its_weight_and_in_whole_epochs():
    first, second = numbered([30, 30]), numbered([20], start=1000)
    loader = Loader(Mixture([first, second], [3, 1]), seq_len=5, batch_size=4, seed=0)
    batches = [loader(step) for step in range(20)]
    rows = np.concatenate([np.hstack([batch.inputs[:, :1], batch.targets]) for batch in batches])
    from_second = (rows >= 1000).any(1)
    assert abs(from_second.sum() - 20) <= 1
    # 21 targets are 5 rows: the first five rows of the second split are one epoch of it.
    targets = rows[from_second][:5, 1:]
    assert sorted(targets[targets >= 1000].tolist()) == list(range(1000, 1020))


def test_epochs_and_seeds_differ_in_order():
    split = numbered([400])
    loader = Loader(split, seq_len=4, batch_size=101, seed=0)
    assert loader.rows_per_epoch == 101
    assert not equal(loader(0), loader(1))
    assert not equal(loader(0), Loader(split, seq_len=4, batch_size=101, seed=1)(0))


def test_borders_stand_on_opening_eods_and_on_column_0():
    split = Split.from_documents([[1, 2], [], [3]], eod_id=EOD)  # 0 1 2 0 0 3 0
    (batch,) = (Loader(split, seq_len=8, batch_size=1)(0),)
    assert batch.inputs.tolist() == [[0, 1, 2, 0, 0, 3, 0, 0]]
    assert batch.document_borders.tolist() == [[True, False, False, True, True, False, False, False]]
    assert batch.loss_mask.sum() == 6
    rows = Loader(split, seq_len=2, batch_size=3)(0)
    assert rows.document_borders[:, 0].all()


def test_no_crossing_masks_the_first_token_of_each_document_only():
    split = Split.from_documents([[1, 2], [3, 4, 5]], eod_id=EOD)  # 0 1 2 0 3 4 5 0
    plain = Loader(split, seq_len=7, batch_size=1)(0)
    masked = Loader(split, seq_len=7, batch_size=1, mask_crossing=True)(0)
    assert plain.loss_mask.all()
    assert masked.targets[~masked.loss_mask].tolist() == [1, 3]
    assert np.array_equal(plain.document_borders, masked.document_borders)


def test_rows_across_shards_are_whole():
    tokens = np.arange(1, 21)
    array = TokenArray([tokens[:3], tokens[3:4], tokens[4:17], tokens[17:]])
    assert len(array) == 20
    for start in range(21):
        for stop in range(start, 21):
            assert np.array_equal(array[start:stop], tokens[start:stop])
    assert (array[0], array[3], array[-1]) == (1, 4, 20)
    assert np.array_equal(array[::-3], tokens[::-3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seq_len": 0}, "seq_len is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_loader_names_what_is_wrong(change, says):
    with pytest.raises(ConfigError, match=says):
        Loader(numbered([5]), **({"seq_len": 2, "batch_size": 1} | change))


def test_an_empty_split_and_a_negative_step_are_refused():
    with pytest.raises(ConfigError, match="no documents"):
        Loader(Split.from_documents([], eod_id=EOD), seq_len=2, batch_size=1)
    with pytest.raises(ValueError, match="step is -1"):
        Loader(numbered([5]), seq_len=2, batch_size=1)(-1)


def test_a_token_that_the_tokenizer_does_not_have_is_named_and_not_learnt():
    split = Split.from_documents([[1, 2, 3], [4, 999]], eod_id=256)
    split.tokenizer = ByteTokenizer()
    with pytest.raises(DamagedStoreError, match="memory holds the token 999, but its tokenizer has 257 only"):
        Loader(split, seq_len=8, batch_size=1)(0)

"""The order of rows: a keyed permutation that reaches every row once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlstm_jax.data.store.permutation import permute


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

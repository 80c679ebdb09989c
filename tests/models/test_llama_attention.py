"""Attention in blocks of queries against all of it at once, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.models.llama.attention import MAX_BLOCKS, MIN_BLOCK, attend

HEADS, KV_HEADS, DIM = 4, 2, 8


def at_once(query, key, value, mask, scale):
    """The definition: every query with every key."""
    key, value = (np.repeat(x, HEADS // KV_HEADS, axis=2) for x in (key, value))
    score = scale * np.einsum("bthd,bshd->bhts", query, key)
    score = np.where(mask, score, -1e30)
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weight, value)


def problem(seq, held, *, masked):
    """query, key, value and a mask that lets each query see itself; without one, every key up to itself."""
    rng = np.random.default_rng(seq)
    query = rng.normal(size=(2, seq, HEADS, DIM))
    key, value = rng.normal(size=(2, 2, held + seq, KV_HEADS, DIM))
    causal = held + np.arange(seq)[:, None] >= np.arange(held + seq)
    if not masked:
        return query, key, value, None, causal
    itself = held + np.arange(seq)[:, None] == np.arange(held + seq)
    mask = itself | (causal & (rng.random((2, 1, seq, held + seq)) < 0.7))
    return query, key, value, mask, mask


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("seq", "held"),
    [(1, 40), (MIN_BLOCK, 0), (MIN_BLOCK + 1, 17), (3 * MIN_BLOCK - 5, 0), (MAX_BLOCKS * MIN_BLOCK + 3, 5)],
)
def test_blocks_change_nothing(seq, held, masked, dtype):
    *arrays, mask, visible = problem(seq, held, masked=masked)
    with jax.enable_x64(dtype == "float64"):
        got = attend(*(jnp.asarray(x, dtype) for x in arrays), mask, 0.3)
        assert got.dtype == dtype
        arrays = [np.asarray(np.asarray(x, dtype), np.float64) for x in arrays]
        assert relative_error(got, at_once(*arrays, visible, 0.3)) <= tolerance(dtype, held + seq)


def test_gradients_of_blocks_are_those_of_one(monkeypatch):
    *arrays, mask, _ = problem(2 * MIN_BLOCK + 9, 3, masked=True)
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]

    def gradients():
        return jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x, mask, 0.3))), argnums=(0, 1, 2))(*arrays)

    in_blocks = gradients()
    monkeypatch.setattr("xlstm_jax.models.llama.attention.MIN_BLOCK", 10**6)
    for got, wanted in zip(in_blocks, gradients(), strict=True):
        assert relative_error(got, wanted) <= tolerance("float32")

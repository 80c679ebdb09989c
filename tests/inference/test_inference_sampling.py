"""The choice of a token: right frequencies, right cuts, rows that know nothing of each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.config import ConfigError
from xlstm_jax.inference.sampling import Draw, Sampling, choose, draws, kept_tokens

choose_compiled = jax.jit(choose)
LOGITS = np.log(np.array([0.05, 0.4, 0.15, 0.3, 0.1]))


def chosen(sampling: Sampling, count: int = 4000, logits: np.ndarray = LOGITS) -> np.ndarray:
    """Tokens at positions 0, 1, ... of one stream."""
    draw = Draw(*(jnp.repeat(leaf, count, axis=0) for leaf in draws(sampling, [0])))
    return np.asarray(choose_compiled(jnp.broadcast_to(logits, (count, len(logits))), draw, jnp.arange(count)))


def frequencies(tokens: np.ndarray) -> np.ndarray:
    return np.bincount(tokens, minlength=len(LOGITS)) / len(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature: float) -> None:
    expected = np.exp(LOGITS / temperature)
    np.testing.assert_allclose(
        frequencies(chosen(Sampling(temperature=temperature))), expected / expected.sum(), atol=0.03
    )


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-30])
@pytest.mark.parametrize("top_p", [None, 0.5])
def test_no_temperature_takes_the_likeliest(temperature: float, top_p: float | None) -> None:
    assert set(chosen(Sampling(temperature=temperature, top_p=top_p), 50)) == {1}


def test_of_equals_the_first_is_the_likeliest() -> None:
    assert set(chosen(Sampling(temperature=0), 5, np.zeros(7))) == {0}


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.75}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        # 0.4 and 0.3 are all that top-k leaves, and 0.4 is 57 % of it.
        ({"top_k": 2, "top_p": 0.5}, [1]),
        # Heated, the likeliest token has 0.27, and it takes four to come to 0.8.
        ({"temperature": 3.0, "top_p": 0.8}, [1, 2, 3, 4]),
    ],
)
def test_top_k_and_then_top_p_leave_the_likeliest_in_their_proportions(fields: dict, left: list[int]) -> None:
    sampling = Sampling(**{"temperature": 1.0} | fields)
    expected = np.zeros(len(LOGITS))
    expected[left] = np.exp(LOGITS[left] / sampling.temperature)
    found = frequencies(chosen(sampling))
    assert sorted(np.flatnonzero(found)) == left
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.03)


@jax.jit
def kept(logits, top_k, top_p):
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    return kept_tokens(shifted, jnp.full(len(logits), top_k), jnp.full(len(logits), top_p, jnp.float32))


@pytest.mark.parametrize("top_k", [1, 7, 30, 40, 99])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.93, 1.0])
def test_what_is_kept_is_what_sorting_would_keep(top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(top_k)
    logits = (3 * rng.standard_normal((20, 40))).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # many equal ones
    logits[::3, ::5] = -np.inf
    found = np.asarray(kept(logits, top_k, top_p))
    for row in range(len(logits)):
        order = np.argsort(-logits[row], kind="stable")[:top_k]
        share = np.exp(logits[row, order].astype(np.float64) - logits[row].max())
        share /= share.sum()
        stays = order[(np.cumsum(share) - share < top_p - 1e-6) | (top_p == 1)]
        possible = np.isfinite(logits[row])
        assert set(np.flatnonzero(found[row] & possible)) == {token for token in stays if possible[token]}


def test_of_equals_those_with_the_lower_ids_stay() -> None:
    equals = np.zeros((1, 9), np.float32)
    np.testing.assert_array_equal(np.flatnonzero(kept(equals, 4, 1.0)), [0, 1, 2, 3])
    np.testing.assert_array_equal(np.flatnonzero(kept(equals, 9, 0.5)), [0, 1, 2, 3, 4])


def test_a_cut_that_cuts_nothing_changes_no_choice() -> None:
    free = chosen(Sampling(temperature=1.0), 500)
    np.testing.assert_array_equal(chosen(Sampling(temperature=1.0, top_k=5), 500), free)
    np.testing.assert_array_equal(chosen(Sampling(temperature=1.0, top_p=0.9999999), 500), free)


def test_a_row_with_its_own_settings_does_not_see_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((4, 50)), jnp.float32)
    settings = [Sampling(temperature=0), Sampling(), Sampling(top_k=3), Sampling(temperature=2.0, top_p=0.7)]
    alone = [draws(s, [row]) for row, s in enumerate(settings)]
    together = Draw(*(jnp.concatenate(leaves) for leaves in zip(*alone, strict=True)))
    position = jnp.arange(4)
    expected = [choose(logits[r : r + 1], alone[r], position[r : r + 1])[0] for r in range(4)]
    np.testing.assert_array_equal(choose(logits, together, position), expected)


def test_impossible_tokens_do_not_come() -> None:
    logits = np.where(np.arange(5) == 3, -np.inf, LOGITS)
    assert 3 not in chosen(Sampling(temperature=5.0), logits=logits)
    assert 3 not in chosen(Sampling(temperature=5.0, top_p=0.99), logits=logits)


def test_seeds_and_streams_give_other_numbers() -> None:
    a, b = chosen(Sampling(temperature=1.0, seed=1), 100), chosen(Sampling(temperature=1.0, seed=2), 100)
    assert (a != b).any()
    keys = jax.random.key_data(draws(Sampling(), [0, 1, 2**32 - 1]).key)
    assert len({tuple(key) for key in np.asarray(keys)}) == 3


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": -0.1}, "Sampling.temperature is -0.1, but must be a number >= 0"),
        ({"temperature": float("nan")}, "Sampling.temperature is nan"),
        ({"top_k": 0}, "Sampling.top_k is 0, but must be a whole number >= 1"),
        ({"top_p": 0}, "Sampling.top_p is 0, but must be a number > 0 and <= 1"),
        ({"top_p": 1.1}, "Sampling.top_p is 1.1"),
        ({"max_tokens": 1.5}, "Sampling.max_tokens is 1.5, but must be a whole number"),
        ({"seed": -1}, "Sampling.seed is -1"),
        ({"seed": 2**32}, "Sampling.seed is 4294967296"),
        ({"stop": ["a", ""]}, "Sampling.stop holds ''"),
        ({"stop": b"a"}, "Sampling.stop is b'a', but must be a text or a list of texts"),
        ({"stop": 3}, "Sampling.stop is 3"),
    ],
)
def test_settings_out_of_range_are_named(fields: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling(**fields)
    assert sentence in str(error.value)

"""The chunked cross-entropy is the plain one: value, gradients, masks, and nothing of the size of all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlstm_jax.kernels.cross_entropy import cross_entropy, plain_cross_entropy, token_nats

BATCH, SEQ, DIM, VOCAB = 3, 7, 5, 11
ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""Sums of up to 21 terms, in another order; in the 2-norm of an array."""


def assert_close(value: jax.Array, truth: jax.Array) -> None:
    assert np.linalg.norm(np.ravel(value - truth)) <= ROUNDING * np.linalg.norm(np.ravel(truth))


def make(dtype: type = np.float64) -> tuple:
    rng = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(DIM, VOCAB)), dtype),
        "bias": jnp.asarray(rng.normal(size=VOCAB), dtype),
    }
    features = jnp.asarray(rng.normal(size=(BATCH, SEQ, DIM)), dtype)
    targets = jnp.asarray(rng.integers(VOCAB, size=(BATCH, SEQ)), jnp.int32)
    mask = jnp.asarray(rng.random((BATCH, SEQ)) < 0.7)
    return params, features, targets, mask


def capped_head(params: dict, x: jax.Array) -> jax.Array:
    return 3.0 * jnp.tanh((x @ params["kernel"] + params["bias"]) / 3.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [1, 4, 7, 21, 500])
def test_chunked_loss_and_gradients_equal_the_plain_form(chunk: int) -> None:
    params, features, targets, mask = make()

    def plain(p: dict, x: jax.Array) -> jax.Array:
        return 0.37 * plain_cross_entropy(capped_head(p, x), targets, mask).nats

    def chunked(p: dict, x: jax.Array) -> jax.Array:
        return 0.37 * cross_entropy(lambda f: capped_head(p, f), x, targets, mask, chunk_tokens=chunk).nats

    want = jax.value_and_grad(plain, argnums=(0, 1))(params, features)
    for transform in (lambda f: f, jax.jit):
        got = transform(jax.value_and_grad(chunked, argnums=(0, 1)))(params, features)
        jax.tree.map(assert_close, got, want)
    assert_close(chunked(params, features), want[0])


@pytest.mark.usefixtures("x64")
def test_only_features_or_only_parameters_can_be_differentiated() -> None:
    params, features, targets, mask = make()

    def chunked(p: dict, x: jax.Array) -> jax.Array:
        return cross_entropy(lambda f: capped_head(p, f), x, targets, mask, chunk_tokens=4).nats

    both = jax.grad(chunked, argnums=(0, 1))(params, features)
    for argument in (0, 1):
        alone = jax.grad(chunked, argnums=argument)(params, features)
        jax.tree.map(assert_close, alone, both[argument])


def test_tokens_are_counted_and_masked_targets_do_not_matter() -> None:
    params, features, targets, mask = make(np.float32)
    other = jnp.where(mask, targets, (targets + 3) % VOCAB)
    first = cross_entropy(lambda f: capped_head(params, f), features, targets, mask, chunk_tokens=4)
    second = cross_entropy(lambda f: capped_head(params, f), features, other, mask, chunk_tokens=4)
    assert int(first.tokens) == int(mask.sum())
    assert first.nats == second.nats


def test_no_target_at_all_gives_zero_loss_and_zero_gradient_even_where_the_logits_are_infinite() -> None:
    params, features, targets, mask = make(np.float32)
    none = jnp.zeros_like(mask)

    def loss(p: dict, x: jax.Array) -> jax.Array:
        total = cross_entropy(lambda f: capped_head(p, f), x, targets, none, chunk_tokens=4)
        return total.nats / jnp.maximum(total.tokens, 1)

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(params, features)
    assert value == 0
    assert all(not jnp.any(g) for g in jax.tree.leaves(grads))


def test_bfloat16_features_still_give_a_float32_loss() -> None:
    params, features, targets, mask = make(np.float32)
    low = features.astype(jnp.bfloat16)
    total = cross_entropy(lambda f: f @ params["kernel"].astype(jnp.bfloat16), low, targets, mask)
    assert total.nats.dtype == jnp.float32
    assert token_nats(low @ params["kernel"].astype(jnp.bfloat16), targets).dtype == jnp.float32


def test_the_compiled_step_holds_no_tensor_as_large_as_all_logits() -> None:
    tokens, dim, vocab, chunk = 1024, 8, 512, 64
    features, kernel = jnp.zeros((1, tokens, dim)), jnp.zeros((dim, vocab))
    targets, mask = jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens), bool)

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return cross_entropy(lambda f: f @ w, x, targets, mask, chunk_tokens=chunk).nats

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(kernel, features).compile()
    all_logits = tokens * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits / 2

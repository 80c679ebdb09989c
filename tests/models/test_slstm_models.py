"""sLSTM blocks in the language model, alone and mixed with mLSTM blocks."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ROUNDING, VOCAB, assert_close, assert_trees_close, build, model_config, tokens_of

from xlstm_jax.config import ConfigError
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.layouts import to_blocks, to_runs
from xlstm_jax.models.stack import spans
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

STACKS = {"[0:1]": "all", "[1:1]": [1]}


def slstm_block(taps=4, cell=None, **layer):
    return sLSTMBlockConfig(
        slstm=sLSTMLayerConfig(
            num_heads=2,
            conv1d_kernel_size=taps,
            slstm_cell=sLSTMCellConfig(recurrent_weight_init="standard", **(cell or {})),
            **layer,
        ),
        feedforward=FeedForwardConfig(round_proj_up_to_multiple_of=8),
    )


def mixed_config(stack="[1:1]", taps=4, cell=None, **fields):
    """Two blocks; in [1:1] the first is an mLSTM block with convolution."""
    exact = {"reset_at_document_boundaries": True, "reset_mode": "exact"}
    config = model_config("mlstm", cell=exact, slstm_block=slstm_block(taps, cell), slstm_at=STACKS[stack], **fields)
    return config if stack == "[1:1]" else dataclasses.replace(config, mlstm_block=None)


class Small(NamedTuple):
    model: xLSTMLMModel
    params: Any
    run: Any
    """Tokens and keywords to (logits, state)."""


def small_of(model, params):
    return Small(model, params, jax.jit(lambda t, **kw: model.apply({"params": params}, t, return_state=True, **kw)))


@pytest.fixture(scope="module", params=[("[0:1]", 4), ("[0:1]", 0), ("[1:1]", 4)], ids=str)
def small(request):
    """A model that keeps documents apart."""
    stack, taps = request.param
    return small_of(*build(mixed_config(stack, taps, {"reset_at_document_boundaries": True})))


def test_pieces_and_steps_equal_the_whole(small):
    tokens = tokens_of(2, 9)
    borders = jnp.zeros((2, 9), bool).at[0, 4].set(True).at[1, 7].set(True)
    want, want_state = small.run(tokens, document_borders=borders)
    for cuts in ((0, 5, 6, 9), range(10)):
        state, parts = small.model.init_state(2), []
        for start, end in itertools.pairwise(cuts):
            part, state = small.run(tokens[:, start:end], document_borders=borders[:, start:end], state=state)
            parts.append(part)
        assert_close(jnp.concatenate(parts, axis=1), want)
        assert_trees_close(state, want_state, 1e-5)


def test_a_row_depends_on_itself_alone(small):
    tokens = tokens_of(3, 8)
    want, _ = small.run(tokens)
    got, _ = small.run(tokens.at[1:].set(tokens_of(2, 8, seed=5)))
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("left", [0, 3])
def test_a_padded_row_equals_the_row_alone(small, left):
    tokens, length = tokens_of(2, 9), 6
    mask = jnp.zeros((2, 9), bool).at[0, left : left + length].set(True).at[1].set(True)
    got, state = small.run(tokens, mask=mask)
    alone, alone_state = small.run(tokens[:1, left : left + length])
    assert_close(got[:1, left : left + length], alone)
    assert_trees_close(jax.tree.map(lambda x: x[:1], state), alone_state, 1e-5)


def test_packed_documents_equal_documents_alone(small):
    tokens = tokens_of(1, 11)
    borders = jnp.zeros((1, 11), bool).at[0, jnp.array([0, 4, 5])].set(True)
    got, state = small.run(tokens, document_borders=borders)
    for start, end in ((0, 4), (4, 5), (5, 11)):
        alone, alone_state = small.run(tokens[:, start:end])
        assert_close(got[:, start:end], alone)
    assert_trees_close(state, alone_state, 1e-5)


def test_padding_and_packing_change_no_gradient(small):
    model, params = small.model, small.params
    tokens = tokens_of(2, 5)

    def gradient(tokens, chosen, **options):
        def loss(params):
            logits = model.apply({"params": params}, tokens, **options)
            return jnp.sum(jnp.where(chosen[..., None], jnp.sin(logits), 0))

        return jax.jit(jax.grad(loss))(params)

    want = gradient(tokens, jnp.ones((2, 5), bool))
    # One row: padding, a document, the other one, padding.
    packed = jnp.pad(tokens.reshape(1, 10), ((0, 0), (2, 1)))
    mask = jnp.zeros((1, 13), bool).at[:, 2:12].set(True)
    borders = jnp.zeros((1, 13), bool).at[0, jnp.array([2, 7])].set(True)
    assert_trees_close(gradient(packed, mask, mask=mask, document_borders=borders), want, 2e-5)


def test_a_mix_resets_in_all_blocks_or_in_none():
    config = mixed_config()
    assert config.block_config(1).layer_config().cell_config().reset_at_document_boundaries
    with pytest.raises(ConfigError, match=r"sLSTMCellConfig.reset_at_document_boundaries is True, .* mLSTMCellConfig"):
        model_config(slstm_block=slstm_block(cell={"reset_at_document_boundaries": True}), slstm_at=[1])


def published(dim, blocks, places):
    return xLSTMLMModel(
        xLSTMLMModelConfig(
            mlstm_block=mLSTMBlockConfig(),
            slstm_block=sLSTMBlockConfig(),
            slstm_at=places,
            num_blocks=blocks,
            embedding_dim=dim,
            vocab_size=50304,
        )
    )


@pytest.mark.parametrize(
    ("dim", "blocks", "places", "millions"),
    [
        (768, 24, [], 163.81),
        (768, 24, [3, 20], 163.69),
        (1024, 48, [3, 5, 7, 40, 42, 44], 408.44),
        (1536, 48, [3, 5, 7, 40, 42, 44], 839.74),
        (2048, 48, [3, 5, 7, 40, 42, 44], 1420.07),
    ],
)
def test_parameters_of_the_published_mixes(dim, blocks, places, millions):
    assert round(published(dim, blocks, places).param_count / 1e6, 2) == millions


@pytest.mark.parametrize("stack", STACKS)
def test_costs_are_those_of_the_arrays(stack):
    model, params = build(mixed_config(stack))
    assert model.param_count == sum(x.size for x in jax.tree.leaves(params))
    assert model.state_bytes == sum(x.nbytes for x in jax.tree.leaves(model.init_state(1)))
    dim, width, head = 16, 24, 8
    slstm = 2 * 2 * 4 * dim * head + 2 * 4 * dim + 3 * 2 * dim * width
    if stack == "[0:1]":
        assert model.flops_per_token(64) == 2 * slstm + 2 * dim * VOCAB
    else:
        pure = xLSTMLMModel(model_config("mlstm")).flops_per_token(64)
        assert model.flops_per_token(64) == slstm + (pure - 2 * dim * VOCAB) / 2 + 2 * dim * VOCAB


def test_a_scan_over_slstm_blocks_equals_the_blocks_in_turn():
    model, params = build(mixed_config("[0:1]", num_blocks=3))
    scanned = xLSTMLMModel(dataclasses.replace(model.config, scan_blocks=True))
    tokens = tokens_of(2, 6)
    want, want_state = small_of(model, params).run(tokens)
    got, state = small_of(scanned, to_runs(params, spans(scanned.config))).run(tokens)
    assert_close(got, want)
    assert_trees_close(state[0], jax.tree.map(lambda *x: jnp.stack(x, axis=1), *want_state), 1e-5)
    # Each block gets the biases of its place.
    initial = [jax.jit(m.init)(jax.random.key(0), tokens)["params"]["xlstm_block_stack"] for m in (model, scanned)]
    blocks, scanned_blocks = initial[0], to_blocks(initial[1])
    for i in range(3):
        bias, scanned_bias = (b[f"blocks_{i}"]["xlstm"]["cell"]["bias"] for b in (blocks, scanned_blocks))
        assert_close(scanned_bias, bias, ROUNDING)
    assert not np.allclose(blocks["blocks_0"]["xlstm"]["cell"]["bias"], blocks["blocks_2"]["xlstm"]["cell"]["bias"])


def test_recomputation_changes_nothing():
    tokens = tokens_of(2, 6)
    model, params = build(mixed_config())

    def logits_and_gradient(model):
        def loss(params):
            logits = model.apply({"params": params}, tokens)
            return jnp.sum(jnp.sin(logits)), logits

        gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
        return logits, gradient

    want, plain = logits_and_gradient(model)
    for names in (["sLSTMBlock", "mLSTMBlock"], ["sLSTMCell"]):
        config = dataclasses.replace(model.config, parallel=ParallelConfig(remat=names))
        got, gradient = logits_and_gradient(xLSTMLMModel(config))
        assert_close(got, want)
        assert_trees_close(gradient, plain, 1e-5)


def test_configs_of_mixes_survive_json():
    config = mixed_config()
    again = xLSTMLMModelConfig.from_dict(config.to_dict())
    assert again == config
    assert again.block_map == [0, 1]
    assert isinstance(again.slstm_block, sLSTMBlockConfig)


def test_impossible_stacks_are_refused():
    with pytest.raises(
        ConfigError, match=r"sLSTMLayerConfig.embedding_dim is 8, but it follows from xLSTMLMModelConfig"
    ):
        model_config(slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(embedding_dim=8)), slstm_at=[1])
    with pytest.raises(ConfigError, match="num_heads is 3, but must divide embedding_dim 16"):
        model_config(slstm_block=sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=3)), slstm_at=[1])

"""The LSTM against that of Flax, its state, and its place among the models."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_models import ROUNDING, VOCAB, assert_close, tokens_of

from xlstm_jax.config import from_json, to_json
from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.lstm.block import GATES, LSTMBlock
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.training.config import Experiment

CONFIG = LSTMConfig(embedding_dim=16, num_blocks=2, vocab_size=VOCAB, context_length=9)


def test_a_layer_is_the_lstm_of_flax_forward_and_backward() -> None:
    x = jax.random.normal(jax.random.key(1), (3, 7, 16))
    block = LSTMBlock(CONFIG)
    params = jax.jit(block.init)(jax.random.key(0), x)["params"]
    theirs = nn.RNN(nn.LSTMCell(16))

    def ours_in_their_names(params):
        own, names = params["lstm"], {"i": "i", "f": "f", "z": "g", "o": "o"}
        cell = {}
        for number, gate in enumerate(GATES):
            cell[f"i{names[gate]}"] = {"kernel": own["kernel"][number]}
            cell[f"h{names[gate]}"] = {"kernel": own["recurrent_kernel"][number], "bias": own["bias"][number]}
        return {"cell": cell}

    @jax.jit
    def found(params, x):
        return jax.value_and_grad(lambda params, x: jnp.sum(jnp.sin(block.apply({"params": params}, x)[0])), (0, 1))(
            params, x
        )

    @jax.jit
    def wanted(params, x):
        def loss(params, x):
            return jnp.sum(jnp.sin(theirs.apply({"params": ours_in_their_names(params)}, x)))

        return jax.value_and_grad(loss, (0, 1))(params, x)

    for one, other in zip(jax.tree.leaves(found(params, x)), jax.tree.leaves(wanted(params, x)), strict=True):
        # Sums in another order: roundings of float32, of the largest entry.
        assert np.max(np.abs(one - other)) <= 32 * np.finfo(np.float32).eps * np.max(np.abs(other))


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_its_state_handed_on_equals_one_pass_and_padding_and_borders_do_as_they_should(scan_blocks: bool) -> None:
    model, tokens = build_model(dataclasses.replace(CONFIG, scan_blocks=scan_blocks)), tokens_of(2, 9)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    apply = jax.jit(functools.partial(model.apply, variables, return_state=True))
    whole, after = apply(tokens)
    _, state = apply(tokens[:, :5])
    padded = jnp.pad(tokens[:, 5:], ((0, 0), (0, 3)))
    mask, on_padding = (jnp.broadcast_to(flag, (2, 7)) for flag in (jnp.arange(7) < 4, jnp.arange(7) == 5))
    second, state = apply(padded, state=state, mask=mask, document_borders=on_padding)
    assert_close(second[:, :4], whole[:, 5:], 2 * ROUNDING)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert_close(one, other, 2 * ROUNDING)
    parted, _ = apply(tokens, document_borders=jnp.broadcast_to(jnp.arange(9) == 5, (2, 9)))
    assert_close(parted[:, :5], whole[:, :5], 2 * ROUNDING)
    assert_close(parted[:, 5:], apply(tokens[:, 5:])[0], 2 * ROUNDING)


def test_an_experiment_with_it_is_read_back_and_its_cost_is_counted() -> None:
    experiment = Experiment(model=CONFIG)
    assert from_json(Experiment, to_json(experiment)) == experiment
    model = build_model(CONFIG)
    assert model.param_count == 2 * VOCAB * 16 + 2 * (2 * 4 * 16 * 16 + 4 * 16)
    assert model.flops_per_token(9) == 2 * 2 * 8 * 16**2 + 2 * 16 * VOCAB
    assert model.state_bytes == 2 * 2 * 16 * 4
    params = jax.jit(model.init)(jax.random.key(0), tokens_of(1, 2))["params"]
    assert 0.9 < params["token_embedding"]["embedding"].std() < 1.1
    bias = params["block_stack"]["blocks_0"]["lstm"]["bias"]
    assert 0.7 < bias[GATES.index("f")].mean() < 1.3
    assert abs(bias[GATES.index("i")].mean()) < 0.25

"""The model counts its own cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from small_models import LAYER_TYPES, model_config

from xlstm_jax.config import ConfigError
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import BlockStack, xLSTMBlockStack, xLSTMBlockStackConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel


def published(layer_type, dim, blocks, heads):
    v1 = layer_type == "mlstm_v1"
    return xLSTMLMModel(
        model_config(
            layer_type,
            layer={"num_heads": heads, "qk_dim_factor": 0.5 if v1 else 1.0, "round_proj_up_to_multiple_of": 64},
            cell={"gate_soft_cap": 15.0, "igate_bias_init_range": -10.0 if v1 else 0.0},
            feedforward={"proj_factor": 2.667, "act_fn": "swish"} if v1 else None,
            **{"vocab_size": 50304, "embedding_dim": dim, "num_blocks": blocks, "dtype": "bfloat16"},
            **{"norm_type": "rmsnorm", "scan_blocks": True},
        )
    )


@pytest.mark.parametrize(
    ("layer_type", "dim", "blocks", "heads", "count"),
    [
        ("mlstm", 768, 12, 4, 120_536_928),
        ("mlstm", 768, 24, 4, 163_806_144),
        ("mlstm", 2048, 48, 4, 1_422_559_616),
        ("mlstm", 4096, 64, 8, 6_889_935_872),
        ("mlstm_v1", 768, 12, 4, 164_073_312),
        ("mlstm_v1", 2048, 24, 4, 1_420_839_104),
        ("mlstm_v1", 2560, 32, 5, 2_780_449_600),
        ("mlstm_v1", 4096, 32, 8, 6_865_424_896),
    ],
)
def test_parameters_of_the_published_models(layer_type, dim, blocks, heads, count):
    model = published(layer_type, dim, blocks, heads)
    assert model.param_count == count
    assert xLSTMLMModel(dataclasses.replace(model.config, scan_blocks=False)).param_count == count


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
@pytest.mark.parametrize("scan_blocks", [False, True])
def test_param_count_and_state_bytes_are_those_of_the_arrays(layer_type, scan_blocks):
    model = xLSTMLMModel(model_config(layer_type, scan_blocks=scan_blocks, bias=True))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert model.param_count == sum(x.size for x in jax.tree.leaves(params))
    assert model.state_bytes == sum(x.nbytes for x in jax.tree.leaves(model.init_state(1)))
    assert model.state_bytes * 3 == sum(x.nbytes for x in jax.tree.leaves(model.init_state(3)))


def test_flops_of_the_published_7b_follow_from_its_widths():
    seq, dim, blocks, heads, width = 8192, 4096, 32, 8, 10944
    dqk, dv = dim // 2 // heads, dim // heads
    layer = 2 * dim * (2 * dim // 2 + 2 * dim) + 2 * dim * dim + 2 * 2 * dim * heads
    cell = 4 * dqk * dv * heads + 65 * (dqk + dv) * heads
    expected = blocks * (layer + cell + 6 * dim * width) + 2 * dim * 50304
    model = published("mlstm_v1", dim, blocks, heads)
    assert model.flops_per_token(seq) == expected
    assert model.flops_per_token(seq, train=True) == 3 * expected


def test_flops_of_the_layer_with_convolution_follow_from_its_widths():
    dim, inner, heads = 768, 1536, 4
    layer = 2 * dim * 2 * inner + 2 * inner * dim + 3 * 2 * 4 * inner + 2 * 4 * inner + 2 * 2 * 3 * inner * heads
    cell = 4 * (inner // heads) ** 2 * heads + 65 * 2 * inner
    model = published("mlstm", dim, 24, heads)
    assert model.flops_per_token(2048) == 24 * (layer + cell) + 2 * dim * 50304


def test_flops_count_a_tied_head_and_a_short_sequence():
    model = published("mlstm_v1", 768, 12, 4)
    tied = xLSTMLMModel(dataclasses.replace(model.config, tie_weights=True))
    assert tied.flops_per_token(64) == model.flops_per_token(64) == model.flops_per_token(4096)
    assert tied.param_count == model.param_count - 768 * 50304
    assert model.flops_per_token(64) - model.flops_per_token(1) == 12 * 63 * (384 + 768)


@pytest.mark.parametrize("stack", [BlockStack, xLSTMBlockStack])
def test_blocks_without_a_config_are_refused_with_one_sentence(stack):
    x = jnp.zeros((1, 2, 16))
    for places in ([1], "all"):
        with pytest.raises(ConfigError, match=r"slstm_at is .* but xLSTMLMModelConfig.slstm_block is None"):
            stack(model_config(slstm_at=places)).init(jax.random.key(0), x)
    with pytest.raises(ConfigError, match=r"mlstm_block and .*slstm_block are None"):
        stack(xLSTMBlockStackConfig(embedding_dim=16)).init(jax.random.key(0), x)


def test_the_vocabulary_must_be_set_to_build():
    with pytest.raises(ConfigError, match="vocab_size is -1, but must be set"):
        xLSTMLMModel(model_config(vocab_size=-1)).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))

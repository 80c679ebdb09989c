"""The parts of a block by themselves: norms, convolution, block-diagonal maps, products, initial distributions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_models import LAYER_TYPES, ROUNDING, assert_close, model_config

from xlstm_jax.models.shared import create_common_init_fn, product, small_init, soft_cap_logits, uniform_init, wang_init
from xlstm_jax.models.shared.context import Context
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlock, mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer_v1 import mLSTMLayerV1
from xlstm_jax.models.xlstm_parallel.components.conv import CausalConv1d, CausalConv1dConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import (
    ACTIVATIONS,
    FeedForward,
    FeedForwardConfig,
    get_act_fn,
)
from xlstm_jax.models.xlstm_parallel.components.linear_headwise import (
    LinearHeadwiseExpand,
    LinearHeadwiseExpandConfig,
    block_diagonal,
)
from xlstm_jax.models.xlstm_parallel.components.normalization import MultiHeadNormLayer, NormLayer
from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import BlockStack
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

"""Relative, in the 2-norm: a few roundings of float32, for what is computed in a few operations."""


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


# ---------------------------------------------------------------------------------------------------------------------
# Norms
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm_type", "flax"), [("layernorm", nn.LayerNorm), ("rmsnorm", nn.RMSNorm)])
@pytest.mark.parametrize("bias", [False, True])
def test_norms_equal_flax(norm_type, flax, bias):
    x, scale, shift = normal(2, 5, 16) + 0.5, normal(16, seed=1), normal(16, seed=2)
    params = {"scale": scale} | ({"bias": shift} if bias else {})
    ours = NormLayer(bias=bias, eps=1e-3, norm_type=norm_type).apply({"params": params}, x)
    unshifted = {"scale": scale} | ({"bias": 0 * shift} if norm_type == "layernorm" else {})
    theirs = flax(epsilon=1e-3).apply({"params": unshifted}, x)
    assert_close(ours, theirs + (shift if bias else 0), ROUNDING)


@pytest.mark.parametrize(
    ("norm_type", "axis", "shape"), [("layernorm", 1, (2, 3, 5, 8)), ("rmsnorm", -2, (2, 5, 3, 8))]
)
def test_multi_head_norms_are_norms_of_each_head(norm_type, axis, shape):
    x, scale = normal(*shape), normal(3, 8, seed=1)
    norm = MultiHeadNormLayer(norm_type=norm_type, axis=axis)
    assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), x)) == {"params": {"scale": (3, 8)}}
    y = norm.apply({"params": {"scale": scale}}, x)
    for head in range(3):
        alone = NormLayer(norm_type=norm_type).apply({"params": {"scale": scale[head]}}, jnp.take(x, head, axis))
        assert_close(jnp.take(y, head, axis), alone, ROUNDING)


def test_statistics_are_float32():
    x = (100 + normal(1, 4096)).astype(jnp.bfloat16)
    y = NormLayer(dtype=jnp.bfloat16, weight=False).apply({}, x)
    assert y.dtype == jnp.bfloat16
    assert_close(y, NormLayer(weight=False).apply({}, x.astype(jnp.float32)), 4e-3)


def test_an_unknown_norm_names_the_near_miss():
    with pytest.raises(ValueError, match="did you mean 'rmsnorm'"):
        NormLayer(norm_type="rms_norm")


# ---------------------------------------------------------------------------------------------------------------------
# Convolution
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel_mixing", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("seq", [1, 3, 9])
def test_convolution_equals_laxs(channel_mixing, taps, seq):
    config = CausalConv1dConfig(feature_dim=6, kernel_size=taps, channel_mixing=channel_mixing, dtype="float32")
    x = normal(2, seq, 6)
    params = CausalConv1d(config).init(jax.random.key(1), x)["params"]
    assert params["kernel"].shape == (taps, 6 if channel_mixing else 1, 6)
    expected = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (1,),
        [(taps - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=1 if channel_mixing else 6,
    )
    y, _ = CausalConv1d(config).apply({"params": params}, x)
    assert_close(y, expected + params["bias"], ROUNDING)


def test_a_convolution_without_taps_is_the_identity():
    conv, x = CausalConv1d(CausalConv1dConfig(kernel_size=0, dtype="float32")), normal(1, 3, 4)
    assert conv.init(jax.random.key(0), x) == {}
    y, window = conv.apply({}, x, None, Context(keep_state=True))
    np.testing.assert_array_equal(y, x)
    assert window.shape == (1, 0, 4)


def test_convolution_weights_are_uniform_within_the_fan_in():
    config = CausalConv1dConfig(feature_dim=512, kernel_size=4, dtype="float32")
    params = CausalConv1d(config).init(jax.random.key(0), normal(1, 2, 512))["params"]
    for leaf in params.values():
        assert 0.45 < float(jnp.abs(leaf).max()) <= 0.5
        assert abs(float(leaf.std()) - 0.5 / math.sqrt(3)) < 0.02


def test_a_wrong_number_of_features_is_named():
    with pytest.raises(ValueError, match=r"the input has 4 features, but CausalConv1dConfig\.feature_dim is 6"):
        CausalConv1d(CausalConv1dConfig(feature_dim=6)).init(jax.random.key(0), normal(1, 2, 4))


# ---------------------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "size_in", "size_out"), [(8, 4, 4), (6, 4, 2), (3, 2, 5), (1, 4, 4), (2, 32, 32)])
def test_block_diagonal_maps_equal_a_dense_map_with_all_gradients(heads, size_in, size_out):
    x, kernel, dy = (
        normal(2, 5, heads * size_in),
        normal(heads, size_out, size_in, seed=1),
        normal(2, 5, heads * size_out),
    )

    def dense(x, kernel):
        return x @ jax.scipy.linalg.block_diag(*(kernel[h].T for h in range(heads)))

    y, pull = jax.vjp(block_diagonal, x, kernel)
    truth, pull_truth = jax.vjp(dense, x, kernel)
    assert_close(y, truth)
    for ours, theirs in zip(pull(dy), pull_truth(dy), strict=True):
        assert_close(ours, theirs)


def test_parameters_that_are_not_trainable_get_no_gradient():
    options = {"trainable_weight": False, "trainable_bias": False}
    module = LinearHeadwiseExpand(LinearHeadwiseExpandConfig(in_features=8, num_heads=2, **options))
    params = module.init(jax.random.key(0), normal(1, 8))
    gradient = jax.grad(lambda p: module.apply(p, normal(1, 8)).sum())(params)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_has_the_gradients_of_a_matrix_product(transposed):
    x, kernel, dy = normal(2, 5, 4), normal(*((6, 4) if transposed else (4, 6)), seed=1), normal(2, 5, 6, seed=2)
    y, pull = jax.vjp(lambda x, w: product(x, w, transposed), x, kernel)
    truth, pull_truth = jax.vjp(lambda x, w: x @ (w.T if transposed else w), x, kernel)
    assert_close(y, truth)
    for ours, theirs in zip(pull(dy), pull_truth(dy), strict=True):
        assert_close(ours, theirs)


def test_a_product_in_bfloat16_gives_a_float32_kernel_gradient():
    x, kernel = normal(2048, 4).astype(jnp.bfloat16), normal(4, 3, seed=1)
    y, pull = jax.vjp(product, x, kernel)
    dx, dkernel = pull(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert_close(dkernel, jnp.broadcast_to(x.astype(jnp.float32).sum(0)[:, None], (4, 3)), 1e-5)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    x = jnp.linspace(-3, 3, 7)
    expected = {
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu_exact": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "relu": lambda x: np.maximum(x, 0),
        "relu^2": lambda x: np.maximum(x, 0) ** 2,
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "swish": lambda x: x / (1 + np.exp(-x)),
        "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    }[name]
    assert_close(get_act_fn(name)(x), expected(np.asarray(x, np.float64)), ROUNDING)


def test_a_gated_feedforward_by_hand():
    layer = FeedForward(FeedForwardConfig(embedding_dim=8, act_fn="swish", dtype="float32"))
    x = normal(2, 3, 8)
    params = layer.init(jax.random.key(0), x)["params"]
    up, gate, down = (params[name]["kernel"] for name in ("proj_up", "proj_up_gate", "proj_down"))
    assert_close(layer.apply({"params": params}, x), (jax.nn.swish(x @ gate) * (x @ up)) @ down)


def test_soft_cap():
    x = jnp.array([-1e3, 0.1, 1e3])
    for cap, value in zip(soft_cap_logits(x, 5.0), np.asarray(x, np.float64), strict=True):
        assert_close(cap, 5 * np.tanh(value / 5), ROUNDING)
    assert soft_cap_logits(x, None) is x


# ---------------------------------------------------------------------------------------------------------------------
# Initial values
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "share", "bound"),
    [("normal", 1, 9), ("truncated_normal", 0.88, 2), ("uniform", 1, 1.733)],
)
@pytest.mark.parametrize(
    ("init", "std"),
    [
        (lambda d: small_init(64, d), math.sqrt(2 / (5 * 64))),
        (lambda d: wang_init(64, 12, d), 2 / 12 / 8),
        (lambda d: create_common_init_fn("wang2", 64, 12, d), 2 / 24 / 8),
    ],
)
def test_standard_deviation_and_bound_of_the_distributions(init, std, distribution, share, bound):
    x = init(distribution)(jax.random.key(0), (300, 300))
    assert abs(float(x.std()) / (std * share) - 1) < 0.01
    assert abs(float(x.mean())) < 0.02 * std
    assert float(jnp.abs(x).max()) <= bound * std


def test_unknown_initialisers_name_the_near_miss():
    with pytest.raises(ValueError, match="did you mean 'wang2'"):
        create_common_init_fn("wang3x2", 8, 1)
    with pytest.raises(ValueError, match="must be one of normal, truncated_normal, uniform"):
        small_init(8, "gaussian")
    x = uniform_init(-2.0, -1.0)(jax.random.key(0), (1000,))
    assert float(x.max()) < -1 <= float(x.min()) + 1


@pytest.mark.parametrize("distribution", ["truncated_normal", "uniform"])
def test_distributions_of_embedding_head_and_layers_reach_their_parameters(distribution):
    fields = {"init_distribution_embed": distribution, "init_distribution_out": distribution, "vocab_size": 400}
    config = model_config(
        embedding_dim=64, layer={"init_distribution": distribution, "output_init_fn": "wang2"},
        feedforward={"init_distribution": distribution, "output_init_fn": "small"}, **fields,
    )  # fmt: skip
    params = xLSTMLMModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    block = params["xlstm_block_stack"]["blocks_0"]
    share, bound = {"truncated_normal": (0.88, 2), "uniform": (1, 1.733)}[distribution]
    small, wang2 = math.sqrt(2 / (5 * 64)), 2 / (2 * 2) / 8
    leaves = [
        (params["token_embedding"]["embedding"], small),
        (params["lm_head"]["kernel"], small),
        (block["xlstm"]["q"]["kernel"], small),
        (block["xlstm"]["proj_down"]["kernel"], wang2),
        (block["ffn"]["proj_up"]["kernel"], small),
        (block["ffn"]["proj_down"]["kernel"], small),
    ]
    for leaf, std in leaves:
        assert abs(float(leaf.std()) / (std * share) - 1) < 0.06
        assert float(jnp.abs(leaf).max()) <= bound * std


@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_what_starts_at_zero_or_one(layer_type):
    config = model_config(layer_type, layer={"output_init_fn": "zeros"}, bias=True)
    params = xLSTMLMModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    block = params["xlstm_block_stack"]["blocks_0"]
    layer = block["xlstm"]
    zeros = [layer["cell"]["igate"]["kernel"], layer["cell"]["fgate"]["kernel"], layer["proj_down"]["kernel"]]
    ones = [block["norm"]["scale"], layer["cell"]["out_norm"]["scale"]]
    zeros += [layer["o"]["kernel"], layer["o"]["bias"]] if layer_type == "mlstm_v1" else [layer["q"]["bias"]]
    ones += [] if layer_type == "mlstm_v1" else [layer["learnable_skip"]]
    assert all((leaf == 0).all() for leaf in zeros)
    assert all((leaf == 1).all() for leaf in ones)


@pytest.mark.parametrize("gate", ["igate", "fgate"])
@pytest.mark.parametrize("layer_type", LAYER_TYPES)
def test_gate_biases_in_their_three_forms(gate, layer_type):
    def bias(value):
        config = model_config(layer_type, layer={"num_heads": 8}, cell={f"{gate}_bias_init_range": value}, num_blocks=1)
        params = xLSTMLMModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
        return params["xlstm_block_stack"]["blocks_0"]["xlstm"]["cell"][gate]["bias"]

    assert_close(bias((3.0, 6.0)), np.linspace(3, 6, 8), ROUNDING)
    np.testing.assert_array_equal(bias(-10.0), np.full(8, -10.0, np.float32))
    drawn = bias(None)
    assert 0.02 < float(drawn.std()) < 0.25
    assert float(jnp.abs(drawn).max()) < 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Every module by itself
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["layer", "layer_v1", "block", "stack"])
def test_modules_run_by_themselves_with_state(part):
    layer_type = "mlstm_v1" if part == "layer_v1" else "mlstm"
    layer = mLSTMLayerConfig(
        embedding_dim=16, num_heads=2, layer_type=layer_type, dtype="float32", round_proj_up_to_multiple_of=8
    )
    module = {
        "layer": lambda: mLSTMLayer(layer),
        "layer_v1": lambda: mLSTMLayerV1(layer),
        "block": lambda: mLSTMBlock(mLSTMBlockConfig(mlstm=layer, feedforward=FeedForwardConfig())),
        "stack": lambda: BlockStack(model_config("mlstm")),
    }[part]()
    x = normal(2, 7, 16)
    params = module.init(jax.random.key(0), x)
    y, none = module.apply(params, x)
    assert none is None
    first, state = module.apply(params, x[:, :4], module.init_state(2), Context(keep_state=True))
    second, _ = module.apply(params, x[:, 4:], state)
    assert_close(jnp.concatenate([first, second], axis=1), y)
    assert y.shape == x.shape


def test_the_cell_runs_by_itself_on_other_gate_inputs():
    cell = mLSTMCell(mLSTMCellConfig(num_heads=2, dtype="float32"))
    q, k, v, x = normal(2, 5, 8), normal(2, 5, 8, seed=1), normal(2, 5, 12, seed=2), normal(2, 5, 3, seed=3)
    params = cell.init(jax.random.key(0), q, k, v)
    assert params["params"]["igate"]["kernel"].shape == (28, 2)
    y, _ = cell.apply(params, q, k, v)
    joint, _ = cell.apply(params, q, k, v, jnp.concatenate([q, k, v], axis=-1))
    assert y.shape == v.shape
    assert_close(y, joint, ROUNDING)
    assert cell.init(jax.random.key(0), q, k, v, x)["params"]["igate"]["kernel"].shape == (3, 2)
    with pytest.raises(ValueError, match="num_heads is 2, but must divide the 7 features of k"):
        cell.init(jax.random.key(0), q, k[..., :7], v)
    with pytest.raises(ValueError, match="num_heads is not set"):
        mLSTMCell(mLSTMCellConfig()).init(jax.random.key(0), q, k, v)


def test_a_layer_without_a_width_names_the_field():
    with pytest.raises(ValueError, match=r"mLSTMLayerConfig\.embedding_dim is -1, but must be set"):
        mLSTMLayer(mLSTMLayerConfig()).init(jax.random.key(0), normal(1, 2, 16))
    with pytest.raises(ValueError, match=r"mLSTMLayerConfig\.proj_factor is None"):
        mLSTMLayer(mLSTMLayerConfig(embedding_dim=16, proj_factor=None)).init(jax.random.key(0), normal(1, 2, 16))

"""The sLSTM layer and block by themselves: definition, initial values, options, refusals."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import ROUNDING, assert_close, random_like

from xlstm_jax.config import ConfigError
from xlstm_jax.models.shared.context import Context
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig

DIM, HEADS = 12, 3


def layer_config(cell=None, **layer):
    fields = {"embedding_dim": DIM, "num_heads": HEADS, "dtype": "float32"} | layer
    return sLSTMLayerConfig(slstm_cell=sLSTMCellConfig(**(cell or {})), **fields)


def with_parameters(module, seq=6, batch=2):
    """(parameters without zeros, an input)."""
    x = jax.random.normal(jax.random.key(0), (batch, seq, DIM))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return random_like(shapes), x


def written_out(params, x, taps, eps=1e-5):
    """The layer in NumPy, one row and token at a time, from the description in the xLSTM paper."""
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), params), np.asarray(x, np.float64)
    dim = DIM // HEADS
    out = np.zeros_like(x)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for row in range(x.shape[0]):
        y, c, n = (np.zeros((HEADS, dim)) for _ in range(3))
        for t in range(x.shape[1]):
            seen = x[row, t]
            if taps:
                seen = p["conv"]["bias"].copy()
                for tap in range(taps):
                    source = t - (taps - 1) + tap
                    if source >= 0:
                        seen += p["conv"]["kernel"][tap, 0] * x[row, source]
                seen = seen * sigmoid(seen)
            raw = np.zeros((4, HEADS, dim))
            for g, (name, source) in enumerate((("i", seen), ("f", seen), ("z", x[row, t]), ("o", x[row, t]))):
                for h in range(HEADS):
                    raw[g, h] = p[name]["kernel"][h] @ source[h * dim : (h + 1) * dim]
                    raw[g, h] += p["cell"]["recurrent_kernel"][g, h] @ y[h] + p["cell"]["bias"][g, h]
            c = sigmoid(raw[1]) * c + np.exp(raw[0]) * np.tanh(raw[2])
            n = sigmoid(raw[1]) * n + np.exp(raw[0])
            y = sigmoid(raw[3]) * c / n
            normed = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
            out[row, t] = (normed * p["group_norm"]["scale"]).ravel() if "group_norm" in p else normed.ravel()
    return out


@pytest.mark.parametrize(("taps", "weight"), [(4, True), (0, True), (1, False)])
def test_layer_is_what_the_paper_describes(taps, weight):
    layer = sLSTMLayer(layer_config(conv1d_kernel_size=taps, group_norm_weight=weight))
    params, x = with_parameters(layer)
    assert ("conv" in params) == bool(taps)
    assert ("group_norm" in params) == weight
    assert_close(layer.apply({"params": params}, x)[0], written_out(params, x, taps), 2e-5)


def test_block_adds_the_layer_and_the_feedforward_to_their_input():
    block = sLSTMBlock(sLSTMBlockConfig(slstm=layer_config()))
    params, x = with_parameters(block)

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale

    x64 = np.asarray(x, np.float64)
    after = x64 + written_out(params["xlstm"], norm(x64, np.asarray(params["norm"]["scale"])), 4)
    ffn = jax.tree.map(np.asarray, params["ffn"])
    assert ffn["proj_up"]["kernel"].shape == (DIM, 64)  # 1.3 times the width, rounded up to a multiple of 64
    inner = norm(after, np.asarray(params["ffn_norm"]["scale"]))
    gate = np.asarray(jax.nn.gelu(inner @ ffn["proj_up_gate"]["kernel"]))
    want = after + (gate * (inner @ ffn["proj_up"]["kernel"])) @ ffn["proj_down"]["kernel"]
    assert_close(block.apply({"params": params}, x)[0], want, 2e-5)


def cell_parameters(dim=DIM, heads=HEADS, key=0, **fields):
    cell = sLSTMCell(sLSTMCellConfig(embedding_dim=dim, num_heads=heads, **fields))
    return cell.init(jax.random.key(key), jnp.zeros((1, 1, 4, heads, dim // heads)))["params"]


def test_initial_biases():
    ramp = np.arange(4) / 3
    for index, power in ((0, 0.3), (2, 0.95), (4, 1.6)):
        bias = cell_parameters(_block_idx=index, _num_blocks=5)["bias"]
        assert_close(bias[1], np.broadcast_to(5 - 12 * ramp**power, (3, 4)), ROUNDING)
        assert not np.any(bias[jnp.array([0, 2, 3])])
    np.testing.assert_allclose(cell_parameters(dim=2, heads=2)["bias"][1], 5.0)  # one feature a head
    small = cell_parameters(bias_init="small_init")["bias"]
    assert_close(small[1], np.broadcast_to([3, 4, 5, 6], (3, 4)), ROUNDING)
    assert not np.any(small[jnp.array([0, 2, 3])])
    assert not np.any(cell_parameters(bias_init="zeros")["bias"])
    standard = cell_parameters(dim=192, bias_init="standard")["bias"]
    assert 0.95 / 192**0.5 < np.abs(standard).max() <= 1 / 192**0.5


def test_initial_recurrent_weights():
    assert not np.any(cell_parameters()["recurrent_kernel"])
    kernel = cell_parameters(recurrent_weight_init="standard")["recurrent_kernel"]
    assert kernel.shape == (4, 3, 4, 4)
    assert 0.9 / DIM**0.5 < np.abs(kernel).max() <= 1 / DIM**0.5


def test_dtypes():
    config = layer_config({"dtype_r": "float32", "dtype_b": "bfloat16"}, dtype="bfloat16")
    layer = sLSTMLayer(config)
    params, x = with_parameters(layer)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y, state = layer.apply({"params": params}, x.astype("bfloat16"), None, Context(keep_state=True))
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in state.memory} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
        lambda a: (a.shape, a.dtype), layer.init_state(2)
    )
    # Each choice reaches the arithmetic.
    base = np.asarray(sLSTMLayer(layer_config()).apply({"params": params}, x)[0])
    for other in (
        layer_config({"dtype_r": "bfloat16"}),
        layer_config({"dtype_b": "bfloat16"}),
        layer_config(dtype_w="bfloat16"),
    ):
        y = np.asarray(sLSTMLayer(other).apply({"params": params}, x)[0])
        assert 0 < np.linalg.norm(y - base) < 0.05 * np.linalg.norm(base)


def test_a_wider_state_is_kept(x64):
    layer = sLSTMLayer(layer_config({"dtype_s": "float64"}))
    params, x = with_parameters(layer)
    y, state = layer.apply({"params": params}, x.astype("float32"), None, Context(keep_state=True))
    assert y.dtype == jnp.float32
    assert {a.dtype for a in state.memory} == {jnp.dtype("float64")}


@pytest.mark.parametrize(
    "cell", [{"gradient_recurrent_cut": True}, {"gradient_recurrent_clipval": 1e-3}, {"forward_clipval": 0.05}]
)
def test_options_of_the_recurrence_reach_the_kernel(cell):
    plain = sLSTMLayer(layer_config())
    other = sLSTMLayer(layer_config(cell))
    slow = sLSTMLayer(layer_config(cell | {"implementation": "recurrent"}))
    params, x = with_parameters(plain)

    def gradient(layer):
        return jax.grad(lambda x: jnp.sum(jnp.sin(layer.apply({"params": params}, x)[0])))(x)

    assert np.linalg.norm(gradient(plain) - gradient(other)) > 1e-2 * np.linalg.norm(gradient(plain))
    assert_close(gradient(other), gradient(slow))
    same_output = np.allclose(plain.apply({"params": params}, x)[0], other.apply({"params": params}, x)[0])
    assert same_output == ("forward_clipval" not in cell)


def test_dropout_acts_in_training_only():
    layer = sLSTMLayer(layer_config(dropout=0.5))
    params, x = with_parameters(layer)
    still = layer.apply({"params": params}, x)[0]
    moved = layer.apply({"params": params}, x, None, Context(train=True), rngs={"dropout": jax.random.key(1)})[0]
    assert float(jnp.abs(still - moved).max()) > 0.01
    np.testing.assert_array_equal(still, sLSTMLayer(layer_config()).apply({"params": params}, x)[0])


def test_configs_survive_json_and_are_not_changed():
    config = sLSTMBlockConfig(
        slstm=layer_config({"bias_init": "small_init", "gradient_recurrent_clipval": 2.0}),
        feedforward=FeedForwardConfig(proj_factor=2.0),
    )
    before = config.to_dict()
    assert sLSTMBlockConfig.from_dict(before) == config
    assert dataclasses.asdict(sLSTMBlock(config).config) == dataclasses.asdict(config)
    with_parameters(sLSTMBlock(config))
    assert config.to_dict() == before
    assert sLSTMBlockConfig().feedforward == FeedForwardConfig()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sLSTMCellConfig(bias_init="power"), "sLSTMCellConfig.bias_init is 'power'"),
        (lambda: sLSTMCellConfig(recurrent_weight_init="normal"), "recurrent_weight_init is 'normal'"),
        (lambda: sLSTMCellConfig(gradient_recurrent_clipval=-1.0), "gradient_recurrent_clipval is -1.0"),
        (lambda: sLSTMCellConfig(dtype_s="bfloat16"), "dtype_s is 'bfloat16'"),
        (lambda: sLSTMCellConfig(implementation="cuda"), "implementation is 'cuda'"),
        (lambda: layer_config(num_heads=5), "num_heads is 5, but must divide embedding_dim 12"),
        (lambda: layer_config(conv1d_kernel_size=-1), "conv1d_kernel_size is -1"),
        (lambda: sLSTMLayerConfig().cell_config().head_dim, "embedding_dim is -1, but must be set"),
        (
            lambda: sLSTMBlockConfig(slstm=layer_config({"num_heads": 2})).layer_config().cell_config(),
            "sLSTMCellConfig.num_heads is 2, but it follows from sLSTMLayerConfig, which says 3",
        ),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()

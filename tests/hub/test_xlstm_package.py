"""Models of the PyTorch package `xlstm`: recorded ones give what was recorded, and what is in doubt is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from wide_models import assert_float32_is_float64_but_for_rounding

from xlstm_jax.config import ConfigError
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.formats.xlstm_package import params_from_xlstm_package, xlstm_package_from_params
from xlstm_jax.hub.formats.xlstm_package_config import config_from_xlstm_package
from xlstm_jax.hub.mapping import Entry, Part, params_from_tensors, tensors_from_params
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.models.language_model import block_shapes
from xlstm_jax.models.layouts import to_runs
from xlstm_jax.models.stack import spans
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name.removeprefix("xlstm_package_") for path in GOLDEN.glob("xlstm_package_*"))
KERNEL, BIAS = (f"xlstm_block_stack.blocks.1.xlstm.slstm_cell.{name}" for name in ("_recurrent_kernel_", "_bias_"))


def recorded(name):
    """The package's config, its state dict, and what it computed."""
    folder = GOLDEN / f"xlstm_package_{name}"
    truth = dict(np.load(folder / "truth.npz"))
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"), truth


def losses_of(logits, tokens):
    logits = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]


@pytest.mark.parametrize("name", NAMES)
def test_logits_losses_and_text_are_as_recorded(name):
    config, tensors, truth = recorded(name)
    model = xLSTMLMModel(config_from_xlstm_package(config))
    params, tokens = params_from_xlstm_package(tensors, config), jnp.asarray(truth["tokens"])

    @jax.jit
    def text(tokens):
        """The likeliest continuation, token by token."""

        def step(carry, _):
            token, state = carry
            logits, state = model.apply({"params": params}, token, state=state, return_state=True)
            return (jnp.argmax(logits, -1), state), token[:, 0]

        logits, state = model.apply({"params": params}, tokens, return_state=True)
        return jax.lax.scan(step, (jnp.argmax(logits[:, -1:], -1), state), None, length=11)[1].T

    def results(model, params):
        logits = model.apply({"params": params}, tokens)
        return logits, losses_of(logits, tokens)

    logits, losses = assert_float32_is_float64_but_for_rounding(model.config, params, results)
    assert relative_error(logits, truth["logits"]) < 1e-5
    assert relative_error(losses, truth["losses"]) < 1e-5
    np.testing.assert_array_equal(text(truth["text"][:, :5]), truth["text"][:, 5:])


def test_the_gradient_of_every_parameter_is_as_recorded(x64):
    config, tensors, truth = recorded("mixed")
    model = xLSTMLMModel(config_from_xlstm_package(config, "float64"))
    params = jax.tree.map(lambda x: jnp.asarray(x, "float64"), params_from_xlstm_package(tensors, config))
    flat = {key.removeprefix("gradient/"): value for key, value in truth.items() if key.startswith("gradient/")}
    # A gradient has the layout of its parameter, but for the one that is added to the scales of norms.
    flat = {k: v.astype("float64") - ("norm" in k and "weight" in k) for k, v in flat.items()}
    tokens = jnp.asarray(truth["tokens"])
    got = jax.jit(jax.grad(lambda p: jnp.mean(losses_of(model.apply({"params": p}, tokens), tokens))))(params)
    errors = jax.tree.map(relative_error, got, params_from_xlstm_package(flat, config))
    assert max(jax.tree.leaves(errors)) < 1e-5, errors


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["vanilla", "cuda"])
def test_written_and_read_again_all_bits_are_the_same(name, layout):
    config, tensors, _ = recorded(name)
    ours, params = config_from_xlstm_package(config), params_from_xlstm_package(tensors, config)
    written = xlstm_package_from_params(params, ours, layout)
    again = params_from_xlstm_package(written, config, layout)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    if layout == config["slstm_block"]["slstm"]["backend"]:
        for key, value in tensors.items():
            assert written[key].shape == value.shape
            if "norm" not in key:
                np.testing.assert_array_equal(written[key], value)


def test_a_mix_in_runs_of_blocks_is_written_and_read_as_one_in_single_blocks():
    config, _, _ = recorded("mixed")
    del config["_block_map"]
    ours = config_from_xlstm_package(config | {"num_blocks": 5, "slstm_at": [2]})
    scanned = dataclasses.replace(ours, scan_blocks=True)
    params = xLSTMLMModel(ours).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    runs = to_runs(params, spans(scanned))
    assert {"blocks_0_1", "blocks_2", "blocks_3_4"} < set(runs["xlstm_block_stack"])
    written = [xlstm_package_from_params(*model) for model in ((params, ours), (runs, scanned))]
    jax.tree.map(np.testing.assert_array_equal, *written)
    table = [Entry(path, (Part(path),)) for path in block_shapes(ours)]
    single = {name: tensor.values() for name, tensor in tensors_from_params(table, ours, params).items()}
    jax.tree.map(np.testing.assert_array_equal, params_from_tensors(table, scanned, single), runs)


def test_dtypes_stay_and_scales_keep_their_bits():
    config, tensors, _ = recorded("mixed")
    half = {key: value.astype(jnp.bfloat16) for key, value in tensors.items()}
    params = params_from_xlstm_package(half, config)
    block = params["xlstm_block_stack"]["blocks_0"]
    assert block["xlstm"]["proj_down"]["kernel"].dtype == jnp.bfloat16
    stored = half["xlstm_block_stack.blocks.0.xlstm_norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(block["norm"]["scale"], 1 + stored)


def test_a_prefix_of_all_names_is_left_out():
    config, tensors, _ = recorded("mixed")
    prefixed = {f"_orig_mod.{key}": value for key, value in tensors.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        params_from_xlstm_package(prefixed, config),
        params_from_xlstm_package(tensors, config),
    )


def test_every_tensor_that_does_not_fit_is_named():
    config, tensors, _ = recorded("mixed")
    del tensors["lm_head.weight"]
    tensors["xlstm_block_stack.blocks.1.ffn.proj_up.bias"] = np.zeros(48, np.float32)
    tensors["xlstm_block_stack.blocks.0.xlstm.learnable_skip"] = np.zeros(3, np.float32)
    tensors["token_embedding.weight"] = np.zeros((23, 16), np.int8)
    with pytest.raises(WeightsError) as caught:
        params_from_xlstm_package(tensors, config)
    for problem in (
        r"missing: lm_head.weight \(23, 16\)",
        r"surplus: xlstm_block_stack.blocks.1.ffn.proj_up.bias",
        r"mis-shaped: xlstm_block_stack.blocks.0.xlstm.learnable_skip is \(3,\), but the config asks for \(32,\)",
        r"wrong dtype: token_embedding.weight is int8",
    ):
        assert re.search(problem, str(caught.value))


def test_tied_weights_may_be_stored_once_or_twice_but_not_differ():
    config, tensors, _ = recorded("mixed_cuda")
    truth = params_from_xlstm_package(tensors, config)
    embedding = tensors.pop("token_embedding.weight")
    for stored in ({"lm_head.weight": embedding}, {"lm_head.weight": embedding, "token_embedding.weight": embedding}):
        jax.tree.map(np.testing.assert_array_equal, params_from_xlstm_package(tensors | stored, config), truth)
    stored["lm_head.weight"] = embedding + 1
    with pytest.raises(WeightsError, match=r"lm_head.weight differs from token_embedding.weight"):
        params_from_xlstm_package(tensors | stored, config)


def other_layout(tensors, bias=True):
    """The sLSTM of "mixed" (2 heads of 8 features) as the CUDA backend stores it."""
    kernel = tensors[KERNEL].reshape(2, 4, 8, 8).transpose(0, 3, 1, 2)
    external = tensors[BIAS].reshape(4, 2, 8).transpose(1, 0, 2)
    cuda = {KERNEL: kernel.reshape(2, 8, 32)} | ({BIAS: external.reshape(-1)} if bias else {})
    return tensors | cuda, tensors | {KERNEL: kernel, BIAS: external}


def test_the_layout_is_told_from_kernel_and_config_together():
    config, tensors, _ = recorded("mixed")
    truth = params_from_xlstm_package(tensors, config)
    cuda, external = other_layout(tensors)
    config["slstm_block"]["slstm"]["backend"] = "cuda"
    for stored in (cuda, external):
        jax.tree.map(np.testing.assert_array_equal, params_from_xlstm_package(stored, config), truth)
    config["slstm_block"]["slstm"]["backend"] = "vanilla"
    jax.tree.map(np.testing.assert_array_equal, params_from_xlstm_package(cuda, config, "cuda"), truth)


@pytest.mark.parametrize("said", ["cuda", None])
def test_a_kernel_of_another_backend_than_the_configs_is_refused(said):
    """Somebody may have transposed the kernel and left the bias, whose shape is the same."""
    config, tensors, _ = recorded("mixed")
    truth = params_from_xlstm_package(tensors, config)
    if said is None:
        del config["slstm_block"]["slstm"]["backend"]  # the package's default is "cuda"
    else:
        config["slstm_block"]["slstm"]["backend"] = said
    with pytest.raises(WeightsError, match=r"blocks \[1\] cannot be told.*'vanilla'.*Say --recurrent-layout vanilla"):
        params_from_xlstm_package(tensors, config)
    jax.tree.map(np.testing.assert_array_equal, params_from_xlstm_package(tensors, config, "vanilla"), truth)
    # A bias that reads the same in both orders leaves no doubt.
    tensors[BIAS] = np.zeros_like(tensors[BIAS])
    params_from_xlstm_package(tensors, config)


def test_an_outside_view_of_the_kernel_with_a_flat_bias_is_refused():
    config, tensors, _ = recorded("mixed")
    _, external = other_layout(tensors)
    with pytest.raises(WeightsError, match=r"order of .*_bias_ \(64,\) cannot be told.*--recurrent-layout cuda"):
        params_from_xlstm_package(external | {BIAS: tensors[BIAS]}, config)


def test_blocks_in_different_layouts_are_refused():
    config, tensors, _ = recorded("slstm_without_conv")
    cuda, _ = other_layout(tensors)
    with pytest.raises(WeightsError, match=r"blocks \[0\] have the layout 'vanilla', those of the blocks \[1\]"):
        params_from_xlstm_package(cuda, config)


def test_a_layout_that_the_kernels_do_not_have_is_refused():
    config, tensors, _ = recorded("mixed")
    with pytest.raises(
        WeightsError, match=r"mis-shaped: .*_recurrent_kernel_ is \(2, 32, 8\), but the config asks for \(2, 8, 32\)"
    ):
        params_from_xlstm_package(tensors, config, "cuda")
    with pytest.raises(WeightsError, match=r"recurrent layout is 'triton'"):
        params_from_xlstm_package(tensors, config, "triton")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("slstm_block.slstm.function", "lstm", r"slstm_block\.slstm\.function is 'lstm', but must be 'slstm'"),
        ("slstm_block.slstm.constants", {"X": 1}, r"slstm\.constants is"),
        ("slstm_block.slstm.output_shape", "BSH", r"slstm\.output_shape is 'BSH'"),
        ("slstm_block.slstm.backend", "triton", r"slstm\.backend is 'triton'"),
        ("slstm_block.slstm.bias_init", "ones", r"bias_init is 'ones'"),
        ("slstm_block.slstm.heads", 4, r"has the key 'heads' \(did you mean 'num_heads'\?\)"),
        ("slstm_block.feedforward.act_fn", "gelu_exact", r"feedforward\.act_fn is 'gelu_exact'"),
        ("slstm_block.feedforward.ff_type", "ffn", r"feedforward\.ff_type is 'ffn'"),
        ("mlstm_block.mlstm.num_heads", "four", r"mlstm\.num_heads is 'four', but must be a whole number"),
        ("mlstm_block.mlstm.num_heads", 5, r"num_heads"),
        ("mlstm_block.feedforward", {}, r"config\.mlstm_block has the key 'feedforward'"),
        ("slstm_at", [0], r"_block_map says that the model was built with sLSTM blocks at \[1\]"),
        ("slstm_at", [7], r"slstm_at"),
        ("model_type", "xlstm", r"config has the key 'model_type'"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_its_key(where, value, message):
    config, _, _ = recorded("mixed")
    *parents, last = where.split(".")
    inner = config
    for name in parents:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(ConfigError, match=message):
        config_from_xlstm_package(config)


def test_defaults_that_are_left_out_are_the_packages():
    config = config_from_xlstm_package(
        '{"mlstm_block": {}, "slstm_block": {}, "vocab_size": 9, "num_blocks": 4, "slstm_at": [-1]}'
    )
    assert (config.embedding_dim, config.slstm_at, config.norm_eps, config.dtype) == (128, [3], 1e-5, "float32")
    assert config.mlstm_block.mlstm.mlstm_cell.norm_eps == config.slstm_block.slstm.norm_eps == 1e-5
    feedforward = config.slstm_block.feedforward
    assert (feedforward.act_fn, feedforward.proj_factor) == ("gelu_exact", 1.3)
    assert config_from_xlstm_package({"slstm_block": {"feedforward": None}}).block_map == [1]


def test_the_clip_of_the_cuda_kernels_acts_on_outputs_too():
    """They compile the bound of the gradient into both."""
    cells = {}
    for backend in ("vanilla", "cuda"):
        data = {"slstm_block": {"slstm": {"backend": backend, "gradient_recurrent_clipval": 0.5}}}
        cell = config_from_xlstm_package(data).slstm_block.slstm.slstm_cell
        cells[backend] = (cell.gradient_recurrent_clipval, cell.forward_clipval)
    assert cells == {"vanilla": (0.5, None), "cuda": (0.5, 0.5)}

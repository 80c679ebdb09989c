"""Language models of the PyTorch package `xlstm`: state dict in, the same logits, losses, text and gradients out."""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_like
from wide_models import assert_float32_is_float64_but_for_rounding

from xlstm_jax.cli import main
from xlstm_jax.cli.convert import experiment_of
from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.hub.converted import write_run
from xlstm_jax.hub.formats.base import Weights
from xlstm_jax.hub.formats.xlstm_package import params_from_xlstm_package, xlstm_package_from_params
from xlstm_jax.hub.formats.xlstm_package_config import config_from_xlstm_package
from xlstm_jax.hub.kept import Kept
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.models.language_model import param_shapes
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel
from xlstm_jax.presets import get_preset

torch = pytest.importorskip("torch")
pytest.importorskip("xlstm")
package_models = pytest.importorskip("xlstm_package_models")
as_dict, package_config = package_models.as_dict, package_models.package_config
package_model, state_dict = package_models.package_model, package_models.state_dict
MODELS, to_cuda_layout = package_models.MODELS, package_models.to_cuda_layout


def tokens_of(batch, length, seed=1):
    return np.random.default_rng(seed).integers(0, 41, (batch, length))


def imported(config, tensors, dtype="float32", eps=None, **options):
    data = json.loads(json.dumps(as_dict(config)))
    ours = config_from_xlstm_package(data, dtype)
    if eps is not None and ours.mlstm_block is not None:
        ours.mlstm_block.mlstm.mlstm_cell.backend.kwargs["eps"] = eps
    return xLSTMLMModel(ours), params_from_xlstm_package(tensors, data, **options)


def losses_of(logits, tokens):
    logits, targets = torch.as_tensor(np.array(logits))[:, :-1], torch.as_tensor(tokens)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").numpy()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 45])
def test_logits_and_losses_are_the_packages(name, length):
    config = package_config(**MODELS[name])
    package, tokens = package_model(config), tokens_of(2, length)
    model, params = imported(config, state_dict(package))
    logits = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens))
    with torch.no_grad():
        truth = package(torch.as_tensor(tokens)).numpy()
    assert relative_error(logits, truth) < 1e-5
    if length > 1:
        assert relative_error(losses_of(logits, tokens), losses_of(truth, tokens)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_in_float64_they_agree_to_its_precision(name, x64):
    # Without the epsilon of the mLSTM: it stands in the stabilised frame, and the stabilisers of the two differ.
    config = package_config(**MODELS[name])
    package, tokens = package_model(config, torch.float64, eps=0.0), tokens_of(2, 37)
    model, params = imported(config, state_dict(package), "float64", eps=0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    logits = jax.jit(model.apply)({"params": params}, jnp.asarray(tokens))
    with torch.no_grad():
        truth = package(torch.as_tensor(tokens)).numpy()
    assert relative_error(logits, truth) < 1e-11


@pytest.mark.parametrize("name", ["slstm", "mixed_4_heads_biases_tied", "mixed_without_conv_and_norms"])
def test_the_layout_of_the_cuda_backend_gives_the_same_parameters(name):
    config = package_config(**MODELS[name])
    tensors = state_dict(package_model(config))
    cuda = to_cuda_layout(tensors, config.slstm_block.slstm.num_heads)
    assert any(tensors[name].shape != cuda[name].shape for name in tensors)
    _, truth = imported(config, tensors)
    _, asked = imported(config, cuda, recurrent_layout="cuda")
    config.slstm_block.slstm.backend = "cuda"
    _, told = imported(config, cuda)
    for params in (asked, told):
        jax.tree.map(np.testing.assert_array_equal, params, truth)


@pytest.mark.parametrize("name", ["mixed", "slstm"])
def test_the_greedy_continuation_is_the_packages(name):
    config = package_config(**MODELS[name])
    package, tokens, prompt, total = package_model(config), tokens_of(2, 7), 7, 24
    model, params = imported(config, state_dict(package))
    truth = torch.as_tensor(tokens)
    with torch.no_grad():
        while truth.shape[1] < total:
            truth = torch.cat([truth, package(truth)[:, -1:].argmax(-1)], dim=1)

    @jax.jit
    def step(tokens, state):
        logits, state = model.apply({"params": params}, tokens, state=state, return_state=True)
        return jnp.argmax(logits[:, -1:], axis=-1), state

    token, state = step(jnp.asarray(tokens), model.init_state(2))
    text = [jnp.asarray(tokens), token]
    for _ in range(total - prompt - 1):
        token, state = step(token, state)
        text.append(token)
    np.testing.assert_array_equal(jnp.concatenate(text, axis=1), truth.numpy())


@pytest.mark.parametrize("name", ["mixed", "mixed_4_heads_biases_tied"])
def test_the_gradient_of_the_loss_is_that_of_the_package(name, x64):
    config = package_config(**MODELS[name])
    package, tokens = package_model(config, torch.float64, eps=0.0), tokens_of(2, 33)
    model, params = imported(config, state_dict(package), "float64", eps=0.0)
    logits = package(torch.as_tensor(tokens))
    torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), torch.as_tensor(tokens)[:, 1:]).backward()
    gradients = {key: p.grad.numpy() for key, p in package.named_parameters()}
    # A gradient has the layout of its parameter, but for the one that is added to the scales of norms.
    gradients = {key: value - ("norm" in key and "weight" in key) for key, value in gradients.items()}
    truth = params_from_xlstm_package(gradients, as_dict(config))

    def loss(model, params):
        logits = jax.nn.log_softmax(model.apply({"params": params}, jnp.asarray(tokens))[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logits, jnp.asarray(tokens)[:, 1:, None], axis=-1))

    got = jax.jit(jax.grad(partial(loss, model)))(params)
    errors = jax.tree.map(relative_error, got, truth)
    assert max(jax.tree.leaves(errors)) < 1e-9, errors

    narrow, params = imported(config, {key: value.astype("float32") for key, value in state_dict(package).items()})
    assert_float32_is_float64_but_for_rounding(
        narrow.config, params, lambda model, p: jax.grad(partial(loss, model))(p)
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["vanilla", "cuda"])
def test_the_package_reads_what_is_written_for_it(name, layout):
    config = package_config(**MODELS[name])
    package = package_model(config)
    tensors = state_dict(package)
    model, params = imported(config, tensors)
    written = xlstm_package_from_params(params, model.config, layout)
    truth = tensors if layout == "vanilla" else to_cuda_layout(tensors, config.slstm_block.slstm.num_heads)
    assert written.keys() == truth.keys()
    # Their norms keep weight - 1: two roundings of a number near 1; all else is only moved.
    rounding = 2 * np.finfo(np.float32).eps
    for key, value in written.items():
        np.testing.assert_allclose(value, truth[key], rtol=0, atol=rounding if "norm" in key else 0, err_msg=key)
    _, again = imported(config, written, recurrent_layout=layout)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("preset", ["xlstm_125m_1_0", "xlstm_125m_7_1"])
def test_an_exported_preset_is_the_same_model_in_the_package(tmp_path, preset):
    """Loaded by the lines of the docs."""
    mixed = {"slstm_at": [1]} if preset.endswith("7_1") else {}
    model = dataclasses.replace(get_preset(preset).model, vocab_size=320, num_blocks=3, embedding_dim=32, **mixed)
    model = dataclasses.replace(model, dtype="float32", lm_head_dtype="float32", context_length=64)
    params = random_like(param_shapes(model))
    write_run(tmp_path / "run", Weights(model, params), ByteTokenizer(), Kept(), experiment_of)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "folder"), "--format", "xlstm-package"]) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "folder/README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace('"folder/', f'"{tmp_path}/folder/'), names)  # the model card's own lines
    tokens = tokens_of(2, 45)
    with torch.no_grad():
        truth = names["model"].eval()(torch.as_tensor(tokens)).numpy()
    logits = jax.jit(xLSTMLMModel(model).apply)({"params": params}, jnp.asarray(tokens))
    assert relative_error(logits, truth) < 1e-5

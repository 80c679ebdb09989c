"""The training step on meshes: the same numbers as on one device, and no exchange that is not needed."""

from __future__ import annotations

import re

import jax
import numpy as np
import optax
import pytest
from mesh_models import RATE, ROWS, SEQ, VOCAB, Descent, config_of, rows_of

from xlstm_jax.models.language_model import build_model, param_shapes
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.step import TrainState, make_train_step

STEPS = 4


def worst(trees, truths):
    """The largest error of a leaf, against the largest entry of that leaf."""
    errors = jax.tree.map(
        lambda x, y: float(np.max(np.abs(x - y)) / (np.max(np.abs(y)) + 1e-30)), jax.device_get(trees), truths
    )
    return max(jax.tree.leaves(errors))


@pytest.mark.parametrize(
    ("kind", "words", "accumulate", "fields"),
    [
        ("mlstm_v1", ("fsdp=2,sp=2,tp=2", "sp=8"), 1, {}),
        ("mixed", ("fsdp=2,sp=2,tp=2",), 1, {"scan_blocks": False}),
        ("llama", ("dp=2,sp=2,tp=2",), 2, {"tie_weights": True}),
    ],
)
def test_steps_on_a_mesh_are_those_of_one_device(kind, words, accumulate, fields, x64):
    config = config_of(kind, **fields)
    one = Descent(config, None, accumulate)
    losses, params = one(STEPS)
    start = jax.device_get(one.state.params)
    for mesh in words:
        parted = Descent(config, mesh, accumulate)
        found, after = parted(STEPS)
        np.testing.assert_allclose(found[0], losses[0], rtol=1e-14)
        np.testing.assert_allclose(found, losses, rtol=1e-13)
        gradient, truth = (jax.tree.map(lambda x, y: (x - y) / RATE, start, p) for p in (after[0], params[0]))
        assert worst(gradient, truth) < 1e-11
        assert worst(after[-1], params[-1]) < 1e-12
        # No logits of all tokens, nor of all tokens of a device; nothing as large as a row's tokens squared.
        shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", parted.compiled.as_text())}
        assert not any(shape[-1] == VOCAB and np.prod(shape[:-1]) >= ROWS * SEQ for shape in shapes)
        assert kind == "llama" or not any(shape.count(SEQ) > 1 for shape in shapes)


@pytest.mark.parametrize(
    ("kind", "words", "allowed"),
    [("mlstm_v1", "dp=8", {"all-reduce"}), ("mlstm_v1", "sp=8", {"all-gather", "all-reduce", "reduce-scatter"})],
)
def test_only_what_must_is_exchanged(kind, words, allowed):
    parted = Descent(config_of(kind, "float32"), words)
    assert set(parted.collectives()) <= allowed


def test_without_a_mesh_the_step_knows_nothing_of_devices():
    config = config_of("mixed", "float32")
    model = build_model(config)
    optimizer = Optimizer(*optax.sgd(RATE), learning_rate=lambda step: RATE)
    params = param_shapes(config)
    state = TrainState(jax.ShapeDtypeStruct((), "int32"), params, jax.eval_shape(optimizer.init, params))
    program = str(make_train_step(model, optimizer).trace(state, rows_of(0)).jaxpr)
    assert len(program) > 10_000
    for word in ("shard_map", "sharding_constraint", "psum", "all_gather", "pvary", "axis_index"):
        assert word not in program

"""The training step on meshes: the same numbers as on one device, and no exchange that is not needed."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest
from mesh_models import (
    OPTIMIZERS,
    RATE,
    ROWS,
    SEQ,
    SMALL,
    VOCAB,
    WIDTH,
    Descent,
    config_of,
    drawn,
    rows_of,
    steps_of_optimizers,
)

from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.language_model import build_model, param_shapes
from xlstm_jax.models.layouts import to_blocks
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.step import TrainState, make_train_step

STEPS = 4
EPS = float(np.finfo(np.float64).eps)
"""Sums are made in another order; each step passes the rounding of the one before on, some times over."""


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
        np.testing.assert_allclose(found[0], losses[0], rtol=32 * EPS)
        np.testing.assert_allclose(found, losses, rtol=256 * EPS)
        gradient, truth = (jax.tree.map(lambda x, y: (x - y) / RATE, start, p) for p in (after[0], params[0]))
        assert worst(gradient, truth) < 1e-11
        assert worst(after[-1], params[-1]) < 1e-12
        # No logits of all tokens, nor of all tokens of a device; nothing as large as a row's tokens squared.
        shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", parted.compiled.as_text())}
        assert not any(shape[-1] == VOCAB and np.prod(shape[:-1]) >= ROWS * SEQ for shape in shapes)
        assert kind == "llama" or not any(shape.count(SEQ) > 1 for shape in shapes)
        if "fsdp" in mesh:  # no dense map is there of all blocks at once
            maps = {leaf.shape for leaf in jax.tree.leaves(start) if leaf.ndim == 3 and min(leaf.shape[1:]) >= WIDTH}
            assert not shapes & maps


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=[pytest.mark.long, pytest.mark.slow])])
def test_every_optimizer_takes_the_steps_of_one_device_with_blocks_in_runs_or_not(whole, x64):
    """Second moments divide what rounding has left of gradients near 0: errors of Adam's kind grow to some 1e-12. Those
    of signs (Lion) and singular values (Muon) could grow to all, but neither comes as close to 0 as a rounding."""
    scanned, alone = config_of("mlstm_v1"), config_of("mlstm_v1", scan_blocks=False)
    truth, _ = steps_of_optimizers(scanned, None, STEPS, whole=whole)
    for config in (scanned, alone):
        found, update = steps_of_optimizers(config, "fsdp=8", STEPS, whole=whole)
        for name in OPTIMIZERS:
            assert worst(to_blocks(found[name]), to_blocks(truth[name])) < 1e-10, name
        # Muon needs whole matrices: those of a run are dealt out, and each that is alone is gathered once.
        matrices = sum(sorted(leaf.shape) == [32, 64] for leaf in jax.tree.leaves(found["muon"]))
        assert len(re.findall(r"f64\[(?:32,64|64,32)\]\S* all-gather\(", update)) == matrices
        assert (matrices == 0) == (config is scanned)
        assert not re.search(r"f64\[2,(?:32,64|64,32)\]", update)
    start = drawn(scanned)["lm_head"]
    assert all(1e-4 < worst(truth[name]["lm_head"], start) < 10 for name in OPTIMIZERS)


@pytest.mark.parametrize(
    ("kind", "words", "allowed"),
    [("mlstm_v1", "dp=8", {"all-reduce"}), ("mlstm_v1", "sp=8", {"all-gather", "all-reduce", "reduce-scatter"})],
)
def test_only_what_must_is_exchanged(kind, words, allowed):
    parted = Descent(config_of(kind, "float32"), words)
    assert set(parted.collectives()) <= allowed


def test_gathering_and_summing_in_another_dtype():
    """What crosses between devices is seen before XLA widens it, as it does on CPUs."""
    config = config_of("mlstm_v1", "float32")

    def program(**fields):
        parted = Descent(config, "fsdp=8", parallel=dataclasses.replace(SMALL, **fields), compiles=False)
        return parted.lowered.as_text()

    usual, cast = program(), program(fsdp_gather_dtype="bfloat16", fsdp_grad_scatter_dtype="bfloat16")
    # A map of the feed-forward layer, (32, 64) of each block: its product's gradient, which is what is summed.
    gradient = re.compile(r"dot_general .*contracting_dims = \[0, 1\] x \[0, 1\].* -> tensor<32x64x(\w+)>")
    assert set(gradient.findall(usual)) == {"f32"}
    assert set(gradient.findall(cast)) == {"bf16"}
    assert "tensor<2x32x64xbf16>" not in usual
    assert "tensor<2x32x64xbf16>" in cast


@pytest.mark.parametrize("word", ["nothing", "block", "dots", "offload"])
def test_one_word_says_what_all_blocks_recompute(word):
    def products(words):
        model = build_model(config_of("mlstm_v1", "float32", parallel=ParallelConfig(remat=words)))
        params = param_shapes(model.config)
        program = jax.make_jaxpr(jax.grad(lambda p: model.apply({"params": p}, rows_of(0).inputs).sum()))(params)
        return str(program).count("dot_general")

    none, found = products([]), products([word])
    dense = 7  # q, k, v, o and proj_down of the layer; both maps of the feed-forward but its last
    assert {"nothing": found == none, "block": found >= none + dense}.get(word, none < found < products(["block"]))


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

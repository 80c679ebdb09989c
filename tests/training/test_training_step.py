"""One step: micro-batches, dropout, a loss that is not finite, and what may be held in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_helpers import tiny_experiment, with_fields

from xlstm_jax.data.store import Batch
from xlstm_jax.kernels.cross_entropy import plain_cross_entropy
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment, with_vocabulary
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.step import StepMetrics, TrainState, loss_sum, make_train_step

VOCAB, BATCH, SEQ = 64, 4, 16


def make(experiment: Experiment | None = None) -> tuple[Experiment, Any, Optimizer, TrainState]:
    experiment = with_vocabulary(experiment or tiny_experiment(store="unused"), VOCAB)
    model, optimizer = build(experiment)
    return experiment, model, optimizer, jax.jit(lambda: fresh_state(model, optimizer, experiment))()


def gradient_descent() -> Optimizer:
    """It shows the gradient itself; Adam would hide its scale."""
    plain = optax.sgd(1.0)
    return Optimizer(plain.init, plain.update, lambda count: 1.0)


def make_rows(seed: int = 0, masked: float = 0.3) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(VOCAB, size=(BATCH, SEQ + 1)).astype(np.int32)
    borders = np.zeros((BATCH, SEQ), bool)
    borders[:, 0] = True
    borders[1, 5] = True
    # Rows of very different counts: a mean of means would show.
    mask = rng.random((BATCH, SEQ)) > np.array([0.0, masked, masked, 0.9])[:, None]
    return Batch(tokens[:, :-1], tokens[:, 1:], borders, mask)  # type: ignore[arg-type]


def as_float64(experiment: Experiment) -> Experiment:
    block = experiment.model.mlstm_block
    assert block is not None
    cell = dataclasses.replace(block.mlstm.mlstm_cell, gate_dtype="float64")
    block = dataclasses.replace(block, mlstm=dataclasses.replace(block.mlstm, mlstm_cell=cell))
    return with_fields(experiment, "model", dtype="float64", lm_head_dtype="float64", mlstm_block=block)


EPS = float(np.finfo(np.float64).eps)
"""A rounding of float64."""


def copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.array, state)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(accumulate: int) -> None:
    _, model, _, state = make(as_float64(tiny_experiment(store="unused")))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), state.params)
    optimizer = gradient_descent()
    rows = make_rows()
    start = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    whole, whole_metrics = make_train_step(model, optimizer)(copy(start), rows)
    pieces, pieces_metrics = make_train_step(model, optimizer, accumulate=accumulate)(copy(start), rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=256 * EPS, atol=EPS), pieces.params, whole.params)
    np.testing.assert_allclose(pieces_metrics.loss, whole_metrics.loss, rtol=16 * EPS)
    assert int(pieces_metrics.tokens) == int(whole_metrics.tokens) == int(np.sum(rows.loss_mask))


def test_the_step_is_the_gradient_of_the_plain_mean_loss() -> None:
    _, model, _, state = make()
    rows, optimizer = make_rows(), gradient_descent()

    def plain(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, rows.inputs, document_borders=rows.document_borders)
        total = plain_cross_entropy(logits, jnp.asarray(rows.targets), jnp.asarray(rows.loss_mask))
        return total.nats / total.tokens

    loss, grads = jax.jit(jax.value_and_grad(plain))(state.params)
    start = TrainState(state.step, state.params, optimizer.init(state.params))
    after, metrics = make_train_step(model, optimizer)(copy(start), rows)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(grads), rtol=1e-5)
    want = jax.tree.map(jnp.subtract, state.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, want)
    assert int(after.step) == 1


def test_rows_without_any_target_change_nothing_but_decay_and_give_no_nan() -> None:
    _, model, optimizer, state = make()
    rows = make_rows()._replace(loss_mask=np.zeros((BATCH, SEQ), bool))  # type: ignore[arg-type]
    after, metrics = make_train_step(model, optimizer)(state, rows)
    assert metrics.loss == 0
    assert metrics.grad_norm == 0
    assert bool(metrics.finite)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))


def test_a_loss_that_is_not_finite_leaves_the_state_as_it_was() -> None:
    _, model, optimizer, state = make()
    params = jax.tree.map(jnp.array, state.params)
    params["token_embedding"]["embedding"] = (
        params["token_embedding"]["embedding"].at[int(make_rows().inputs[0, 0])].set(jnp.nan)
    )
    broken = TrainState(state.step, params, state.opt_state)
    before = copy(broken)
    after, metrics = make_train_step(model, optimizer)(broken, make_rows())
    assert not bool(metrics.finite)
    assert int(after.step) == 1

    def unchanged(now: Any, then: Any) -> None:
        counts = np.ndim(then) == 0 and np.issubdtype(then.dtype, np.integer)
        np.testing.assert_array_equal(now, then + 1 if counts else then)

    jax.tree.map(unchanged, after, before)


def test_steps_with_dropout_follow_from_seed_and_step_alone() -> None:
    _, model, optimizer, state = make(with_fields(tiny_experiment(store="unused"), "model", dropout=0.3))
    rows = make_rows()

    def loss(step_function: Any, step: int) -> float:
        return float(step_function(copy(state._replace(step=jnp.int32(step))), rows)[1].loss)

    zero, again, one = (make_train_step(model, optimizer, seed=seed, dropout=True) for seed in (0, 0, 1))
    assert loss(zero, 3) == loss(again, 3)
    assert len({loss(zero, 3), loss(zero, 4), loss(one, 3)}) == 3


def test_a_step_learns_and_reports_its_norms() -> None:
    _, model, optimizer, state = make()
    step_function, rows = make_train_step(model, optimizer), make_rows()
    losses = []
    for _ in range(30):
        before = jax.tree.map(np.asarray, state.params)
        state, metrics = step_function(state, rows)
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]
    moved = optax.tree.norm(jax.tree.map(lambda a, b: a - b, state.params, before))
    np.testing.assert_allclose(metrics.update_norm, moved, rtol=1e-3)
    np.testing.assert_allclose(metrics.param_norm, optax.tree.norm(state.params), rtol=1e-6)
    assert isinstance(metrics, StepMetrics)


def test_the_state_is_donated() -> None:
    _, model, optimizer, state = make()
    leaf = jax.tree.leaves(state.params)[0]
    make_train_step(model, optimizer)(state, make_rows())
    assert leaf.is_deleted()


def test_bfloat16_compute_stays_near_float32_and_keeps_float32_parameters() -> None:
    low = make(with_fields(tiny_experiment(store="unused"), "model", dtype="bfloat16"))
    high = make()
    losses = [float(make_train_step(m, o)(s, make_rows())[1].loss) for _, m, o, s in (low, high)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert {x.dtype for x in jax.tree.leaves(make(low[0])[3].params)} == {jnp.dtype("float32")}


def test_evaluation_and_training_agree_without_dropout() -> None:
    _, model, _, state = make()
    rows = make_rows()
    trained = loss_sum(model, state.params, rows, train=True)
    assert float(trained.nats) == float(loss_sum(model, state.params, rows).nats)
    assert dataclasses.is_dataclass(model.config)

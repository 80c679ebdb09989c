"""One training step: micro-batches in, the next state and its metrics out, compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Integer

from xlstm_jax.data.store import Batch
from xlstm_jax.distributed.constrain import gathered_in, gradients_in
from xlstm_jax.distributed.kernels import cross_entropy
from xlstm_jax.kernels.cross_entropy import LossSum
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.training.optimizers import Optimizer


class TrainState(NamedTuple):
    """What a step changes and a checkpoint holds."""

    step: Int[Array, ""]
    """Steps made so far."""
    params: Any
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """Scalars of one step, still on the device."""

    loss: Float[Array, ""]
    """Mean nats per target, before the update."""
    tokens: Int[Array, ""]
    """Targets that counted."""
    grad_norm: Float[Array, ""]
    param_norm: Float[Array, ""]
    """Of the parameters that the update leads to."""
    update_norm: Float[Array, ""]
    lr: Float[Array, ""]
    """The learning rate of the update."""
    finite: Bool[Array, ""]
    """Whether loss, gradient and the new parameters were finite; where they were not, the state is the one from before
    the step, but for what counts steps."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def init_state(
    model: Any, optimizer: Optimizer, seed: int | Integer[Array, ""], tokens: Int[Array, "batch seq"]
) -> Any:
    """Fresh parameters and optimizer state; under `jax.eval_shape` their shapes alone."""
    params = model.init(jax.random.key(seed), tokens)["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def loss_sum(model: Any, params: Any, rows: Batch, *, train: bool = False, dropout_key: Array | None = None) -> LossSum:
    """What training minimises: the nats of the rows' unmasked targets, and how many these are.

    The logits of all rows are never held at once. `train` switches dropout on, whose random key is `dropout_key`.
    """
    features = model.apply(
        {"params": params},
        rows.inputs,
        document_borders=rows.document_borders,
        train=train,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method="features",
    )
    return cross_entropy(
        lambda params, chunk: model.apply({"params": params}, chunk, method="head"),
        model.head_params(params),
        features,
        jnp.asarray(rows.targets),
        jnp.asarray(rows.loss_mask),
    )


def _counts(leaf: Array) -> bool:
    """Whether a leaf of the state counts steps, as the schedule of the learning rate does."""
    return leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)


def make_train_step(
    model: Any,
    optimizer: Optimizer,
    *,
    seed: int = 0,
    accumulate: int = 1,
    dropout: bool = False,
    shardings: Any = None,
    parallel: ParallelConfig | None = None,
) -> TrainStep:
    """The compiled step. Its state argument is donated: the arrays that were passed must not be used again.

    Args:
        model: a language model with the methods `features`, `head` and `head_params`.
        optimizer: applied to the gradient of the mean loss.
        seed: of the dropout, whose random numbers follow from it and from the step's number.
        accumulate: micro-batches that the rows are cut into, or come in as the first axis; each counts by its tokens,
            so that the step equals that of the whole batch.
        dropout: whether the model draws random numbers in training.
        shardings: how the state lies on a mesh, before the step and after it.
        parallel: in which dtypes parameters are gathered and gradients summed there; as they are if None.
    """

    def gradient(params: Any, rows: Batch, key: Array) -> tuple[Array, Any]:
        total = jnp.sum(rows.loss_mask, dtype=jnp.int32)

        def mean_loss(params: Any, rows: Batch, key: Array) -> Array:
            if shardings is not None and parallel is not None:
                params = gathered_in(params, shardings.params, parallel.fsdp_gather_dtype)
            nats = loss_sum(model, params, rows, train=True, dropout_key=key if dropout else None).nats
            # Divided before the backward pass, where it costs nothing; no target at all gives 0, not 0/0.
            return nats / jnp.maximum(total, 1).astype(nats.dtype)

        if accumulate == 1:
            return jax.value_and_grad(mean_loss)(params, rows, key)

        def add(carry: tuple[Array, Any], piece: tuple[Batch, Array]) -> tuple[tuple[Array, Any], None]:
            return jax.tree.map(jnp.add, carry, jax.value_and_grad(mean_loss)(params, *piece)), None

        pieces = rows
        if rows.inputs.ndim == 2:
            pieces = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), rows)
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), pieces)
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(jax.value_and_grad(mean_loss), params, first, key))
        (loss, grads), _ = jax.lax.scan(add, zero, (pieces, jax.random.split(key, accumulate)))
        return loss, grads

    def step(state: TrainState, rows: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with gradients_in(None if parallel is None else parallel.fsdp_grad_scatter_dtype):
            loss, grads = gradient(state.params, rows, key)
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        proposed = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        # A finite gradient can still lead out of the range of floats, and no step leads back.
        param_norm = optax.tree.norm(proposed.params)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(param_norm)
        after = jax.tree.map(lambda new, old: jnp.where(finite | _counts(new), new, old), proposed, state)
        metrics = StepMetrics(
            loss=loss,
            tokens=jnp.sum(rows.loss_mask, dtype=jnp.int32),
            grad_norm=grad_norm,
            param_norm=param_norm,
            update_norm=optax.tree.norm(updates),
            lr=jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
            finite=finite,
        )
        return after, metrics

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    whole = NamedSharding(shardings.step.mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))

"""Small models of each kind in float64, their rows, and a step of plain gradient descent on any mesh."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlstm_jax.cost.plan import QUICK_CPU_COMPILE
from xlstm_jax.data.store import Batch
from xlstm_jax.distributed.mesh import with_mesh
from xlstm_jax.distributed.placement import Placement, placement_of
from xlstm_jax.models.configs import ParallelConfig
from xlstm_jax.models.language_model import build_model, param_shapes
from xlstm_jax.models.layouts import to_blocks
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.training.layout import placed
from xlstm_jax.training.optimizers import (
    AdafactorConfig,
    AdEMAMixConfig,
    LionConfig,
    MuonConfig,
    Optimizer,
    OptimizerConfig,
    SGDConfig,
)
from xlstm_jax.training.step import TrainState, loss_sum, make_train_step

VOCAB, WIDTH, HEADS = 48, 32, 8
ROWS, SEQ = 8, 40
RATE = 0.01
SMALL = ParallelConfig(fsdp_min_weight_size=0)
"""Everything is parted that can be, however small."""

FLAT: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0}
"""A cosine in float32 may round differently in another program, which moves parameters by 1e-10 of their size."""
OPTIMIZERS: dict[str, Any] = {
    "adamw": OptimizerConfig(lr=1e-3, **FLAT),
    # Its rate of decay is a power in float32, which may do the same: by less at this learning rate.
    "adafactor": AdafactorConfig(lr=1e-3, min_dim_size_to_factor=8, **FLAT),
    "ademamix": AdEMAMixConfig(lr=1e-3, **FLAT),
    "lion": LionConfig(lr=1e-4, **FLAT),
    "muon": MuonConfig(lr=1e-3, **FLAT),
    "sgd": SGDConfig(lr=0.1, **FLAT),
}


def config_of(kind: str, dtype: str = "float64", **fields: Any) -> Any:
    """Of the kinds mlstm, mlstm_v1, mixed (mlstm and slstm) and llama; borders are exact everywhere."""
    common: dict[str, Any] = {
        **{"vocab_size": VOCAB, "embedding_dim": WIDTH, "num_blocks": 2, "scan_blocks": True},
        **{"dtype": dtype, "lm_head_dtype": dtype, "context_length": SEQ},
    } | fields
    if kind == "llama":
        return LlamaConfig(head_dim=WIDTH // HEADS, num_kv_heads=2, ffn_dim=64, **common)
    v1 = kind == "mlstm_v1"
    feedforward = FeedForwardConfig(proj_factor=2.0, round_proj_up_to_multiple_of=8)
    cell = mLSTMCellConfig(gate_dtype=dtype, reset_at_document_boundaries=True, reset_mode="exact", gate_soft_cap=15.0)
    layer = mLSTMLayerConfig(num_heads=HEADS, layer_type="mlstm_v1" if v1 else "mlstm", mlstm_cell=cell)
    scalar = sLSTMCellConfig(reset_at_document_boundaries=True, dtype_b=dtype)
    mixed: dict[str, Any] = {
        "slstm_block": sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(num_heads=HEADS, slstm_cell=scalar), feedforward=feedforward
        ),
        "slstm_at": [1],
    }
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=layer, feedforward=feedforward if v1 else None),
        **common,
        **(mixed if kind == "mixed" else {}),
    )


def rows_of(step: int) -> Batch:
    """Rows with documents of a few tokens, so that some cross every border between devices, and targets left out."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, VOCAB, (ROWS, SEQ + 1)).astype(np.int32)
    scored = rng.random((ROWS, SEQ)) < 0.8
    scored[0] = False
    return Batch(tokens[:, :-1], tokens[:, 1:], rng.random((ROWS, SEQ)) < 0.1, scored)


def placement(words: str | None, parallel: ParallelConfig = SMALL) -> Placement:
    return Placement() if words is None else placement_of(with_mesh(parallel, words))


class Descent:
    """Gradient descent of a model on a mesh: `descend(steps)` makes steps from the same parameters on."""

    def __init__(
        self,
        config: Any,
        words: str | None,
        accumulate: int = 1,
        *,
        parallel: ParallelConfig = SMALL,
        compiles: bool = True,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.model, self.placement, self.accumulate = build_model(config), placement(words, parallel), accumulate
        self.optimizer = optimizer or Optimizer(*optax.sgd(RATE), learning_rate=lambda step: RATE)
        params = drawn(config)
        state = TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))
        shapes = placed(self.placement, self.model, jax.eval_shape(lambda: state))
        self.shardings = None
        if self.placement.mesh is not None:
            self.shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
            state = jax.device_put(state, self.shardings)
        self.state = state
        step = make_train_step(
            self.model, self.optimizer, accumulate=accumulate, shardings=self.shardings, parallel=parallel
        )
        with self.placement.active():
            self.lowered = step.lower(state, self.rows(0))  # type: ignore[attr-defined]
        if compiles:
            self.compiled = self.lowered.compile()

    def rows(self, step: int) -> Batch:
        def read(numbers: np.ndarray) -> Batch:
            return Batch(*(array[numbers] for array in rows_of(step)))

        return self.placement.rows(read, ROWS, SEQ, self.accumulate)

    def __call__(self, steps: int) -> tuple[list[float], list[Any]]:
        """The loss of each step and the parameters after it."""
        state, losses, params = self.state, [], []
        for step in range(steps):
            state, metrics = self.compiled(jax.tree.map(jnp.copy, state), self.rows(step))
            losses.append(float(metrics.loss))
            params.append(jax.device_get(state.params))
        return losses, params

    def collectives(self) -> Counter[str]:
        """How often each exchange between devices stands in the compiled step."""
        kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
        return Counter(re.findall(rf" ({kinds})(?:-start)?\(", self.compiled.as_text()))


def steps_of_optimizers(config: Any, words: str | None, steps: int, *, whole: bool) -> tuple[dict[str, Any], str]:
    """The parameters that every optimizer comes to from the same ones, and the compiled update of all of them.

    Args:
        whole: all parameters with the gradients of the model; else those of few kinds, with gradients made up.
    """
    place, model, params = placement(words), build_model(config), drawn(config)
    optimizers = {name: optimizer.build(10) for name, optimizer in OPTIMIZERS.items()}
    kept = re.compile(r"'(embedding|proj_up|ffn_norm|lm_head)'")
    if not whole:
        params = flax.traverse_util.unflatten_dict(
            {names: x for names, x in flax.traverse_util.flatten_dict(params).items() if kept.search(str(names))}
        )
    states = {name: TrainState(jnp.zeros((), jnp.int32), params, o.init(params)) for name, o in optimizers.items()}
    shardings = None
    if place.mesh is not None:
        shapes = {name: placed(place, model, jax.eval_shape(lambda s=s: s)) for name, s in states.items()}
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        states = jax.device_put(states, shardings)

    def loss(params: Any, rows: Batch) -> Any:
        if whole:
            return loss_sum(model, params, rows).nats / jnp.sum(rows.loss_mask)
        return sum(jnp.sum(jnp.cos(x + rows.inputs[0, 0])) for x in jax.tree.leaves(params))

    def update(grads: dict[str, Any], states: dict[str, TrainState]) -> dict[str, TrainState]:
        after = {}
        for name, (step, params, state) in states.items():
            updates, state = optimizers[name].update(grads[name], state, params)
            after[name] = TrainState(step + 1, optax.apply_updates(params, updates), state)
        return after

    with place.active():
        lying = None if shardings is None else shardings["adamw"].params
        gradient = jax.jit(jax.grad(loss), out_shardings=lying, compiler_options=QUICK_CPU_COMPILE)
        grads = dict.fromkeys(states, params)
        of_all = jax.jit(update, out_shardings=shardings, compiler_options=QUICK_CPU_COMPILE)
        compiled = of_all.lower(jax.device_put(grads, lying and dict.fromkeys(states, lying)), states).compile()
        for step in range(steps):
            rows = place.rows(lambda numbers, n=step: Batch(*(x[numbers] for x in rows_of(n))), ROWS, SEQ)
            states = compiled({name: gradient(state.params, rows) for name, state in states.items()}, states)
    return {name: jax.device_get(state.params) for name, state in states.items()}, compiled.as_text()


def drawn(config: Any) -> Any:
    """Parameters in which nothing is 0 or 1 by chance, in the model's dtype, whether or not blocks are in runs."""
    shapes = param_shapes(dataclasses.replace(config, scan_blocks=True))
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> Any:
        last = path[-1].key
        centre = 1.0 if last in ("scale", "learnable_skip") else 2.0 if "fgate" in str(path) and last == "bias" else 0.0
        # Small inputs of the first norm would multiply every rounding, with each step anew.
        scale = 1.0 if last == "embedding" and not getattr(config, "tie_weights", False) else 0.1
        return jnp.asarray(centre + scale * rng.standard_normal(leaf.shape), config.dtype)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return params if config.scan_blocks else to_blocks(params)

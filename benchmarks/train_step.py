"""How much of the machine a training step uses: its FLOP/s over those of the fastest matrix product.

    python benchmarks/train_step.py [--out FILE.json] [--rounds N] [--only NAME]

Models: `10m` (mlstm_v1, width 512, 3 blocks, 10.6M parameters with a vocabulary of 2048, 4 x 512 tokens) and
`quickstart` (the preset, with the batch that it trains on). A step is everything that training does with a batch:
loss, gradient, clipping, AdamW, norms, with the state donated.

Before anything is timed, a step is compared with one written out plainly (quadratic mLSTM, all logits at once, optax
by hand): loss and gradient norm must agree to 1e-4, or no speed is printed. FLOP are counted by
`model.flops_per_token` (each causal product once). The peak is the best of several matrix products, measured in the
same run before and after; the better one counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import Any

import _common
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlstm_jax.data.store import Batch
from xlstm_jax.kernels.cross_entropy import plain_cross_entropy
from xlstm_jax.machine.malloc import keep_freed_memory
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.backend import mLSTMBackendNameAndKwargs
from xlstm_jax.models.xlstm_parallel.small import small_v1
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel
from xlstm_jax.presets import get_preset
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment, TrainingConfig, with_vocabulary
from xlstm_jax.training.step import TrainState, make_train_step

TOLERANCE = 1e-4


def experiments() -> dict[str, Experiment]:
    """What is timed."""
    ten = Experiment(
        model=dataclasses.replace(small_v1(dim=512, blocks=3, heads=4, context_length=512), vocab_size=2048),
        training=TrainingConfig(batch_size=4),
    )
    quickstart = get_preset("quickstart")
    return {"10m": ten, "quickstart": with_vocabulary(quickstart, quickstart.data.vocab_size)}


def random_rows(experiment: Experiment) -> Batch:
    rng = np.random.default_rng(0)
    shape = experiment.training.batch_size, experiment.seq_len + 1
    tokens = rng.integers(experiment.model.vocab_size, size=shape).astype(np.int32)
    borders = rng.random((shape[0], shape[1] - 1)) < 1 / 200
    borders[:, 0] = True
    return Batch(*map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], borders, np.ones_like(borders))))


def plain_step(experiment: Experiment, state: TrainState, rows: Batch) -> tuple[float, float]:
    """(loss, gradient norm) of the same parameters by other code."""
    block = experiment.model.mlstm_block
    assert block is not None
    cell = dataclasses.replace(block.mlstm.mlstm_cell, backend=mLSTMBackendNameAndKwargs(name="parallel"))
    block = dataclasses.replace(block, mlstm=dataclasses.replace(block.mlstm, mlstm_cell=cell))
    model = xLSTMLMModel(dataclasses.replace(experiment.model, mlstm_block=block))

    def mean_loss(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, rows.inputs, document_borders=rows.document_borders)
        total = plain_cross_entropy(logits, rows.targets, rows.loss_mask)
        return total.nats / total.tokens

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    return float(loss), float(optax.tree.norm(grads))


def measure(name: str, experiment: Experiment, rounds: int) -> dict[str, Any] | None:
    """One model's figures, or None if its step is wrong."""
    model, optimizer = build(experiment)
    state = jax.jit(lambda: fresh_state(model, optimizer, experiment))()
    rows = random_rows(experiment)
    want_loss, want_norm = plain_step(experiment, state, rows)
    compiled = make_train_step(model, optimizer).lower(state, rows).compile()  # type: ignore[attr-defined]
    state, metrics = compiled(state, rows)
    loss, norm = float(metrics.loss), float(metrics.grad_norm)
    errors = abs(loss / want_loss - 1), abs(norm / want_norm - 1)
    if not math.isfinite(loss) or max(errors) > TOLERANCE:
        print(f"{name}: loss {loss} and gradient norm {norm}, but plainly {want_loss} and {want_norm}", file=sys.stderr)
        return None
    holder = [state]

    def step() -> Any:
        holder[0], out = compiled(holder[0], rows)
        return out

    _common.matmul_peak.cache_clear()
    peak = _common.matmul_peak(experiment.model.dtype)
    taken = _common.time_in_turns({name: step}, rounds)[name]
    _common.matmul_peak.cache_clear()
    peak = max(peak, _common.matmul_peak(experiment.model.dtype))
    tokens = rows.inputs.size
    flops = model.flops_per_token(experiment.seq_len, train=True) * tokens
    return {
        "model": name,
        "parameters": model.param_count,
        "tokens_per_step": tokens,
        "seconds": taken,
        "tokens_per_second": tokens / taken["median"],
        "flops_per_second": flops / taken["median"],
        "peak_flops_per_second": peak,
        "share_of_peak": flops / taken["median"] / peak,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "loss_error": errors[0],
        "gradient_norm_error": errors[1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=list(experiments()), help="time this model alone")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    keep_freed_memory()
    results, failed = [], False
    print(f"{'model':12}{'parameters':>12}{'ms/step':>10}{'tokens/s':>10}{'GFLOP/s':>10}{'peak':>8}{'share':>8}")
    for name, experiment in experiments().items():
        if arguments.only not in (None, name):
            continue
        result = measure(name, experiment, arguments.rounds)
        if result is None:
            failed = True
            continue
        results.append(result)
        print(
            f"{name:12}{result['parameters']:>12,}{1e3 * result['seconds']['median']:>10.1f}"
            f"{result['tokens_per_second']:>10,.0f}{result['flops_per_second'] / 1e9:>10.1f}"
            f"{result['peak_flops_per_second'] / 1e9:>8.1f}{result['share_of_peak']:>8.1%}"
        )
    _common.write(results, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

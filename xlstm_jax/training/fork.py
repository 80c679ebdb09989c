"""A copy of a run that goes on with other values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.runs.folder import RunFolder
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.open_run import (
    CONFIG_MAY_DIFFER,
    Say,
    agree_on_store,
    filled_in,
    inspect,
    tell_of_rise,
)
from xlstm_jax.training.optimizers import Optimizer
from xlstm_jax.training.run_store import open_or_prepare, own_store
from xlstm_jax.training.step import TrainState


def fork_run(source: RunFolder, path: Path, experiment: Experiment, say: Say) -> RunFolder:
    """A new run at `path` that goes on from another's newest good checkpoint, with other values where these fit.

    One of converted weights begins at step 0, with parameters in float32 and a fresh optimizer.

    Raises:
        StateMismatchError: if the new model or optimizer has other arrays than the checkpoint.
        WrongStoreError: if the store has another tokenizer. In either case no run is made.
    """
    facts = inspect(RunFolder.open(source.path))
    assert facts.recorded is not None
    # A copy that is to learn from the same text keeps the very store, whatever its sources have become since.
    same = dataclasses.replace(experiment.data, fingerprint=facts.recorded.data.fingerprint) == facts.recorded.data
    keeps = same and own_store(facts.recorded.data, source) is not None
    experiment = filled_in(experiment, facts.recorded, fingerprint=keeps)
    agree_on_store(facts, experiment, open_or_prepare(experiment, say, source))
    model, optimizer = build(experiment)
    target = jax.eval_shape(lambda: fresh_state(model, optimizer, experiment))
    if facts.converted:
        state, step, extra = _with_weights(source, optimizer, target)
    else:
        step, _, extra = source.checkpoints(read_only=True).restore(target._asdict())
        state = None
        tell_of_rise(experiment, facts.recorded, step, say)
    source.check_config(step, extra, CONFIG_MAY_DIFFER)
    return source.fork(path, experiment, state=state)


def _with_weights(
    source: RunFolder, optimizer: Optimizer, target: TrainState
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The state of step 0 with a run's parameters, and the step and extra values of the checkpoint they are from."""
    step, params, extra = source.read_params(None, target.params, any_float=True)
    params = jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), params, target.params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))._asdict(), step, extra

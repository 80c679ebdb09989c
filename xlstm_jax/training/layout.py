"""An experiment on a mesh: what must divide, and how its state lies."""

from __future__ import annotations

from typing import Any

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed.mesh import axes_of
from xlstm_jax.distributed.placement import Placement, placement_of
from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.parameters import describe
from xlstm_jax.training.config import Experiment
from xlstm_jax.training.step import TrainState


def place(experiment: Experiment) -> Placement:
    """The placement of an experiment's model, on the devices that there are.

    Raises:
        ConfigError: for a mesh that these devices, or this experiment, cannot be laid out on.
    """
    placement = placement_of(experiment.model.parallel)
    if placement.mesh is None:
        return placement
    axes = axes_of(placement.mesh)
    names, sizes = axes.names, axes.sizes
    training, model = experiment.training, experiment.model
    parts = sizes["data"] * sizes["fsdp"]
    if training.batch_size % (training.accumulate * parts):
        places = [f"{names[use]} {sizes[use]}" for use in ("data", "fsdp") if sizes[use] > 1]
        if training.accumulate > 1:
            places.append(f"{training.accumulate} micro-batches (training.accumulate)")
        raise ConfigError(
            f"training.batch_size is {training.batch_size}, but must be a multiple of {training.accumulate * parts} to "
            f"be parted over {' x '.join(places)}"
        )
    if experiment.seq_len % sizes["sequence"]:
        raise ConfigError(
            f"model.context_length is {experiment.seq_len}, but must be a multiple of {sizes['sequence']} to be parted "
            f"over {names['sequence']} {sizes['sequence']}"
        )
    kinds = model.block_kinds
    for kind in dict.fromkeys(kinds):
        heads = model.block_config(kinds.index(kind)).num_heads
        needed, over = sizes["model"], f"{names['model']} {sizes['model']}"
        if KINDS[kind].whole_sequence and sizes["sequence"] > 1:
            needed *= sizes["sequence"]
            over += f" x {names['sequence']} {sizes['sequence']} = {needed}"
        if heads % needed:
            raise ConfigError(f"the {heads} heads of the {KINDS[kind].memory} blocks cannot be parted over {over}")
    return placement


def placed(placement: Placement, model: Any, state: TrainState) -> TrainState:
    """The shapes of a training state, each with its place on the mesh; as they are without one."""
    return placement.shapes(state, describe(state.params, model.config.block_kinds), state.params)

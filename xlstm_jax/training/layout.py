"""An experiment on a mesh: what must divide, and how its state lies."""

from __future__ import annotations

from typing import Any

from xlstm_jax.config import ConfigError
from xlstm_jax.distributed.mesh import axes_of
from xlstm_jax.distributed.placement import Placement, placement_of
from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.parameters import describe
from xlstm_jax.training.config import Experiment, TrainingConfig
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
    model = experiment.model
    micro_batches(experiment.training, placement)
    if experiment.seq_len % sizes["sequence"]:
        raise ConfigError(
            f"model.context_length is {experiment.seq_len}, but must be a multiple of {sizes['sequence']} to be parted "
            f"over {names['sequence']} {sizes['sequence']}"
        )
    kinds = model.block_kinds
    for kind in dict.fromkeys(kinds):
        heads = getattr(model.block_config(kinds.index(kind)), "heads", None)
        needed, over = sizes["model"], f"{names['model']} {sizes['model']}"
        if KINDS[kind].whole_sequence and sizes["sequence"] > 1:
            needed *= sizes["sequence"]
            over += f" x {names['sequence']} {sizes['sequence']} = {needed}"
        if heads is not None and heads % needed:
            raise ConfigError(f"the {heads} heads of the {KINDS[kind].memory} blocks cannot be parted over {over}")
    return placement


def micro_batches(training: TrainingConfig, placement: Placement) -> int:
    """How many micro-batches a step has on this mesh: as many as asked for or, where these cannot be parted, fewer, of
    which a device still has no more rows at once than one device would have.

    Raises:
        ConfigError: if the rows of a step cannot be parted over the devices.
    """
    batch, asked = training.batch_size, training.accumulate
    if placement.mesh is None:
        return asked
    axes = axes_of(placement.mesh)
    parts = axes.sizes["data"] * axes.sizes["fsdp"]
    for number in (asked, *range(-(-asked // parts), asked)):
        if batch % (number * parts) == 0:
            return number
    over = " x ".join(f"{axes.names[use]} {axes.sizes[use]}" for use in ("data", "fsdp") if axes.sizes[use] > 1)
    raise ConfigError(f"training.batch_size is {batch}, but must be a multiple of {parts} to be parted over {over}")


def placed(placement: Placement, model: Any, state: TrainState) -> TrainState:
    """The shapes of a training state, each with its place on the mesh; as they are without one."""
    return placement.shapes(state, describe(state.params, model.config.block_kinds), state.params)

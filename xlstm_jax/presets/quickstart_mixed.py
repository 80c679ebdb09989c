"""A mix of matrix and scalar memories for a laptop."""

from __future__ import annotations

import dataclasses

from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig
from xlstm_jax.presets.quickstart import quickstart
from xlstm_jax.training.config import Experiment


def quickstart_mixed() -> Experiment:
    """The quickstart with every fourth block an sLSTM block, for 500 steps: xLSTM[3:1] on Python's standard library.

    Command: `xlstm train quickstart_mixed`. It makes about twice the steps of the quickstart.
    """
    experiment = quickstart()
    assert isinstance(experiment.model, xLSTMLMModelConfig)
    slstm = sLSTMLayerConfig(num_heads=4, slstm_cell=sLSTMCellConfig(recurrent_weight_init="standard"))
    model = dataclasses.replace(experiment.model, slstm_block=sLSTMBlockConfig(slstm=slstm), slstm_at=[1])
    training = dataclasses.replace(experiment.training, steps=500)
    return dataclasses.replace(experiment, model=model, training=training)

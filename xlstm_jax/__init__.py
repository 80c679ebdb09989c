"""Train, evaluate and exchange xLSTM language models in JAX.

    >>> import xlstm_jax
    >>> run = xlstm_jax.load("runs/quickstart")
    >>> run.generate("def ")

Importing this package loads nothing heavy: each other name comes from its place when it is first asked for, and JAX
with it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlstm_jax.data.prepare import prepare as prepare
    from xlstm_jax.inference.run import Run as Run
    from xlstm_jax.kernels.mlstm import mlstm as mlstm
    from xlstm_jax.kernels.slstm import slstm as slstm
    from xlstm_jax.models.llama.config import LlamaConfig as LlamaConfig
    from xlstm_jax.models.llama.llama_lm_model import LlamaLMModel as LlamaLMModel
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlock as mLSTMBlock
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig as mLSTMBlockConfig
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCell as mLSTMCell
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.cell import mLSTMCellConfig as mLSTMCellConfig
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayer as mLSTMLayer
    from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig as mLSTMLayerConfig
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlock as sLSTMBlock
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig as sLSTMBlockConfig
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCell as sLSTMCell
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig as sLSTMCellConfig
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayer as sLSTMLayer
    from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig as sLSTMLayerConfig
    from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig as FeedForwardConfig
    from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import xLSTMBlockStack as xLSTMBlockStack
    from xlstm_jax.models.xlstm_parallel.xlstm_block_stack import xLSTMBlockStackConfig as xLSTMBlockStackConfig
    from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModel as xLSTMLMModel
    from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig as xLSTMLMModelConfig
    from xlstm_jax.presets import get_preset as get_preset
    from xlstm_jax.training.config import Experiment as Experiment
    from xlstm_jax.training.loop import train as train

    __version__: str

PLACES = {
    "prepare": "data.prepare",
    "Run": "inference.run",
    "mlstm": "kernels.mlstm",
    "slstm": "kernels.slstm",
    "LlamaConfig": "models.llama.config",
    "LlamaLMModel": "models.llama.llama_lm_model",
    "mLSTMBlock": "models.xlstm_parallel.blocks.mlstm.block",
    "mLSTMBlockConfig": "models.xlstm_parallel.blocks.mlstm.block",
    "mLSTMCell": "models.xlstm_parallel.blocks.mlstm.cell",
    "mLSTMCellConfig": "models.xlstm_parallel.blocks.mlstm.cell",
    "mLSTMLayer": "models.xlstm_parallel.blocks.mlstm.layer",
    "mLSTMLayerConfig": "models.xlstm_parallel.blocks.mlstm.layer",
    "sLSTMBlock": "models.xlstm_parallel.blocks.slstm.block",
    "sLSTMBlockConfig": "models.xlstm_parallel.blocks.slstm.block",
    "sLSTMCell": "models.xlstm_parallel.blocks.slstm.cell",
    "sLSTMCellConfig": "models.xlstm_parallel.blocks.slstm.cell",
    "sLSTMLayer": "models.xlstm_parallel.blocks.slstm.layer",
    "sLSTMLayerConfig": "models.xlstm_parallel.blocks.slstm.layer",
    "FeedForwardConfig": "models.xlstm_parallel.components.feedforward",
    "xLSTMBlockStack": "models.xlstm_parallel.xlstm_block_stack",
    "xLSTMBlockStackConfig": "models.xlstm_parallel.xlstm_block_stack",
    "xLSTMLMModel": "models.xlstm_parallel.xlstm_lm_model",
    "xLSTMLMModelConfig": "models.xlstm_parallel.xlstm_lm_model",
    "get_preset": "presets",
    "Experiment": "training.config",
    "train": "training.loop",
}
"""Where in this package each name lives."""

__all__ = sorted({*PLACES, "__version__", "load"})


def load(path: str | Path, step: int | None = None) -> Run:
    """The trained model of a run folder, ready to generate; also while the run trains.

    Args:
        path: the run's folder.
        step: of the checkpoint to read; the newest good one if None.

    Raises:
        RunError: if there is no such run, or no checkpoint in it that can be used.
    """
    from xlstm_jax.inference.run import load

    return load(path, step)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        value: Any = metadata.version("xlstm-jax")
    elif name in PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{PLACES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The tiny models that formal languages are learnt with, and how long each is trained."""

from __future__ import annotations

from typing import Any

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.synthetic.task import Task
from xlstm_jax.evaluation.synthetic.tasks import get_task
from xlstm_jax.evaluation.synthetic.training import SyntheticConfig
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.layer import mLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

SLSTM_PLACES = {"[0:1]": [0, 1], "[1:0]": [], "[1:1]": [1]}
"""xLSTM[a:b] has a mLSTM blocks to b sLSTM blocks; where the latter stand among the two."""

MODELS = (*SLSTM_PLACES, "llama", "lstm")

BLOCKS, HEADS = 2, 1

_RATES = {"[0:1]": 1e-2, "[1:0]": 4e-3, "[1:1]": 1e-2, "llama": 4e-3, "lstm": 1e-2}

_STEPS = {"parity": 1000, "even_pairs": 1000, "cycle_nav": 1500, "mod_arith": 1500}
"""At most: who answers all rows ends earlier. All models of a task have the same, so that none fails for less."""


def synthetic_model(name: str, task: Task, dim: int = 32, context_length: int = 40) -> LanguageModelConfig:
    """A model of two blocks with one head, in float32.

    The sLSTM blocks are as the xLSTM paper has them for formal languages (B.1.1): no convolution, and recurrent weights
    that do not start at zero.

    Raises:
        ConfigError: for a name that is not in `MODELS`.
    """
    if name not in MODELS:
        raise _unknown(name)
    if name == "llama":
        return LlamaConfig(
            embedding_dim=dim,
            num_blocks=BLOCKS,
            head_dim=dim // HEADS,
            vocab_size=task.vocab_size,
            context_length=context_length,
        )
    if name == "lstm":
        return LSTMConfig(
            embedding_dim=dim, num_blocks=BLOCKS, vocab_size=task.vocab_size, context_length=context_length
        )
    places = SLSTM_PLACES[name]
    cell = sLSTMCellConfig(recurrent_weight_init="standard")
    slstm = sLSTMBlockConfig(slstm=sLSTMLayerConfig(num_heads=HEADS, conv1d_kernel_size=0, slstm_cell=cell))
    return xLSTMLMModelConfig(
        mlstm_block=None if len(places) == BLOCKS else mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=HEADS)),
        slstm_block=slstm if places else None,
        slstm_at=places,
        num_blocks=BLOCKS,
        embedding_dim=dim,
        vocab_size=task.vocab_size,
        context_length=context_length,
        dtype="float32",
    )


def synthetic_recipe(model: str, task: str, **changes: Any) -> SyntheticConfig:
    """How a model of `MODELS` is trained on a task, for minutes on two cores; changes that are None change nothing.

    Raises:
        ConfigError: for an unknown model or task, or a value that cannot be used.
    """
    if model not in MODELS:
        raise _unknown(model)
    name = get_task(task).name
    values: dict[str, Any] = {"task": name, "steps": _STEPS[name], "lr": _RATES[model], "short_share": 0.5}
    return SyntheticConfig(**values | {field: value for field, value in changes.items() if value is not None})


def _unknown(model: str) -> ConfigError:
    return ConfigError(f"model is {model!r}, but must be one of {', '.join(MODELS)}{near_miss(model, MODELS)}")

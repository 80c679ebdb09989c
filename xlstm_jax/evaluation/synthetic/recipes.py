"""The tiny models that tasks are learnt with, and how long each is trained to see something in minutes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.evaluation.synthetic.task import Task
from xlstm_jax.evaluation.synthetic.tasks import FORMAL, GROUPS, SLICE, get_task
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

BLOCKS = 2

_RATES = {"[0:1]": 1e-2, "[1:0]": 4e-3, "[1:1]": 1e-2, "llama": 4e-3, "lstm": 3e-3}

# At most so many steps: who answers all rows ends earlier. All models of a task have the same, so that none fails for
# less.
_FORMAL = {"steps": 1500, "short_share": 0.5}
_RECALL = {"steps": 1500, "short_share": 0.0}
_VALUES: dict[str, dict[str, Any]] = {
    **{task.name: _FORMAL for task in (*FORMAL, *SLICE)},
    "parity": _FORMAL | {"steps": 1000},
    # Short rows would teach an sLSTM to remember the first letter for as long as they are, and no longer.
    "even_pairs": {"steps": 1000, "short_share": 0.0},
    **{task.name: _FORMAL | {"train_lengths": (1, 32), "test_lengths": (33, 256)} for task in GROUPS},
    "mqar": {
        **{"steps": 800, "batch_size": 128, "short_share": 0.0, "task_fields": {"vocab_size": 256}},
        **{"train_lengths": (64, 64), "test_lengths": (64, 64)},
    },
    **{name: _RECALL | {"test_lengths": (42, 122)} for name in ("copy", "ngram_lookup", "ngram_lookup_prefix")},
    "phone_book": _RECALL
    | {"task_fields": {"names": 16, "digits": 4}, "train_lengths": (48, 104), "test_lengths": (104, 264)},
    "needle": _RECALL
    | {"task_fields": {"letters": 1, "digits": 3}, "train_lengths": (24, 128), "test_lengths": (128, 512)},
    "nearest_neighbour": _RECALL | {"train_lengths": (3, 63), "test_lengths": (63, 255)},
}

_DIMS = {"mqar": 64}


def synthetic_model(
    name: str, task: Task, dim: int = 32, context_length: int = 40, heads: int = 1, *, packaged: bool = False
) -> LanguageModelConfig:
    """A model of two blocks in float32.

    Args:
        packaged: sLSTM blocks as the package xlstm has them by default, with a convolution and recurrent weights that
            start at zero, as SLiCE took them. Else they are as the xLSTM paper has them for formal languages (B.1.1):
            no convolution, and recurrent weights that do not start at zero.

    Raises:
        ConfigError: for a name that is not in `MODELS`.
    """
    if name not in MODELS:
        raise _unknown(name)
    sizes: dict[str, Any] = {
        **{"embedding_dim": dim, "num_blocks": BLOCKS, "vocab_size": task.vocab_size, "context_length": context_length}
    }
    if name == "llama":
        return LlamaConfig(head_dim=dim // heads, **sizes)
    if name == "lstm":
        return LSTMConfig(**sizes)
    places = SLSTM_PLACES[name]
    if packaged:
        slstm = sLSTMLayerConfig(num_heads=heads)
    else:
        cell = sLSTMCellConfig(recurrent_weight_init="standard")
        slstm = sLSTMLayerConfig(num_heads=heads, conv1d_kernel_size=0, slstm_cell=cell)
    return xLSTMLMModelConfig(
        mlstm_block=None if len(places) == BLOCKS else mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=heads)),
        slstm_block=sLSTMBlockConfig(slstm=slstm) if places else None,
        slstm_at=places,
        dtype="float32",
        **sizes,
    )


def listed_models(text: str, among: Sequence[str] = MODELS) -> tuple[str, ...]:
    """The models of a list, each once, in the order of all that there are; `xlstm[0:1]` and `0:1` are `[0:1]`.

    Raises:
        ConfigError: for a name that is not among them.
    """
    names = [re.sub(r"^(xlstm)?\[?(\d:\d)\]?$", r"[\2]", name.strip().lower()) for name in text.split(",")]
    for name in names:
        if name not in among:
            raise _unknown(name, among)
    return tuple(name for name in among if name in names)


def listed_seeds(option: str, text: str) -> tuple[int, ...]:
    """The seeds of a list, each once.

    Raises:
        ConfigError: for what is no list of whole numbers.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"{option} is {text!r}, but must be whole numbers >= 0, separated by commas")
    return tuple(dict.fromkeys(map(int, words)))


def quick_dim(task: str) -> int:
    """The width of models that learn a task in minutes."""
    return _DIMS.get(task, 32)


def synthetic_recipe(model: str, task: str, **changes: Any) -> SyntheticConfig:
    """How a model of `MODELS` is trained on a task, for minutes on two cores; changes that are None change nothing.

    Raises:
        ConfigError: for an unknown model or task, or a value that cannot be used.
    """
    if model not in MODELS:
        raise _unknown(model)
    name = get_task(task).name
    values: dict[str, Any] = {"task": name, "lr": _RATES[model], **_VALUES[name]}
    changes = {field: value for field, value in changes.items() if value is not None}
    fields = {**values.get("task_fields", {}), **changes.pop("task_fields", {})}
    return SyntheticConfig(**values | changes | {"task_fields": fields})


def _unknown(model: str, among: Sequence[str] = MODELS) -> ConfigError:
    return ConfigError(f"model is {model!r}, but must be one of {', '.join(among)}{near_miss(model, among)}")

"""Small language models of equal size, one of each kind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from xlstm_jax.data.tokenizers import ByteTokenizer
from xlstm_jax.models.language_model import LanguageModelConfig, build_model
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.lstm.config import LSTMConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.cell import sLSTMCellConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.layer import sLSTMLayerConfig
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForwardConfig
from xlstm_jax.models.xlstm_parallel.small import small_v1

VOCABULARY = ByteTokenizer().vocab_size

LSTM_LAYERS = 2


def sized_model(
    name: str, parameters: int, *, dim: int, blocks: int, heads: int, context_length: int, dropout: float = 0.0
) -> LanguageModelConfig:
    """A model of bytes in float32 with about so many parameters.

    The mLSTM blocks are those of xLSTM-7B (arXiv 2503.13427), sLSTM blocks the paper's; `[a:b]` has the last of every
    a + b blocks an sLSTM block. Feed-forward layers are as wide as the number of parameters asks for. The LSTM has two
    layers (Hochreiter and Schmidhuber, with forget gates) whose own width follows from it.

    Raises:
        ValueError: if the number is too small for one unit in the feed-forward layers.
    """
    sizes: dict[str, Any] = {
        "num_blocks": blocks,
        "context_length": context_length,
        "vocab_size": VOCABULARY,
        "dropout": dropout,
    }
    if name == "lstm":
        make: Callable[[int], LanguageModelConfig] = lambda width: LSTMConfig(  # noqa: E731
            embedding_dim=width, **sizes | {"num_blocks": LSTM_LAYERS}
        )
        return _fitted(make, parameters, 2)
    if name == "llama":
        return _fitted(
            lambda width: LlamaConfig(embedding_dim=dim, head_dim=dim // heads, ffn_dim=width, **sizes), parameters, 8
        )
    many, few = map(int, name.strip("[]").split(":"))
    places = [index for index in range(blocks) if index % (many + few) >= many]
    base = dataclasses.replace(small_v1(dim, blocks, heads, context_length), vocab_size=VOCABULARY, dropout=dropout)

    def with_width(width: int) -> LanguageModelConfig:
        feedforward = FeedForwardConfig(
            proj_factor=width / dim, round_proj_up_to_multiple_of=8, act_fn="swish", ff_type="ffn_gated"
        )
        assert base.mlstm_block is not None
        cell = sLSTMCellConfig(recurrent_weight_init="standard")
        slstm = sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(num_heads=heads, slstm_cell=cell), feedforward=feedforward if places else None
        )
        mlstm = dataclasses.replace(base.mlstm_block, feedforward=feedforward)
        return dataclasses.replace(
            base,
            mlstm_block=None if len(places) == blocks else mlstm,
            slstm_block=slstm if places else None,
            slstm_at=places,
        )

    return _fitted(with_width, parameters, 8)


def _fitted(make: Callable[[int], LanguageModelConfig], parameters: int, step: int) -> LanguageModelConfig:
    """The model whose width, a multiple of `step`, leads nearest to so many parameters."""

    @functools.cache
    def count(units: int) -> int:
        return build_model(make(units * step)).param_count

    if count(1) > parameters:
        raise ValueError(f"the smallest such model has {count(1):,} parameters, more than {parameters:,}")
    # Secants: numbers of parameters are of the first degree in the width, or of the second.
    before, units = 1, 16
    while before != units:
        slope = (count(units) - count(before)) / (units - before)
        before, units = units, max(round(units + (parameters - count(units)) / slope), 1)
    return make(step * min((max(units - 1, 1), units, units + 1), key=lambda units: abs(count(units) - parameters)))

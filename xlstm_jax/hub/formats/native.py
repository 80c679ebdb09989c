"""Any model of this package, by its own names: what no other format can express leaves and comes back so.

config.json holds the model's config; a tensor is called as the parameter that it is, and has its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from xlstm_jax.config import ConfigError, from_json, to_json
from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.hub.formats.base import Format, ReadOptions, Tensors, Weights, Written, params_as_asked
from xlstm_jax.hub.kept import Record
from xlstm_jax.hub.mapping import Entry, single
from xlstm_jax.models.language_model import LanguageModelConfig, block_shapes

MODEL_TYPE = "xlstm_jax"


def entries(config: LanguageModelConfig) -> Iterator[Entry]:
    """Every parameter, each block by itself."""
    for path in block_shapes(config):
        yield single(path, path)


def _read(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    if "model" not in document:
        raise ConfigError("config.json lacks 'model', the config of the model")
    config: Any = from_json(LanguageModelConfig, document["model"], "model")  # type: ignore[arg-type]
    if options.dtype is not None:
        config = replace(config, dtype=options.dtype, lm_head_dtype=options.dtype)
    if options.context_length is not None:
        config = replace(config, context_length=options.context_length)
    notes: list[str] = []
    return Weights(config, params_as_asked(entries(config), config, tensors, options, notes), notes=notes)


def _write(config: LanguageModelConfig, record: Record) -> Written:
    if record.weight_mode is not None:
        raise WeightsError(f"the weight mode is {record.weight_mode!r}, which the format native does not have")
    return Written({"model_type": MODEL_TYPE, "model": to_json(config)}, list(entries(config)), [], {})


FORMAT = Format(
    lambda document: document.get("model_type") == MODEL_TYPE,
    _read,
    LanguageModelConfig,
    _write,
    ("token_embedding.embedding",),
)

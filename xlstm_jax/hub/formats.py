"""The formats of published weights: one row each, and how a folder in one becomes a model of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from xlstm_jax.config import ConfigError
from xlstm_jax.hub import huggingface_llama, huggingface_xlstm
from xlstm_jax.hub.errors import WeightsError, refuse
from xlstm_jax.hub.safetensors_files import StoredTensor
from xlstm_jax.hub.tensor_map import FLOATS, Entry, on_device, read_params
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.xlstm_parallel.xlstm_lm_model import xLSTMLMModelConfig

Tensors = Mapping[str, StoredTensor]


class ReadOptions(NamedTuple):
    """What a caller may ask for when weights are read."""

    dtype: FloatName | None = None
    """Of parameters and activations; None keeps that of each tensor, and computes in the widest of them."""
    context_length: int | None = None
    recurrent_layout: str | None = None
    """Of the sLSTM in state dicts of the package `xlstm`: "vanilla" or "cuda"."""


@dataclass
class Weights:
    """A model and its parameters, out of another package's files."""

    config: LanguageModelConfig
    params: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    """What of the files our model does not show, to write them again as they were."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, a sentence each."""


class Format(NamedTuple):
    """A row of the table of formats."""

    name: str
    title: str
    detects: Callable[[Mapping[str, Any]], bool]
    """Whether a config.json is one of this format."""
    read: Callable[[Mapping[str, Any], Tensors, ReadOptions], Weights]
    """(config.json, tensors, options) -> weights; raises `WeightsError` or `ConfigError`."""


def detect(document: Mapping[str, Any], asked: str | None = None) -> Format:
    """The format of a config.json, or the one that is asked for.

    Raises:
        ConfigError: if it is none of those known.
    """
    found = next((row for row in FORMATS if row.detects(document)), None)
    if asked is not None:
        wanted = next((row for row in FORMATS if row.name == asked), None)
        if wanted is None:
            raise ConfigError(f"the format is {asked!r}, but must be one of {', '.join(row.name for row in FORMATS)}")
        if found is not wanted and (found is not None or "model_type" in document):
            other = f", which is the format {found.name}" if found else ""
            raise ConfigError(f"config.json has model_type {document.get('model_type')!r}{other}, not {asked}")
        return wanted
    if found is None:
        known = "; ".join(f"{row.name}: {row.title}" for row in FORMATS)
        kind = document.get("model_type")
        what = f"model_type {kind!r}" if kind is not None else "no model_type"
        raise ConfigError(f"config.json has {what}, which is no format known here ({known})")
    return found


def compute_dtype(tensors: Tensors, asked: FloatName | None = None) -> FloatName:
    """The dtype to compute in: the one asked for, or the widest of the tensors'."""
    if asked is not None:
        return asked
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS.values()}
    return cast(FloatName, jnp.result_type(*kinds).name) if kinds else "float32"


def _read_xlstm(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    mode = document.get("weight_mode") or "single"
    if mode not in huggingface_xlstm.WEIGHT_MODES:
        raise ConfigError(f"config.json: weight_mode is {mode!r}, but must be 'single' or 'fused'")
    config: LanguageModelConfig = huggingface_xlstm.config_from_huggingface(
        document,
        compute_dtype(tensors, options.dtype),
        options.context_length or huggingface_xlstm.DEFAULT_CONTEXT,
    )

    def table(config: Any, head: bool) -> Iterator[Entry]:
        return huggingface_xlstm.entries(config, mode, head)

    weights = _read_tied(config, tensors, table, "backbone.embeddings.weight", options)
    weights.record |= {"format": "xlstm", "weight_mode": mode}
    return weights


def _read_llama(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    config = huggingface_llama.config_from_huggingface(
        document, compute_dtype(tensors, options.dtype), options.context_length
    )
    rest = _without_frequencies(config, tensors)
    weights = _read_tied(config, rest, huggingface_llama.entries, "model.embed_tokens.weight", options)
    weights.record |= {"format": "llama"}
    return weights


def _read_package(document: Mapping[str, Any], tensors: Tensors, options: ReadOptions) -> Weights:
    from xlstm_jax.hub.xlstm_package import params_from_xlstm_package
    from xlstm_jax.hub.xlstm_package_config import config_from_xlstm_package

    config = config_from_xlstm_package(document, compute_dtype(tensors, options.dtype))
    if options.context_length is not None:
        config = replace(config, context_length=options.context_length)
    layout: Any = options.recurrent_layout
    params = params_from_xlstm_package(tensors, document, layout)
    return Weights(config, _on_device(params, options.dtype), {"format": "xlstm-package"})


def _on_device(tree: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """The same dicts with JAX arrays, made one after the other in the place of NumPy's."""
    for name, value in tree.items():
        if isinstance(value, dict):
            _on_device(value, dtype)
        else:
            tree[name] = on_device(value if dtype is None else value.astype(FLOATS[dtype], copy=False))
    return tree


def _is_package(document: Mapping[str, Any]) -> bool:
    return "model_type" not in document and any(key in document for key in ("mlstm_block", "slstm_block"))


FORMATS = (
    Format(
        "xlstm", "xLSTMForCausalLM of Hugging Face", lambda document: document.get("model_type") == "xlstm", _read_xlstm
    ),
    Format(
        "llama", "LlamaForCausalLM of Hugging Face", lambda document: document.get("model_type") == "llama", _read_llama
    ),
    Format("xlstm-package", "xLSTMLMModel of the PyTorch package xlstm", _is_package, _read_package),
)


def _read_tied(
    config: Any, tensors: Tensors, table: Callable[[Any, bool], Iterator[Entry]], embedding: str, options: ReadOptions
) -> Weights:
    """The parameters, with the head that the files have.

    Where the config ties it to the embedding, either may be missing. If both are there and differ, both count, as in
    transformers: that config is wrong, not the weights.
    """
    head, notes = "lm_head.weight", []
    stored = head in tensors
    if config.tie_weights and stored:
        rest = {name: tensor for name, tensor in tensors.items() if name != head}
        if embedding not in tensors:
            tensors = rest | {embedding: tensors[head]}
        elif _equal(tensors[embedding], tensors[head]):
            tensors = rest
        else:
            config = replace(config, tie_weights=False)
            notes.append(
                f"config.json says tie_word_embeddings, but {head} differs from {embedding}: both are kept, and the "
                "model is not tied"
            )
    params = read_params(table(config, not config.tie_weights), config, tensors, options.dtype)
    return Weights(config, params, {"stored_head": stored}, notes)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.array_equal(one.read().view(np.uint8), other.read().view(np.uint8))


def _without_frequencies(config: LlamaConfig, tensors: Tensors) -> Tensors:
    """Without the rotary frequencies, which older files hold although they follow from the config.

    Raises:
        WeightsError: if they are others.
    """
    suffix = ".rotary_emb.inv_freq"
    wanted = config.theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    problems = []
    for name in [name for name in tensors if name.endswith(suffix)]:
        found = tensors[name].read().astype(np.float64)
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-2, atol=0):
            problems.append(f"{name} holds other frequencies than those that follow from rope_theta {config.theta}")
    refuse("the weights do not fit the model, nothing was loaded", problems)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(suffix)}


def to_huggingface(
    config: LanguageModelConfig, weight_mode: str = "single", stored_head: bool = False
) -> tuple[str, dict[str, Any], list[Entry], list[str]]:
    """How a model of ours is written for transformers.

    Args:
        config: the model.
        weight_mode: of the format "xlstm".
        stored_head: write a tied head out as well. For the format "xlstm" it always is: transformers does not tie
            that model's head, and would make up one that is missing.

    Returns:
        (name of the format, what of config.json follows from the model, tensors, notes for the user)

    Raises:
        ConfigError: for a model that no format can express, naming the fields.
        WeightsError: for another `weight_mode`.
    """
    if weight_mode not in huggingface_xlstm.WEIGHT_MODES:
        raise WeightsError(f"the weight mode is {weight_mode!r}, but must be 'single' or 'fused'")
    if isinstance(config, xLSTMLMModelConfig):
        data = huggingface_xlstm.huggingface_from_config(config) | {"weight_mode": weight_mode}
        table = list(huggingface_xlstm.entries(config, weight_mode))
        return "xlstm", data, table, huggingface_xlstm.notes_on_export(config)
    if weight_mode != "single":
        raise WeightsError(f"the weight mode is {weight_mode!r}, which the format llama does not have")
    data = huggingface_llama.huggingface_from_config(config)
    return "llama", data, list(huggingface_llama.entries(config, stored_head or not config.tie_weights)), []

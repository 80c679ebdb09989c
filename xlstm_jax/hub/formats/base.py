"""What a format of published weights is, and what is exchanged with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

import jax.numpy as jnp
import numpy as np

from xlstm_jax.hub.kept import Record
from xlstm_jax.hub.mapping import FLOATS, TRANSPOSED, Entry, on_device, params_from_tensors, single
from xlstm_jax.hub.safetensors_files import StoredTensor
from xlstm_jax.models.configs import FloatName
from xlstm_jax.models.language_model import LanguageModelConfig

Document = Mapping[str, Any]
"""The JSON object of a config.json."""
Tensors = Mapping[str, StoredTensor]

HEAD = "lm_head.weight"


class ReadOptions(NamedTuple):
    """What a caller may ask for when weights are read."""

    dtype: FloatName | None = None
    """Of parameters and activations; None keeps that of each tensor, and computes in the widest of them."""
    context_length: int | None = None
    recurrent_layout: Literal["vanilla", "cuda"] | None = None
    """Of the sLSTM in state dicts of the package `xlstm`."""
    allow_nonfinite: bool = False
    """Take values that are NaN or infinite with a note, rather than refuse them."""


@dataclass
class Weights:
    """A model and its parameters, out of another package's files."""

    config: LanguageModelConfig
    params: dict[str, Any]
    record: Record = field(default_factory=Record)
    """What of the files our model does not show, to write them again as they were."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, a sentence each."""


class Written(NamedTuple):
    """How a model of ours stands in a format."""

    document: dict[str, Any]
    """What of config.json follows from the model."""
    entries: list[Entry]
    notes: list[str]
    """What the user should know, a sentence each."""
    with_tokenizer: dict[str, Any] | None = None
    """What of config.json goes with a tokenizer that does not come from such a folder, beside the ids of its special
    tokens; None: it says nothing of tokens."""
    dtype_names: tuple[str, ...] = ("dtype",)
    """What of config.json names the dtype of the tensors."""


class Format(NamedTuple):
    """A row of the table of formats."""

    detects: Callable[[Document], bool]
    """Whether a config.json is one of this format."""
    read: Callable[[Document, Tensors, ReadOptions], Weights]
    """(config.json, tensors, options) -> weights; raises `WeightsError` or `ConfigError`."""
    holds: Any
    """The class of the models that it can hold, or several."""
    write: Callable[[Any, Record], Written] | None
    """(config, how it was when it was read) -> how it is written; None: it is read only. Raises `ConfigError` for a
    model that the format cannot express, naming the fields, and `WeightsError` for a record of another format."""
    landmarks: tuple[str, ...] = ()
    """Tensors of which every model has one at least, to tell names with a prefix by."""


def compute_dtype(tensors: Tensors, asked: FloatName | None = None) -> FloatName:
    """The dtype to compute in: the one asked for, or the widest of the tensors'."""
    if asked is not None:
        return asked
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.dtype in FLOATS.values()}
    return cast(FloatName, jnp.result_type(*dtypes).name) if dtypes else "float32"


def head_of(config: LanguageModelConfig) -> Entry:
    """The head of a PyTorch model, which may be tied to the embedding."""
    if config.tie_weights:
        return single(HEAD, "token_embedding.embedding")
    return single(HEAD, "lm_head.kernel", TRANSPOSED)


def read_tied(
    config: Any, tensors: Tensors, table: Callable[..., Iterable[Entry]], embedding: str, options: ReadOptions
) -> Weights:
    """The weights of a model of transformers, with the head that the files have.

    Where the config ties it to the embedding, either may be missing. If both are there and differ, both count, as in
    transformers: that config is wrong, not the weights.

    `table` is (config, head=whether it has a tensor) -> what of theirs holds what of ours.
    """
    head, notes = HEAD, []
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
    params = params_as_asked(table(config, head=not config.tie_weights), config, tensors, options, notes)
    return Weights(config, params, Record(stored_head=stored), notes)


def params_as_asked(
    entries: Iterable[Entry],
    config: LanguageModelConfig,
    tensors: Tensors,
    options: ReadOptions,
    notes: list[str],
    problems: Iterable[str] = (),
) -> dict[str, Any]:
    """See `mapping.params_from_tensors`; `notes` gets what is taken although it is not finite."""
    return params_from_tensors(
        entries,
        config,
        tensors,
        on_device(options.dtype),
        cast=options.dtype is not None,
        not_finite=notes if options.allow_nonfinite else None,
        problems=problems,
    )


T = TypeVar("T")


def unwrapped(tensors: Mapping[str, T], landmarks: Sequence[str]) -> tuple[Mapping[str, T], str | None]:
    """(the tensors by the names of the format, a note where they had others)

    What wraps a model (torch.compile, DistributedDataParallel, DeepSpeed, PEFT, Lightning) puts its name before all of
    its names; what is saved of a model without its head may lack the first part of them.
    """
    if any(landmark in tensors for landmark in landmarks):
        return tensors, None
    for landmark in landmarks:
        for name in tensors:
            prefix = name.removesuffix(f".{landmark}") + "."
            if prefix != f"{name}." and all(other.startswith(prefix) for other in tensors):
                plain = {other.removeprefix(prefix): tensor for other, tensor in tensors.items()}
                return plain, f"all names of tensors begin with {prefix!r}, which a wrapper put there: it is taken off"
    for landmark in landmarks:
        outer, _, inner = landmark.partition(".")
        if inner in tensors and not any(name.startswith(f"{outer}.") for name in tensors):
            whole = {name if name == HEAD else f"{outer}.{name}": tensor for name, tensor in tensors.items()}
            return (
                whole,
                f"names of tensors lack {outer + '.'!r}, as where a model was saved without its head",
            )
    return tensors, None


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return np.array_equal(one.read().view(np.uint8), other.read().view(np.uint8))

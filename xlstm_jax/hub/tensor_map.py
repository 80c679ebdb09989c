"""How the tensors of another package hold our parameters: one table, read in both directions.

A tensor of theirs holds one parameter of ours, or several, one after the other along its first axis (fused weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.hub.errors import refuse
from xlstm_jax.hub.safetensors_files import NewTensor, StoredTensor
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.layouts import block_shapes, span_of, spans, to_runs

Shape = tuple[int, ...]

FLOATS = {name: np.dtype(jnp.dtype(name)) for name in ("float32", "bfloat16", "float16")}
"""What parameters can be stored in."""


class Part(NamedTuple):
    """A parameter of ours, as it stands in a tensor of theirs."""

    path: str
    """Its keys, joined by dots, in the model without `scan_blocks`."""
    form: Literal["same", "transposed", "flat"] = "same"

    def shape(self, ours: Shape) -> Shape:
        """The shape of theirs."""
        return ours[::-1] if self.form == "transposed" else (math.prod(ours),) if self.form == "flat" else ours

    def to_ours(self, value: np.ndarray, ours: Shape) -> np.ndarray:
        return value.T if self.form == "transposed" else value.reshape(ours)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        return value.T if self.form == "transposed" else value.reshape(self.shape(value.shape))


class Entry(NamedTuple):
    """A tensor of theirs."""

    name: str
    parts: tuple[Part, ...]

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Its shape, given those of our parameters."""
        one, *others = [part.shape(shapes[part.path]) for part in self.parts]
        return (one[0] + sum(shape[0] for shape in others), *one[1:])


def dense(name: str, *paths: str, bias: bool = False) -> Iterator[Entry]:
    """A dense layer of theirs, which holds one of ours or several: `NAME.weight` (out, in) and, if so, `NAME.bias`."""
    yield Entry(f"{name}.weight", tuple(Part(f"{path}.kernel", "transposed") for path in paths))
    if bias:
        yield Entry(f"{name}.bias", tuple(Part(f"{path}.bias") for path in paths))


def read_params(
    entries: Iterable[Entry],
    config: LanguageModelConfig,
    tensors: Mapping[str, StoredTensor],
    dtype: str | None = None,
) -> dict[str, Any]:
    """The parameters of `build_model(config)` out of files.

    All is checked before the first value is read. Tensors are read one at a time.

    Args:
        entries: what of theirs holds what of ours.
        config: the model.
        tensors: theirs.
        dtype: of the parameters; None keeps that of each tensor.

    Raises:
        WeightsError: naming every tensor that is missing, surplus, mis-shaped or of a dtype that cannot be used.
    """
    entries, shapes = list(entries), block_shapes(config)
    problems = []
    for entry in entries:
        wanted, tensor = entry.shape(shapes), tensors.get(entry.name)
        if tensor is None:
            problems.append(f"missing: {entry.name} {wanted}")
        elif tensor.shape != wanted:
            problems.append(f"mis-shaped: {entry.name} is {tensor.shape}, but the config asks for {wanted}")
        elif tensor.dtype not in FLOATS.values():
            problems.append(
                f"wrong dtype: {entry.name} is {tensor.dtype}, but parameters are one of {', '.join(FLOATS)}"
            )
    known = {entry.name for entry in entries}
    problems += [f"surplus: {name}, which no part of the model takes" for name in sorted(set(tensors) - known)]
    refuse("the weights do not fit the model, nothing was loaded", problems)
    lacking = set(shapes) - {part.path for entry in entries for part in entry.parts}
    assert not lacking, f"the table has no row for {sorted(lacking)}"

    flat: dict[str, Any] = {}
    for entry in entries:
        values, start = tensors[entry.name].read(), 0
        for part in entry.parts:
            ours = shapes[part.path]
            rows = part.shape(ours)[0]
            piece = part.to_ours(values[start : start + rows], ours)
            flat[part.path] = on_device(piece if dtype is None else piece.astype(FLOATS[dtype], copy=False))
            start += rows
    return _nested(flat, config)


def on_device(value: np.ndarray) -> jax.Array:
    """A JAX array of values that nobody else has; a checkpoint is written from it without another copy.

    It waits for the copy, if there is one: else the originals of all tensors would wait for the last.
    """
    return jax.block_until_ready(jax.device_put(np.ascontiguousarray(value), may_alias=True))


def tensors_from_params(
    entries: Iterable[Entry], config: LanguageModelConfig, params: Mapping[str, Any], dtype: str | None = None
) -> dict[str, NewTensor]:
    """Theirs out of the parameters of `build_model(config)`; values are made when they are asked for.

    Args:
        entries: what of theirs holds what of ours.
        config: the model.
        params: its parameters, of scanned blocks or unrolled ones as the config says.
        dtype: of the tensors; None keeps that of each parameter.
    """
    shapes = block_shapes(config)
    tensors = {}
    for entry in entries:
        kinds = [np.dtype(_leaf(params, part.path)[0].dtype) for part in entry.parts]
        kind = FLOATS[dtype] if dtype is not None else jnp.result_type(*kinds)

        def values(entry: Entry = entry, kind: Any = kind) -> np.ndarray:
            parts = []
            for part in entry.parts:
                leaf, block = _leaf(params, part.path)
                parts.append(part.to_theirs(np.asarray(leaf if block is None else leaf[block])))
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return whole.astype(kind, copy=False)

        tensors[entry.name] = NewTensor(entry.shape(shapes), np.dtype(kind), values)
    return tensors


def _nested(flat: Mapping[str, Any], config: LanguageModelConfig) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(".")
        inner = tree
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[last] = leaf
    return to_runs(tree, spans(config))


def _leaf(params: Mapping[str, Any], path: str) -> tuple[Any, int | None]:
    """The array that holds a parameter of the unrolled model, and its place along axis 0 if blocks are scanned."""
    node: Any = params
    block = None
    for name in path.split("."):
        own = span_of(name)
        if own and name not in node:
            name = next(key for key in node if own[0] in (span_of(key) or ()))
            block = own[0] - span_of(name)[0]  # type: ignore[index]
        node = node[name]
    return node, block

"""One language for how the tensors of another package hold our parameters, read in both directions.

An `Entry` is a tensor of theirs: it holds one parameter of ours, or several, one after the other (fused weights). Each
is a `Part`, in a `Form`. Paths and shapes are those of the model with every block by itself; a table may name more than
a model has (biases, norms): what the model lacks, its tensors lack, too.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.hub.errors import refuse
from xlstm_jax.hub.safetensors_files import NewTensor
from xlstm_jax.models.language_model import LanguageModelConfig, block_shapes
from xlstm_jax.models.layouts import to_runs
from xlstm_jax.models.stack import span_of, spans

Shape = tuple[int, ...]

FLOATS = {name: np.dtype(jnp.dtype(name)) for name in ("float32", "bfloat16", "float16")}
"""What parameters can be stored in."""
WIDE_FLOATS = FLOATS | {"float64": np.dtype(np.float64)}


@dataclass(frozen=True)
class Form:
    """How the values of one of our parameters are arranged in theirs."""

    pattern: str = ""
    """`OURS -> THEIRS` as einops writes it: an axis has a name, several that lie in one stand in brackets, the slowest
    first (`gate head f -> (head gate f)`). Empty: as they are."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Of those axes that the shape of ours leaves open."""
    one_plus: bool = False
    """Theirs is the difference to one."""

    def shape(self, ours: Shape) -> Shape:
        """The shape of theirs."""
        return self._plan(ours)[2]

    def to_ours(self, value: np.ndarray, ours: Shape) -> np.ndarray:
        """Ours, of the shape `ours`."""
        if self.one_plus:
            # In float32 at least: next to one, a narrower dtype has no room for the difference.
            wide = np.float32 if value.dtype.itemsize < 4 else value.dtype
            value = np.ones((), wide) + value.astype(wide, copy=False)
        apart, order, _ = self._plan(ours)
        moved = value.reshape([apart[axis] for axis in order]).transpose(np.argsort(order))
        return moved.reshape(ours)

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        """Theirs."""
        apart, order, theirs = self._plan(value.shape)
        value = value.reshape(apart).transpose(order).reshape(theirs)
        return value - np.ones((), value.dtype) if self.one_plus else value

    def _plan(self, ours: Shape) -> tuple[Shape, tuple[int, ...], Shape]:
        """(ours with every axis by itself, in which order theirs has these axes, the shape of theirs)"""
        if not self.pattern:
            return ours, tuple(range(len(ours))), ours
        mine, yours = (
            [group.strip("()").split() for group in re.findall(r"\(.*?\)|\w+", side)]
            for side in self.pattern.split("->")
        )
        sizes = dict(self.sizes)
        for group, whole in zip(mine, ours, strict=True):
            for axis in group:
                if axis not in sizes:
                    sizes[axis] = whole // math.prod(sizes[other] for other in group if other in sizes)
        axes = [axis for group in mine for axis in group]
        order = tuple(axes.index(axis) for group in yours for axis in group)
        theirs = tuple(math.prod(sizes[axis] for axis in group) for group in yours)
        return tuple(sizes[axis] for axis in axes), order, theirs


SAME = Form()
TRANSPOSED = Form("in out -> out in")
"""A dense layer's kernel."""
FLAT = Form("head f -> (head f)")


class Part(NamedTuple):
    """A parameter of ours, as it stands in a tensor of theirs."""

    path: str
    """Its keys, joined by dots."""
    form: Form = SAME


class Entry(NamedTuple):
    """A tensor of theirs."""

    name: str
    parts: tuple[Part, ...]
    axis: int = 0
    """Along which several parts lie one after the other."""

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Its shape, given those of our parameters."""
        one, *others = [list(part.form.shape(shapes[part.path])) for part in self.parts]
        for other in others:
            one[self.axis] += other[self.axis]
        return tuple(one)


def single(name: str, path: str, form: Form = SAME) -> Entry:
    """A tensor of theirs that holds one parameter of ours."""
    return Entry(name, (Part(path, form),))


def dense(name: str, *paths: str) -> Iterator[Entry]:
    """A dense layer of PyTorch, which holds one of ours or several: `NAME.weight` (out, in) and `NAME.bias`."""
    yield Entry(f"{name}.weight", tuple(Part(f"{path}.kernel", TRANSPOSED) for path in paths))
    yield Entry(f"{name}.bias", tuple(Part(f"{path}.bias") for path in paths))


def params_from_tensors(
    entries: Iterable[Entry],
    config: LanguageModelConfig,
    tensors: Mapping[str, Any],
    convert: Callable[[np.ndarray], Any] = np.ascontiguousarray,
    *,
    floats: Mapping[str, np.dtype] = FLOATS,
    cast: bool = False,
    not_finite: list[str] | None = None,
    problems: Iterable[str] = (),
    called: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The parameters of `build_model(config)`.

    All is checked before the first value is read. Tensors are read one at a time.

    Args:
        tensors: theirs; arrays, or what has a shape and a dtype and becomes one by `np.asarray`.
        convert: what is done with each parameter before the next tensor is read.
        floats: the dtypes that theirs may have.
        cast: theirs may have any dtype of floating-point numbers, because `convert` casts.
        not_finite: gets a sentence on each tensor with values that are NaN or infinite; without it they are refused.
        problems: what else is wrong, to be told with the rest.
        called: what to call a tensor for the user, where that is not its name.

    Raises:
        WeightsError: naming every tensor that is missing, surplus, mis-shaped or of a dtype that cannot be used, and
            every parameter that no tensor holds; or every tensor whose values are not finite.
    """
    shapes, called = block_shapes(config), called or {}
    problems = list(problems)
    dtypes: dict[np.dtype, list[str]] = {}
    entries = _of_model(entries, shapes, problems)
    for entry in entries:
        wanted, name = entry.shape(shapes), called.get(entry.name, entry.name)
        if entry.name not in tensors:
            problems.append(f"missing: {name} {wanted}, which holds {' and '.join(p.path for p in entry.parts)}")
            continue
        shape, dtype = tuple(tensors[entry.name].shape), np.dtype(tensors[entry.name].dtype)
        if shape != wanted:
            problems.append(f"mis-shaped: {name} is {shape}, but the config asks for {wanted}")
        if dtype not in floats.values() and not (cast and jnp.issubdtype(dtype, jnp.floating)):
            dtypes.setdefault(dtype, []).append(name)
    problems += [_wrong_dtype(dtype, names, floats) for dtype, names in dtypes.items()]
    surplus = {called.get(name, name) for name in set(tensors) - {entry.name for entry in entries}}
    problems += [f"surplus: {name}, which no part of the model takes" for name in sorted(surplus)]
    refuse("the weights do not fit the model, nothing was loaded", problems)

    tree: dict[str, Any] = {}
    broken: dict[str, int] = {}
    for entry in entries:
        values = np.asarray(tensors[entry.name])
        ends = np.cumsum([part.form.shape(shapes[part.path])[entry.axis] for part in entry.parts])
        for part, value in zip(entry.parts, np.split(values, ends[:-1], entry.axis), strict=True):
            ours = convert(part.form.to_ours(value, shapes[part.path]))
            if count := count_not_finite(np.asarray(ours)):
                name = called.get(entry.name, entry.name)
                broken[name] = broken.get(name, 0) + count
            _put(tree, part.path, ours)
    sentences = [not_finite_values(name, count) for name, count in broken.items()]
    if not_finite is None:
        refuse(NOT_FINITE, sentences)
    else:
        not_finite += sentences
    return to_runs(tree, spans(config))


NOT_FINITE = "the weights are damaged, or out of the range of the dtype that was asked for"
_CHUNK = 1 << 20


def count_not_finite(values: np.ndarray) -> int:
    """How many values of a contiguous array are NaN or infinite; it takes little memory."""
    flat = values.reshape(-1)
    return sum(
        int(np.count_nonzero(~np.isfinite(flat[start : start + _CHUNK]))) for start in range(0, flat.size, _CHUNK)
    )


def not_finite_values(name: str, count: int) -> str:
    """A sentence on a tensor."""
    return f"{name} holds {count} {'value' if count == 1 else 'values'} of NaN or infinity"


def _wrong_dtype(dtype: np.dtype, names: list[str], floats: Mapping[str, np.dtype]) -> str:
    which = f"{names[0]} is" if len(names) == 1 else f"{len(names)} tensors are"
    first = f" (first {names[0]})" if len(names) > 1 else ""
    told = f"wrong dtype: {which} {dtype}{first}, but parameters are one of {', '.join(floats)}"
    cast = "--dtype casts" if jnp.issubdtype(dtype, jnp.floating) else "quantised weights are not read"
    return f"{told}; {cast}"


def tensors_from_params(
    entries: Iterable[Entry], config: LanguageModelConfig, params: Mapping[str, Any], dtype: str | None = None
) -> dict[str, NewTensor]:
    """Theirs; values are made when they are asked for.

    Args:
        params: the parameters of `build_model(config)`, in any runs.
        dtype: of the tensors; None keeps that of each parameter.

    Raises:
        WeightsError: naming every parameter that is not the model's, or that no tensor holds.
    """
    shapes, leaves = block_shapes(config), _leaves(params)
    problems: list[str] = []
    entries = _of_model(entries, shapes, problems)
    problems += [f"missing: {path} {shapes[path]}" for path in sorted(set(shapes) - set(leaves))]
    problems += [f"surplus: {path}" for path in sorted(set(leaves) - set(shapes))]
    for path in sorted(set(shapes) & set(leaves)):
        leaf, place = leaves[path]
        if (shape := leaf.shape if place is None else leaf.shape[1:]) != shapes[path]:
            problems.append(f"mis-shaped: {path} is {shape}, but the config asks for {shapes[path]}")
    refuse("the parameters are not those of the model, nothing was written", problems)

    def values(entry: Entry, dtype: np.dtype) -> np.ndarray:
        parts = []
        for path, form in entry.parts:
            leaf, place = leaves[path]
            parts.append(form.to_theirs(np.asarray(leaf if place is None else leaf[place])))
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, entry.axis)
        return _cast(whole, dtype)

    tensors = {}
    for entry in entries:
        dtypes = {np.dtype(leaves[part.path][0].dtype) for part in entry.parts}
        own = dtypes.pop() if len(dtypes) == 1 else np.dtype(jnp.result_type(*dtypes))
        wanted = own if dtype is None else FLOATS[dtype]
        tensors[entry.name] = NewTensor(entry.shape(shapes), wanted, functools.partial(values, entry, wanted))
    return tensors


def on_device(dtype: str | None = None) -> Callable[[np.ndarray], jax.Array]:
    """A `convert` for values that nobody else has, to JAX arrays of `dtype` (None: their own).

    A checkpoint is written from such arrays without another copy. Each waits for its copy, if there is one: else the
    originals of all tensors would wait for the last.
    """

    def convert(value: np.ndarray) -> jax.Array:
        value = value if dtype is None else _cast(value, FLOATS[dtype])
        return jax.block_until_ready(jax.device_put(np.ascontiguousarray(value), may_alias=True))

    return convert


def _cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What is out of range becomes infinite, and is looked for by `count_not_finite`."""
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(dtype, copy=False)


def _of_model(entries: Iterable[Entry], shapes: Mapping[str, Shape], problems: list[str]) -> list[Entry]:
    """The entries that the model has."""
    kept = [entry for entry in entries if entry.parts[0].path in shapes]
    lacking = set(shapes) - {part.path for entry in kept for part in entry.parts}
    problems += [f"missing: {path} {shapes[path]}, for which the format has no tensor" for path in sorted(lacking)]
    return kept


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _leaves(params: Mapping[str, Any]) -> dict[str, tuple[Any, int | None]]:
    """Path -> the array that holds the parameter, and its place along axis 0 if that is a run of several blocks."""
    leaves: dict[str, tuple[Any, int | None]] = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in keys]
        at, span = next(((n, span) for n, name in enumerate(names) if (span := span_of(name))), (0, range(0)))
        if len(span) < 2:
            leaves[".".join(names)] = leaf, None
        else:
            for place, i in enumerate(span):
                leaves[".".join([*names[:at], f"blocks_{i}", *names[at + 1 :]])] = leaf, place
    return leaves

"""How a cell is called: its implementations by name, which of them can run here and which is the best, and the checks
of its arguments, whose errors name the argument, what it got and what it takes.

One name a form: that of the implementation is its file's and its function's. A cell's table of them (`FORMS` in its
`api.py`) is the one place where names stand; what checks, lists or documents them reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

Shapes = Mapping[str, tuple[int, ...]]
"""Of the arrays that a cell is called with, by the names of its arguments; empty where they are not known yet."""


class Device(NamedTuple):
    """What an implementation may ask of a device: "cpu", "gpu" or "tpu", and the kind, say "NVIDIA H100 80GB HBM3"."""

    platform: str
    kind: str


class UnsupportedError(ValueError):
    """An implementation was asked for by name that cannot run here."""


@dataclass(frozen=True)
class Implementation:
    """One form of a cell.

    Attributes:
        run: the cell over a sequence.
        step: the cell for one token; None where the form has no code of its own for it.
        supported: (shapes, dtype, device) -> why it cannot run these, or None if it can, as plain XLA always can.
        best: device -> why it is to be taken there unless another is asked for, or None.
        sizes: its options of size, such as tokens per chunk, with their defaults.
    """

    name: str
    run: Callable[..., Any]
    step: Callable[..., Any] | None = None
    supported: Callable[[Shapes, DTypeLike, Device], str | None] = lambda shapes, dtype, device: None
    best: Callable[[Device], str | None] = lambda device: None
    sizes: Mapping[str, int] = field(default_factory=dict)


class Choice(NamedTuple):
    """What was chosen, and why."""

    implementation: Implementation
    reason: str


def table(*implementations: Implementation) -> dict[str, Implementation]:
    """Implementations by name."""
    return {x.name: x for x in implementations}


def choose(
    forms: Mapping[str, Implementation],
    name: str | None,
    shapes: Shapes,
    dtype: DTypeLike,
    *,
    step: bool = False,
    device: Device | None = None,
) -> Choice:
    """The implementation of that name or, for None, the best one that is supported.

    Args:
        forms: the cell's table.
        step: whether one token is to be computed: what has no step of its own then leaves it to the best that has.
        device: JAX's default one, if None.

    Raises:
        ValueError: for a name that is not in the table.
        UnsupportedError: for a name whose implementation cannot run here, with the reason; for None, if none can.
    """
    device = device or Device(jax.default_backend(), jax.devices()[0].device_kind)
    if name is not None:
        if name not in forms:
            raise ValueError(f"implementation is {name!r}, but must be None or one of {', '.join(forms)}")
        if why_not := forms[name].supported(shapes, dtype, device):
            raise UnsupportedError(f"implementation is {name!r}, which cannot run here: {why_not}")
        if not step or forms[name].step is not None:
            return Choice(forms[name], "it was asked for")
    able = [x for x in forms.values() if not (step and x.step is None) and not x.supported(shapes, dtype, device)]
    for form in able:
        if reason := form.best(device):
            return Choice(form, reason)
    if not able:
        raise UnsupportedError(f"implementation is None, but none of {', '.join(forms)} can run on this {device.kind}")
    return Choice(able[0], f"the first of {', '.join(forms)} that runs on this device" + (" by steps" if step else ""))


def check_floats(**arrays: Any) -> None:
    """Raise unless every argument is an array of real floats.

    Whole numbers are refused rather than converted: the outputs, which have the dtype of the values, would be rounded
    to whole numbers without a word.

    Raises:
        TypeError: for what is no array.
        ValueError: for an array of another dtype.
    """
    for label, array in arrays.items():
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{label} is of type {type(array).__name__}, but must be an array")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{label} has dtype {array.dtype}, but must be of a float dtype")


def check_flags(shape: tuple[int, ...], **arrays: Any) -> None:
    """Raise unless every argument is None or a boolean array of that shape.

    Raises:
        TypeError: for what is no array.
        ValueError: for another shape or dtype.
    """
    for label, array in arrays.items():
        if array is None:
            continue
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(f"{label} is of type {type(array).__name__}, but must be None or a boolean array")
        if array.shape != shape or array.dtype != jnp.bool_:
            raise ValueError(
                f"{label} has shape {array.shape} and dtype {array.dtype}, but must be boolean of shape {shape}"
            )


def check_count(label: str, value: Any) -> None:
    """Raise `ValueError` unless the argument is None or a whole number from 1 on."""
    if value is None:
        return
    try:
        fits = not isinstance(value, bool) and operator.index(value) >= 1
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{label} is {value!r}, but must be None or a whole number of at least 1")


def wide(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype that holds all these and float32, also where JAX has been told to promote nothing by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *dtypes)


def on_mesh(run: Callable[..., Any], *arrays: Any, parted: Any, **flags: Any) -> tuple[Callable[..., Any], Any, Any]:
    """What to call, and with which arrays and flags, for `run(*arrays, **flags)` on any mesh.

    How an array lies on a mesh is part of its type inside `jax.shard_map` and on explicit axes, and a loop may not
    change it. So all arrays are made to vary over the axes that one of them varies over inside `jax.shard_map`: what
    all devices share, say weights, gets the sum of their gradients by this. Explicit axes are left to the compiler.

    Args:
        arrays, flags: arrays, trees of them, or None.
        parted: a `PartitionSpec` for each result, in a tree like theirs: how explicit axes part it.
    """
    axes = frozenset().union(*(_varying(x) for x in jax.tree.leaves((arrays, flags))))

    def spread(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    arrays, flags = jax.tree.map(spread, (arrays, flags))
    explicit = jax.sharding.get_abstract_mesh().explicit_axes
    if not explicit:
        return run, arrays, flags
    automatic = jax.sharding.auto_axes(lambda x, y: run(*x, **y), axes=explicit, out_sharding=parted)
    return lambda *x, **y: automatic(x, y), arrays, flags


def partition(x: Any) -> tuple[Any, ...]:
    """The explicit mesh axes that part each axis of an array."""
    kind: Any = jax.typeof(x)
    return tuple(kind.sharding.spec)


def _varying(x: Any) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma


def starting_state(kind: Any, state: Any, shapes: tuple[tuple[int, ...], ...], *inputs: Array) -> Any:
    """`state` as the named tuple `kind`, zeros for None, in a dtype as wide as those of state and inputs and float32.

    Raises:
        TypeError: for something else than such a tuple, or for a part that is no array.
        ValueError: for a part of another dtype or shape.
    """
    parts = () if state is None else state
    if state is not None:
        if not isinstance(state, tuple) or len(state) != len(kind._fields):
            raise TypeError(f"state is of type {type(state).__name__}, but must be {kind.__name__}{kind._fields}")
        check_floats(**{f"state.{name}": array for name, array in zip(kind._fields, state, strict=True)})
        for name, array, shape in zip(kind._fields, state, shapes, strict=True):
            if array.shape != shape:
                raise ValueError(f"state.{name} has shape {array.shape}, but these inputs need {shape}")
    dtype = wide(*(x.dtype for x in (*inputs, *parts)))
    if state is None:
        return kind(*(jnp.zeros(shape, dtype) for shape in shapes))
    return kind(*(x.astype(dtype) for x in state))

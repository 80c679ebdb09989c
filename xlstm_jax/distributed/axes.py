"""How parameters lie on a mesh: from the logical axes of the table of parameters to axes of the mesh.

The table itself, a row a kind of parameter, is `xlstm_jax.models.parameters`; here is what its words mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xlstm_jax.distributed.mesh import Axes, axes_of
from xlstm_jax.models.configs import ParallelConfig

MESH_AXES: dict[str, tuple[str, ...]] = {
    # Parameters are parted over the sequence's devices as well, which would else hold copies.
    "embed": ("fsdp", "sequence"),
    "features": ("fsdp", "sequence"),
    "heads": ("model",),
    "head": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
    "block": (),
}
"""For each logical axis the axes of the mesh that part it, the outer one first."""


class Described(Protocol):
    """What a row of the table of parameters says (`xlstm_jax.models.parameters.Leaf`)."""

    @property
    def path(self) -> str: ...
    @property
    def axes(self) -> tuple[str | None, ...]: ...
    @property
    def modules(self) -> tuple[str, ...]: ...


class _Placed(NamedTuple):
    """A parameter's shape and how it lies."""

    shape: tuple[int, ...]
    spec: P


def parameter_spec(leaf: Described, shape: tuple[int, ...], axes: Axes, parallel: ParallelConfig) -> P:
    """How a parameter lies on a mesh.

    Its features are parted over `fsdp` if it has at least `fsdp_min_weight_size` entries (in one block, where a run of
    several lies in one array) and is part of one of `fsdp_modules` (of any module, if none is named). An axis that the
    mesh does not divide is not parted.
    """
    named = not parallel.fsdp_modules or bool(set(parallel.fsdp_modules) & set(leaf.modules))
    of_one_block = math.prod(size for axis, size in zip(leaf.axes, shape, strict=True) if axis != "block")
    large = named and of_one_block >= parallel.fsdp_min_weight_size
    entries = []
    for axis, size in zip(leaf.axes, shape, strict=True):
        uses = MESH_AXES[axis] if axis else ()
        entries.append(axes.part([use for use in uses if use == "model" or large], size) or None)
    return P(*entries)


def shardings(tree: Any, table: Any, params: Any, mesh: Mesh, parallel: ParallelConfig | None = None) -> Any:
    """A tree like `tree` with how each of its arrays lies on the mesh.

    Args:
        tree: arrays, or their shapes: parameters, gradients, an optimizer's state, or all of a training state.
        table: what each parameter is, in a tree like theirs (`xlstm_jax.models.parameters.describe`).
        params: the parameters, or their shapes.

    Returns:
        A parameter lies as `parameter_spec` says, and with it what an optimizer keeps for it: arrays whose path ends
        with the parameter's, of its shape or of its shape without one axis. All else is whole on every device.
    """
    axes, parallel = axes_of(mesh), parallel or ParallelConfig()
    placed: dict[tuple[str, ...], _Placed] = {}
    leaves = jax.tree.leaves(table, is_leaf=lambda x: hasattr(x, "modules"))
    for (path, array), leaf in zip(jax.tree_util.tree_flatten_with_path(params)[0], leaves, strict=True):
        shape = tuple(array.shape)
        placed[_names(path)] = _Placed(shape, parameter_spec(leaf, shape, axes, parallel))

    def sharding(path: Any, array: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec_in(placed, _names(path), tuple(array.shape)))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec_in(placed: Mapping[tuple[str, ...], _Placed], names: tuple[str, ...], shape: tuple[int, ...]) -> P:
    for start in range(len(names)):
        found = placed.get(names[start:])
        if found is None:
            continue
        entries = (*found.spec, *(None,) * (len(found.shape) - len(found.spec)))
        if shape == found.shape:
            return found.spec
        for axis in reversed(range(len(found.shape))):  # a statistic over one axis; of equal ones the last
            if shape == found.shape[:axis] + found.shape[axis + 1 :]:
                return P(*entries[:axis], *entries[axis + 1 :])
    return P()


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)

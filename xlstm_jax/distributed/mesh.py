"""The mesh: which devices there are, and what each of its axes is for.

A mesh has four axes in the order (data, fsdp, sequence, model), under the names that `ParallelConfig` gives them. Their
place says what they are for, so that whoever is called under a mesh need not be told its names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from xlstm_jax.config import ConfigError, near_miss
from xlstm_jax.models.configs import ParallelConfig

USES = ("data", "fsdp", "sequence", "model")
"""What the axes of a mesh are for, in their order."""
AUTO = AxisType.Auto

ROLES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("sequence",),
    "heads": ("model",),
    "spread heads": ("model", "sequence"),  # of a cell that needs the whole sequence of each head
}
"""What an axis of an activation is, and the axes of the mesh that part it, the outer one first."""


@dataclass(frozen=True)
class Axes:
    """The axes of a mesh: their names and sizes by what they are for (data, fsdp, sequence, model)."""

    names: Mapping[str, str]
    sizes: Mapping[str, int]

    def part(self, uses: Sequence[str], size: int) -> tuple[str, ...]:
        """The names of those of the axes, from the outer on, that part something of this size evenly."""
        kept: list[str] = []
        parts = 1
        for use in uses:
            if size % (parts * self.sizes[use]):
                break
            parts *= self.sizes[use]
            if self.sizes[use] > 1:
                kept.append(self.names[use])
        return tuple(kept)

    def lying(self, roles: Sequence[str | None], shape: Sequence[int]) -> tuple[tuple[str, ...] | None, ...]:
        """The names of the axes that part each axis of an activation, by its role (see `ROLES`); None for one that is
        whole, as it is if it does not divide."""
        return tuple(
            (self.part(ROLES[role], size) or None) if role else None for role, size in zip(roles, shape, strict=True)
        )

    def in_words(self) -> str:
        """The axes that part something: "dp 4 x tp 2"."""
        parting = (f"{self.names[use]} {size}" for use, size in self.sizes.items() if size not in (1, -1))
        return " x ".join(parting) or "one device"

    @property
    def reducing(self) -> tuple[str, ...]:
        """The axes that part tokens, over which a sum of all tokens goes."""
        return tuple(self.names[use] for use in ("data", "fsdp", "sequence"))


def axes_of(mesh: Any) -> Axes:
    """The axes of a mesh that `make_mesh` made, abstract or not."""
    names = dict(zip(USES, mesh.axis_names, strict=True))
    return Axes(names, {use: mesh.shape[name] for use, name in names.items()})


def current() -> Axes | None:
    """The axes of the mesh that `jax.set_mesh` has set; None without one, on one device, inside of `jax.shard_map` and
    on meshes of another make."""
    mesh = jax.sharding.get_abstract_mesh()
    return axes_of(mesh) if is_ours(mesh) else None


def is_ours(mesh: Any) -> bool:
    """Whether a mesh is one of several devices that `make_mesh` made, outside of `jax.shard_map`."""
    return not mesh.empty and mesh.size > 1 and len(mesh.axis_names) == len(USES) and set(mesh.axis_types) == {AUTO}


def with_mesh(parallel: ParallelConfig | None, words: str) -> ParallelConfig:
    """A layout with the sizes that words like "fsdp=4,tp=2" give: an axis that is not named has size 1, but the first,
    that of the data, takes what the others leave.

    Raises:
        ConfigError: for words that do not name axes and their sizes.
    """
    parallel = parallel or ParallelConfig()
    uses = {getattr(parallel, f"{use}_axis_name"): use for use in USES}
    sizes = {"data": -1, **dict.fromkeys(USES[1:], 1)}
    for word in words.split(","):
        name, equals, size = (part.strip() for part in word.partition("="))
        if name not in uses:
            raise ConfigError(
                f"a mesh has no axis {name!r}{near_miss(name, uses)}; its axes are {', '.join(uses)}, as in fsdp=4,tp=2"
            )
        if not equals or not (size == "-1" or (size.isdecimal() and int(size) >= 1)):
            raise ConfigError(
                f"the mesh's {name} is {size!r}, but must be a whole number from 1 on, or -1 for the rest"
            )
        sizes[uses[name]] = int(size)
        if size == "-1" and name != parallel.data_axis_name:
            sizes["data"] = 1
    fields: dict[str, Any] = {f"{use}_axis_size": size for use, size in sizes.items()}
    return dataclasses.replace(parallel, **fields)


def one_device(parallel: ParallelConfig) -> bool:
    """Whether the sizes of the axes ask for a single device, however many there are."""
    return all(getattr(parallel, f"{use}_axis_size") == 1 for use in USES)


def sizes_of(parallel: ParallelConfig | None, devices: int) -> tuple[int, int, int, int]:
    """The sizes of the axes (data, fsdp, sequence, model) over so many devices, the one that is -1 inferred.

    Without a `ParallelConfig` all devices part the batch.

    Raises:
        ConfigError: if they do not multiply to the number of devices.
    """
    parallel = parallel or ParallelConfig()
    sizes = {use: getattr(parallel, f"{use}_axis_size") for use in USES}
    names = {use: getattr(parallel, f"{use}_axis_name") for use in sizes}
    open_axes = [use for use, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    product = Axes(names, sizes).in_words()
    there = f"there {'is 1 device' if devices == 1 else f'are {devices} devices'}"
    if len(open_axes) == 1:
        if devices % known:
            raise ConfigError(f"a mesh of {product} needs a number of devices that {known} divides, but {there}")
        sizes[open_axes[0]] = devices // known
    elif known != devices:
        raise ConfigError(f"a mesh of {product} needs {known} devices, but {there}")
    return tuple(sizes.values())  # type: ignore[return-value]


def make_mesh(parallel: ParallelConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a `ParallelConfig`; its axes are `AxisType.Auto`.

    Args:
        devices: all that JAX knows, if None.

    Raises:
        ConfigError: if the sizes of the axes do not multiply to the number of devices.
    """
    parallel = parallel or ParallelConfig()
    devices = jax.devices() if devices is None else devices
    sizes = sizes_of(parallel, len(devices))
    names = tuple(getattr(parallel, f"{use}_axis_name") for use in USES)
    types = (AUTO,) * len(names)
    if len(devices) == len(jax.devices()):
        return jax.make_mesh(sizes, names, axis_types=types, devices=devices)
    return Mesh(np.asarray(devices).reshape(sizes), names, axis_types=types)

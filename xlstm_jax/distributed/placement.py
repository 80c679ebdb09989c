"""Where the arrays of a run lie: on the one device there is, or parted over a mesh."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xlstm_jax.distributed.axes import shardings
from xlstm_jax.distributed.mesh import axes_of, is_ours, make_mesh, one_device, sizes_of
from xlstm_jax.models.configs import ParallelConfig


@dataclass(frozen=True)
class Placement:
    """A mesh, or None for one device, and how a model is laid out over it."""

    mesh: Mesh | None = None
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which what runs on the mesh is traced."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def shapes(self, tree: Any, table: Any, params: Any) -> Any:
        """A tree of shapes, each with its place on the mesh (see `axes.shardings`); as it is without one."""
        if self.mesh is None:
            return tree
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            shardings(tree, table, params, self.mesh, self.parallel),
        )

    def rows(self, read: Callable[[np.ndarray], Any], batch: int, seq: int, accumulate: int = 1) -> Any:
        """Rows of tokens on the mesh, of which each process reads its own alone.

        Args:
            read: (numbers of rows) -> a tuple of arrays (rows, seq).
            accumulate: micro-batches; above 1 they are the first axis, so that each is parted over all devices.
        """
        size = batch // accumulate
        if self.mesh is None:
            return read(np.arange(batch))
        numbers = np.arange(batch).reshape(accumulate, size)
        shape, sharding = self._lying(batch, seq, accumulate)
        lead = shape[:-2]
        parts: dict[tuple[int, int], Any] = {}

        def of_rows(rows: slice) -> Any:
            start, stop, _ = rows.indices(size)
            if (start, stop) not in parts:
                parts[start, stop] = read(numbers[:, start:stop].ravel())
            return parts[start, stop]

        def piece(place: int, index: tuple[slice, ...]) -> np.ndarray:
            array = of_rows(index[-2])[place][:, index[-1]]
            return array.reshape(*lead, -1, array.shape[-1])

        own = next(iter(sharding.addressable_devices_indices_map(shape).values()))
        assert own is not None
        mine = of_rows(own[-2])
        fields = range(len(mine))
        return type(mine)(*(jax.make_array_from_callback(shape, sharding, functools.partial(piece, n)) for n in fields))

    def _lying(self, batch: int, seq: int, accumulate: int) -> tuple[tuple[int, ...], NamedSharding]:
        """Shape and place of an array of rows."""
        assert self.mesh is not None
        lead, size = () if accumulate == 1 else (accumulate,), batch // accumulate
        lying = axes_of(self.mesh).lying(("batch", "sequence"), (size, seq))
        return (*lead, size, seq), NamedSharding(self.mesh, P(*(None for _ in lead), *lying))

    def row_shapes(self, shapes: Any, accumulate: int = 1) -> Any:
        """What `rows` makes of rows with these shapes (batch, seq), without making it."""
        if self.mesh is None:
            return shapes

        def laid_out(shape: Any) -> Any:
            batch, seq = shape.shape
            lying, sharding = self._lying(batch, seq, accumulate)
            return jax.ShapeDtypeStruct(lying, shape.dtype, sharding=sharding)

        return jax.tree.map(laid_out, shapes)

    @property
    def machines(self) -> int:
        """How many times as fast as one device all of them are; simulated ones share the processor."""
        return 1 if self.mesh is None or jax.default_backend() == "cpu" else self.mesh.size

    def in_words(self) -> str:
        """The axes that part something: "dp 4 x tp 2"."""
        return "one device" if self.mesh is None else axes_of(self.mesh).in_words()


ONE_DEVICE = Placement()


def placement_of(parallel: ParallelConfig | None) -> Placement:
    """The placement that a config asks for; without one, or where there is one device only, on that device. Several
    processes part the batch if nothing else is said.

    Raises:
        ConfigError: if the sizes of the mesh do not multiply to the number of devices.
    """
    if parallel is None and jax.process_count() > 1:
        parallel = ParallelConfig()
    if parallel is None or one_device(parallel) or sizes_of(parallel, jax.device_count()) == (1, 1, 1, 1):
        return Placement(None, parallel or ParallelConfig())
    return Placement(make_mesh(parallel), parallel)


def beside(arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """The context of the mesh that arrays lie on, so that what is computed with them is parted as they are."""
    for array in jax.tree.leaves(arrays):
        sharding = getattr(array, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and is_ours(sharding.mesh):
            return jax.set_mesh(sharding.mesh)
    return contextlib.nullcontext()

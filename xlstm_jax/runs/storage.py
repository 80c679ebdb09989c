"""The only place that knows Orbax: named arrays to files and back, part by part."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xlstm_jax.runs.errors import CheckpointError
from xlstm_jax.runs.tree import (
    Layout,
    Names,
    as_saved,
    check_fit,
    layout,
    like_target,
    named_leaves,
    places,
    refuse,
    shown,
)

if TYPE_CHECKING:  # jaxtyping's PyTree brings JAX in
    from jaxtyping import PyTree


_FILE_BYTES, _MOST_FILES = 4_000_000, 256
"""What is to be written is gathered in memory until it fills a file; Orbax's own files are of 2 GB."""


def bytes_needed(state: Mapping[str, Any]) -> int:
    """Disk space for one checkpoint of a state (arrays, or their `ShapeDtypeStruct`s), at most."""
    import jax

    leaves = jax.tree.leaves(dict(state))
    arrays = sum(math.prod(a.shape) * a.dtype.itemsize for a in leaves)
    # Beside the numbers: chunk indices and one line of metadata an array, a few files a part.
    return arrays + arrays // 50 + 4096 * len(leaves) + 65536 * len(state)


class AsyncWriter:
    """Writes the parts of a state into a folder in the background, one state at a time."""

    def __init__(self) -> None:
        self._checkpointer: Any = None

    def start(self, folder: Path, state: Mapping[str, Mapping[Names, Any]]) -> None:
        """Copy the arrays off their devices, then go on writing in the background.

        When this returns, the arrays may be changed or given away (donated). Arrays without elements are left out:
        Orbax does not store them, and their layout says everything.
        """
        from flax.traverse_util import unflatten_dict

        ocp = _orbax()
        if self._checkpointer is None:
            self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        parts = {part: {n: _own(a) for n, a in leaves.items() if layout(a).size} for part, leaves in state.items()}
        size = sum(leaf.nbytes for leaves in parts.values() for leaf in leaves.values())
        target = max(_FILE_BYTES, size // _MOST_FILES)
        items = {
            part: ocp.args.PyTreeSave(unflatten_dict(leaves), ocdbt_target_data_file_size=target)
            for part, leaves in parts.items()
            if leaves
        }
        if items:
            self._checkpointer.save(folder.absolute(), args=ocp.args.Composite(**items))

    def finish(self) -> None:
        """Wait until the files are written; raises what went wrong."""
        if self._checkpointer is not None:
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Wait, and end the threads behind it."""
        if self._checkpointer is not None:
            checkpointer, self._checkpointer = self._checkpointer, None
            checkpointer.close()


def read_part(
    folder: Path,
    part: str,
    saved: Mapping[Names, Layout],
    target: PyTree | None,
    *,
    any_float: bool = False,
    older_name: Callable[[str], str] = str,
) -> Any:
    """One part of a state, out of the folder that `AsyncWriter` filled.

    Args:
        saved: the layouts of its arrays, all of them.
        target: abstract or concrete arrays in the structure to return; None for nested dicts. A sharding given there
            says where an array goes; the others go to the default device, uncommitted.
        any_float: where `target` has a floating-point number, one of another width will do, and comes as it is.
        older_name: see `Checkpoints`.

    Raises:
        StateMismatchError: if `target` has other names, shapes or dtypes.
    """
    if target is None:
        return as_saved(_read_arrays(folder, part, saved, {}))
    wanted = named_leaves(part, target)
    place = places(saved, wanted, older_name)
    found = {names: saved[old] for names, old in place.items()}
    flat = {names for names, old in place.items() if old != names and found[names].shape == (1, *wanted[names].shape)}
    found |= {names: Layout(found[names].shape[1:], found[names].dtype) for names in flat}
    if any_float:
        wanted = {names: _as_wide_as(leaf, found.get(names)) for names, leaf in wanted.items()}
    check_fit(folder, part, found | {n: a for n, a in saved.items() if n not in place.values()}, wanted)
    shardings = {names: _sharding(leaf) for names, leaf in wanted.items()}
    arrays = _read_arrays(folder, part, saved, {place[n]: shardings[n] for n in wanted if n not in flat})
    leaves = {names: arrays.pop(old) for names, old in place.items()}
    leaves |= {names: _placed(leaves[names][0], shardings[names]) for names in flat}
    return like_target(target, leaves)


def _placed(value: Any, sharding: Any) -> Any:
    import jax

    return value if sharding is None else jax.device_put(value, sharding)


def _as_wide_as(leaf: Any, saved: Layout | None) -> Any:
    import jax
    import jax.numpy as jnp

    if saved is None or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in (leaf.dtype, jnp.dtype(saved.dtype))):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(saved.dtype), sharding=_sharding(leaf))


def _sharding(leaf: Any) -> Any:
    import jax

    # An array that nobody has placed on purpose says nothing about where to put the restored one.
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return getattr(leaf, "sharding", None) if abstract or getattr(leaf, "committed", False) else None


def _read_arrays(
    folder: Path, part: str, saved: Mapping[Names, Layout], shardings: Mapping[Names, Any]
) -> dict[Names, Any]:
    ocp = _orbax()
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict, unflatten_dict

    items, arguments = {}, {}
    for names, array in saved.items():
        if not array.size:
            continue
        dtype = jnp.dtype(array.dtype)
        sharding = shardings.get(names)
        items[names] = jax.ShapeDtypeStruct(array.shape, dtype, sharding=sharding)
        arguments[names] = (
            ocp.RestoreArgs(restore_type=np.ndarray)
            if sharding is None
            else ocp.ArrayRestoreArgs(sharding=sharding, global_shape=array.shape, dtype=dtype)
        )
    found: dict[Names, Any] = {}
    if items:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            wanted = ocp.args.PyTreeRestore(item=unflatten_dict(items), restore_args=unflatten_dict(arguments))
            found = flatten_dict(checkpointer.restore((folder / part).absolute(), args=wanted))
    arrays = {}
    for names, array in saved.items():
        # Taken out, so that what was read does not lie beside its copy on the device.
        value = found.pop(names) if array.size else jnp.zeros(array.shape, jnp.dtype(array.dtype))
        if layout(value) != array:
            refuse(folder, [f"{shown(part, names)} was read as {layout(value)} instead of {array}"])
        arrays[names] = _on_device(value) if shardings.get(names) is None else value
    return arrays


def _on_device(value: Any) -> Any:
    import jax

    settings: Any = jax.config
    # JAX cuts 64-bit types down unless told otherwise; these stay NumPy arrays.
    wide = value.dtype in (np.int64, np.uint64, np.float64, np.complex128)
    if wide and not settings.jax_enable_x64:
        return value
    # Nobody else has these values, so they need no second copy; one at a time, or all the originals wait for the last.
    return jax.block_until_ready(jax.device_put(value, may_alias=True))


def _own(array: Any) -> Any:
    # A NumPy array may be changed by its owner while it is being written.
    return np.array(array) if isinstance(array, (np.ndarray, np.generic)) else array


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:  # an installation without its dependencies
        raise CheckpointError(f"checkpoints need orbax-checkpoint, which cannot be imported: {error}") from error

    # Orbax logs the tracebacks of errors that it raises as well. The person at the terminal should see one sentence,
    # unless somebody has asked for these logs by setting their level.
    logger = logging.getLogger("absl")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_not_of_orbax)
    return ocp


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Of several writes that fail together Orbax raises one; asyncio logs the others."""
    return "/orbax/checkpoint/" not in record.getMessage()

"""A training state as named arrays, and back.

A checkpoint stores plain nested dicts of arrays, whatever named tuples, lists or dataclasses the state is made of: so
it can be read without the classes that made it, and an array that does not fit is named instead of misplaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xlstm_jax.runs.errors import CheckpointError, StateMismatchError

if TYPE_CHECKING:  # jaxtyping's PyTree brings JAX in
    from jaxtyping import PyTree

_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SINGLE = "value"
"""The key of an array that is a whole part of a state (Orbax stores dicts only)."""

_MOST_NAMED = 6
"""So many misfits are named in one message; the rest are counted."""


class Layout(NamedTuple):
    """Shape and dtype of an array, as a manifest holds them."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


Names = tuple[str, ...]
"""The keys on the way from a part of a state down to one array."""


def check_parts(state: Mapping[str, Any]) -> None:
    """Refuse a state whose parts cannot be folders.

    Raises:
        CheckpointError: naming the part.
    """
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"a checkpoint holds a dict of named parts, but the state is a {type(state).__name__}")
    for name in state:
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} cannot name a part of a checkpoint: letters, digits, - and _ only")


def named_leaves(part: str, tree: PyTree) -> dict[Names, Any]:
    """The arrays (or abstract arrays) of one part of a state by their keys.

    Raises:
        CheckpointError: for a leaf that is not an array, or two leaves that would share a name.
    """
    import jax

    leaves: dict[Names, Any] = {}
    seen: set[str] = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = _names(path)
        _check_leaf(leaf, shown(part, names))
        flat = ".".join(names)  # Orbax joins the keys with dots
        if flat in seen:
            raise CheckpointError(f"two arrays of the state are called {shown(part, names)}")
        seen.add(flat)
        leaves[names] = leaf
    return leaves


def layout(leaf: Any) -> Layout:
    return Layout(tuple(leaf.shape), np.dtype(leaf.dtype).name)


def like_target(target: PyTree, leaves: Mapping[Names, Any]) -> PyTree:
    """The given arrays in the structure of `target`, whose names they have."""
    import jax

    paths, structure = jax.tree_util.tree_flatten_with_path(target)
    return jax.tree_util.tree_unflatten(structure, [leaves[_names(path)] for path, _ in paths])


def as_saved(leaves: Mapping[Names, Any]) -> Any:
    """Nested dicts for a part that is read without a target (a single array as itself)."""
    from flax.traverse_util import unflatten_dict

    return leaves[(_SINGLE,)] if set(leaves) == {(_SINGLE,)} else unflatten_dict(leaves)


def places(
    saved: Mapping[Names, Layout], wanted: Mapping[Names, Any], older_name: Callable[[str], str]
) -> dict[Names, Names]:
    """Where an array that is wanted stands in a checkpoint: under its name, or under the one that it once had there.

    Those that stand nowhere are left out.
    """
    found = {names: names for names in wanted if names in saved}
    free = set(saved) - set(found)
    for names in wanted:
        if names not in found and (old := tuple(older_name("/".join(names)).split("/"))) in free:
            found[names] = old
            free.remove(old)
    return found


def check_fit(where: object, part: str, saved: Mapping[Names, Layout], wanted: Mapping[Names, Any]) -> None:
    """Refuse to restore arrays into others.

    Raises:
        StateMismatchError: naming what is missing, too much, or of another shape or dtype.
    """
    problems = []
    for names, leaf in wanted.items():
        if names not in saved:
            problems.append(f"{shown(part, names)} is not in the checkpoint")
        elif saved[names] != layout(leaf):
            problems.append(f"{shown(part, names)} is {saved[names]} in the checkpoint, but {layout(leaf)} is wanted")
    problems += [f"{shown(part, names)} is in the checkpoint, but not wanted" for names in saved if names not in wanted]
    refuse(where, problems)


def refuse(where: object, problems: list[str]) -> None:
    """Raise `StateMismatchError` with the given problems, if there are any."""
    if problems:
        more = len(problems) - _MOST_NAMED
        listed = "; ".join(problems[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise StateMismatchError(f"{where} does not fit: {listed}")


def shown(part: str, names: Names) -> str:
    return "/".join([part, *(() if names == (_SINGLE,) else names)])


def _names(path: tuple[Any, ...]) -> Names:
    import jax

    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or (_SINGLE,)


def _check_leaf(leaf: Any, name: str) -> None:
    import jax

    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise CheckpointError(
            f"{name} is {leaf!r} of type {type(leaf).__name__}, but a checkpoint holds arrays (np.asarray makes one)"
        )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise CheckpointError(f"{name} is a typed random key; save jax.random.key_data of it")

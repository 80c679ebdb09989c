"""How the parameters of a stack lie in runs of equal blocks, and how to take runs apart and put them together.

A run of one block is named `blocks_3`; one of several, which a scan goes over, `blocks_4_19`: its arrays have a leading
axis over the blocks. A name says all, so everything here works on any tree of dicts that holds such names: parameters,
gradients, moments of an optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.stack import run_name, span_of, spans

__all__ = [
    "as_once",
    "block_shapes",
    "from_once",
    "param_shapes",
    "run_name",
    "span_of",
    "spans",
    "to_blocks",
    "to_runs",
]


def to_blocks(tree: Any) -> Any:
    """Every run of several blocks taken apart into its blocks, at any depth; the rest stays as it is."""
    if not isinstance(tree, Mapping):
        return tree
    apart: dict[str, Any] = {}
    for name, value in tree.items():
        span = span_of(name)
        if span is None or len(span) == 1:
            apart[name] = to_blocks(value)
        else:
            apart |= {f"blocks_{i}": jax.tree.map(lambda leaf, n=n: leaf[n], value) for n, i in enumerate(span)}
    return apart


def to_runs(tree: Any, runs: Sequence[range]) -> Any:
    """The inverse of `to_blocks`: blocks put together into these runs.

    Raises:
        ValueError: if the blocks of the tree are not those of the runs.
    """
    if not isinstance(tree, Mapping):
        return tree
    rest = {name: to_runs(value, runs) for name, value in tree.items() if span_of(name) is None}
    found = sorted(i for name in tree for i in span_of(name) or ())
    if not found:
        return rest
    wanted = [i for span in runs for i in span]
    if found != wanted:
        raise ValueError(f"the parameters hold the blocks {found}, but {wanted} are needed")
    for span in runs:
        blocks = [tree[f"blocks_{i}"] for i in span]
        rest[run_name(span)] = blocks[0] if len(span) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    return rest


def param_shapes(config: Any) -> dict[str, Any]:
    """The tree of `build_model(config)`'s parameters with shapes and dtypes for arrays; nothing is made, and one block
    of each kind is traced, whatever the depth."""
    # Models stand above their layouts.
    from xlstm_jax.models.language_model import build_model

    kinds = config.block_kinds
    token, x = jnp.zeros((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1, config.embedding_dim), config._dtype)
    # Around the blocks a stack of one is like any other; it has the first kind that the config has.
    places = {field.name: [] for field in dataclasses.fields(config) if field.name.endswith("_at")}
    model = build_model(dataclasses.replace(config, num_blocks=1, scan_blocks=False, **places))
    tree = _unboxed(jax.eval_shape(model.init, jax.random.key(0), token))
    blocks = {model.config.block_kinds[0]: tree[model.stack_name].pop("blocks_0")}
    for kind in dict.fromkeys(kinds):
        if kind not in blocks:
            block = KINDS[kind].module(config.block_config(kinds.index(kind)), parent=None)
            blocks[kind] = _unboxed(jax.eval_shape(block.init, jax.random.key(0), x))
    for span in spans(config):
        lead = () if len(span) == 1 else (len(span),)
        tree[model.stack_name][run_name(span)] = jax.tree.map(
            lambda leaf, lead=lead: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), blocks[kinds[span[0]]]
        )
    return tree


def block_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Path (keys joined by dots) -> shape of every parameter of the model with each block by itself."""
    tree = param_shapes(dataclasses.replace(config, scan_blocks=False))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(key.key for key in path): leaf.shape for path, leaf in leaves}


def _unboxed(variables: Any) -> dict[str, Any]:
    return variables.get("params", {})


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints from before stacks had runs: a scanned stack was one `blocks`, whose arrays had a leading axis in any case
# ---------------------------------------------------------------------------------------------------------------------

OLD_NAME = "blocks"


def as_once(tree: Any) -> Any:
    """The tree of a scanned stack of one kind with the names and shapes that it once had; leaves may be shapes alone.

    Raises:
        ValueError: for a stack of several runs, which there was not.
    """
    return _renamed(tree, _with_axis)


def from_once(tree: Any, like: Any) -> Any:
    """The inverse of `as_once`, for a tree with the structure of `like`."""
    flat = jax.tree.leaves(tree)
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [leaf.reshape(new.shape) for leaf, new in zip(flat, leaves, strict=True)])


def _with_axis(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
    return leaf[None]


def _renamed(tree: Any, with_axis: Any) -> Any:
    if not isinstance(tree, Mapping):
        # Parameters stand inside the optimizer's own tuples, too.
        if isinstance(tree, tuple):
            parts = [_renamed(part, with_axis) for part in tree]
            return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
        return tree
    runs = [name for name in tree if span_of(name) is not None]
    if len(runs) > 1:
        raise ValueError(f"a stack of the runs {', '.join(runs)} never had another name")
    renamed = {}
    for name, value in tree.items():
        span = span_of(name)
        if span is None:
            renamed[name] = _renamed(value, with_axis)
        else:
            renamed[OLD_NAME] = value if len(span) > 1 else jax.tree.map(with_axis, value)
    return renamed

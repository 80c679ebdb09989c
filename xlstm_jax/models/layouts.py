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
    places: dict[str, Any] = {field.name: [] for field in dataclasses.fields(config) if field.name.endswith("_at")}
    model = build_model(dataclasses.replace(config, num_blocks=1, scan_blocks=False, **places))
    tree = jax.eval_shape(model.init, jax.random.key(0), token)["params"]
    blocks = {model.config.block_kinds[0]: tree[model.stack_name].pop("blocks_0")}
    for kind in dict.fromkeys(kinds):
        if kind not in blocks:
            block = KINDS[kind].module(config.block_config(kinds.index(kind)), parent=None)
            blocks[kind] = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
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


def older_name(path: str) -> str:
    """The path that a parameter of a scanned stack (`"a/blocks_0_23/b"`) had before stacks had runs: `"a/blocks/b"`.

    Such a stack was of one kind, and its arrays had a leading axis in any case, also over a single block.
    """
    return "/".join("blocks" if span_of(name) else name for name in path.split("/"))

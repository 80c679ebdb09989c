"""How the parameters of a stack lie in runs of equal blocks, and how to take runs apart and put them together.

A run of one block is named `blocks_3`; one of several, which a scan goes over, `blocks_4_19`: its arrays have a leading
axis over the blocks. A name says all, so everything here works on any tree of dicts that holds such names: parameters,
gradients, moments of an optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.models.stack import run_name, span_of


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


def older_name(path: str) -> str:
    """The path that a parameter of a scanned stack (`"a/blocks_0_23/b"`) had before stacks had runs: `"a/blocks/b"`.

    Such a stack was of one kind, and its arrays had a leading axis in any case, also over a single block.
    """
    return "/".join("blocks" if span_of(name) else name for name in path.split("/"))

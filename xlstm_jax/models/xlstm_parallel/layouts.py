"""Parameters of unrolled blocks to those of scanned blocks, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = re.compile(r"blocks_(\d+)")


def stack_blocks(params: Any) -> Any:
    """Parameters for `scan_blocks=True` from those for False: blocks_0, blocks_1, ... become blocks with a leading
    axis.

    Works at any depth of a tree of dicts with arrays, so on gradients and optimizer moments too; what is no block
    stays.

    Raises:
        ValueError: if the numbers of the blocks have a gap.
    """
    if not isinstance(params, Mapping):
        return params
    numbers = sorted(int(match[1]) for key in params if (match := _BLOCK.fullmatch(key)))
    rest = {key: stack_blocks(value) for key, value in params.items() if not _BLOCK.fullmatch(key)}
    if not numbers:
        return rest
    if numbers != list(range(len(numbers))):
        raise ValueError(f"the parameters hold the blocks {numbers}, but all from 0 to {numbers[-1]} are needed")
    blocks = [params[f"blocks_{i}"] for i in numbers]
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: Any) -> Any:
    """The inverse of `stack_blocks`: parameters for `scan_blocks=False`."""
    if not isinstance(params, Mapping):
        return params
    rest = {key: unstack_blocks(value) for key, value in params.items() if key != "blocks"}
    if "blocks" not in params:
        return rest
    leaves = jax.tree.leaves(params["blocks"])
    count = leaves[0].shape[0] if leaves else 0
    return rest | {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(count)}

"""The parameters of a model before there are any: their tree with shapes and dtypes for arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.stack import run_name, spans


def shapes_of(model: Any) -> dict[str, Any]:
    """The tree of shapes of a language model; nothing is made, and one block of each kind is traced at any depth."""
    config, token = model.config, jnp.zeros((1, 1), jnp.int32)
    # Around the blocks a stack of one is like any other; it has the first kind that the config has.
    places: dict[str, Any] = {field.name: [] for field in dataclasses.fields(config) if field.name.endswith("_at")}
    one = type(model)(dataclasses.replace(config, num_blocks=1, scan_blocks=False, **places), parent=None)
    tree = _shapes(one, token)
    stack, kinds = tree[one.stack_name], config.block_kinds
    blocks = {one.config.block_kinds[0]: stack.pop("blocks_0")}
    for kind in dict.fromkeys(kinds):
        if kind not in blocks:
            block = KINDS[kind].module(config.block_config(kinds.index(kind)), parent=None)
            blocks[kind] = _shapes(block, jax.ShapeDtypeStruct((1, 1, config.embedding_dim), config._dtype))
    for span in spans(config):
        lead = () if len(span) == 1 else (len(span),)
        stack[run_name(span)] = jax.tree.map(
            lambda leaf, lead=lead: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), blocks[kinds[span[0]]]
        )
    return tree


def _shapes(module: nn.Module, x: Any) -> dict[str, Any]:
    return jax.eval_shape(module.init, jax.random.key(0), x).get("params", {})

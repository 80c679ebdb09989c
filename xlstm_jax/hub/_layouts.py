"""Stand-in for `models.layouts` until it is there."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from xlstm_jax.models.language_model import build_model
from xlstm_jax.models.xlstm_parallel.layouts import stack_blocks


def spans(config):
    return config.scan_blocks


def to_runs(tree, runs):
    return stack_blocks(tree) if runs else tree


def span_of(name):
    match = re.fullmatch(r"blocks_(\d+)", name)
    return range(10**6) if name == "blocks" else None if match is None else range(int(match[1]), int(match[1]) + 1)


def block_shapes(config: Any):
    model = build_model(dataclasses.replace(config, scan_blocks=False))
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return {".".join(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

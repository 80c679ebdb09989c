"""Parameters of NX-AI's xlstm-jax (the peer) as parameters of our model.

The peer names a parameter after the wrappers that it passes through: `sharded` stands for a module that is split over
devices and puts the number of splits in front of its parameters' axes, even if it is 1; `module`, `Dense_0` and
`inner_layer` add nothing. Taking these out leaves one name a parameter, which the tables below map to ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.hub.errors import WeightsError
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.layouts import block_shapes, spans, to_runs
from xlstm_jax.models.llama.config import LlamaConfig


class _Source(NamedTuple):
    """Where a parameter of ours comes from: the peer's name without wrappers, and how splits are merged."""

    name: str
    merge: int | str
    """The axis that the splits are laid along, "equal" if all hold the same, or "sum"."""
    part: str | None = None
    """Which part of the tensor: "mlstm" or "z" of a joint up-projection."""
    heads: str | None = None
    """How heads lie in the tensor, which are side by side in ours: "last" for (..., heads, head_dim); "rotated" for the
    same with pairs of features that rotate together side by side, "one rotated" for one such head alone; "first" for
    (heads, head_dim, dim)."""


_WRAPPERS = {"module", "Dense_0", "inner_layer", "xlstm_res_block", "ffn_res_block", "value"}

_OUTSIDE = {
    "token_embedding.embedding": [_Source("token_embedding.embedding", -1)],
    "post_blocks_norm.scale": [_Source("lm_head.out_norm.scale", "equal")],
    "lm_head.kernel": [_Source("lm_head.out_dense.kernel", "equal")],
}


def _linear(ours: str, theirs: str, down: bool = False) -> dict[str, list[_Source]]:
    """A dense layer; `shard_0` is the peer's name for it when its communication overlaps with computation."""
    merge_kernel, merge_bias = (-2, "sum") if down else (-1, -1)
    names = (theirs, f"{theirs}.shard_0")
    return {
        f"{ours}.kernel": [_Source(f"{name}.kernel", merge_kernel) for name in names],
        f"{ours}.bias": [_Source(f"{name}.bias", merge_bias) for name in names],
    }


def _joint_up(ours: str, theirs: str, part: str) -> dict[str, list[_Source]]:
    """Half of the up-projection, alone or in one tensor with the other half."""
    table = _linear(ours, theirs)
    for leaf in ("kernel", "bias"):
        table[f"{ours}.{leaf}"].append(_Source(f"xlstm.proj_up.shard_0.{leaf}", -1, part))
    return table


_BLOCK: dict[str, list[_Source]] = {
    "norm.scale": [_Source("xlstm_norm.scale", -1)],
    "post_norm.scale": [_Source("xlstm_post_norm.scale", -1)],
    "ffn_norm.scale": [_Source("ffn_norm.scale", -1)],
    "ffn_post_norm.scale": [_Source("ffn_post_norm.scale", -1)],
    **_linear("ffn.proj_up", "ffn.proj_up"),
    **_linear("ffn.proj_up_gate", "ffn.proj_up_gate"),
    **_linear("ffn.proj_down", "ffn.proj_down", down=True),
    **_linear("xlstm.proj_down", "xlstm.proj_down", down=True),
}

_V1: dict[str, list[_Source]] = {
    **_BLOCK,
    **{key: value for name in "qkvo" for key, value in _linear(f"xlstm.{name}", f"xlstm.dense_{name}").items()},
    **{
        key: value
        for name in ("igate", "fgate")
        for key, value in _linear(f"xlstm.cell.{name}", f"xlstm.{name}").items()
    },
    "xlstm.cell.q_norm.scale": [_Source("xlstm.q_norm.scale", "equal")],
    "xlstm.cell.k_norm.scale": [_Source("xlstm.k_norm.scale", "equal")],
    "xlstm.cell.out_norm.scale": [_Source("xlstm.outnorm.scale", 0)],
}

_V2: dict[str, list[_Source]] = {
    **_BLOCK,
    **_joint_up("xlstm.proj_up_mlstm", "xlstm.proj_up_mlstm", "mlstm"),
    **_joint_up("xlstm.proj_up_z", "xlstm.proj_up_z", "z"),
    "xlstm.conv.kernel": [_Source("xlstm.conv1d.conv.kernel", -1)],
    "xlstm.conv.bias": [_Source("xlstm.conv1d.conv.bias", -1)],
    **{f"xlstm.{name}.kernel": [_Source(f"xlstm.{name}_proj.kernel", 0)] for name in "qkv"},
    **{f"xlstm.{name}.bias": [_Source(f"xlstm.{name}_proj.bias", 0)] for name in "qkv"},
    "xlstm.qk.kernel": [_Source("xlstm.qk_proj.kernel", 1)],
    "xlstm.qk.bias": [_Source("xlstm.qk_proj.bias", 1)],
    "xlstm.conv_scaling.kernel": [_Source("xlstm.x_mlstm_conv_scaling.kernel", 0)],
    "xlstm.conv_scaling.bias": [_Source("xlstm.x_mlstm_conv_scaling.bias", 0)],
    "xlstm.learnable_skip": [_Source("xlstm.learnable_skip", 0)],
    **{
        f"xlstm.cell.{gate}.{leaf}": [_Source(f"xlstm.mlstm_cell.{gate}.{leaf}", 0)]
        for gate in ("igate", "fgate")
        for leaf in ("kernel", "bias")
    },
    "xlstm.cell.q_norm.scale": [_Source("xlstm.mlstm_cell.q_norm.scale", "equal")],
    "xlstm.cell.k_norm.scale": [_Source("xlstm.mlstm_cell.k_norm.scale", "equal")],
    "xlstm.cell.out_norm.scale": [_Source("xlstm.mlstm_cell.outnorm.scale", 0)],
}

_LAYERS = {"mlstm": _V2, "mlstm_v1": _V1}

_LLAMA: dict[str, list[_Source]] = {
    "attn_norm.scale": [_Source("attn.pre_norm.scale", "equal")],
    "ffn_norm.scale": [_Source("ffn.pre_norm.scale", "equal")],
    **{
        f"attn.dense_{name}.{leaf}": [_Source(f"attn.attn.dense_{name}.{leaf}", "equal", None, heads)]
        for name, heads in (("q", "rotated"), ("k", "rotated"), ("v", "last"))
        for leaf in ("kernel", "bias")
    },
    "attn.dense_out.kernel": [_Source("attn.attn.dense_out.kernel", "equal", None, "first")],
    "attn.dense_out.bias": [_Source("attn.attn.dense_out.bias", "equal")],
    **{
        f"attn.{name}.scale": [_Source(f"attn.attn.{name}.scale", "equal", None, "one rotated")]
        for name in ("q_norm", "k_norm")
    },
    **{
        f"ffn.{name}.{leaf}": [_Source(f"ffn.ffn.{name}.{leaf}", "equal")]
        for name in ("proj_up", "proj_up_gate", "proj_down")
        for leaf in ("kernel", "bias")
    },
}

# Our name of the stack and the peer's of its blocks: a pattern whose group is "block" for all or a block's number.
_STACKS = {
    False: ("xlstm_block_stack", re.compile(r"xlstm_block_stack\.blocks\.(block|\d+)\.(.+)")),
    True: ("block_stack", re.compile(r"block_stack\.(block|block_\d+)\.(.+)")),
}


class _Tensor(NamedTuple):
    """A tensor of the peer: its full name, the values, and whether an axis over splits stands in front."""

    name: str
    value: np.ndarray
    split: bool


def params_from_xlstm_jax(flat: Mapping[str, Any], config: LanguageModelConfig) -> dict[str, Any]:
    """The parameters of the xLSTM or Llama of a config from those of the peer.

    Args:
        flat: the peer's names -> arrays. Parts of a name are joined by "." or "/"; a leading "params." is optional.
            Blocks may be scanned (`blocks.block.`) or not (`blocks.0.`), whatever `config.scan_blocks` says.
        config: the model, for example from `config_from_xlstm_jax`, with `vocab_size` set.

    Returns:
        Nested dicts of float32 arrays, as `model.init(...)["params"]`.

    Raises:
        WeightsError: unless every tensor of the peer is used and every parameter of ours is found, in its shape. The
            message names all that are not; nothing is returned.
        ConfigError: for a config that no model can be built from.
    """
    wanted = block_shapes(config)
    problems: list[str] = []
    stack, pattern = _STACKS[isinstance(config, LlamaConfig)]
    outside, blocks = _sort_names(flat, pattern, config.num_blocks, problems)
    used: set[str] = set()
    params: dict[str, Any] = {}
    if isinstance(config, LlamaConfig):
        table = _LLAMA
    else:
        table = _LAYERS[config.mlstm_block.mlstm.layer_type if config.mlstm_block is not None else "mlstm"]
    for path, shape in wanted.items():
        match = re.fullmatch(rf"{stack}\.blocks_(\d+)\.(.+)", path)
        if match:
            tensors, sources = blocks[int(match[1])], table.get(match[2], [])
        else:
            tensors, sources = outside, _OUTSIDE[path.removeprefix(f"{stack}.")]
        head_dim = config.head_dim if isinstance(config, LlamaConfig) else 0
        value = _fetch(path, shape, sources, tensors, used, problems, head_dim)
        if value is not None:
            _put(params, path.split("."), value)
    surplus = sorted({tensor.name for group in (outside, *blocks) for tensor in group.values()} - used)
    problems += [f"surplus: {name}, which no part of this model takes" for name in surplus]
    if problems:
        raise WeightsError(
            f"the weights do not fit the model, nothing was loaded ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), to_runs(params, spans(config)))


def _sort_names(
    flat: Mapping[str, Any], pattern: re.Pattern[str], num_blocks: int, problems: list[str]
) -> tuple[dict[str, _Tensor], list[dict[str, _Tensor]]]:
    """The tensors outside the blocks and those of each block, by their names without wrappers."""
    outside: dict[str, _Tensor] = {}
    blocks: list[dict[str, _Tensor]] = [{} for _ in range(num_blocks)]

    def add(group: dict[str, _Tensor], parts: list[str], tensor: _Tensor) -> None:
        key = ".".join(part for part in parts if part != "sharded" and part not in _WRAPPERS)
        if key in group:
            problems.append(f"ambiguous: {tensor.name} and {group[key].name} are the same parameter")
        group[key] = tensor

    for name, array in flat.items():
        dotted = name.replace("/", ".").removeprefix("params.")
        value, split = np.asarray(array), "sharded" in dotted.split(".")
        match = pattern.fullmatch(dotted)
        which = match[1].removeprefix("block_") if match else ""
        parts = (match[2] if match else dotted).split(".")
        if not match:
            add(outside, parts, _Tensor(name, value, split))
        elif which == "block":
            if value.ndim == 0 or value.shape[0] != num_blocks:
                size = value.shape[0] if value.ndim else None
                problems.append(f"mis-shaped: {name} holds {size} blocks, but the model has {num_blocks}")
                continue
            for i, group in enumerate(blocks):
                add(group, parts, _Tensor(name, value[i], split))
        elif int(which) < num_blocks:
            add(blocks[int(which)], parts, _Tensor(name, value, split))
        else:
            problems.append(f"surplus: {name}, but the model has the blocks 0 to {num_blocks - 1}")
    return outside, blocks


def _fetch(
    path: str,
    shape: tuple[int, ...],
    sources: list[_Source],
    tensors: dict[str, _Tensor],
    used: set[str],
    problems: list[str],
    head_dim: int,
) -> np.ndarray | None:
    source = next((source for source in sources if source.name in tensors), None)
    if source is None:
        names = " or ".join(source.name for source in sources) or "nothing"
        problems.append(f"missing: {path} {shape}, which comes from {names}")
        return None
    tensor = tensors[source.name]
    used.add(tensor.name)
    value, name = tensor.value, tensor.name
    try:
        if tensor.split:
            value = _merge(value, source.merge)
    except ValueError as error:
        problems.append(f"mis-shaped: {name} {tensor.value.shape}: {error}")
        return None
    if source.part is not None:
        start = value.shape[-1] - shape[-1] if source.part == "mlstm" else 0
        if value.shape[-1] <= shape[-1]:
            problems.append(f"mis-shaped: {name} {value.shape} must hold more than the {shape[-1]} features of {path}")
            return None
        value = value[..., start : start + shape[-1]]
    if source.heads is not None:
        axes = {"first": 3, "one rotated": 1}.get(source.heads, len(shape) + 1)
        if value.ndim != axes or value.shape[1 if source.heads == "first" else -1] != head_dim:
            problems.append(f"mis-shaped: {name} {value.shape} must have heads of {head_dim} features for {path}")
            return None
        value = _side_by_side(value, source.heads)
    if value.shape != shape:
        problems.append(f"mis-shaped: {name} gives {value.shape}, but {path} needs {shape}")
        return None
    return value


def _merge(value: np.ndarray, how: int | str) -> np.ndarray:
    """One tensor from the splits along its first axis."""
    if value.ndim == 0:
        raise ValueError("an axis over the devices must stand in front")
    shards = list(value)
    if len(shards) == 1:
        return shards[0]
    if how == "equal":
        if any(not np.array_equal(shards[0], shard) for shard in shards[1:]):
            raise ValueError(f"its {len(shards)} splits over devices differ, so no single tensor stands for them")
        return shards[0]
    if how == "sum":
        return np.sum(shards, axis=0)
    return np.concatenate(shards, axis=int(how))


def _side_by_side(value: np.ndarray, heads: str) -> np.ndarray:
    """A tensor of the peer's Llama in our arrangement; see `_Source.heads`."""
    if heads in ("rotated", "one rotated"):
        # The features 2i and 2i + 1 rotate together there; here they are half a head apart.
        value = np.concatenate([value[..., 0::2], value[..., 1::2]], axis=-1)
    if heads == "one rotated":
        return value
    if heads == "first":
        return value.reshape(-1, *value.shape[2:])
    return value.reshape(*value.shape[:-2], -1)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value

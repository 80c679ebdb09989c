"""Parameters of NX-AI's xlstm-jax (the peer) as parameters of our model.

The peer names a parameter after the wrappers that it passes through: `sharded` stands for a module that is split over
devices and puts the number of splits in front of its parameters' axes, even if it is 1; `module`, `Dense_0` and
`inner_layer` add nothing. Taking these out leaves one name a parameter, and so the entries below are called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from xlstm_jax.hub.mapping import SAME, WIDE_FLOATS, Entry, Form, Part, params_from_tensors, single
from xlstm_jax.models.language_model import LanguageModelConfig
from xlstm_jax.models.llama.config import LlamaConfig

_WRAPPERS = {"sharded", "module", "Dense_0", "inner_layer", "xlstm_res_block", "ffn_res_block", "value"}

Splits = int | Literal["equal", "sum"]
"""How the splits of a tensor over devices become one: laid along an axis, all the same, or summed."""
Row = tuple[Entry, Splits]


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
    problems: list[str] = []
    found = _by_plain_names(flat, config, problems)
    rows = list(_llama(config) if isinstance(config, LlamaConfig) else _xlstm(config, found))
    tensors = {name: tensor.value for name, tensor in found.items()}
    for entry, splits in rows:
        if (tensor := found.get(entry.name)) is not None and tensor.split:
            tensors[entry.name] = _whole(tensor, splits, problems)
    return params_from_tensors(
        [entry for entry, _ in rows],
        config,
        tensors,
        lambda value: jnp.asarray(value, jnp.float32),
        floats=WIDE_FLOATS,
        problems=problems,
        called={name: tensor.name for name, tensor in found.items()},
    )


# -- what holds what ---------------------------------------------------------------------------------------------------


def _row(theirs: str, ours: str, splits: Splits = -1, form: Form = SAME) -> Row:
    return single(theirs, ours, form), splits


def _outside(stack: str) -> Iterator[Row]:
    yield _row("token_embedding.embedding", "token_embedding.embedding")
    yield _row("lm_head.out_norm.scale", f"{stack}.post_blocks_norm.scale", "equal")
    yield _row("lm_head.out_dense.kernel", "lm_head.kernel", "equal")


def _xlstm(config: Any, names: Collection[str]) -> Iterator[Row]:
    """The tensors of an xLSTM; `names` are those that are there, as some have several."""

    def dense(theirs: str, ours: str, kernel: Splits = -1, bias: Splits = -1) -> Iterator[Row]:
        # So it is called when its communication overlaps with computation.
        name = f"{theirs}.shard_0" if f"{theirs}.shard_0.kernel" in names else theirs
        yield _row(f"{name}.kernel", f"{ours}.kernel", kernel)
        yield _row(f"{name}.bias", f"{ours}.bias", bias)

    def v1(theirs: str, ours: str) -> Iterator[Row]:
        for name in "qkvo":
            yield from dense(f"{theirs}.dense_{name}", f"{ours}.{name}")
        for name in ("igate", "fgate"):
            yield from dense(f"{theirs}.{name}", f"{ours}.cell.{name}")
        yield from norms(theirs, ours)

    def v2(theirs: str, ours: str) -> Iterator[Row]:
        if f"{theirs}.proj_up.shard_0.kernel" in names:
            for leaf in ("kernel", "bias"):
                parts = tuple(Part(f"{ours}.{name}.{leaf}") for name in ("proj_up_z", "proj_up_mlstm"))
                yield Entry(f"{theirs}.proj_up.shard_0.{leaf}", parts, axis=-1), -1
        else:
            for name in ("proj_up_mlstm", "proj_up_z"):
                yield from dense(f"{theirs}.{name}", f"{ours}.{name}")
        yield from dense(f"{theirs}.conv1d.conv", f"{ours}.conv")
        for name in "qkv":
            yield from dense(f"{theirs}.{name}_proj", f"{ours}.{name}", 0, 0)
        yield from dense(f"{theirs}.qk_proj", f"{ours}.qk", 1, 1)
        yield from dense(f"{theirs}.x_mlstm_conv_scaling", f"{ours}.conv_scaling", 0, 0)
        yield _row(f"{theirs}.learnable_skip", f"{ours}.learnable_skip")
        for name in ("igate", "fgate"):
            yield from dense(f"{theirs}.mlstm_cell.{name}", f"{ours}.cell.{name}", 0, 0)
        yield from norms(f"{theirs}.mlstm_cell", ours)

    def norms(theirs: str, ours: str) -> Iterator[Row]:
        yield _row(f"{theirs}.outnorm.scale", f"{ours}.cell.out_norm.scale", 0)
        for name in ("q_norm", "k_norm"):
            yield _row(f"{theirs}.{name}.scale", f"{ours}.cell.{name}.scale", "equal")

    yield from _outside("xlstm_block_stack")
    block = config.mlstm_block
    layer = v1 if block is not None and block.mlstm.layer_type == "mlstm_v1" else v2
    for i in range(config.num_blocks):
        theirs, ours = f"xlstm_block_stack.blocks.{i}", f"xlstm_block_stack.blocks_{i}"
        for name, path in (("xlstm_norm", "norm"), ("xlstm_post_norm", "post_norm")):
            yield _row(f"{theirs}.{name}.scale", f"{ours}.{path}.scale")
        for name in ("ffn_norm", "ffn_post_norm"):
            yield _row(f"{theirs}.{name}.scale", f"{ours}.{name}.scale")
        for name in ("ffn.proj_up", "ffn.proj_up_gate"):
            yield from dense(f"{theirs}.{name}", f"{ours}.{name}")
        for name in ("ffn.proj_down", "xlstm.proj_down"):
            yield from dense(f"{theirs}.{name}", f"{ours}.{name}", -2, "sum")
        yield from layer(f"{theirs}.xlstm", f"{ours}.xlstm")


def _llama(config: LlamaConfig) -> Iterator[Row]:
    """The tensors of a Llama. It keeps heads apart, and features that rotate together side by side; ours have the one
    half a head behind the other."""
    f, pair = {"f": config.head_dim}, {"half": 2, "pair": config.head_dim // 2}
    yield from _outside("block_stack")
    for i in range(config.num_blocks):
        theirs, ours = f"block_stack.block_{i}", f"block_stack.blocks_{i}"
        attn, own = f"{theirs}.attn.attn", f"{ours}.attn"
        yield _row(f"{theirs}.attn.pre_norm.scale", f"{ours}.attn_norm.scale", "equal")
        yield _row(f"{theirs}.ffn.pre_norm.scale", f"{ours}.ffn_norm.scale", "equal")
        for name in "qk":
            kernel = Form("dim (head half pair) -> dim head (pair half)", pair)
            bias = Form("(head half pair) -> head (pair half)", pair)
            yield _row(f"{attn}.dense_{name}.kernel", f"{own}.dense_{name}.kernel", "equal", kernel)
            yield _row(f"{attn}.dense_{name}.bias", f"{own}.dense_{name}.bias", "equal", bias)
            norm = Form("(half pair) -> (pair half)", pair)
            yield _row(f"{attn}.{name}_norm.scale", f"{own}.{name}_norm.scale", "equal", norm)
        value, out = Form("dim (head f) -> dim head f", f), Form("(head f) dim -> head f dim", f)
        yield _row(f"{attn}.dense_v.kernel", f"{own}.dense_v.kernel", "equal", value)
        yield _row(f"{attn}.dense_v.bias", f"{own}.dense_v.bias", "equal", Form("(head f) -> head f", f))
        yield _row(f"{attn}.dense_out.kernel", f"{own}.dense_out.kernel", "equal", out)
        yield _row(f"{attn}.dense_out.bias", f"{own}.dense_out.bias", "equal")
        for name in ("proj_up", "proj_up_gate", "proj_down"):
            for leaf in ("kernel", "bias"):
                yield _row(f"{theirs}.ffn.ffn.{name}.{leaf}", f"{ours}.ffn.{name}.{leaf}", "equal")


# -- names and splits --------------------------------------------------------------------------------------------------


class _Tensor(NamedTuple):
    """A tensor of the peer: its full name, the values, and whether an axis over splits stands in front."""

    name: str
    value: np.ndarray
    split: bool


def _by_plain_names(flat: Mapping[str, Any], config: LanguageModelConfig, problems: list[str]) -> dict[str, _Tensor]:
    """The tensors by their names without wrappers, those of scanned blocks taken apart."""
    found: dict[str, _Tensor] = {}
    if isinstance(config, LlamaConfig):
        block, pattern = "block_stack.block_", re.compile(r"block_stack\.(block|block_\d+)\.(.+)")
    else:
        block, pattern = "xlstm_block_stack.blocks.", re.compile(r"xlstm_block_stack\.blocks\.(block|\d+)\.(.+)")

    def add(prefix: str, rest: str, tensor: _Tensor) -> None:
        name = prefix + ".".join(part for part in rest.split(".") if part not in _WRAPPERS)
        if name in found:
            problems.append(f"ambiguous: {tensor.name} and {found[name].name} are the same parameter")
        found[name] = tensor

    for name, array in flat.items():
        dotted = name.replace("/", ".").removeprefix("params.")
        value, split = np.asarray(array), "sharded" in dotted.split(".")
        match = pattern.fullmatch(dotted)
        which = match[1].removeprefix("block_") if match else ""
        if match is None:
            add("", dotted, _Tensor(name, value, split))
        elif which != "block":
            if int(which) < config.num_blocks:
                add(f"{block}{which}.", match[2], _Tensor(name, value, split))
            else:
                problems.append(f"surplus: {name}, but the model has the blocks 0 to {config.num_blocks - 1}")
        elif value.ndim and len(value) == config.num_blocks:
            for i, one in enumerate(value):
                add(f"{block}{i}.", match[2], _Tensor(name, one, split))
        else:
            size = len(value) if value.ndim else None
            problems.append(f"mis-shaped: {name} holds {size} blocks, but the model has {config.num_blocks}")
    return found


def _whole(tensor: _Tensor, splits: Splits, problems: list[str]) -> np.ndarray:
    """One tensor from the splits along its first axis; as it is if there is no such axis, so that its shape tells."""
    value = tensor.value
    if value.ndim == 0 or len(value) == 0:
        return value
    if splits == "equal":
        if any(not np.array_equal(value[0], other) for other in value[1:]):
            problems.append(
                f"mis-shaped: {tensor.name} {value.shape}: its {len(value)} splits over devices differ, so no single "
                "tensor stands for them"
            )
        return value[0]
    if len(value) == 1:
        return value[0]
    if splits == "sum":
        return np.sum(value, axis=0)
    try:
        return np.concatenate(list(value), axis=splits)
    except np.exceptions.AxisError:
        return value

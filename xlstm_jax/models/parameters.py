"""The one table of parameters: what every leaf of every model is, by its path.

Whoever treats parameters by what they are reads it: the optimizer (what decays, what is a matrix), the cost of a model
by parts, layouts over devices, adapters. A parameter without a row is an error, so that none is treated by chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from xlstm_jax.models.kinds import KINDS, Kind
from xlstm_jax.models.stack import span_of

Axes = tuple[str | None, ...]


class Leaf(NamedTuple):
    """What a parameter is."""

    path: str
    """Its keys, joined by dots."""
    part: str
    """The part of the model that it is counted to: "embedding", "head", "norms", "feed-forward layers", or the layers
    of a kind of block, for example "mLSTM layers"."""
    axes: Axes
    """The logical name of each axis: vocab, embed, mlp; heads (features of all heads, side by side, or blocks of a
    block-diagonal map), head (one entry a head), features (those of one head); block (of a run that is scanned); None
    for what is never parted."""
    decays: bool
    """Whether weight decay acts, as in the published runs: on kernels, and not on embeddings, norms and biases."""
    matrix: bool
    """Whether its last two axes are a map between features, of which those before them number several."""
    adapter: bool
    """Whether an adapter of low rank can stand beside it: the dense maps inside blocks."""
    modules: tuple[str, ...]
    """The modules that it lies in, by the names that `ParallelConfig.fsdp_modules` takes."""

    @property
    def dense(self) -> bool:
        """Whether it is a dense map inside a block, or a run's stack of them: what optimizers for matrices take."""
        return self.adapter and len(self.axes) == (3 if self.axes[0] == "block" else 2)


class Row(NamedTuple):
    """A row of the table: a pattern of paths, and the axes of such a parameter, one tuple for each rank it can have."""

    pattern: str
    axes: tuple[Axes, ...]
    matrix: bool = False
    adapter: bool = False


_LAYER = r"(?:xlstm|attn)"

TABLE = (
    Row(r"token_embedding\.embedding", (("vocab", "embed"),)),
    Row(r"lm_head\.kernel", (("embed", "vocab"),), matrix=True),
    Row(r"(?:post_blocks|attn|ffn|post|ffn_post)?_?norm\.(?:scale|bias)", ((None,),)),
    # Dense maps into heads; with three axes the block-diagonal ones, with four two of these in one array.
    Row(
        rf"{_LAYER}\.(?:q|k|v|o|qk|conv_scaling|i|f|z|proj_up_mlstm|proj_up_z|dense_[qkv])\.kernel",
        (("embed", "heads"), ("heads", "features", None), (None, "heads", "features", None)),
        matrix=True,
        adapter=True,
    ),
    Row(rf"{_LAYER}\.(?:q|k|v|o|conv_scaling|proj_up_mlstm|proj_up_z|dense_[qkv])\.bias", (("heads",),)),
    Row(rf"{_LAYER}\.qk\.bias", ((None, "heads"),)),
    Row(rf"{_LAYER}\.(?:proj_down|dense_out)\.kernel", (("heads", "embed"),), matrix=True, adapter=True),
    Row(rf"{_LAYER}\.(?:proj_down|dense_out)\.bias", (("embed",),)),
    Row(r"xlstm\.conv\.kernel", ((None, None, "heads"),)),
    Row(r"xlstm\.conv\.bias", (("heads",),)),
    Row(r"xlstm\.learnable_skip", (("heads",),)),
    Row(r"xlstm\.cell\.[if]gate\.kernel", (("embed", "head"), ("head", None, None)), matrix=True),
    Row(r"xlstm\.cell\.[if]gate\.bias", (("head",),)),
    Row(r"xlstm\.cell\.recurrent_kernel", ((None, "head", "features", None),), matrix=True),
    Row(r"xlstm\.cell\.bias", ((None, "head", None),)),
    Row(r"xlstm\.(?:cell\.out_norm|group_norm)\.(?:scale|bias)", (("head", None),)),
    Row(r"(?:xlstm\.cell|attn)\.[qk]_norm\.(?:scale|bias)", ((None,),)),
    Row(r"lstm\.(?:recurrent_)?kernel", ((None, "embed", None),), matrix=True),
    Row(r"lstm\.bias", ((None, None),)),
    Row(r"ffn\.proj_up(?:_gate)?\.kernel", (("embed", "mlp"),), matrix=True, adapter=True),
    Row(r"ffn\.proj_up(?:_gate)?\.bias", (("mlp",),)),
    Row(r"ffn\.proj_down\.kernel", (("mlp", "embed"),), matrix=True, adapter=True),
    Row(r"ffn\.proj_down\.bias", (("embed",),)),
)
"""Patterns of paths without the stack, and within blocks without the run. A layer that draws on other names than these
needs rows here."""


def describe(params: Any, kinds: Sequence[str] = ()) -> Any:
    """A tree of `Leaf`s, one for each parameter of a model.

    Args:
        params: the parameters, or their shapes alone.
        kinds: the kind of each block, `config.block_kinds`; without it all layers with a memory count as one part.

    Raises:
        KeyError: for a parameter that no row speaks of.
    """

    def leaf(path: Any, array: Any) -> Leaf:
        return _describe([key.key for key in path], array.ndim, kinds)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _describe(names: list[str], rank: int, kinds: Sequence[str]) -> Leaf:
    path = ".".join(names)
    place = next((n for n, name in enumerate(names) if span_of(name) is not None), None)
    span = None if place is None else span_of(names[place])
    # Outside of blocks the name of the stack is left out: post_blocks_norm stands under it.
    inside = names[-2:] if place is None else names[place + 1 :]
    lead = ("block",) if span is not None and len(span) > 1 else ()
    kind = KINDS[kinds[span[0]]] if span is not None and kinds else None
    memory = "memory" if kind is None else kind.memory
    for row in TABLE:
        if re.fullmatch(row.pattern, ".".join(inside)):
            axes = next((axes for axes in row.axes if len(axes) + len(lead) == rank), None)
            if axes is not None:
                decays = "kernel" in names[-1]
                part, modules = _part(inside[0], memory), _modules(inside, kind)
                return Leaf(path, part, (*lead, *axes), decays, row.matrix, row.adapter, modules)
    raise KeyError(f"the table of parameters has no row for {path} with {rank} axes")


def _part(name: str, memory: str) -> str:
    if name.endswith("norm"):
        return "norms"
    parts = {"token_embedding": "embedding", "lm_head": "head", "ffn": "feed-forward layers"}
    return parts.get(name, f"{memory} layers")


def _modules(inside: list[str], kind: Kind | None) -> tuple[str, ...]:
    """The modules of a parameter, the largest first, from its names within its block or within the model."""
    if kind is None:
        return {"token_embedding": ("Embed",), "lm_head": ("LMHead",)}.get(inside[0], ("BlockStack",))
    path = ".".join(inside)
    return "BlockStack", kind.remat, *(module for pattern, module in kind.parts.items() if re.match(pattern, path))

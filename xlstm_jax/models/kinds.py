"""The kinds of blocks that a stack is made of, a row each; what a new kind needs beside its own folder is its row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from flax import linen as nn

from xlstm_jax.models.llama.block import TransformerBlock
from xlstm_jax.models.lstm.block import LSTMBlock
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlock
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlock


class Kind(NamedTuple):
    """A kind of block."""

    module: type[nn.Module]
    """Made from the block's config: `block(x, state, context)` -> (x, state), and `init_state(batch_size, capacity)`.
    A config needs `in_stack(stack, index)`, `exact()`, `check_parts()`, `matmul_flops(seq)` and, if it has
    any, `heads`, as `mLSTMBlockConfig` has them."""
    memory: str
    """What people call what it remembers with."""
    remat: str
    """Its name in `ParallelConfig.remat` and `fsdp_modules`."""
    parts: Mapping[str, str] = MappingProxyType({})
    """The names there of its parts, by patterns of the paths, within the block, that begin in them."""
    whole_sequence: bool = True
    """Whether a head must see a sequence as a whole, and not slice by slice on several devices."""


_RESIDUAL = {r"(?:xlstm|norm|post_norm)\.": "xLSTMResBlock", r"ffn": "FFNResBlock"}

KINDS: dict[str, Kind] = {
    "mlstm": Kind(
        *(mLSTMBlock, "mLSTM", "mLSTMBlock"),
        {**_RESIDUAL, r"xlstm\.": "mLSTMInnerLayer", r"xlstm\.cell\.": "mLSTMCell"},
        whole_sequence=False,
    ),
    "slstm": Kind(
        *(sLSTMBlock, "sLSTM", "sLSTMBlock"),
        {**_RESIDUAL, r"xlstm\.cell\.": "sLSTMCell"},
        whole_sequence=True,
    ),
    "attention": Kind(
        *(TransformerBlock, "attention", "TransformerBlock"),
        {r"attn": "AttnBlock", r"ffn": "FFNBlock"},
        whole_sequence=True,
    ),
    "lstm": Kind(LSTMBlock, "LSTM", "LSTMBlock"),
}
"""Name -> kind. In an xLSTM's config, the blocks of the kind `x` have the field `x_block` and stand at `x_at`; the
number of a kind in `block_map` is its place here."""

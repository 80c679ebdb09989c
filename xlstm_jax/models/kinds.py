"""The kinds of blocks that a stack is made of, a row each; what a new kind needs beside its own folder is its row."""

from __future__ import annotations

from typing import NamedTuple

from flax import linen as nn

from xlstm_jax.models.llama.block import TransformerBlock
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlock
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlock


class Kind(NamedTuple):
    """A kind of block."""

    module: type[nn.Module]
    """Made from the block's config: `block(x, state, context)` -> (x, state), and `init_state(batch_size, capacity)`.
    A config needs `in_stack(stack, index)`, `exact()`, `check_parts()` and `matmul_flops(seq)`, as
    `mLSTMBlockConfig` has them."""
    memory: str
    """What people call what it remembers with."""
    remat: str
    """Its name in `ParallelConfig.remat`."""


KINDS: dict[str, Kind] = {
    "mlstm": Kind(mLSTMBlock, "mLSTM", "mLSTMBlock"),
    "slstm": Kind(sLSTMBlock, "sLSTM", "sLSTMBlock"),
    "attention": Kind(TransformerBlock, "attention", "TransformerBlock"),
}
"""Name -> kind. In an xLSTM's config, the blocks of the kind `x` have the field `x_block` and stand at `x_at`; the
number of a kind in `block_map` is its place here."""

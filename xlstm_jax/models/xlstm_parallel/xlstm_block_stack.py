"""The stack of residual blocks, unrolled or scanned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from xlstm_jax.config import AtLeast, ConfigError, DropoutRate, PositiveFloat, PositiveInt
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig, inherit
from xlstm_jax.models.shared.init import InitDistribution
from xlstm_jax.models.shared.remat import call_part
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlock, mLSTMBlockConfig, with_block_index
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlock, sLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.components.normalization import NormLayer

MLSTM, SLSTM = 0, 1

BLOCKS: dict[int, tuple[str, type[nn.Module]]] = {MLSTM: ("mLSTMBlock", mLSTMBlock), SLSTM: ("sLSTMBlock", sLSTMBlock)}
"""Kind of block in the block map -> its name and module, which needs `__call__` and `init_state` as `mLSTMBlock`."""


@dataclass
class xLSTMBlockStackConfig(SubModelConfig):
    mlstm_block: mLSTMBlockConfig | None = None
    """The mLSTM blocks; None makes every block an sLSTM block."""
    slstm_block: sLSTMBlockConfig | None = None
    """The sLSTM blocks, which stand at `slstm_at`."""
    context_length: Annotated[int, AtLeast(-1)] = -1
    """Length of training sequences; never a limit."""
    num_blocks: PositiveInt = 1
    embedding_dim: PositiveInt = 128
    add_post_blocks_norm: bool = True
    """Normalise the output of the last block."""
    bias: bool = False
    """Biases in the linear maps of the mLSTM layers."""
    dropout: DropoutRate = 0.0
    """Rate of the dropout after each layer, on in training only."""
    scan_blocks: bool = False
    """Compile one block and scan over it; the parameters of all blocks lie in one array along a leading axis. All
    blocks must be of one kind."""
    dtype: FloatName = "bfloat16"
    """Dtype of activations; parameters are float32."""
    parallel: ParallelConfig | None = None
    init_distribution_embed: InitDistribution = "normal"
    """Distribution of the initial embeddings."""
    init_distribution_out: InitDistribution = "normal"
    """Distribution of the initial language-model head."""
    slstm_at: list[int] | Literal["all"] = field(default_factory=list)
    """Places of the sLSTM blocks, counted from 0, or "all"; so it is without `mlstm_block`, whatever stands here."""
    _block_map: str | None = field(default=None, repr=False, compare=False)
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Type of every norm but those that `norm_type_v1` of the cell speaks of."""
    norm_eps: PositiveFloat = 1e-6
    """Epsilon of the norm after the blocks; `norm_eps` of the cell is that of all others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._block_map = self._create_block_map()
        if self.scan_blocks and len(set(self.block_map)) > 1:
            raise ConfigError(
                f"{type(self).__name__}.scan_blocks is True, but a scan needs blocks of one kind and slstm_at is "
                f"{self.slstm_at!r}: set scan_blocks to False for a mix"
            )
        for block in (self._mlstm_config(0), self._slstm_config(0)):
            if block is not None:
                block.layer_config().cell_config()
                block.feedforward_config()

    @property
    def block_map(self) -> list[int]:
        """The kind of each block: 0 for mLSTM, 1 for sLSTM."""
        # Made anew, because fields may have been assigned since.
        return [int(kind) for kind in self._create_block_map().split(",")]

    def _create_block_map(self) -> str:
        """The kind of each block, 0 for mLSTM and 1 for sLSTM, joined by commas.

        Raises:
            ConfigError: if `slstm_at` names a block that the stack does not have.
        """
        places = self.slstm_at
        if places == "all" or self.mlstm_block is None:
            places = list(range(self.num_blocks))
        name = f"{type(self).__name__}.slstm_at"
        if not isinstance(places, (list, tuple)):
            raise ConfigError(f"{name} is {places!r}, but must be a list of block indices or 'all'")
        for place in places:
            if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.num_blocks:
                raise ConfigError(f"{name} holds {place!r}, but the blocks are numbered 0 to {self.num_blocks - 1}")
        return ",".join(str(SLSTM if i in places else MLSTM) for i in range(self.num_blocks))

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    def block_config(self, index: int) -> mLSTMBlockConfig | sLSTMBlockConfig:
        """The config of the block at that place, with what follows from the stack filled in.

        Raises:
            ConfigError: if the block's config says otherwise, or there is none.
        """
        kind = self.block_map[index]
        config = self._mlstm_config(index) if kind == MLSTM else self._slstm_config(index)
        if config is not None:
            return config
        owner = type(self).__name__
        if self.mlstm_block is None:
            raise ConfigError(f"{owner}.mlstm_block and {owner}.slstm_block are None, but one of them must be set")
        raise ConfigError(
            f"{owner}.slstm_at is {self.slstm_at!r}, which asks for an sLSTM block, but {owner}.slstm_block is None"
        )

    def _mlstm_config(self, index: int) -> mLSTMBlockConfig | None:
        if self.mlstm_block is None:
            return None
        names = ("embedding_dim", "bias", "dropout", "context_length", "dtype", "norm_type")
        layer = inherit(self.mlstm_block.mlstm, self, {name: getattr(self, name) for name in names})
        block = dataclasses.replace(self.mlstm_block, mlstm=layer, _num_blocks=self.num_blocks)
        return with_block_index(inherit(block, self, {"parallel": self.parallel}), index)

    def _slstm_config(self, index: int) -> sLSTMBlockConfig | None:
        if self.slstm_block is None:
            return None
        layer = self.slstm_block.slstm
        if self.mlstm_block is not None:
            # Documents are kept apart by every block or by none.
            mlstm_cell = self.mlstm_block.mlstm.mlstm_cell
            resets = {"reset_at_document_boundaries": mlstm_cell.reset_at_document_boundaries}
            layer = dataclasses.replace(layer, slstm_cell=inherit(layer.slstm_cell, mlstm_cell, resets))
        names = ("embedding_dim", "dropout", "dtype", "norm_type")
        layer = inherit(layer, self, {name: getattr(self, name) for name in names})
        block = dataclasses.replace(self.slstm_block, slstm=layer, _num_blocks=self.num_blocks, _block_idx=index)
        return inherit(block, self, {"parallel": self.parallel})


class BlockStack(nn.Module):
    """The blocks alone.

    Parameters: blocks_0, blocks_1, ... or, with `scan_blocks`, blocks, whose arrays have a leading axis over the
    blocks. The state is a tuple with one entry a block or, with `scan_blocks`, one entry whose arrays have that
    leading axis (before the batch axis).
    """

    config: xLSTMBlockStackConfig

    def setup(self) -> None:
        self.blocks = self._create_blocks(self.config)

    @nn.nowrap
    def _create_blocks(self, config: xLSTMBlockStackConfig) -> nn.Module | list[nn.Module]:
        """The block modules in order; with `config.scan_blocks` the one that the scan runs.

        Raises:
            ConfigError: for a kind of block whose config is None.
        """
        kinds = config.block_map
        if not config.scan_blocks:
            return [BLOCKS[kind][1](config.block_config(i)) for i, kind in enumerate(kinds)]
        return BLOCKS[kinds[0]][1](config.block_config(0))

    @nn.nowrap
    def init_state(self, batch_size: int) -> Any:
        """The state before the first token."""
        cfg = self.config
        states = tuple(
            BLOCKS[k][1](cfg.block_config(i), parent=None).init_state(batch_size) for i, k in enumerate(cfg.block_map)
        )
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if cfg.scan_blocks else states

    def __call__(
        self,
        x: Float[Array, "batch seq dim"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: Any = None,
        return_state: bool = False,
        train: bool = False,
    ) -> Any:
        """y (batch, seq, dim), or (y, state); see `mLSTMCell` for the arguments."""

        def call(stack, *arrays):
            return stack._run(*arrays, return_state=return_state, train=train)

        x, state = call_part("BlockStack", self.config.parallel, call, self, x, document_borders, mask, state)
        x = self._finish(x)
        return (x, state) if return_state else x

    def _finish(self, x: Array) -> Array:
        return x

    def _run(self, x, document_borders, mask, state, *, return_state: bool, train: bool):
        cfg = self.config

        def call(block, x, document_borders, mask, state, index=None):
            y = block(
                x,
                document_borders=document_borders,
                mask=mask,
                state=state,
                return_state=return_state,
                train=train,
                **({} if index is None else {"block_index": index}),
            )
            return y if return_state else (y, None)

        if not cfg.scan_blocks:
            if state is not None and len(state) != cfg.num_blocks:
                raise ValueError(f"state has {len(state)} entries, but the stack has {cfg.num_blocks} blocks")
            states = []
            for i, (block, kind) in enumerate(zip(self.blocks, cfg.block_map, strict=True)):
                before = None if state is None else state[i]
                x, after = call_part(BLOCKS[kind][0], cfg.parallel, call, block, x, document_borders, mask, before)
                states.append(after)
            return x, tuple(states) if return_state else None

        kind = cfg.block_map[0]

        def body(block, x, state, index, document_borders, mask):
            arrays = (x, document_borders, mask, state, index)
            return call_part(BLOCKS[kind][0], cfg.parallel, call, block, *arrays, prevent_cse=False)

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=cfg.num_blocks,
        )
        # The initial biases of an sLSTM block depend on its place, which only the scan knows.
        index = jnp.arange(cfg.num_blocks) if kind == SLSTM else None
        return scan(self.blocks, x, state, index, document_borders, mask)


class xLSTMBlockStack(BlockStack):
    """The blocks, then the norm post_blocks_norm unless `config.add_post_blocks_norm` is False."""

    def setup(self) -> None:
        super().setup()
        cfg = self.config
        if cfg.add_post_blocks_norm:
            self.post_blocks_norm = NormLayer(eps=cfg.norm_eps, dtype=cfg._dtype, norm_type=cfg.norm_type)

    def _finish(self, x: Array) -> Array:
        return self.post_blocks_norm(x) if self.config.add_post_blocks_norm else x

"""The stack of an xLSTM: which block stands where."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from xlstm_jax.config import ConfigError, Depth, DropoutRate, PositiveFloat, PositiveInt, SizeOrUnset
from xlstm_jax.models import stack
from xlstm_jax.models.configs import FloatName, ParallelConfig, SubModelConfig, remembered
from xlstm_jax.models.kinds import KINDS
from xlstm_jax.models.shared.init import InitDistribution
from xlstm_jax.models.xlstm_parallel.blocks.mlstm.block import mLSTMBlockConfig
from xlstm_jax.models.xlstm_parallel.blocks.slstm.block import sLSTMBlockConfig

__all__ = ["BlockStack", "xLSTMBlockStack", "xLSTMBlockStackConfig"]


@dataclass
class xLSTMBlockStackConfig(SubModelConfig):
    """Which blocks stand where, and what they share."""

    mlstm_block: mLSTMBlockConfig | None = None
    """The mLSTM blocks; None makes every block an sLSTM block."""
    slstm_block: sLSTMBlockConfig | None = None
    """The sLSTM blocks, which stand at `slstm_at`."""
    context_length: SizeOrUnset = -1
    """Length of training sequences; never a limit."""
    num_blocks: Depth = 1
    embedding_dim: PositiveInt = 128
    add_post_blocks_norm: bool = True
    """Normalise the output of the last block."""
    bias: bool = False
    """Biases in the linear maps of the mLSTM layers."""
    dropout: DropoutRate = 0.0
    """Rate of the dropout after each layer, on in training only."""
    scan_blocks: bool = False
    """Compile neighbouring blocks of one kind once and scan over them; their parameters lie in one array along a
    leading axis."""
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
        for name in self._own_kinds():
            if (block := getattr(self, f"{name}_block")) is not None:
                block.in_stack(self, 0).check_parts()

    @property
    def block_map(self) -> list[int]:
        """The kind of each block, by its number in `models.kinds.KINDS`: 0 for mLSTM, 1 for sLSTM."""
        # Made anew, because fields may have been assigned since.
        return [int(kind) for kind in self._create_block_map().split(",")]

    @property
    @remembered
    def block_kinds(self) -> tuple[str, ...]:
        """The name of the kind of each block."""
        names = tuple(KINDS)
        return tuple(names[number] for number in self.block_map)

    def _own_kinds(self) -> list[str]:
        """The kinds that this config has a field for."""
        return [name for name in KINDS if hasattr(self, f"{name}_block")]

    def _create_block_map(self) -> str:
        """The numbers of the blocks' kinds, joined by commas.

        The first kind that is not None fills the stack, the others stand at their places.

        Raises:
            ConfigError: if `slstm_at` names a block that the stack does not have, or one twice.
        """
        own, numbers = self._own_kinds(), {name: number for number, name in enumerate(KINDS)}
        base = next((name for name in own if getattr(self, f"{name}_block") is not None), "slstm")
        blocks = [numbers[base]] * self.num_blocks
        for name in own:
            places = [] if name == base else getattr(self, f"{name}_at", [])
            if places == "all":
                places = list(range(self.num_blocks))
            field = f"{type(self).__name__}.{name}_at"
            if not isinstance(places, (list, tuple)):
                raise ConfigError(f"{field} is {places!r}, but must be a list of block indices or 'all'")
            for place in places:
                if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < self.num_blocks:
                    raise ConfigError(
                        f"{field} holds {place!r}, but the blocks are numbered 0 to {self.num_blocks - 1}"
                    )
                blocks[place] = numbers[name]
            if len(set(places)) < len(places):
                raise ConfigError(f"{field} is {places!r}, but must name each block once")
        return ",".join(map(str, blocks))

    @remembered
    def block_config(self, index: int) -> Any:
        """The config of the block at that place, with what follows from the stack filled in.

        Raises:
            ConfigError: if the block's config says otherwise, or there is none.
        """
        kind = self.block_kinds[index]
        config = getattr(self, f"{kind}_block")
        if config is not None:
            return config.in_stack(self, index)
        owner = type(self).__name__
        if self.mlstm_block is None:
            raise ConfigError(f"{owner}.mlstm_block and {owner}.slstm_block are None, but one of them must be set")
        raise ConfigError(
            f"{owner}.{kind}_at is {getattr(self, f'{kind}_at')!r}, which asks for an {KINDS[kind].memory} block, but "
            f"{owner}.{kind}_block is None; on a command line model.{kind}_block={{}} gives it one"
        )

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The blocks' configs with what follows from the stack filled in, as at the first place."""
        blocks = {f"{name}_block": getattr(self, f"{name}_block") for name in self._own_kinds()}
        return {name: block.in_stack(self, 0) for name, block in blocks.items() if block is not None}

    def with_exact_resets(self) -> Self:
        """A copy whose model, of the same parameters, starts every document from an empty memory."""
        blocks = {f"{name}_block": getattr(self, f"{name}_block") for name in self._own_kinds()}
        return dataclasses.replace(self, **{name: block.exact() for name, block in blocks.items() if block is not None})


class BlockStack(stack.BlockStack):
    """The blocks of an xLSTM, without a norm behind them."""

    config: xLSTMBlockStackConfig


class xLSTMBlockStack(stack.NormedBlockStack):
    """The blocks of an xLSTM, then the norm post_blocks_norm unless `config.add_post_blocks_norm` is False."""

    config: xLSTMBlockStackConfig

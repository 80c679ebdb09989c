"""What the residual blocks of both memories share: a layer and, optionally, a feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Float

from xlstm_jax.distributed.constrain import residual
from xlstm_jax.models.configs import SubModelConfig, inherit, remat, remembered
from xlstm_jax.models.shared.context import PLAIN, Context
from xlstm_jax.models.shared.layers import NormLayer, check_features
from xlstm_jax.models.xlstm_parallel.components.feedforward import FeedForward, FeedForwardConfig


class BlockConfig(SubModelConfig):
    """A config with the field `feedforward`, and one for its layer, that is named for the memory.

    What the block's parts take from each other is checked when the stack, or a module, has settled it: until then a
    default here may still take another value from above.
    """

    layer_field: ClassVar[str]
    feedforward: FeedForwardConfig | None
    _num_blocks: int | None

    def layer_config(self) -> Any:
        """The layer's config with what follows from the block filled in.

        Raises:
            ConfigError: if the layer's config says otherwise.
        """
        raise NotImplementedError

    @property
    def heads(self) -> int:
        """Heads of the layer with the memory."""
        return self.layer_config().num_heads

    @remembered
    def feedforward_config(self) -> FeedForwardConfig | None:
        """The feed-forward's config with what follows from the layer filled in, or None.

        Raises:
            ConfigError: if the feed-forward's config says otherwise.
        """
        if self.feedforward is None:
            return None
        layer = self.layer_config()
        values: dict[str, Any] = {"embedding_dim": layer.embedding_dim, "parallel": layer.parallel}
        if not self.feedforward.own_dtype_and_dropout:
            values |= {"dtype": layer.dtype, "dropout": layer.dropout}
        num_blocks = self._num_blocks or self.feedforward._num_blocks
        return inherit(self.feedforward, layer, values, _num_blocks=num_blocks)

    def check_parts(self) -> None:
        """Raise `ConfigError` if what the parts say does not fit together."""
        self.layer_config().cell_config()
        self.feedforward_config()

    def resolved(self) -> Mapping[str, SubModelConfig | None]:
        """The configs of both layers with what follows from the block filled in."""
        return {self.layer_field: self.layer_config(), "feedforward": self.feedforward_config()}

    def matmul_flops(self, seq: int) -> float:
        """Floating-point operations per token in matrix products, forward, at sequence length `seq`."""
        feedforward = self.feedforward_config()
        return self.layer_config().matmul_flops(seq) + (0 if feedforward is None else feedforward.matmul_flops())


class Block(nn.Module):
    """x + post_norm(xlstm(norm(x))), then likewise with ffn; the post norms only with `config.add_post_norm`.

    Parameters: norm, xlstm, post_norm, ffn_norm, ffn, ffn_post_norm.
    """

    config: Any
    """A `BlockConfig` that says `add_post_norm` too; its layer's config says `module` and `block_norm_eps`."""

    def setup(self) -> None:
        cfg = self.config
        layer, feedforward = cfg.layer_config(), cfg.feedforward_config()

        def norm():
            return NormLayer(eps=layer.block_norm_eps, dtype=layer.dtype, norm_type=layer.norm_type)

        self.norm, self.xlstm = norm(), layer.module(layer)
        if cfg.add_post_norm:
            self.post_norm = norm()
        if feedforward is not None:
            self.ffn_norm, self.ffn = norm(), FeedForward(feedforward)
            if cfg.add_post_norm:
                self.ffn_post_norm = norm()

    @nn.nowrap
    def init_state(self, batch_size: int, capacity: int | None = None) -> Any:
        """The state before the first token; it has one size for any text."""
        layer = self.config.layer_config()
        return layer.module(layer, parent=None).init_state(batch_size)

    def __call__(
        self, x: Float[Array, "batch seq dim"], state: Any = None, context: Context = PLAIN
    ) -> tuple[Float[Array, "batch seq dim"], Any]:
        """(y, state)"""
        check_features(x, self.config.layer_config().embedding_dim, "the block")
        parallel = self.config.parallel
        x, state = remat("xLSTMResBlock", parallel, Block._mix)(self, x, state, context)
        if self.config.feedforward is not None:
            x = remat("FFNResBlock", parallel, Block._feed)(self, x, context)
        return x, state

    def _mix(self, x: Array, state: Any, context: Context) -> tuple[Array, Any]:
        y, state = self.xlstm(self.norm(x), state, context)
        return residual(x + (self.post_norm(y) if self.config.add_post_norm else y)), state

    def _feed(self, x: Array, context: Context) -> Array:
        y = self.ffn(self.ffn_norm(x), train=context.train)
        return residual(x + (self.ffn_post_norm(y) if self.config.add_post_norm else y).astype(x.dtype))

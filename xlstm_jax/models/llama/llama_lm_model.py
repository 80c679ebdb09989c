"""The Llama language model: tokens in, logits out."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from xlstm_jax.models.causal_lm import CausalLM, State
from xlstm_jax.models.llama.attention import lay_out
from xlstm_jax.models.llama.config import LlamaConfig
from xlstm_jax.models.shared.context import Context
from xlstm_jax.models.shared.layers import check_inputs
from xlstm_jax.models.stack import NormedBlockStack


class LlamaLMModel(CausalLM):
    """The language model of Transformer blocks; its stack is the parameter block_stack.

    The state is a cache of keys and values with room for so many tokens of a document (`init_state`); hidden states and
    logits of tokens that it has no room for are NaN.
    """

    config: LlamaConfig

    fixed_state: ClassVar[bool] = False

    def _hidden(
        self, tokens: Int[Array, "batch seq"], state: State | None, context: Context
    ) -> tuple[Float[Array, "batch seq dim"], State | None]:
        cfg = self.config
        check_inputs(tokens, cfg.vocab_size, document_borders=context.document_borders, mask=context.mask)
        borders = context.document_borders if cfg.mask_across_document_boundaries else None
        before, capacity = None, None
        if state is not None:
            NormedBlockStack(cfg, parent=None).check_state(state, tokens.shape[0])
            before, capacity = self.tokens_held(state)
            if borders is None and context.mask is None and tokens.shape[1] > capacity:
                raise ValueError(
                    f"tokens has {tokens.shape[1]} positions, but the state has room for {capacity}: make it with "
                    f"init_state(batch_size, max_length) and a larger max_length"
                )
        elif context.keep_state:
            capacity = max(cfg.context_length, tokens.shape[1])
        batch, seq = tokens.shape
        layout = lay_out(
            cfg, (batch, seq), document_borders=borders, mask=context.mask, before=before, capacity=capacity
        )
        x, after = super()._hidden(tokens, state, context.replace(layout=layout))
        if layout.lost is not None:
            x = jnp.where(layout.lost[..., None], jnp.asarray(jnp.nan, x.dtype), x)
        return x, after

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int | None = None) -> State:
        """The state before the first token: a `KVCache` a run of blocks.

        Args:
            max_length: tokens of a document that there is to be room for; `config.context_length` if None.

        Raises:
            ValueError: without a length.
        """
        capacity = self.config.context_length if max_length is None else max_length
        if capacity < 1:
            given = f"max_length is {max_length}" if max_length is not None else f"context_length is {capacity}"
            raise ValueError(f"{given}, but a cache of keys and values needs room for at least 1 token")
        return NormedBlockStack(self.config, parent=None).init_state(batch_size, capacity)

    @nn.nowrap
    def tokens_held(self, state: State) -> tuple[Int[Array, " batch"], int]:
        """Tokens of its document that each row of a state has read, and how many there is room for."""
        length = state[0].length
        return length if length.ndim == 1 else length[:, 0], state[0].capacity

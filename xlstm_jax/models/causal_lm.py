"""The language model that every family here is: embedding, stack of blocks, final norm, head."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.config import ConfigError
from xlstm_jax.models.configs import remat
from xlstm_jax.models.shapes import shapes_of
from xlstm_jax.models.shared.context import Context
from xlstm_jax.models.shared.init import small_init
from xlstm_jax.models.shared.layers import Embedding, LMHead, check_inputs
from xlstm_jax.models.stack import NormedBlockStack, spans

State = tuple[Any, ...]
"""One entry a run of blocks (see `models.stack.BlockStack`)."""


class Call(TypedDict, total=False):
    """What `CausalLM.__call__` and `features` take beside `return_state`, which decides on what they return."""

    document_borders: Array | None
    mask: Array | None
    state: State | None
    train: bool


class CausalLM(nn.Module):
    """Tokens in, logits of the next token out; states in and out.

    Parameters: token_embedding/embedding (vocab, dim), the stack (see `BlockStack`) under the name that the family has
    for it and, unless weights are tied, lm_head/kernel (dim, vocab).

    Example:
        >>> model = xLSTMLMModel(config)
        >>> params = model.init(jax.random.key(0), tokens)["params"]
        >>> logits = model.apply({"params": params}, tokens)
    """

    config: Any

    fixed_state: ClassVar[bool] = True
    """Whether the state of a text has one size, however long the text is; if not, it must be made large enough."""
    stack_name: ClassVar[str] = "block_stack"

    def setup(self) -> None:
        cfg = self.config
        if cfg.vocab_size < 1:
            raise ConfigError(
                f"{type(cfg).__name__}.vocab_size is {cfg.vocab_size}, but must be set to build the model"
            )
        self.token_embedding = Embedding(cfg.vocab_size, cfg.embedding_dim, cfg.dtype, self._embed_init())
        self.embedding_dropout = nn.Dropout(cfg.dropout if cfg.add_embedding_dropout else 0.0)
        setattr(self, self.stack_name, NormedBlockStack(cfg))
        head_init = small_init(cfg.embedding_dim, cfg.init_distribution_out)
        self.lm_head = LMHead(cfg.vocab_size, head_init, cfg.lm_head_dtype, cfg.logits_soft_cap)

    @nn.nowrap
    def _embed_init(self) -> Initializer:
        return small_init(self.config.embedding_dim, self.config.init_distribution_embed)

    @overload
    def __call__(
        self, tokens: Array, *, return_state: Literal[False] = False, **call: Unpack[Call]
    ) -> Float[Array, "batch seq vocab"]: ...

    @overload
    def __call__(
        self, tokens: Array, *, return_state: Literal[True], **call: Unpack[Call]
    ) -> tuple[Float[Array, "batch seq vocab"], State]: ...

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: State | None = None,
        return_state: bool = False,
        train: bool = False,
    ) -> Any:
        """Logits of the next token at every position.

        Args:
            tokens: the tokens, whole numbers from 0 to below `config.vocab_size`. Others are refused or, under
                `jax.jit`, where their values are not known, give NaN in their row.
            document_borders: true at the first token of a document; acts if the config keeps documents apart (the
                cell's `reset_at_document_boundaries`, a Transformer's `mask_across_document_boundaries`).
            mask: false at padding, anywhere in a row: the other positions' results are as if it were not there. Its own
                are arbitrary, but finite.
            state: what an earlier call returned, or `init_state`; None for an empty one.
            return_state: also return the state after the last token. A Transformer's has, without `state`, room for
                `config.context_length` tokens a document, or for those of this call if they are more.
            train: switches dropout on, which then needs `rngs={"dropout": key}`.

        Returns:
            float32 logits (batch, seq, vocab), or (logits, state). Tokens for which a given state has no room get NaN,
            in this call and in those that go on from it.

        Raises:
            TypeError: for tokens or flags that are no arrays.
            ValueError: for arguments whose shapes or dtypes do not fit, tokens outside the vocabulary, a state of
                another model or batch, and for more tokens than a state has room for where the shapes alone tell.
        """
        context = Context(document_borders, mask, train=train, keep_state=return_state)
        x, after = self._hidden(tokens, state, context)
        logits = self.head(x)
        return (logits, after) if return_state else logits

    @overload
    def features(
        self, tokens: Array, *, return_state: Literal[False] = False, **call: Unpack[Call]
    ) -> Float[Array, "batch seq dim"]: ...

    @overload
    def features(
        self, tokens: Array, *, return_state: Literal[True], **call: Unpack[Call]
    ) -> tuple[Float[Array, "batch seq dim"], State]: ...

    def features(
        self,
        tokens: Int[Array, "batch seq"],
        *,
        document_borders: Bool[Array, "batch seq"] | None = None,
        mask: Bool[Array, "batch seq"] | None = None,
        state: State | None = None,
        return_state: bool = False,
        train: bool = False,
    ) -> Any:
        """The hidden states after the final norm, (batch, seq, dim), or (hidden states, state); see `__call__`."""
        context = Context(document_borders, mask, train=train, keep_state=return_state)
        x, after = self._hidden(tokens, state, context)
        return (x, after) if return_state else x

    def _hidden(
        self, tokens: Int[Array, "batch seq"], state: State | None, context: Context
    ) -> tuple[Float[Array, "batch seq dim"], State | None]:
        check_inputs(tokens, self.config.vocab_size, document_borders=context.document_borders, mask=context.mask)
        if context.mask is not None:
            tokens = jnp.where(context.mask, tokens, 0)
        x = remat("Embed", self.config.parallel, Embedding.__call__)(self.token_embedding, tokens)
        x = self.embedding_dropout(x, deterministic=not context.train)
        stack = getattr(self, self.stack_name)
        return remat("BlockStack", self.config.parallel, NormedBlockStack.__call__)(stack, x, state, context)

    def head(self, features: Float[Array, "*shape dim"]) -> Float[Array, "*shape vocab"]:
        """The float32 logits of hidden states that `features` returned, soft-capped."""
        kernel = self.token_embedding.embedding if self.config.tie_weights else None
        return remat("LMHead", self.config.parallel, LMHead.__call__)(self.lm_head, features, kernel)

    @nn.nowrap
    def head_params(self, params: Any) -> dict[str, Any]:
        """The part of the parameters that `head` uses."""
        name = "token_embedding" if self.config.tie_weights else "lm_head"
        return {name: params[name]}

    @nn.nowrap
    def init_state(self, batch_size: int, max_length: int | None = None) -> State:
        """The state before the first token: a tuple with one entry a run of blocks, the batch as axis 0 of its arrays.

        `max_length`, the tokens of a document that there is to be room for, changes nothing where the state has one
        size for texts of any length.
        """
        return NormedBlockStack(self.config, parent=None).init_state(batch_size)

    @property
    def param_count(self) -> int:
        """Number of parameters; no array is made."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(self)))

    @property
    def state_bytes(self) -> int:
        """Size of the state of one sequence, in bytes; of `config.context_length` tokens where it grows with them."""
        shapes = jax.eval_shape(lambda: self.init_state(1))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @nn.nowrap
    def flops_per_token(self, seq: int, train: bool = False) -> float:
        """Floating-point operations per token in matrix products at sequence length `seq`.

        Each causal product is counted once, the cell at a chunk length of 64; no recomputation, no elementwise work
        and no look-up of embeddings. `train=True` counts forward and backward: three times as much.
        """
        cfg = self.config
        runs = spans(dataclasses.replace(cfg, scan_blocks=True))
        blocks = sum(len(span) * cfg.block_config(span[0]).matmul_flops(seq) for span in runs)
        forward = blocks + 2 * cfg.embedding_dim * cfg.vocab_size
        return float(3 * forward if train else forward)

"""What a model pays for documents in nats, and the one compiled program that adds it up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xlstm_jax.distributed.kernels import cross_entropy, target_nats
from xlstm_jax.distributed.placement import beside
from xlstm_jax.models.language_model import LanguageModel, build_model, with_exact_resets

MOST_NATS = 700.0
"""The exponential of more is no float."""


@dataclass(frozen=True)
class Score:
    """Summed cross-entropy of documents, with what it is to be divided by."""

    nats: float
    tokens: int
    """Targets: the tokens of the documents, and the EOD that ends each."""
    raw_bytes: int
    """Bytes of the documents before tokenizing."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.loss, MOST_NATS))

    @property
    def bits_per_byte(self) -> float:
        """Bits of all targets, the end of each document included, over the bytes of the text; infinite for no text."""
        return self.nats / math.log(2) / self.raw_bytes if self.raw_bytes else math.inf

    def to_dict(self) -> dict[str, float]:
        """The keys of metrics.jsonl."""
        return {
            "validation_loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "validation_tokens": self.tokens,
        }


class Scorer:
    """A model's compiled scoring of rows of tokens; to be shared by what scores the same model on several texts.

    Each document starts from an empty memory, whatever the model does at document borders in training.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = build_model(with_exact_resets(model.config))
        self._sum = jax.jit(partial(_summed, self.model), donate_argnums=1)
        self._each = jax.jit(partial(_each, self.model), donate_argnums=1)

    def start(self, batch_size: int) -> Any:
        """The state before the first token, to be carried from call to call; None if the model is to read windows."""
        return self.model.init_state(batch_size) if self.model.fixed_state else None

    def window(self, otherwise: int) -> int:
        """Tokens in a window, for a model without a fixed state: its context length, `otherwise` if it has none.

        It knows no positions beyond that length, and would be scored on what it was not trained for.
        """
        context = self.model.config.context_length
        return context if context > 0 else otherwise

    def __call__(
        self,
        params: Any,
        state: Any,
        tokens: Int[np.ndarray, "batch seq"],
        targets: Int[np.ndarray, "batch seq"],
        document_borders: Bool[np.ndarray, "batch seq"],
        loss_mask: Bool[np.ndarray, "batch seq"],
    ) -> tuple[Float[Array, ""], Any]:
        """Nats of the targets whose `loss_mask` is true, and the state after them.

        Args:
            state: of `start` or of the call before; it is given away.
            tokens, document_borders: as the model's.
            targets: the token after each.
            loss_mask: which targets count.
        """
        with beside(params):
            return self._sum(params, state, tokens, targets, document_borders, loss_mask)

    def each(
        self,
        params: Any,
        state: Any,
        tokens: Int[np.ndarray, "batch seq"],
        targets: Int[np.ndarray, "batch seq"],
        document_borders: Bool[np.ndarray, "batch seq"],
        loss_mask: Bool[np.ndarray, "batch seq"],
    ) -> tuple[Float[Array, "batch seq"], Any]:
        """What a call sums, target by target; zero where `loss_mask` is false."""
        with beside(params):
            return self._each(params, state, tokens, targets, document_borders, loss_mask)


def _summed(
    model: LanguageModel, params: Any, state: Any, tokens: Array, targets: Array, borders: Array, loss_mask: Array
) -> tuple[Array, Any]:
    hidden, state = _hidden(model, params, state, tokens, borders)
    targets, loss_mask = jnp.asarray(targets), jnp.asarray(loss_mask)
    return cross_entropy(_head(model), model.head_params(params), hidden, targets, loss_mask).nats, state


def _each(
    model: LanguageModel, params: Any, state: Any, tokens: Array, targets: Array, borders: Array, loss_mask: Array
) -> tuple[Array, Any]:
    hidden, state = _hidden(model, params, state, tokens, borders)
    targets, loss_mask = jnp.asarray(targets), jnp.asarray(loss_mask)
    return target_nats(_head(model), model.head_params(params), hidden, targets, loss_mask), state


def _hidden(model: LanguageModel, params: Any, state: Any, tokens: Array, borders: Array) -> tuple[Array, Any]:
    carried = state is not None
    hidden: Any = model.apply(
        {"params": params},
        tokens,
        document_borders=borders,
        state=state,
        return_state=carried,
        method="features",
    )
    return hidden if carried else (hidden, None)


def _head(model: LanguageModel) -> Any:
    return lambda params, chunk: model.apply({"params": params}, chunk, method="head")

"""A language model asked at some positions alone: its head, the larger part of a small model, sees no other."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from xlstm_jax.data.store import Batch
from xlstm_jax.evaluation.synthetic.task import Rows
from xlstm_jax.models.language_model import LanguageModel


class Questions(NamedTuple):
    """What the model reads, and where it is asked."""

    tokens: ArrayLike
    """(batch, seq)"""
    positions: ArrayLike
    """(batch, targets)"""


class AtTargets:
    """What `training.step` needs of a language model, of inputs that are `Questions`."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def apply(self, variables: Any, inputs: Any, *, method: str, **call: Any) -> Array:
        """The hidden states at the positions, (batch, targets, dim), for "features"; the logits of such for "head"."""
        if method != "features":
            return self.model.apply(variables, inputs, method=method, **call)  # type: ignore[return-value]
        hidden: Any = self.model.apply(variables, inputs.tokens, method="features", **call)
        return jnp.take_along_axis(hidden, inputs.positions[..., None], axis=1)

    def head_params(self, params: Any) -> dict[str, Any]:
        return self.model.head_params(params)


def batch_of(rows: Rows, width: int) -> Batch:
    """Rows to learn from, with `width` targets each.

    Nothing masks their padding: a causal model's answers know nothing of what follows.
    """
    asked = rows.asked(width)
    return Batch(
        inputs=Questions(rows.inputs, asked.positions),  # type: ignore[arg-type]
        targets=asked.targets,  # type: ignore[arg-type]
        document_borders=np.zeros(rows.inputs.shape, bool),
        loss_mask=asked.mask,
    )

"""What training minimises: the summed next-token cross-entropy of a batch's rows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from xlstm_jax.data.store import Batch
from xlstm_jax.kernels.cross_entropy import LossSum, cross_entropy


def loss_sum(model: Any, params: Any, rows: Batch, *, train: bool = False, dropout_key: Array | None = None) -> LossSum:
    """Nats of the rows' unmasked targets, and how many these are; the logits of all rows are never held at once.

    Args:
        model: a language model with the methods `features` and `head`.
        params: its parameters.
        rows: inputs and targets.
        train: whether dropout is on.
        dropout_key: its random key, for models that have any.
    """
    variables = {"params": params}
    features = model.apply(
        variables,
        rows.inputs,
        document_borders=rows.document_borders,
        train=train,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        method="features",
    )
    return cross_entropy(
        lambda chunk: model.apply(variables, chunk, method="head"),
        features,
        jnp.asarray(rows.targets),
        jnp.asarray(rows.loss_mask),
    )

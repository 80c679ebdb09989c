"""Numbers of a memory, from what the cells show of themselves (`models.diagnostics`): in float64, for people to read.

Shape suffixes: t tokens that read, j tokens that are read, h heads, d features of a head.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from xlstm_jax.kernels.mlstm.trace import MLSTMTrace
from xlstm_jax.kernels.slstm.trace import SLSTMTrace
from xlstm_jax.models.diagnostics import Trace


def half_life(log_f: Float[np.ndarray, t * heads]) -> Float[np.ndarray, "*heads"]:
    """Tokens after which half of a memory is left, at the mean logarithm of the forget gate: ln 2 / mean(-log f)."""
    with np.errstate(divide="ignore"):
        return np.log(2) / np.mean(-np.asarray(log_f, np.float64), axis=0)


def retention(
    log_i: Float[np.ndarray, t * heads], log_f: Float[np.ndarray, t * heads], m: Float[np.ndarray, t * heads]
) -> Float[np.ndarray, "t t *heads"]:
    """exp(D): what is left of token j at token t, D_tj = log f_{j+1} + ... + log f_t + log i_j - m_t; 0 for j > t."""
    log_i, log_f, m = (np.asarray(x, np.float64) for x in (log_i, log_f, m))
    kept = np.cumsum(log_f, axis=0)
    log_weights = kept[:, None] - kept[None] + log_i[None] - m[:, None]
    read = np.tri(len(log_i), dtype=bool).reshape(len(log_i), len(log_i), *(1,) * (log_i.ndim - 1))
    return np.exp(np.where(read, log_weights, -np.inf))


def gate_map(trace: Trace, row: int = 0) -> Float[np.ndarray, "t t h"] | None:
    """`retention` of an mLSTM's heads; None for other kinds."""
    if not isinstance(trace, MLSTMTrace):
        return None
    return retention(*(np.asarray(x[row]) for x in (trace.log_i, trace.log_f, trace.m)))


def attention_map(trace: Trace, row: int = 0) -> Float[np.ndarray, "t t h"]:
    """How much of what is read at token t comes from token j, of a text that began with an empty memory.

    An mLSTM's: abs(q_t . k_j) exp(D_tj) over its normaliser (xLSTM paper, equations 25-27). An sLSTM's: what c / n is
    the mean of z with, as a mean over the features of a head. A Transformer's: its softmax.
    """
    if isinstance(trace, MLSTMTrace):
        q, k, normaliser, floor = (
            np.asarray(x[row], np.float64) for x in (trace.q, trace.k, trace.normaliser, trace.floor)
        )
        products = np.abs(np.einsum("thd,jhd->tjh", q, k))
        gates = retention(*(np.asarray(x[row]) for x in (trace.log_i, trace.log_f, trace.m)))
        return products * gates / np.maximum(np.abs(normaliser), floor)[:, None]
    if isinstance(trace, SLSTMTrace):
        log_i, log_f, m, n = (np.asarray(x[row], np.float64) for x in (trace.log_i, trace.log_f, trace.m, trace.n))
        heads = [retention(log_i[:, h], log_f[:, h], m[:, h]) / n[:, None, h] for h in range(n.shape[1])]
        return np.stack([head.mean(-1) for head in heads], axis=-1)
    query, key = np.asarray(trace.query[row], np.float64), np.asarray(trace.key[row], np.float64)
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    logits = float(trace.scale) * np.einsum("thd,jhd->tjh", query, key)
    logits = np.where(np.tri(len(query), dtype=bool)[..., None], logits, -np.inf)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def effective_context(
    weights: Float[np.ndarray, "t t h"],
) -> tuple[Float[np.ndarray, "t h"], Float[np.ndarray, "t h"]]:
    """(the exponential of each row's entropy: how many tokens are read; their mean distance), NaN where none is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = weights / weights.sum(1, keepdims=True)
        entropy = -np.sum(np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0 * shares), axis=1)
    tokens = np.arange(len(weights))
    distance = np.sum(shares * (tokens[:, None] - tokens)[..., None], axis=1)
    return np.exp(entropy), distance


def stable_rank(C: Float[np.ndarray, "*heads d e"]) -> Float[np.ndarray, "*heads"]:
    """||C||_F^2 / ||C||_2^2, at least 1 and at most its rank; NaN for an empty memory."""
    squares = np.linalg.svd(np.asarray(C, np.float64), compute_uv=False) ** 2
    with np.errstate(invalid="ignore"):
        return squares.sum(-1) / squares.max(-1)


def log10_norm(values: Float[np.ndarray, "*lead"], m: Float[np.ndarray, "*lead"]) -> Float[np.ndarray, "*lead"]:
    """The decimal logarithm of a norm that is held without the factor exp(m)."""
    with np.errstate(divide="ignore"):
        return np.log10(np.asarray(values, np.float64)) + np.asarray(m, np.float64) / np.log(10)


def log10_feature_norm(
    values: Float[np.ndarray, "*lead d"], m: Float[np.ndarray, "*lead d"]
) -> Float[np.ndarray, "*lead"]:
    """Likewise of a vector whose every feature has a factor exp(m) of its own."""
    m = np.asarray(m, np.float64)
    greatest = m.max(-1, keepdims=True)
    norm = np.linalg.norm(np.asarray(values, np.float64) * np.exp(m - greatest), axis=-1)
    return log10_norm(norm, greatest[..., 0])

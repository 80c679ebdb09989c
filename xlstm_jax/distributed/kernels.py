"""The cells, attention, the convolution and the cross-entropy on a mesh: the one place with `jax.shard_map`.

Each function here is called as the one it stands for, and without a mesh it is that one. Batch and heads are parted
without any exchange. A sequence that is parted is put together by `sequence`: the mLSTM exchanges states, the
convolution its last inputs, the sLSTM and attention change a part of the sequence for a part of the heads. An axis
whose size the mesh does not divide is not parted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from xlstm_jax.distributed import sequence
from xlstm_jax.distributed.mesh import ROLES, Axes, current
from xlstm_jax.kernels import cross_entropy as losses
from xlstm_jax.kernels.mlstm import MLSTMState
from xlstm_jax.kernels.mlstm import api as mlstm_cell
from xlstm_jax.kernels.registry import starting_state, wide
from xlstm_jax.kernels.slstm import SLSTMState
from xlstm_jax.kernels.slstm import api as slstm_cell


def mlstm(
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    *,
    state: MLSTMState | None = None,
    reset: Array | None = None,
    mask: Array | None = None,
    gate: mlstm_cell.Gate = "exp",
    **options: Any,
) -> tuple[Array, MLSTMState]:
    """(h, state): `xlstm_jax.kernels.mlstm.mlstm` with `return_state=True`."""
    axes = current()
    if axes is None:
        return mlstm_cell.mlstm(
            q, k, v, i, f, state=state, return_state=True, reset=reset, mask=mask, gate=gate, **options
        )
    rows, tokens, heads = axes.lying(("batch", "sequence", "heads"), q.shape[:3])
    dtype = wide(*(x.dtype for x in (q, v, i, f)))

    def local(q, k, v, i, f, state, reset, mask):
        if tokens is not None:
            start = state
            if start is None:
                batch, _, own, dim_qk = q.shape
                shapes = (batch, own, dim_qk, v.shape[-1]), (batch, own, dim_qk), (batch, own)
                start = starting_state(MLSTMState, None, shapes, q, v, i, f)
            mine = sequence.summary(k, v, i, f, reset, mask, gate, wide(dtype, start.C.dtype))
            state = sequence.entering(start, mine, gate, *tokens)
        h, after = mlstm_cell.mlstm(
            q, k, v, i, f, state=state, return_state=True, reset=reset, mask=mask, gate=gate, **options
        )
        return h, after if tokens is None else sequence.of_the_last(after, *tokens)

    by_head, by_token = P(rows, tokens, heads), P(rows, tokens)
    return jax.shard_map(
        local,
        in_specs=(*(by_head,) * 5, P(rows, heads), by_token, by_token),
        out_specs=(by_head, P(rows, heads)),
    )(q, k, v, i, f, state, reset, mask)


def slstm(
    wx: Array,
    r: Array,
    b: Array,
    *,
    state: SLSTMState | None = None,
    reset: Array | None = None,
    mask: Array | None = None,
    **options: Any,
) -> tuple[Array, SLSTMState]:
    """(y, state): `xlstm_jax.kernels.slstm.slstm` with `return_state=True`."""
    axes = current()
    if axes is None:
        return slstm_cell.slstm(wx, r, b, state=state, return_state=True, reset=reset, mask=mask, **options)
    rows, tokens, heads, all_heads = _exchanged(axes, wx.shape[0], wx.shape[1], wx.shape[3])

    def local(wx, r, b, state, reset, mask):
        if tokens is not None:
            wx = sequence.heads_for_sequence(wx, *tokens, heads=3)
        y, after = slstm_cell.slstm(wx, r, b, state=state, return_state=True, reset=reset, mask=mask, **options)
        return y if tokens is None else sequence.sequence_for_heads(y, *tokens, heads=2), after

    return jax.shard_map(
        local,
        in_specs=(
            P(rows, tokens, None, heads),
            *(P(None, all_heads),) * 2,
            P(rows, all_heads),
            *(P(rows),) * 2,
        ),
        out_specs=(P(rows, tokens, heads), P(rows, all_heads)),
    )(wx, r, b, state, reset, mask)


def attention(attend: Callable[..., Array], query: Array, key: Array, value: Array, seen: Any) -> Array:
    """`attend(query, key, value, seen)`: query (batch, seq, heads, dim), key and value (batch, keys, kv_heads, dim).

    Args:
        seen: what tells which keys a query sees: arrays whose first axis is that of the rows. They are not parted along
            the sequence.
    """
    axes = current()
    if axes is None:
        return attend(query, key, value, seen)
    same = query.shape[1] == key.shape[1]  # a cache in front of the keys is not parted
    rows, tokens, heads, all_heads = _exchanged(axes, *query.shape[:3], along_sequence=same)
    needed = _size(axes, all_heads)
    if key.shape[2] % needed:  # too few heads of keys to part: each is repeated as far as is needed
        group = query.shape[2] // key.shape[2]
        times = next((n for n in range(1, group + 1) if group % n == 0 and key.shape[2] * n % needed == 0), group)
        key, value = (jnp.repeat(x, times, axis=2) for x in (key, value))

    def local(query, key, value, seen):
        if tokens is not None:
            query, key, value = (sequence.heads_for_sequence(x, *tokens, heads=2) for x in (query, key, value))
        y = attend(query, key, value, seen)
        return y if tokens is None else sequence.sequence_for_heads(y, *tokens, heads=2)

    return jax.shard_map(
        local,
        in_specs=(*(P(rows, tokens, heads),) * 3, P(rows)),
        out_specs=P(rows, tokens, heads),
    )(query, key, value, seen)


def convolution(
    run: Callable[..., tuple[Array, Array | None]],
    x: Array,
    window: Array | None,
    borders: Array | None,
    kernel: Array,
    *,
    by_feature: bool,
) -> tuple[Array, Array | None]:
    """`run(x, window, borders, kernel)`: a causal convolution of x (batch, seq, features), and the window after it.

    Args:
        window: the last inputs before x (batch, size, features); zeros if None.
        kernel: (taps, ..., features).
        by_feature: whether each feature is convolved by itself.
    """
    axes = current()
    if axes is None:
        return run(x, window, borders, kernel)
    size = kernel.shape[0] - 1
    rows, tokens, _ = axes.lying(("batch", "sequence", None), x.shape)
    features = axes.lying(("heads",), x.shape[-1:])[0] if by_feature else None
    if tokens is not None and x.shape[1] // _size(axes, tokens) < size:
        tokens = None  # slices shorter than the window
    window = jnp.zeros((x.shape[0], size, x.shape[-1]), x.dtype) if window is None else window

    def local(x, window, borders, kernel):
        if tokens is not None:
            # The window after a slice is of its own inputs, whatever came before.
            _, last = run(x, jnp.zeros_like(x[:, :size]), borders, kernel)
            assert last is not None
            window = sequence.of_the_slice_before(last, window, *tokens)
        y, after = run(x, window, borders, kernel)
        return y, after if tokens is None else sequence.of_the_last(after, *tokens)

    by_token = P(rows, tokens)
    return jax.shard_map(
        local,
        in_specs=(
            P(rows, tokens, features),
            P(rows, None, features),
            by_token,
            P(*(None,) * (kernel.ndim - 1), features),
        ),
        out_specs=(P(rows, tokens, features), P(rows, None, features)),
    )(x, window, borders, kernel)


def cross_entropy(
    head: Callable[[Any, Array], Array], params: Any, features: Array, targets: Array, mask: Array
) -> losses.LossSum:
    """`xlstm_jax.kernels.cross_entropy.cross_entropy`, with the head's parameters beside it: `head(params, chunk)`.

    Every device sums over its own tokens, and the gradient of the parameters is reduced once. What lies over the axis
    of the model, the vocabulary, is left to the compiler.
    """
    axes = current()
    if axes is None:
        return losses.cross_entropy(lambda chunk: head(params, chunk), features, targets, mask)
    rows, tokens, _ = axes.lying(("batch", "sequence", None), features.shape)
    parted = (*(rows or ()), *(tokens or ()))

    def local(params, features, targets, mask):
        params = jax.tree.map(lambda x: jax.lax.pcast(x, parted, to="varying") if parted else x, params)
        total = losses.cross_entropy(lambda chunk: head(params, chunk), features, targets, mask)
        return jax.tree.map(lambda x: jax.lax.psum(x, parted) if parted else x, total)

    by_token = P(rows, tokens)
    return jax.shard_map(
        local,
        in_specs=(P(), by_token, by_token, by_token),
        out_specs=P(),
        axis_names=set(axes.reducing),
    )(params, features, targets, mask)


def target_nats(
    head: Callable[[Any, Array], Array], params: Any, features: Array, targets: Array, mask: Array
) -> Array:
    """`xlstm_jax.kernels.cross_entropy.target_nats`, as `cross_entropy` is that of its sum."""
    return _by_target(losses.target_nats, head, params, features, targets, mask)


def target_scores(
    head: Callable[[Any, Array], Array], params: Any, features: Array, targets: Array, mask: Array
) -> losses.TargetScores:
    """`xlstm_jax.kernels.cross_entropy.target_scores`, the same way."""
    return _by_target(losses.target_scores, head, params, features, targets, mask)


def _by_target(score: Callable, head: Callable, params: Any, features: Array, targets: Array, mask: Array) -> Any:
    axes = current()
    if axes is None:
        return score(lambda chunk: head(params, chunk), features, targets, mask)
    rows, tokens, _ = axes.lying(("batch", "sequence", None), features.shape)
    by_token = P(rows, tokens)
    return jax.shard_map(
        lambda params, *arrays: score(lambda chunk: head(params, chunk), *arrays),
        in_specs=(P(), by_token, by_token, by_token),
        out_specs=by_token,
        axis_names=set(axes.reducing),
    )(params, features, targets, mask)


def _exchanged(
    axes: Axes, batch: int, seq: int, heads: int, *, along_sequence: bool = True
) -> tuple[Any, Any, Any, Any]:
    """How rows, tokens and heads lie, and how the heads do while each has its whole sequence.

    The sequence is parted only if the heads can take its place.
    """
    rows, tokens, by_model = axes.lying(("batch", "sequence", "heads"), (batch, seq, heads))
    all_heads = axes.part(ROLES["spread heads"], heads)
    if not along_sequence or tokens is None or not set(tokens) <= set(all_heads):
        return rows, None, by_model, by_model
    return rows, tokens, by_model, all_heads


def _size(axes: Axes, names: Any) -> int:
    sizes = {axes.names[use]: size for use, size in axes.sizes.items()}
    total = 1
    for name in names or ():
        total *= sizes[name]
    return total

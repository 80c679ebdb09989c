"""One function for the sLSTM, several implementations behind it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypedDict, Unpack, overload

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.registry import (
    Device,
    Implementation,
    check_count,
    check_flags,
    check_floats,
    choose,
    on_mesh,
    partition,
    starting_state,
    table,
)
from xlstm_jax.kernels.slstm import fused, recurrent
from xlstm_jax.kernels.slstm.recurrent import Options
from xlstm_jax.kernels.slstm.state import GATES, SLSTMState


def _best(device: Device) -> str | None:
    return (
        f"its own gradient, with one product for that of R; plain XLA, runs on every device (here: {device.platform})"
    )


FORMS = table(
    Implementation("recurrent", recurrent.recurrent, step=recurrent.step),
    Implementation("fused", fused.fused, best=_best, sizes={"unroll": fused.UNROLL}),
)
"""All forms, by the names that `slstm` takes as `implementation`."""


def implementations() -> tuple[str, ...]:
    """The names that `slstm` takes as `implementation`."""
    return tuple(FORMS)


def pick_implementation() -> tuple[str, str]:
    """What `implementation=None` means on this device, and why."""
    implementation, reason = choose(FORMS, None, {}, jnp.float32)
    return implementation.name, reason


class Call(TypedDict, total=False):
    """What `slstm` takes beside `return_state`, which decides on what it returns."""

    state: SLSTMState | None
    reset: Array | None
    mask: Array | None
    implementation: str | None
    product_dtype: DTypeLike | None
    unroll: int | None
    gradient_recurrent_cut: bool
    gradient_recurrent_clipval: float | None
    forward_clipval: float | None


@overload
def slstm(
    wx: Array, r: Array, b: Array, *, return_state: Literal[False] = False, **call: Unpack[Call]
) -> Float[Array, "batch seq heads dim"]: ...


@overload
def slstm(
    wx: Array, r: Array, b: Array, *, return_state: Literal[True], **call: Unpack[Call]
) -> tuple[Float[Array, "batch seq heads dim"], SLSTMState]: ...


def slstm(
    wx: Float[Array, "batch seq gates heads dim"],
    r: Float[Array, "gates heads dim_out dim_in"],
    b: Float[Array, "gates heads dim"],
    *,
    state: SLSTMState | None = None,
    return_state: bool = False,
    reset: Bool[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    implementation: str | None = None,
    product_dtype: DTypeLike | None = None,
    unroll: int | None = None,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
) -> Any:
    """The sLSTM over a sequence (xLSTM paper, arXiv 2405.04517, equations 8-18).

    The gates stand in the order i, f, z, o. The pre-activation of gate g in head h at token t is
    ``wx[:, t, g, h] + r[g, h] @ y_{t-1}[:, h] + b[g, h]``: a head sees its own last output alone.

    It can be differentiated in reverse, twice too; in forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) with
    "recurrent" alone, and not with a clipped gradient, since the other gradients are written by hand. It can be called
    inside `jax.shard_map` and on meshes with explicit axes.

    Args:
        wx: the input's part of the pre-activations, one matrix product over the sequence, made by the caller. Minus
            infinity in the forget gate empties the memory, infinity keeps it as it is; minus infinity in the input gate
            writes nothing, but to an empty memory, in which any first token counts. An input gate of infinity, like
            NaN, makes y NaN from there to the next reset, in every form.
        r: recurrent weights; ``r[g, h]`` is the matrix that y_{t-1} of head h is multiplied by, rows are outputs.
        b: bias.
        state: the state to start from; None is the empty one, zeros.
        return_state: whether to return the state after the last token as well.
        reset: True where a new sequence starts: that token and those after it see nothing of what came before.
        mask: False where a token is padding: it leaves the state as it was, its y is 0, a reset on it is ignored.
        implementation: "recurrent" (the oracle) or "fused"; None picks the best that is supported. One token that
            meets a state is computed by the form's step, or the best there is.
        product_dtype: dtype that both sides of R y are rounded to; that of wx if None. All else is computed in the
            dtype of the state, which is at least float32.
        unroll: tokens per turn of the fused form's loops; None picks.
        gradient_recurrent_cut: let no gradient flow from a token to the one before through R y; R itself still learns.
        gradient_recurrent_clipval: clip that gradient, element by element, to ± this.
        forward_clipval: clip y, element by element, to ± this.

    Returns:
        y of shape (batch, seq, heads, dim) in the dtype of wx, or (y, `SLSTMState`) if asked for. Splitting a sequence
        and handing the state on gives the same as one call, gradients included.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or values that are not known; `UnsupportedError`, which is
            one, for an implementation that cannot run here.
        TypeError: for what is no array.
    """
    _check(wx, r, b, 5)
    check_count("unroll", unroll)
    check_flags(wx.shape[:2], reset=reset, mask=mask)
    options = _options(wx, product_dtype, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval)
    start, seq = _starting_state(state, wx, r, b), wx.shape[1]
    by_step = state is not None and seq == 1
    form = choose(FORMS, implementation, {"wx": wx.shape}, wx.dtype, step=by_step).implementation
    if seq == 0:
        y, final = jnp.zeros_like(wx[:, :, 0]), start
    elif by_step and form.step is not None:
        reset, mask = (None if x is None else x[:, 0] for x in (reset, mask))
        y, final = _step(form.step, start, wx[:, 0], r, b, reset, mask, options)
        y = y[:, None]
    else:
        run: Any = partial(form.run, options=options, **{name: unroll or size for name, size in form.sizes.items()})
        batch, tokens, _, *head = partition(wx)
        parted = P(batch, tokens, *head), _parted(batch, *head)
        run, arrays, flags = on_mesh(run, wx, r, b, start, reset=reset, mask=mask, parted=parted)
        y, final = run(*arrays, **flags)
    return (y, final) if return_state else y


def slstm_step(
    state: SLSTMState,
    wx: Float[Array, "batch gates heads dim"],
    r: Float[Array, "gates heads dim_out dim_in"],
    b: Float[Array, "gates heads dim"],
    *,
    reset: Bool[Array, " batch"] | None = None,
    mask: Bool[Array, " batch"] | None = None,
    implementation: str | None = None,
    product_dtype: DTypeLike | None = None,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
) -> tuple[Float[Array, "batch heads dim"], SLSTMState]:
    """One token of the sLSTM: equal to `slstm` on a sequence of length one.

    A form without a step of its own leaves it to the best that has one.

    Returns:
        y in the dtype of wx, and the next state.
    """
    _check(wx, r, b, 4)
    check_flags(wx.shape[:1], reset=reset, mask=mask)
    options = _options(wx, product_dtype, gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval)
    start = _starting_state(state, wx, r, b)
    step = choose(FORMS, implementation, {"wx": wx.shape}, wx.dtype, step=True).implementation.step
    assert step is not None
    return _step(step, start, wx, r, b, reset, mask, options)


def _step(step, start, wx, r, b, reset, mask, options) -> tuple[Array, SLSTMState]:
    batch, _, *head = partition(wx)
    parted = P(batch, *head), _parted(batch, *head)
    step, arrays, flags = on_mesh(
        partial(step, options=options), start, wx, r, b, reset=reset, mask=mask, parted=parted
    )
    return step(*arrays, **flags)


def _parted(*axes: Any) -> Any:
    """How a state lies on a mesh."""
    parts: Any = (P(*axes) for _ in SLSTMState._fields)
    return SLSTMState(*parts)


def _options(
    wx: Array, product_dtype: DTypeLike | None, cut: bool, gradient_clip: float | None, forward_clip: float | None
) -> Options:
    for label, value in (("gradient_recurrent_clipval", gradient_clip), ("forward_clipval", forward_clip)):
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise ValueError(f"{label} is {value!r}, but must be None or a number above 0")
    dtype = wx.dtype if product_dtype is None else product_dtype
    try:
        is_float = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise ValueError(f"product_dtype is {dtype!r}, but must be None or a float dtype")
    return Options(jnp.dtype(dtype), cut, gradient_clip, forward_clip)


def _starting_state(state: SLSTMState | None, wx: Array, r: Array, b: Array) -> SLSTMState:
    shape = (wx.shape[0], *wx.shape[-2:])
    return starting_state(SLSTMState, state, (shape,) * len(SLSTMState._fields), wx, r, b)


def _check(wx: Array, r: Array, b: Array, rank: int) -> None:
    check_floats(wx=wx, r=r, b=b)
    if wx.ndim != rank or wx.shape[-3] != len(GATES):
        axes = "(batch, seq, 4, heads, dim)" if rank == 5 else "(batch, 4, heads, dim)"
        raise ValueError(f"wx has shape {wx.shape}, but must be {axes} with the gates in the order {', '.join(GATES)}")
    gates, heads, dim = wx.shape[-3:]
    for label, array, shape in (("r", r, (gates, heads, dim, dim)), ("b", b, (gates, heads, dim))):
        if array.shape != shape:
            raise ValueError(f"{label} has shape {array.shape}, but wx of shape {wx.shape} needs {shape}")

"""One function for the mLSTM, several implementations behind it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from xlstm_jax.kernels.mlstm import batched, chunkwise, parallel, recurrent
from xlstm_jax.kernels.mlstm.state import MLSTMState
from xlstm_jax.kernels.registry import (
    Device,
    Implementation,
    Shapes,
    check_count,
    check_flags,
    check_floats,
    choose,
    on_mesh,
    partition,
    starting_state,
    table,
)

Gate = Literal["exp", "sigmoid"]


def _best_on_a_cpu(device: Device) -> str | None:
    if device.platform == "cpu":
        return "linear in the sequence; chunk after chunk, as each fills the cores and stays in the cache"
    return None


def _best_elsewhere(device: Device) -> str | None:
    if device.platform != "cpu":
        return f"linear in the sequence; all chunks at once, as one alone does not fill a {device.platform}"
    return None


def _in_chunks(shapes: Shapes, dtype: DTypeLike, device: Device) -> str | None:
    seq = shapes["q"][1] if len(shapes.get("q", ())) == 4 else 1
    if isinstance(seq, int):
        return None
    return (
        f"it needs to know how many chunks there are, but the length is {seq}; recurrent and parallel take any length"
    )


FORMS = table(
    Implementation("recurrent", recurrent.recurrent, step=recurrent.step),
    Implementation("parallel", parallel.parallel),
    Implementation("chunkwise", chunkwise.chunkwise, None, _in_chunks, _best_on_a_cpu, {"chunk_size": chunkwise.SIZE}),
    Implementation("batched", batched.batched, None, _in_chunks, _best_elsewhere, {"chunk_size": batched.SIZE}),
)
"""All forms, by the names that `mlstm` takes as `implementation`."""


def implementations() -> tuple[str, ...]:
    """The names that `mlstm` takes as `implementation`."""
    return tuple(FORMS)


def pick_implementation() -> tuple[str, str]:
    """What `implementation=None` means on this device, and why."""
    implementation, reason = choose(FORMS, None, {}, jnp.float32)
    return implementation.name, reason


class Call(TypedDict, total=False):
    """What `mlstm` takes beside `return_state`, which decides on what it returns."""

    state: MLSTMState | None
    reset: Array | None
    mask: Array | None
    implementation: str | None
    chunk_size: int | None
    gate: Gate
    normalize: bool
    eps: float


@overload
def mlstm(
    q: Array, k: Array, v: Array, i: Array, f: Array, *, return_state: Literal[False] = False, **call: Unpack[Call]
) -> Float[Array, "batch seq heads dim_v"]: ...


@overload
def mlstm(
    q: Array, k: Array, v: Array, i: Array, f: Array, *, return_state: Literal[True], **call: Unpack[Call]
) -> tuple[Float[Array, "batch seq heads dim_v"], MLSTMState]: ...


def mlstm(
    q: Float[Array, "batch seq heads dim_qk"],
    k: Float[Array, "batch seq heads dim_qk"],
    v: Float[Array, "batch seq heads dim_v"],
    i: Float[Array, "batch seq heads"],
    f: Float[Array, "batch seq heads"],
    *,
    state: MLSTMState | None = None,
    return_state: bool = False,
    reset: Bool[Array, "batch seq"] | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    implementation: str | None = None,
    chunk_size: int | None = None,
    gate: Gate = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
) -> Any:
    """The mLSTM over a sequence (xLSTM paper, arXiv 2405.04517, equations 19-27).

    It can be differentiated in reverse, twice too; in forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) with
    "recurrent" and "parallel" alone, since the gradients of the two others are written by hand. It can be called inside
    `jax.shard_map` and on meshes with explicit axes. In a program that `jax.export` makes for any length, "recurrent"
    stands for None, and "parallel" can be asked for.

    Args:
        q, k, v: queries (scaled inside by dim_qk ** -0.5), keys and values.
        i, f: pre-activations of the input and the forget gate. An f of minus infinity empties the memory, one of
            infinity keeps it as it is, an i of minus infinity writes nothing; an i of infinity, like NaN in either,
            makes h NaN from there on, in every form, and in "recurrent" until the next reset.
        state: the state to start from; None is zeros with m = 0.
        return_state: whether to return the state after the last token as well.
        reset: True where a new sequence starts: that token and those after it see nothing of what came before.
        mask: False where a token is padding: it leaves the state as it was, its h is 0, a reset on it is ignored.
        implementation: "recurrent" (the oracle), "parallel" (quadratic), "chunkwise" (chunk after chunk) or "batched"
            (all chunks at once, in more memory); None picks the best that is supported. One token that meets a state
            is computed by the form's step, or the best there is.
        chunk_size: tokens per chunk of the two last; None is 64 and 128.
        gate: "exp" (stabilised exponential input gate) or "sigmoid" (arXiv 2503.14376, section 2.3).
        normalize: whether h is divided by its normaliser; only the sigmoid gate can do without.
        eps: added to the normaliser, after the maximum, in the stabilised frame.

    Returns:
        h of shape (batch, seq, heads, dim_v) in the dtype of v, and the `MLSTMState` if asked for, which is at least
        float32. Splitting a sequence and handing the state on gives the same as one call.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or a name that is not known; `UnsupportedError`, which is
            one, for an implementation that cannot run here.
        TypeError: for what is no array.
    """
    _check(q, k, v, i, f, 4, gate, normalize, eps)
    check_count("chunk_size", chunk_size)
    check_flags(q.shape[:2], reset=reset, mask=mask)
    start, seq = _starting_state(state, q, v, i, f), q.shape[1]
    by_step = state is not None and seq == 1
    form = choose(FORMS, implementation, {"q": q.shape, "v": v.shape}, q.dtype, step=by_step).implementation
    options: dict[str, Any] = {"gate": gate, "normalize": normalize, "eps": eps}
    if seq == 0:
        h, final = jnp.zeros_like(v), start
    elif by_step and form.step is not None:
        token = [None if x is None else x[:, 0] for x in (q, k, v, i, f, reset, mask)]
        h, final = _step(form.step, options, start, *token)
        h = h[:, None]
    else:
        run: Any = partial(form.run, **options, **{name: chunk_size or size for name, size in form.sizes.items()})
        parted = P(*partition(v)), _parted(*partition(v)[:3:2])
        run, arrays, flags = on_mesh(run, q, k, v, i, f, start, reset=reset, mask=mask, parted=parted)
        h, final = run(*arrays, **flags)
    return (h, final) if return_state else h


def mlstm_step(
    state: MLSTMState,
    q: Float[Array, "batch heads dim_qk"],
    k: Float[Array, "batch heads dim_qk"],
    v: Float[Array, "batch heads dim_v"],
    i: Float[Array, "batch heads"],
    f: Float[Array, "batch heads"],
    *,
    reset: Bool[Array, " batch"] | None = None,
    mask: Bool[Array, " batch"] | None = None,
    implementation: str | None = None,
    gate: Gate = "exp",
    normalize: bool = True,
    eps: float = 1e-6,
) -> tuple[Float[Array, "batch heads dim_v"], MLSTMState]:
    """One token of the mLSTM: equal to `mlstm` on a sequence of length one.

    A form without a step of its own leaves it to the best that has one.

    Returns:
        h in the dtype of v, and the next state.
    """
    _check(q, k, v, i, f, 3, gate, normalize, eps)
    check_flags(q.shape[:1], reset=reset, mask=mask)
    start = _starting_state(state, q, v, i, f)
    step = choose(FORMS, implementation, {"q": q.shape, "v": v.shape}, q.dtype, step=True).implementation.step
    assert step is not None
    return _step(step, {"gate": gate, "normalize": normalize, "eps": eps}, start, q, k, v, i, f, reset, mask)


def _step(step, options, start, q, k, v, i, f, reset, mask) -> tuple[Array, MLSTMState]:
    parted = P(*partition(v)), _parted(*partition(v)[:2])
    step, arrays, flags = on_mesh(partial(step, **options), start, q, k, v, i, f, reset=reset, mask=mask, parted=parted)
    return step(*arrays, **flags)


def _parted(batch: Any, heads: Any) -> Any:
    """How a state lies on a mesh."""
    parts: Any = (P(batch, heads) for _ in MLSTMState._fields)
    return MLSTMState(*parts)


def _starting_state(state: MLSTMState | None, q: Array, v: Array, i: Array, f: Array) -> MLSTMState:
    batch, heads, dim_qk, dim_v = q.shape[0], q.shape[-2], q.shape[-1], v.shape[-1]
    shapes = (batch, heads, dim_qk, dim_v), (batch, heads, dim_qk), (batch, heads)
    return starting_state(MLSTMState, state, shapes, q, v, i, f)


def _check(q: Array, k: Array, v: Array, i: Array, f: Array, rank: int, gate: str, normalize: bool, eps: float) -> None:
    if gate not in get_args(Gate):
        raise ValueError(f"gate is {gate!r}, but must be one of {', '.join(map(repr, get_args(Gate)))}")
    if gate == "exp" and not normalize:
        raise ValueError("normalize is False, but the exponential input gate is only defined with its normaliser")
    check_floats(q=q, k=k, v=v, i=i, f=f)
    if not isinstance(eps, (int, float)) or not 0 <= eps < float("inf"):
        raise ValueError(f"eps is {eps!r}, but must be a number of at least 0")
    if q.ndim != rank or q.shape[-1] == 0:
        raise ValueError(f"q has shape {q.shape}, but must have {rank} axes, the last of at least one feature")
    wanted = {"k": (k, q.shape), "v": (v, (*q.shape[:-1], v.shape[-1])), "i": (i, q.shape[:-1]), "f": (f, q.shape[:-1])}
    for label, (array, shape) in wanted.items():
        if array.shape != shape:
            raise ValueError(f"{label} has shape {array.shape}, but q of shape {q.shape} needs {shape}")

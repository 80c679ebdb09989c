"""The sLSTM's part of the check."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.evaluation.kernels.cell import Arrays, Case, Cell, Form, Problem, time_first
from xlstm_jax.kernels.registry import Device
from xlstm_jax.kernels.slstm import GATES, SLSTMState, api, slstm, slstm_step
from xlstm_jax.kernels.slstm.recurrent import Options, recurrent

BATCH, HEADS, DIM = 3, 2, 8
LENGTH = 29
STATE = SLSTMState._fields


def _flagged(name: str, **draw: Any) -> Case:
    return Case(name, LENGTH, flagged=True, draw=draw)


CASES = (
    Case("1 token", 1, quick=False),
    Case("29 tokens", LENGTH, quick=False),
    _flagged("29 tokens, flags of no effect"),
    _flagged("no state before", start="zero"),
    _flagged("fresh and running rows", start="mixed"),
    _flagged("resets", resets=0.2),
    _flagged("padding", padding=0.3),
    _flagged("resets and padding", resets=0.2, padding=0.3),
    _flagged("nothing but padding", padding=1.0),
    _flagged("reset at every token", resets=1.0),
    _flagged("gates around ±100", gate_scale=100.0, resets=0.1, padding=0.2),
    _flagged("gates all at 100", input_bias=100.0, forget_bias=100.0),
    _flagged("gates all at -100", input_bias=-100.0, forget_bias=-100.0),
    _flagged("input bias -10", input_bias=-10.0, forget_bias=4.5),
    _flagged("ties of the stabiliser", ties=True),
    _flagged("gates at ±inf", infinite=0.15, resets=0.1, padding=0.1),
    _flagged("no rows", batch=0),
    _flagged("no heads", heads=0),
)


def slstm_cell() -> Cell:
    """The sLSTM as training runs it: R y in the dtype of the input, everything else at least float32."""
    forms: dict[str, Form] = {name: partial(_by_sequence, name) for name in api.FORMS}
    return Cell(
        title="sLSTM",
        kind="slstm",
        forms=forms | {"step": _by_step},
        oracle="recurrent",
        truth=_truth,
        truth_length=LENGTH,
        cases=CASES,
        draw=draw,
        narrow=frozenset(("wx", "r", "output")),
        sequence=frozenset(("wx", "output")),
        supported=_supported,
        plainly=frozenset(("recurrent",)),
    )


def _supported(form: str, length: int, dtype: str, device: Device) -> str | None:
    if form not in api.FORMS:  # steps
        return None
    return api.FORMS[form].supported({"wx": (BATCH, length, len(GATES), HEADS, DIM)}, jnp.dtype(dtype), device)


def _state(x: Arrays) -> SLSTMState:
    return SLSTMState(*(x[name] for name in STATE))


def _by_sequence(name: str, x: Arrays, given: Arrays) -> Arrays:
    out, state = slstm(x["wx"], x["r"], x["b"], state=_state(x), return_state=True, implementation=name, **given)
    return {"output": out, **state._asdict()}


def _by_step(x: Arrays, given: Arrays) -> Arrays:
    """`slstm_step` for one token after the other."""
    # So that the loop here sums its gradient in float32.
    r = x["r"].astype(x["b"].dtype)

    def body(state: SLSTMState, token: Arrays) -> tuple[SLSTMState, Any]:
        y, state = slstm_step(state, token.pop("wx"), r, x["b"], **token)
        return state, y

    state, y = jax.lax.scan(body, _state(x), time_first({"wx": x["wx"]} | given))
    return {"output": jnp.moveaxis(y, 0, 1), **state._asdict()}


def _truth(x: Arrays, given: Arrays) -> Arrays:
    options = Options(jnp.float64, False, None, None)
    out, state = recurrent(x["wx"], x["r"], x["b"], _state(x), options=options, **given)
    return {"output": out, **state._asdict()}


def draw(
    rng: np.random.Generator,
    length: int,
    *,
    batch: int = BATCH,
    heads: int = HEADS,
    scale: float = 0.7,
    gate_scale: float = 1.0,
    input_bias: float = 0.0,
    forget_bias: float = 0.0,
    resets: float = 0.0,
    padding: float = 0.0,
    start: str = "running",
    ties: bool = False,
    infinite: float = 0.0,
) -> Problem:
    """Normally distributed inputs, and the state of a sequence under way, the empty one, or one of each by rows.

    `infinite` is the share of forget gates at minus infinity, of those at plus infinity, and of all others at either.
    """
    gates, shape = len(GATES), (batch, heads, DIM)
    wx = scale * rng.normal(size=(batch, length, gates, heads, DIM))
    wx[:, :, :2] *= gate_scale
    wx[:, :, 0] += input_bias
    wx[:, :, 1] += forget_bias
    inputs = {
        "wx": wx,
        "r": scale * rng.normal(size=(gates, heads, DIM, DIM)) / DIM**0.5,
        "b": scale * rng.normal(size=(gates, heads, DIM)),
        "y": rng.uniform(-1, 1, size=shape),
        "c": rng.normal(size=shape),
        "n": 0.5 + rng.random(size=shape),
        "m": rng.normal(size=shape),
    }
    if start != "running":
        rows = np.arange(batch) < (batch if start == "zero" else 1)
        inputs |= {name: np.where(rows[:, None, None], 0, inputs[name]) for name in STATE}
    if ties:
        # log σ(100) is lost beside 1 in every dtype: both terms of the stabiliser's maximum are 1 at every token.
        inputs["wx"][:, :, :2] = np.array([1.0, 100.0])[:, None, None]
        inputs["r"][:2], inputs["b"][:2], inputs["m"] = 0, 0, np.ones(shape)
    if infinite:
        places = rng.random(wx.shape) / infinite
        places[:, :, 0] += 1  # an input gate at plus infinity makes what follows not a number
        wx[places < 1], wx[(places >= 1) & (places < 2)] = np.inf, -np.inf
    given = {"reset": rng.random((batch, length)) < resets, "mask": rng.random((batch, length)) >= padding}
    cotangents = {"output": rng.normal(size=(batch, length, heads, DIM))}
    return Problem(inputs, given, cotangents | {name: rng.normal(size=shape) for name in STATE})

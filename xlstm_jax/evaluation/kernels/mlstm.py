"""The mLSTM's part of the check."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.evaluation.kernels.cell import Arrays, Case, Cell, Form, Problem, time_first
from xlstm_jax.kernels.mlstm import MLSTMState, api, mlstm, mlstm_step
from xlstm_jax.kernels.mlstm.api import Gate
from xlstm_jax.kernels.mlstm.parallel import parallel_weights
from xlstm_jax.kernels.mlstm.recurrent import recurrent
from xlstm_jax.kernels.registry import Device

BATCH, HEADS, DIM_QK, DIM_V = 2, 2, 16, 24
LONGEST, FLAGGED, CHUNK = 128, 37, 16
"""Two whole chunks of a CPU's usual size, without resets or mask; and, with them, a prime number of tokens in small
chunks."""

PLAIN_CASES = (
    Case("1 token", 1, quick=False),
    Case("13 tokens, under a chunk", 13, quick=False),
    Case("128 tokens, two chunks", LONGEST),
    Case("128 tokens, gates around ±100", LONGEST, draw={"gate_scale": 100.0}),
    Case("128 tokens, input bias -10", LONGEST, draw={"input_bias": -10.0, "forget_bias": 4.5}),
)


def _flagged(name: str, **draw: Any) -> Case:
    return Case(name, FLAGGED, flagged=True, draw=draw, settings={"chunk_size": CHUNK})


FLAGGED_CASES = (
    _flagged("37 tokens, three chunks"),
    _flagged("no state before", start="zero"),
    _flagged("resets", resets=0.2),
    _flagged("padding", padding=0.3),
    _flagged("resets and padding", resets=0.2, padding=0.3),
    _flagged("nothing but padding", padding=1.0),
    _flagged("reset at every token", resets=1.0),
    _flagged("gates around ±100", gate_scale=100.0, resets=0.1, padding=0.2),
    _flagged("gates all at 100", input_bias=100.0, forget_bias=100.0, gate_scale=1.0),
    _flagged("gates all at -100", input_bias=-100.0, forget_bias=-100.0, gate_scale=1.0),
    _flagged("input bias -10", input_bias=-10.0, forget_bias=4.5),
    _flagged("ties of the stabiliser", ties=True),
    _flagged("gates at ±inf", infinite=0.2, resets=0.1, padding=0.1),
    _flagged("no rows", batch=0),
    _flagged("no heads", heads=0),
)


def mlstm_cell(gate: Gate, normalize: bool) -> Cell:
    """The mLSTM with one gate. The exponential one is checked at all lengths, the others' code differs in one place."""
    options = {"gate": gate, "normalize": normalize}
    forms: dict[str, Form] = {name: partial(_by_sequence, name, options) for name in api.FORMS}
    exponential = gate == "exp"
    cases: tuple[Case, ...] = PLAIN_CASES + FLAGGED_CASES
    if not exponential:
        cases = tuple(case for case in FLAGGED_CASES if "ties" not in case.name)
    return Cell(
        title=f"mLSTM, {gate} gate" + ("" if normalize else ", no normaliser"),
        kind="mlstm",
        forms=forms | {"step": partial(_by_step, options)},
        oracle="recurrent",
        truth=partial(_truth, options),
        truth_length=LONGEST if exponential else FLAGGED,
        cases=cases,
        draw=partial(draw, gate=gate),
        narrow=frozenset(("q", "k", "v", "h")),
        sequence=frozenset(("q", "k", "v", "i", "f", "h")),
        supported=_supported,
        magnitudes=partial(magnitudes, gate=gate, normalize=normalize),
        # With the exponential gate all but the oracle is compiled as it is in use; batched is for other devices.
        plainly=frozenset(("recurrent", "batched") if exponential else (*forms, "step")),
    )


def _supported(form: str, length: int, dtype: str, device: Device) -> str | None:
    if form not in api.FORMS:  # steps
        return None
    shapes = {"q": (BATCH, length, HEADS, DIM_QK), "v": (BATCH, length, HEADS, DIM_V)}
    return api.FORMS[form].supported(shapes, jnp.dtype(dtype), device)


def _state(x: Arrays) -> MLSTMState:
    return MLSTMState(x["C"], x["n"], x["m"])


def _by_sequence(name: str, options: dict, x: Arrays, given: Arrays, *, chunk_size: int | None = None) -> Arrays:
    how: dict[str, Any] = {"implementation": name, "chunk_size": chunk_size, **given, **options}
    h, state = mlstm(x["q"], x["k"], x["v"], x["i"], x["f"], state=_state(x), return_state=True, **how)
    return {"h": h, **state._asdict()}


def _by_step(options: dict, x: Arrays, given: Arrays, *, chunk_size: int | None = None) -> Arrays:
    """`mlstm_step` for one token after the other."""

    def body(state: MLSTMState, token: Arrays) -> tuple[MLSTMState, Any]:
        h, state = mlstm_step(state, **token, **options)
        return state, h

    xs = time_first({key: x[key] for key in "qkvif"} | given)
    state, h = jax.lax.scan(body, _state(x), xs)
    return {"h": jnp.moveaxis(h, 0, 1), **state._asdict()}


def _truth(options: dict, x: Arrays, given: Arrays) -> Arrays:
    # Not through the table of implementations: the truth stays what it is if one of them is replaced.
    h, state = recurrent(x["q"], x["k"], x["v"], x["i"], x["f"], _state(x), eps=1e-6, **given, **options)
    return {"h": h, **state._asdict()}


def draw(
    rng: np.random.Generator,
    length: int,
    *,
    gate: Gate = "exp",
    batch: int = BATCH,
    heads: int = HEADS,
    dim_qk: int = DIM_QK,
    dim_v: int = DIM_V,
    gate_scale: float = 1.0,
    input_bias: float = 0.0,
    forget_bias: float = 1.0,
    resets: float = 0.0,
    padding: float = 0.0,
    start: str = "random",
    ties: bool = False,
    infinite: float = 0.0,
) -> Problem:
    """Normally distributed inputs; `resets` and `padding` are the shares of such tokens.

    So is `infinite`: of forget gates at minus infinity, at plus infinity, and of input gates at minus infinity.
    """
    tokens, states = (batch, length, heads), (batch, heads)
    inputs = {
        "q": rng.normal(size=(*tokens, dim_qk)),
        "k": rng.normal(size=(*tokens, dim_qk)),
        "v": rng.normal(size=(*tokens, dim_v)),
        "i": gate_scale * rng.normal(size=tokens) + input_bias,
        "f": gate_scale * rng.normal(size=tokens) + forget_bias,
        "C": rng.normal(size=(*states, dim_qk, dim_v)),
        "n": rng.normal(size=(*states, dim_qk)),
        "m": rng.normal(size=states) if gate == "exp" else np.zeros(states),
    }
    if start == "zero":
        inputs |= {name: np.zeros_like(inputs[name]) for name in ("C", "n", "m")}
    if ties:
        # log σ(100) is lost beside 1 in every dtype: both terms of the stabiliser's maximum are 1 at every token.
        inputs |= {"i": np.ones(tokens), "f": np.full(tokens, 100.0), "m": np.ones(states)}
    if infinite:
        places = rng.random(tokens) / infinite
        for name, first, value in (("f", 0, -np.inf), ("f", 1, np.inf), ("i", 2, -np.inf)):
            inputs[name] = np.where((first <= places) & (places < first + 1), value, inputs[name])
    given = {"reset": rng.random(tokens[:2]) < resets, "mask": rng.random(tokens[:2]) >= padding}
    outputs = {"h": inputs["v"], "C": inputs["C"], "n": inputs["n"], "m": inputs["m"]}
    return Problem(inputs, given, {name: rng.normal(size=x.shape) for name, x in outputs.items()})


def magnitudes(x: Arrays, given: Arrays, cotangents: Arrays, *, gate: Gate, normalize: bool) -> Arrays:
    """The sum of the absolute terms of those gradients whose terms cancel.

    These are the gradients of the quadratic form with every term made positive; the product of a pair of tokens counts
    for all the forget gates between the two.
    """

    def by_head(name: str) -> Any:
        return jnp.moveaxis(x[name], 2, 1)

    scale = x["q"].shape[-1] ** -0.5
    q_signed, k_signed = by_head("q") * scale, by_head("k")
    q, k, v, i, f = abs(q_signed), abs(k_signed), abs(by_head("v")), by_head("i"), by_head("f")
    C, n, dC, dn = abs(x["C"]), abs(x["n"]), abs(cotangents["C"]), abs(cotangents["n"])
    w, enter, m = parallel_weights(i, f, x["m"], reset=given["reset"], mask=given["mask"], gate=gate)
    dh = jnp.where(given["mask"][:, None, :, None], abs(jnp.moveaxis(cotangents["h"], 2, 1)), 0)
    # The denominator from its signed terms, as it stands under every fraction.
    D = jnp.ones_like(m)
    if normalize:
        s = jnp.sum((q_signed @ jnp.swapaxes(k_signed, 2, 3)) * w, axis=-1)
        s = s + enter * jnp.einsum("bhtd,bhd->bht", q_signed, x["n"])
        D = jnp.maximum(abs(s), jnp.exp(jnp.minimum(-m, 700))) + 1e-6
    similar = (q @ jnp.swapaxes(k, 2, 3)) * w
    dnum = dh / D[..., None]
    ds = jnp.zeros_like(D)
    if normalize:
        ds = jnp.sum(dnum * (similar @ v + enter[..., None] * (q @ C)), axis=-1) / D
    inner = (dnum @ jnp.swapaxes(v, 2, 3) + ds[..., None]) * w
    from_state = enter[..., None] * (dnum @ jnp.swapaxes(C, 2, 3) + ds[..., None] * n[..., None, :])
    to_state = w[..., -1, :, None] * (v @ jnp.swapaxes(dC, 2, 3) + dn[..., None, :])
    dq = inner @ k + from_state
    dk = jnp.swapaxes(inner, 2, 3) @ q + to_state
    q_dq, k_dk = jnp.sum(q * dq, -1), jnp.sum(k * dk, -1)
    whole = enter[..., -1] * (jnp.einsum("bhde,bhde->bh", C, dC) + jnp.einsum("bhd,bhd->bh", n, dn))
    passing = jnp.flip(jnp.cumsum(jnp.flip(q_dq + k_dk, -1), -1), -1) + whole[..., None]
    di = k_dk if gate == "exp" else k_dk * jax.nn.sigmoid(-i)
    by_token = {"dq": dq * scale, "dk": dk, "di": di, "df": passing * jax.nn.sigmoid(-f)}
    return {name: jnp.moveaxis(a, 1, 2) for name, a in by_token.items()} | {"dm": whole + jnp.sum(q_dq, -1)}

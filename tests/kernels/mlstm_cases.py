"""The check's random mLSTM problems at the sizes of these tests, with their outputs and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.evaluation.kernels.mlstm import FLAGGED_CASES, PLAIN_CASES, draw, magnitudes
from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.kernels.mlstm import MLSTMState, mlstm

NAMES = ("h", "C", "n", "m", "dq", "dk", "dv", "di", "df", "dC", "dn", "dm")
INPUTS = ("q", "k", "v", "i", "f", "C", "n", "m")

PROBLEMS: dict[str, dict[str, Any]] = {
    **{case.name: {"seq": min(case.length, 37), **case.draw} for case in (*PLAIN_CASES, *FLAGGED_CASES)},
    "whole chunks": {"seq": 24},
    "head size one": {"seq": 11, "dim_qk": 1, "dim_v": 1},
    "one row, one head": {"seq": 19, "batch": 1, "heads": 1},
    "sigmoid gate": {"seq": 29, "gate": "sigmoid", "resets": 0.2, "padding": 0.3},
    "sigmoid gate at 100": {"seq": 29, "gate": "sigmoid", "gate_scale": 100.0},
    "sigmoid gate, no normaliser": {"seq": 29, "gate": "sigmoid", "normalize": False, "resets": 0.2, "padding": 0.3},
}


@dataclass
class Case:
    """One problem: inputs and starting state, resets and mask, and cotangents of everything that comes out."""

    arrays: dict[str, np.ndarray]
    cotangents: list[np.ndarray]
    reset: np.ndarray | None
    mask: np.ndarray | None
    options: dict[str, Any]

    def run(self, implementation: str, dtype: Any = jnp.float64, **options: Any) -> dict[str, np.ndarray]:
        """Outputs, final state and every gradient, by name; q, k, v in `dtype`, the rest at least in float32."""
        wide = jnp.promote_types(dtype, jnp.float32)
        cast = {name: jnp.asarray(x, dtype if name in ("q", "k", "v") else wide) for name, x in self.arrays.items()}
        dh, *dstate = self.cotangents
        cotangents = (jnp.asarray(dh, dtype), MLSTMState(*(jnp.asarray(x, wide) for x in dstate)))

        def function(q, k, v, i, f, C, n, m):
            return mlstm(
                q, k, v, i, f,
                state=MLSTMState(C, n, m), return_state=True, reset=self.reset, mask=self.mask,
                implementation=implementation, **self.options, **options,
            )  # fmt: skip

        @jax.jit
        def both(*inputs):
            out, pull = jax.vjp(function, *inputs)
            return *jax.tree.leaves(out), *pull(cotangents)

        return dict(zip(NAMES, both(*(cast[name] for name in INPUTS)), strict=True))

    def rounded(self, dtype: Any) -> Case:
        """The same problem with q, k, v and dh rounded to `dtype`, so that all dtypes solve one problem."""
        narrow = {k: np.asarray(jnp.asarray(v, dtype), np.float64) for k, v in self.arrays.items() if k in "qkv"}
        dh = np.asarray(jnp.asarray(self.cotangents[0], dtype), np.float64)
        return Case({**self.arrays, **narrow}, [dh, *self.cotangents[1:]], self.reset, self.mask, self.options)

    def magnitudes(self) -> dict[str, np.ndarray]:
        """The sum of the absolute terms of those gradients whose terms cancel."""
        tokens = self.arrays["i"].shape[:2]
        flags = {"reset": self.reset, "mask": np.ones(tokens, bool) if self.mask is None else self.mask}
        cotangents = dict(zip(("h", "C", "n", "m"), self.cotangents, strict=True))
        return magnitudes(
            jax.tree.map(jnp.asarray, self.arrays),
            flags,
            cotangents,
            gate=self.options.get("gate", "exp"),
            normalize=self.options.get("normalize", True),
        )


def make_case(
    *, seed: int = 0, seq: int = 13, dim_qk: int = 4, dim_v: int = 6, normalize: bool = True, **options: Any
) -> Case:
    """A problem of the check's `draw`; without resets or padding it has no such flags."""
    inputs, given, cotangents = draw(np.random.default_rng(seed), seq, dim_qk=dim_qk, dim_v=dim_v, **options)
    reset, mask = (given[n] if options.get(share) else None for n, share in (("reset", "resets"), ("mask", "padding")))
    call = {"gate": options.get("gate", "exp"), "normalize": normalize}
    return Case(inputs, list(cotangents.values()), reset, mask, call)


def errors(
    got: dict[str, np.ndarray], truth: dict[str, np.ndarray], magnitudes: dict[str, np.ndarray]
) -> dict[str, float]:
    """The relative error of every result."""
    return {name: relative_error(got[name], truth[name], magnitudes.get(name)) for name in NAMES}

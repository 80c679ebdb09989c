"""Random mLSTM problems, their outputs and gradients, and how large the terms are that make them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlstm_jax.kernels.closeness import relative_error
from xlstm_jax.kernels.mlstm import MLSTMState, mlstm
from xlstm_jax.kernels.mlstm.parallel import parallel_weights

NAMES = ("h", "C", "n", "m", "dq", "dk", "dv", "di", "df", "dC", "dn", "dm")


@dataclass
class Case:
    """One problem: inputs, starting state, resets and mask, and cotangents of everything that comes out."""

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

        values = both(*(cast[name] for name in ("q", "k", "v", "i", "f", "C", "n", "m")))
        return dict(zip(NAMES, values, strict=True))

    def rounded(self, dtype: Any) -> Case:
        """The same problem with q, k, v and dh rounded to `dtype`, so that all dtypes solve one problem."""
        narrow = {k: np.asarray(jnp.asarray(v, dtype), np.float64) for k, v in self.arrays.items() if k in "qkv"}
        dh = np.asarray(jnp.asarray(self.cotangents[0], dtype), np.float64)
        return Case({**self.arrays, **narrow}, [dh, *self.cotangents[1:]], self.reset, self.mask, self.options)

    def magnitudes(self) -> dict[str, np.ndarray]:
        """The sum of the absolute terms of every gradient: what rounding acts on where the terms cancel.

        The equations of the quadratic form with every term made positive; a product of a token pair counts for all the
        forget gates between the two.
        """
        a = {name: np.moveaxis(np.abs(self.arrays[name]), 2, 1) for name in "qkv"}
        q, k, v = a["q"] * a["q"].shape[-1] ** -0.5, a["k"], a["v"]
        C, n = np.abs(self.arrays["C"]), np.abs(self.arrays["n"])
        dh, dC, dn, _ = (np.abs(x) for x in self.cotangents)
        dh = np.moveaxis(dh, 2, 1)
        gate, normalize = self.options.get("gate", "exp"), self.options.get("normalize", True)
        i, f = (jnp.moveaxis(jnp.asarray(self.arrays[name]), 2, 1) for name in "if")
        w, enter, m = (
            np.asarray(x)
            for x in parallel_weights(i, f, jnp.asarray(self.arrays["m"]), reset=self.reset, mask=self.mask, gate=gate)
        )
        if self.mask is not None:
            dh = dh * self.mask[:, None, :, None]
        # D from the signed terms, as it stands under every fraction.
        signed = {name: np.moveaxis(self.arrays[name], 2, 1) for name in "qk"}
        q_signed = signed["q"] * signed["q"].shape[-1] ** -0.5
        s = np.einsum("bhtd,bhjd,bhtj->bht", q_signed, signed["k"], w)
        s = s + enter * np.einsum("bhtd,bhd->bht", q_signed, self.arrays["n"])
        D = np.maximum(np.abs(s), np.exp(np.minimum(-m, 700))) + 1e-6 if normalize else np.ones_like(s)
        num = np.einsum("bhtd,bhjd,bhtj,bhje->bhte", q, k, w, v) + enter[..., None] * np.einsum("bhtd,bhde->bhte", q, C)
        dnum = dh / D[..., None]
        ds = np.einsum("bhte,bhte->bht", dnum, num) / D if normalize else np.zeros_like(D)
        inner = (np.einsum("bhte,bhje->bhtj", dnum, v) + ds[..., None]) * w
        from_state = enter[..., None] * (np.einsum("bhte,bhde->bhtd", dnum, C) + ds[..., None] * n[..., None, :])
        last = w[..., -1, :]
        to_state = last[..., None] * (np.einsum("bhje,bhde->bhjd", v, dC) + dn[..., None, :])
        dq = np.einsum("bhtj,bhjd->bhtd", inner, k) + from_state
        dk = np.einsum("bhtj,bhtd->bhjd", inner, q) + to_state
        q_dq, k_dk = np.sum(q * dq, -1), np.sum(k * dk, -1)
        carry = enter[..., -1]
        whole = carry * (np.einsum("bhde,bhde->bh", C, dC) + np.einsum("bhd,bhd->bh", n, dn))
        passing = np.cumsum((q_dq + k_dk)[..., ::-1], -1)[..., ::-1] + whole[..., None]
        slopes = (1 / (1 + np.exp(np.clip(x, -700, 700))) for x in (np.asarray(f), np.asarray(i)))
        slope_f, slope_i = slopes
        back = {"dq": dq * a["q"].shape[-1] ** -0.5, "dk": dk}
        back |= {"di": k_dk * (1 if gate == "exp" else slope_i), "df": passing * slope_f}
        sizes = {name: np.moveaxis(x, 1, 2) for name, x in back.items()}
        return sizes | {"dm": whole + np.sum(q_dq, -1)}


def make_case(
    *,
    seed: int = 0,
    batch: int = 2,
    seq: int = 13,
    heads: int = 2,
    dim_qk: int = 4,
    dim_v: int = 6,
    gate_scale: float = 1.0,
    input_bias: float = 0.0,
    forget_bias: float = 1.0,
    resets: float = 0.0,
    padding: float = 0.0,
    **options: Any,
) -> Case:
    """A problem with normally distributed inputs; `resets` and `padding` are the shares of such tokens."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape)

    arrays = {
        "q": normal(batch, seq, heads, dim_qk),
        "k": normal(batch, seq, heads, dim_qk),
        "v": normal(batch, seq, heads, dim_v),
        "i": gate_scale * normal(batch, seq, heads) + input_bias,
        "f": gate_scale * normal(batch, seq, heads) + forget_bias,
        "C": normal(batch, heads, dim_qk, dim_v),
        "n": normal(batch, heads, dim_qk),
        "m": normal(batch, heads) if options.get("gate") != "sigmoid" else np.zeros((batch, heads)),
    }
    cotangents = [
        normal(batch, seq, heads, dim_v),
        normal(batch, heads, dim_qk, dim_v),
        normal(batch, heads, dim_qk),
        normal(batch, heads),
    ]
    reset = rng.random((batch, seq)) < resets if resets else None
    mask = rng.random((batch, seq)) >= padding if padding else None
    return Case(arrays, cotangents, reset, mask, options)


def errors(
    got: dict[str, np.ndarray], truth: dict[str, np.ndarray], magnitudes: dict[str, np.ndarray]
) -> dict[str, float]:
    """The relative error of every result."""
    return {name: relative_error(got[name], truth[name], magnitudes.get(name)) for name in NAMES}

"""How fast the mLSTM is forward and backward, against autodiff of a plain chunkwise scan in the same run.

    JAX_PLATFORMS=cpu python benchmarks/mlstm.py --out benchmarks/results/mlstm-cpu.json

The baseline is the form one would write first: a `lax.scan` over chunks with the stabiliser as a constant, left to JAX
to differentiate, with and without `jax.checkpoint`, at its best chunk size, its products in full float32 like ours.
Ours is what `implementation=None` picks on the device; the other form and other chunk sizes stand beside it. Nothing is
timed before our gradient agrees with the sequential oracle.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from _common import matmul_peak, time_in_turns, write
from jax import Array

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.kernels.mlstm import mlstm

BATCH, HEADS, DIM_QK, DIM_V = 1, 4, 64, 128
CHUNKS = (32, 64, 128, 256)
BASELINE_CHUNKS = (16, 32, 64, 128, 256)


def problem(seq: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    shapes = [(DIM_QK,), (DIM_QK,), (DIM_V,), (), ()]
    q, k, v, i, f = (jnp.asarray(rng.normal(size=(BATCH, seq, HEADS, *s)), jnp.float32) for s in shapes)
    return q, k, v, i, f + 4.0


def plain_scan(q: Array, k: Array, v: Array, i: Array, f: Array, *, chunk: int, checkpoint: bool) -> Array:
    """The chunkwise equations in the fewest lines, for JAX to differentiate."""
    batch, seq, heads, _ = q.shape
    visible = jnp.tril(jnp.ones((chunk, chunk), bool))

    def by_chunk(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(batch, seq // chunk, chunk, *x.shape[2:]), (1, 3), (0, 2))

    def body(carry, x):
        C, n, m = carry
        q, k, v, i, f = x
        b = jnp.cumsum(jax.nn.log_sigmoid(f), -1)
        log_w = jnp.where(visible, b[..., :, None] - b[..., None, :] + i[..., None, :], -jnp.inf)
        m_t = jax.lax.stop_gradient(jnp.maximum(log_w.max(-1), b + m[..., None]))
        scores = jnp.einsum("bhtd,bhjd->bhtj", q, k) * jnp.exp(log_w - m_t[..., None])
        enter = jnp.exp(b + m[..., None] - m_t)
        h = scores @ v + enter[..., None] * (q @ C)
        s = scores.sum(-1) + enter * jnp.einsum("bhtd,bhd->bht", q, n)
        h = h / (jnp.maximum(jnp.abs(s), jnp.exp(-m_t)) + 1e-6)[..., None]
        to_end = b[..., -1:] - b + i
        m_new = jax.lax.stop_gradient(jnp.maximum(b[..., -1] + m, to_end.max(-1)))
        k = k * jnp.exp(to_end - m_new[..., None])[..., None]
        kept = jnp.exp(b[..., -1] + m - m_new)
        C = kept[..., None, None] * C + jnp.einsum("bhjd,bhje->bhde", k, v)
        return (C, kept[..., None] * n + k.sum(-2), m_new), h

    start = (
        jnp.zeros((batch, heads, q.shape[-1], v.shape[-1])),
        jnp.zeros((batch, heads, q.shape[-1])),
        jnp.zeros((batch, heads)),
    )
    body = jax.checkpoint(body) if checkpoint else body
    with jax.default_matmul_precision("highest"):
        _, h = jax.lax.scan(body, start, tuple(map(by_chunk, (q * q.shape[-1] ** -0.5, k, v, i, f))))
    return jnp.moveaxis(h, (0, 2), (1, 3)).reshape(batch, seq, heads, -1)


def gradient(function):
    return jax.jit(jax.grad(lambda *x: jnp.sum(function(*x) ** 2), argnums=tuple(range(5))))


def check() -> float:
    """The largest relative error of our float32 gradient against the oracle in float64; raises if it is too large."""
    inputs = problem(300)
    got = gradient(mlstm)(*inputs)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in inputs]
        truth = gradient(lambda *x: mlstm(*x, implementation="recurrent"))(*wide)
    worst = max(relative_error(g, t) for g, t in zip(got, truth, strict=True))
    if not worst <= tolerance(jnp.float32):
        raise SystemExit(f"the gradient is off by {worst:.1e}; nothing is timed")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()

    results: dict = {"shape": f"batch {BATCH}, {HEADS} heads of {DIM_QK}/{DIM_V}, float32", "error": check()}
    peak = matmul_peak()
    inputs = problem(2048)
    ours = {"ours": gradient(mlstm)} | {
        f"{form}, chunk {c}": gradient(lambda *x, c=c, form=form: mlstm(*x, implementation=form, chunk_size=c))
        for form in ("chunkwise", "batched")
        for c in CHUNKS
    }
    plain = {
        f"autodiff of the scan, chunk {c}{', checkpoint' if p else ''}": gradient(
            lambda *x, c=c, p=p: plain_scan(*x, chunk=c, checkpoint=p)
        )
        for c in BASELINE_CHUNKS
        for p in (False, True)
    }
    times = time_in_turns({name: (lambda f=f: f(*inputs)) for name, f in (ours | plain).items()}, arguments.rounds)
    default = times["ours"]["median"]
    best = min(plain, key=lambda name: times[name]["median"])
    for name, taken in times.items():
        print(f"{name:48s} {1e3 * taken['median']:8.1f} ms   {taken['median'] / default:5.2f} x ours")
    results |= {"forward and backward at 2048, seconds": times, "best baseline": best}
    results["best baseline / ours"] = times[best]["median"] / default
    print(f"best baseline ({best}) / ours: {results['best baseline / ours']:.2f}")

    lengths = {seq: problem(seq) for seq in (512, 2048, 8192, 16384)}
    compiled, seconds = {}, {}
    for seq, x in lengths.items():
        start = time.perf_counter()
        compiled[seq] = gradient(mlstm).lower(*x).compile()
        seconds[seq] = time.perf_counter() - start
    scaled = time_in_turns({str(s): (lambda s=s: compiled[s](*lengths[s])) for s in lengths}, arguments.rounds)
    per_token = {s: scaled[str(s)]["median"] / s for s in lengths}
    for seq in lengths:
        print(f"seq {seq:6d}: {1e6 * per_token[seq]:6.2f} µs a token, compiled in {seconds[seq]:.1f} s")
    results["microseconds a token"] = {s: 1e6 * t for s, t in per_token.items()}
    results["compile seconds"] = seconds
    results["per token, 16384 / 2048"] = per_token[16384] / per_token[2048]
    peak = max(peak, matmul_peak())
    results["peak GFLOP/s"] = peak / 1e9
    print(f"per token, 16384 / 2048: {results['per token, 16384 / 2048']:.2f}; matmul peak {peak / 1e9:.0f} GFLOP/s")
    write(results, arguments.out)


if __name__ == "__main__":
    main()

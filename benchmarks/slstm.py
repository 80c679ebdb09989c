"""The sLSTM kernel, forward and with every gradient: the fused form against `jax.grad` of the oracle.

    python benchmarks/slstm.py [--out FILE.json] [--rounds N] [--unroll N ...]

Sizes are (batch, tokens, heads, dim of a head); dtype float32. Before anything is timed, outputs, final state and all
gradients of the fused form are compared with the oracle's in float64: each tensor must agree within the bound of
`xlstm_jax.kernels.closeness`, or no speed is printed. Both forms are timed in turns; `ratio` is the oracle's median
over that of the fused form. `--unroll` also times other numbers of tokens per turn of the loop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import _common
import jax
import jax.numpy as jnp

from xlstm_jax.kernels.closeness import relative_error, tolerance
from xlstm_jax.kernels.slstm import SLSTMState, slstm

SIZES = ((8, 256, 4, 64), (64, 40, 1, 32), (4, 512, 4, 192))


def inputs(size: tuple[int, int, int, int]) -> tuple:
    """wx, r, b, a state, and cotangents of the outputs and of the final state."""
    batch, seq, heads, dim = size
    keys = jax.random.split(jax.random.key(0), 9)
    wx = jax.random.normal(keys[0], (batch, seq, 4, heads, dim))
    r = jax.random.normal(keys[1], (4, heads, dim, dim)) * 0.5 / dim**0.5
    b = jax.random.normal(keys[2], (4, heads, dim))
    y, c, m = (jax.random.normal(k, (batch, heads, dim)) for k in keys[3:6])
    state = SLSTMState(y, c, 0.5 + jax.random.uniform(keys[6], c.shape), m)
    dy = jax.random.normal(keys[7], (batch, seq, heads, dim))
    dstate = SLSTMState(*jax.random.normal(keys[8], (4, *c.shape)))
    return wx, r, b, state, (dy, dstate)


def forward(**options: Any) -> Callable[..., Any]:
    return jax.jit(lambda wx, r, b, state, _: slstm(wx, r, b, state=state, **options))


def with_gradients(**options: Any) -> Callable[..., Any]:
    def run(wx, r, b, state, cotangents):
        def call(wx, r, b, state):
            return slstm(wx, r, b, state=state, return_state=True, **options)

        out, pull = jax.vjp(call, wx, r, b, state)
        return out, pull(cotangents)

    return jax.jit(run)


def error(arguments: tuple) -> float:
    """The largest relative error of any output or gradient of the fused form."""
    got = jax.tree.leaves(with_gradients(implementation="fused")(*arguments))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), arguments)
        want = jax.tree.leaves(with_gradients(implementation="recurrent")(*wide))
    return max(relative_error(value, truth) for value, truth in zip(got, want, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--unroll", type=int, nargs="*", default=[], help="also time these numbers of tokens a turn")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    results, failed = [], False
    print(f"{'size':20}{'form':14}{'forward ms':>12}{'gradient ms':>13}{'tokens/s':>12}{'ratio':>8}")
    for size in SIZES:
        arrays = inputs(size)
        worst, bound = error(arrays), tolerance(jnp.float32, size[1])
        if worst > bound:
            print(f"{size}: relative error {worst:.2e}, but at most {bound:.1e} is right", file=sys.stderr)
            failed = True
            continue
        forms: dict[str, dict[str, Any]] = {"oracle": {"implementation": "recurrent"}, "fused": {}}
        forms |= {f"fused, {n} a turn": {"unroll": n} for n in arguments.unroll}
        taken = {}
        for kind, make in (("forward", forward), ("gradient", with_gradients)):
            calls = {name: partial(make(**options), *arrays) for name, options in forms.items()}
            taken[kind] = _common.time_in_turns(calls, arguments.rounds)
        for name in forms:
            seconds = {kind: taken[kind][name] for kind in taken}
            result = {
                "size": size,
                "form": name,
                "seconds": seconds,
                "tokens_per_second": size[0] * size[1] / seconds["gradient"]["median"],
                "ratio": taken["gradient"]["oracle"]["median"] / seconds["gradient"]["median"],
                "relative_error": worst,
            }
            results.append(result)
            print(
                f"{size!s:20}{name:14}{1e3 * seconds['forward']['median']:>12.1f}"
                f"{1e3 * seconds['gradient']['median']:>13.1f}{result['tokens_per_second']:>12,.0f}"
                f"{result['ratio']:>8.2f}"
            )
    _common.write(results, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

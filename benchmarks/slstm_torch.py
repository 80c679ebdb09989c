"""The sLSTM cell, forward and with every gradient: ours against the vanilla form of the PyTorch package `xlstm`.

    python benchmarks/slstm_torch.py [--out FILE.json] [--rounds N] [--threads N]

Sizes are (batch, tokens, heads, dim of a head); dtype float32. Both get the same inputs, recurrent weights, biases and
cotangents of the outputs, in the layout that each computes in, and return the outputs and the gradients of inputs,
weights and biases. Before anything is timed these are compared: each tensor must agree within the bound of
`xlstm_jax.kernels.closeness`, or no speed is printed. Both are timed in turns; `ratio` is the median over the rounds of
PyTorch's time by ours. `--threads 1` holds both to one thread.

Where PyTorch or the package is not installed, it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

SIZES = ((8, 256, 4, 32), (8, 256, 4, 64), (16, 256, 4, 64), (8, 512, 4, 64), (8, 256, 4, 128), (16, 512, 4, 128))


def inputs(size: tuple[int, int, int, int]) -> dict[str, Any]:
    """wx (batch, seq, gates, heads, dim), r (gates, heads, out, in), b (gates, heads, dim), dy (batch, seq, ...)."""
    import numpy as np

    batch, seq, heads, dim = size
    rng = np.random.default_rng(0)
    shapes = {"wx": (batch, seq, 4, heads, dim), "r": (4, heads, dim, dim), "b": (4, heads, dim)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    arrays["r"] *= 0.5 / dim**0.5
    return arrays | {"dy": rng.standard_normal((batch, seq, heads, dim), np.float32)}


def ours(arrays: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(forward, with gradients), of inputs as our layer hands them over."""
    import jax
    import jax.numpy as jnp

    from xlstm_jax.kernels.slstm import slstm

    wx, r, b, dy = (jnp.asarray(arrays[name]) for name in ("wx", "r", "b", "dy"))

    @jax.jit
    def gradients(wx, r, b, dy):
        y, pull = jax.vjp(slstm, wx, r, b)
        return y, *pull(dy)

    forward = jax.jit(slstm)
    return lambda: jax.block_until_ready(forward(wx, r, b)), lambda: jax.block_until_ready(gradients(wx, r, b, dy))


def torchs(arrays: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of the package's cell; its inputs are (batch, seq, gates · heads · dim)."""
    import numpy as np
    import torch
    from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig

    batch, seq, gates, heads, dim = arrays["wx"].shape
    cell = sLSTMCell(sLSTMCellConfig(hidden_size=heads * dim, num_heads=heads, backend="vanilla", dtype="float32"))
    with torch.no_grad():
        cell._recurrent_kernel_.copy_(torch.from_numpy(arrays["r"].swapaxes(0, 1).reshape(heads, -1, dim).copy()))
        cell._bias_.copy_(torch.from_numpy(arrays["b"].reshape(-1)))
    wx = torch.from_numpy(arrays["wx"].reshape(batch, seq, -1)).requires_grad_()
    dy = torch.from_numpy(arrays["dy"].transpose(0, 2, 1, 3).copy())
    weights = (wx, cell._recurrent_kernel_, cell._bias_)

    def forward():
        with torch.no_grad():
            return cell(wx)[0].numpy().transpose(0, 2, 1, 3)

    def gradients():
        y, _ = cell(wx)
        dwx, dr, db = torch.autograd.grad(y, weights, dy)
        return (
            y.detach().numpy().transpose(0, 2, 1, 3),
            dwx.numpy().reshape(batch, seq, gates, heads, dim),
            np.swapaxes(dr.numpy().reshape(heads, gates, dim, dim), 0, 1),
            db.numpy().reshape(gates, heads, dim),
        )

    return forward, gradients


def in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round; a round calls every one of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=None, help="threads for each; as many as there are cores if None"
    )
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    try:
        import torch
        import xlstm  # noqa: F401
    except ImportError as error:
        print(f"nothing was measured: {error.name} is not installed (pip install torch xlstm)")
        return 0
    if arguments.threads is not None:
        # XLA has as many threads as the process may use cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
        torch.set_num_threads(arguments.threads)
    import _common

    from xlstm_jax.kernels.closeness import relative_error, tolerance

    results, failed = [], False
    print(f"{'size':22}{'':10}{'torch ms':>10}{'ours ms':>10}{'ratio':>8}")
    for size in SIZES:
        arrays = inputs(size)
        calls = {"torch": torchs(arrays), "ours": ours(arrays)}
        pairs = zip(calls["ours"][1](), calls["torch"][1](), strict=True)
        worst = max(relative_error(got, truth) for got, truth in pairs)
        if worst > tolerance("float32", size[1]):
            print(f"{size}: the two differ by {worst:.2e}", file=sys.stderr)
            failed = True
            continue
        for place, kind in enumerate(("forward", "gradient")):
            times = in_turns({name: pair[place] for name, pair in calls.items()}, arguments.rounds)
            ratio = statistics.median(t / o for t, o in zip(times["torch"], times["ours"], strict=True))
            taken = {name: statistics.median(seconds) for name, seconds in times.items()}
            results.append(
                {"size": size, "kind": kind, "seconds": times, "ratio": ratio, "relative_error": worst}
                | {"threads": arguments.threads, "torch": torch.__version__}
            )
            print(f"{size!s:22}{kind:10}{1e3 * taken['torch']:>10.1f}{1e3 * taken['ours']:>10.1f}{ratio:>8.2f}")
    _common.write(results, arguments.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

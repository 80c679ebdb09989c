"""The fastest matrix product that this machine does: what a training step's speed is a share of."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

SIZES = {"cpu": (512, 1024, 2048), "gpu": (2048, 4096, 8192), "tpu": (2048, 4096, 8192)}
REPEATS = 5


@functools.cache
def matmul_peak(dtype: str = "float32") -> float:
    """FLOP/s of the best of several square matrix products on one device, measured once a process.

    The best of all repeats counts, not the median: another program can only slow a product down.
    """
    product = jax.jit(jnp.matmul)
    best = 0.0
    for size in SIZES.get(jax.default_backend(), SIZES["cpu"]):
        x = jnp.ones((size, size), dtype)
        jax.block_until_ready(product(x, x))
        for _ in range(REPEATS):
            start = time.perf_counter()
            jax.block_until_ready(product(x, x))
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best

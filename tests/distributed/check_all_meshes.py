"""Every kind of model, stacked in every way, on every axis of a mesh and on pairs and triples of them, against one
device in float64: `python tests/distributed/check_all_meshes.py [WORD ...]`, minutes to an hour.

A line for each: the worst relative error of the first loss, of the first gradient (of a leaf, against its largest
entry), and of the parameters after ten steps of gradient descent; after ten of AdamW where so said. It ends with 1 if
one is beyond its bound. Words choose the lines that contain all of them.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator

DEVICES = 8
if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    os.environ.setdefault("NPROC", "32")
    os.environ["JAX_NUM_CPU_DEVICES"] = str(DEVICES)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_X64"] = "1"

import jax  # noqa: E402
import optax  # noqa: E402
from mesh_models import RATE, Descent, config_of  # noqa: E402
from test_mesh_training import worst  # noqa: E402

from xlstm_jax.training.optimizers import Optimizer  # noqa: E402

KINDS = ("mlstm_v1", "mlstm", "mixed", "llama")
MESHES = (
    *("dp=8", "fsdp=8", "sp=8", "tp=8"),
    *("dp=2,fsdp=4", "dp=2,sp=4", "dp=2,tp=4", "fsdp=4,sp=2", "fsdp=2,tp=4", "sp=4,tp=2"),
    *("dp=2,fsdp=2,sp=2", "dp=2,fsdp=2,tp=2", "dp=2,sp=2,tp=2", "fsdp=2,sp=2,tp=2"),
)
STEPS = 10
BOUNDS = {"sgd": (1e-13, 1e-10, 1e-10), "adamw": (1e-13, None, 1e-8)}
"""Of the first loss, the first gradient and the parameters after all steps."""
ADAMW = {"dp=8", "fsdp=8", "sp=8", "dp=2,tp=4", "fsdp=2,sp=2,tp=2"}


def cases() -> Iterator[tuple[str, bool, str]]:
    yield from itertools.product(KINDS, (True, False), BOUNDS)


def main(words: list[str]) -> int:
    failed = 0
    for kind, scan, name in cases():
        chain = optax.sgd(RATE) if name == "sgd" else optax.adamw(1e-3, eps=1e-6, weight_decay=0.1)
        optimizer = Optimizer(*chain, learning_rate=lambda step: RATE)
        config = config_of(kind, scan_blocks=scan)
        chosen = []
        for mesh in MESHES:
            line = f"{kind:9} {'scanned' if scan else 'single':8} {name:6} {mesh:18}"
            if all(word in line for word in words) and (name == "sgd" or mesh in ADAMW):
                chosen.append((mesh, line))
        if not chosen:
            continue
        one = Descent(config, None, optimizer=optimizer)
        start = jax.device_get(one.state.params)
        losses, params = one(STEPS)
        for mesh, line in chosen:
            begun = time.monotonic()
            try:
                found, after = Descent(config, mesh, optimizer=optimizer)(STEPS)
            except Exception as error:
                print(line, type(error).__name__, str(error).splitlines()[0][:120], flush=True)
                failed += 1
                continue
            gradient, truth = (jax.tree.map(lambda x, y: x - y, start, p) for p in (after[0], params[0]))
            errors = (abs(found[0] / losses[0] - 1), worst(gradient, truth), worst(after[-1], params[-1]))
            bad = any(bound is not None and error > bound for error, bound in zip(errors, BOUNDS[name], strict=True))
            failed += bad
            shown = "  ".join(f"{error:.1e}" for error in errors)
            print(f"{line} {shown}  {'FAILED' if bad else 'ok'}  {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

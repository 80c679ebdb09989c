"""Saves checkpoints until it is killed; run by `test_run_kill.py`. Arguments: run folder, the place to die at."""

import os
import signal
import sys

import jax.numpy as jnp
import numpy as np

from xlstm_jax.runs import checkpoints, manifest
from xlstm_jax.runs.folder import RunFolder


def state(step: int) -> dict:
    numbers = np.random.default_rng(step).standard_normal((3, 100_000)).astype(np.float32)
    return {"params": {"w": jnp.asarray(numbers[0])}, "optimizer": [jnp.asarray(n) for n in numbers[1:]]}


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    run, place = RunFolder(sys.argv[1]), sys.argv[2]
    with run.lock():
        saved, metrics = run.checkpoints(keep=2), run.metrics()
        step = saved.latest_step() or 0
        for count in range(1, 10_000):
            step += 1
            saved.save(step, state(step), {"step": step})
            metrics.append({"step": step})
            if count == 3:
                print("saving", flush=True)
                if place == "manifest":
                    manifest.write_atomic = die  # the arrays are there, the manifest is not
                elif place == "name":
                    checkpoints.write_manifest = lambda *given: die(manifest.write_manifest(*given))
                elif place == "rotation":
                    checkpoints.shutil.rmtree = die  # the name is gone, the files are not


if __name__ == "__main__":
    main()

"""What a checkpoint every 50 steps costs: seconds of training with it over seconds without, for the quickstart.

    python benchmarks/checkpoints.py [--out FILE.json] [--rounds N] [--every STEPS]

A round is so many steps of the quickstart's model and batch by the training loop, from records to nobody, twice: once
with a save after the first step, which goes on in the background as in every training, and once without. Both are
timed from the first step to the end of the last; the median ratio of the rounds is the cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import _common
import jax
from train_step import experiments, random_rows

from xlstm_jax.machine.malloc import keep_freed_memory
from xlstm_jax.runs.checkpoints import Checkpoints
from xlstm_jax.training.build import build, fresh_state
from xlstm_jax.training.loop import Due, Loop
from xlstm_jax.training.step import make_train_step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--out", help="write the result as JSON here")
    arguments = parser.parse_args()
    keep_freed_memory()
    experiment = experiments()["quickstart"]
    model, optimizer = build(experiment)
    draw = jax.jit(lambda: fresh_state(model, optimizer, experiment))
    rows = random_rows(experiment)
    step = make_train_step(model, optimizer).lower(draw(), rows).compile()  # type: ignore[attr-defined]

    def seconds(folder: Path, saves: bool, steps: int = arguments.every) -> float:
        with Checkpoints(folder) as checkpoints:
            batches = [(number, rows) for number in range(steps)]
            loop = Loop(
                step,
                batches,
                lambda done: Due(score=done == steps, save=saves and done == 1),
                lambda event: None,
                checkpoints=checkpoints,
            )
            state = jax.block_until_ready(draw())
            begun = time.perf_counter()
            loop.run(state, 0)
            return time.perf_counter() - begun

    ratios, without = [], []
    with tempfile.TemporaryDirectory() as folder:
        seconds(Path(folder, "warm"), True, 2)
        for number in range(arguments.rounds):
            turns = {saves: seconds(Path(folder, f"{number}-{saves}"), saves) for saves in (True, False)}
            ratios.append(turns[True] / turns[False])
            without.append(turns[False])
    cost = statistics.median(ratios) - 1
    rounds = ", ".join(f"{ratio - 1:.1%}" for ratio in ratios)
    print(f"a checkpoint every {arguments.every} steps costs {cost:.1%} (rounds: {rounds})")
    result = {"every": arguments.every, "cost": cost, "ratios": ratios, "seconds_without": without}
    _common.write([result], arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

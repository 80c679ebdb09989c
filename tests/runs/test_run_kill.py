"""`kill -9` at random moments and at the worst ones: what was complete stays usable."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from kill_me import state

from xlstm_jax.runs.folder import RunFolder

LEFT_BEHIND = {"manifest": ".unfinished", "name": ".unfinished", "rotation": ".deleted"}


def run_and_kill(run: RunFolder, place: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_me.py")), str(run.path), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saving\n"
        if place == "anywhere":
            time.sleep(random.uniform(0.0, 0.4))
            process.kill()
        assert process.wait(timeout=30) == -9
    if place in LEFT_BEHIND:
        (left,) = [p for p in run.checkpoint_dir.iterdir() if p.suffix]
        assert left.suffix == LEFT_BEHIND[place]
        assert (left / "manifest.json").exists() == (place != "manifest")


@pytest.mark.parametrize("places", [["anywhere"] * 3, ["manifest", "name", "rotation"]])
def test_a_killed_save_leaves_the_one_before_it_usable(tmp_path, places):
    run = RunFolder(tmp_path / "run").create()
    reached = 0
    for place in places:
        run_and_kill(run, place)
        said = []
        with run.lock(), run.checkpoints(say=said.append) as saved:
            steps = saved.steps()
            step, restored, extra = saved.restore(state(0))
            # The writer waits for the save before, so at most the last one is lost.
            records = run.metrics().read()
            assert said == []
            assert step == steps[-1] >= records[-1]["step"] - 1
            assert step > reached
            assert extra == {"step": step}
            np.testing.assert_array_equal(restored["params"]["w"], state(step)["params"]["w"])
            np.testing.assert_array_equal(restored["optimizer"][1], state(step)["optimizer"][1])
            assert {p.name for p in run.checkpoint_dir.iterdir()} == {f"{s:08d}" for s in steps}
            run.metrics().cut_after(step)
            reached = step

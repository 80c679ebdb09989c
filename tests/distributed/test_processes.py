"""Real processes that train together, and faults that are really provoked: nothing is lost, and nobody is left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from xlstm_jax.runs.folder import RunFolder

pytestmark = [pytest.mark.processes, pytest.mark.slow]

STEPS, EVERY, SILENT = 24, 4, 4
EPS = float(np.finfo(np.float32).eps)
"""Of losses that are summed in another order, over the steps of a short run (see test_mesh_runs)."""
COMMAND = [sys.executable, "-c", "import sys; from xlstm_jax.cli import main; sys.exit(main())"]
FAULTY = [sys.executable, str(Path(__file__).parent / "group_worker.py")]
FIELDS = [
    *("--embedding_dim", "32", "--num_blocks", "1", "--context_length", "32", "--warmup_steps", "1"),
    *("--batch_size", "8", "--steps", str(STEPS), "--checkpoint_every", str(EVERY), "--keep_checkpoints", "3"),
    *("--eval_every", "12", "--eval_tokens", "100", "--dropout", "0.1", "--silent_seconds", str(SILENT)),
    *("--stuck_seconds", "2", "--sources", "text.txt", "--data.store", "store"),
]
QUICK = {"JAX_PLATFORMS": "cpu", "NPROC": "16"}
KILLS = int(os.environ.get("KILLS", "3"))
END_SECONDS = 30
"""From a fault to the end of all: the time of silence, what a launcher waits, and some for a machine that is busy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    text = " ".join(f"{number} times {number} is {number * number}." for number in range(900))
    (folder / "text.txt").write_text(text)
    return folder


class Group:
    """`xlstm launch local` of a training, to be disturbed."""

    def __init__(
        self, folder: Path, run: str, *more: str, processes: int = 2, devices: int = 4, fault: str = ""
    ) -> None:
        self.folder, self.run = folder, folder / "runs" / run
        env = os.environ | QUICK
        words = ["tiny", "--run", run, *FIELDS, *more]
        if fault:
            env |= {"FAULT": fault, "FAULTY": "1"}
            launch = "from xlstm_jax.distributed.launch.local import run_locally; import sys; "
            launch += f"sys.exit(run_locally(sys.argv[1:], {processes}, {devices}))"
            command = [sys.executable, "-c", launch, *FAULTY, "train", *words]
        else:
            sizes = ["--processes", str(processes), "--devices", str(devices)]
            command = [*COMMAND, "launch", "local", *sizes, "--", "train", *words]
        self.launcher = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def processes(self) -> list[int]:
        """Process numbers of the group's members, the leader first."""
        with contextlib.suppress(FileNotFoundError):
            children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children").read_text()
            return [int(word) for word in children.split()]
        return []

    def lines(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not happened():
            assert self.launcher.poll() is None, self.launcher.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """Exit code and output; all processes are gone."""
        output, _ = self.launcher.communicate(timeout=180)
        return self.launcher.returncode, output


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Group]]:
    groups: list[Group] = []

    def started(run: str, *more: str, **how: object) -> Group:
        groups.append(Group(folder, run, *more, **how))  # type: ignore[arg-type]
        return groups[-1]

    yield started
    for group in groups:
        assert group.launcher.stdout is not None
        group.launcher.stdout.close()
        for process in [*group.processes(), group.launcher.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        group.launcher.wait()


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def numbers(run: Path, *names: str) -> list[list[float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    assert len(records) >= STEPS
    return [[record[name] for name in names] for record in records]


EXACT = ("loss", "tokens", "tokens_seen", "grad_norm", "param_norm", "update_norm")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of two processes that nothing disturbs."""
    group = Group(folder, "whole")
    code, output = group.end()
    assert code == 0, output
    assert output.count(f"step {STEPS}/{STEPS}") == 1
    assert "on dp 8" in output
    assert "Gloo" not in output
    assert (group.run / "report.json").exists()
    return group.run


def test_two_processes_train_as_one_does(whole: Path, folder: Path) -> None:
    words = ["train", "tiny", "--run", "one", *FIELDS]
    done = subprocess.run([*COMMAND, *words], cwd=folder, env=os.environ | QUICK, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = numbers(folder / "runs" / "one", "loss", "tokens"), numbers(whole, "loss", "tokens")
    np.testing.assert_allclose(two, one, rtol=256 * EPS)
    np.testing.assert_allclose(two[:4], one[:4], rtol=16 * EPS)


def test_rows_that_span_processes_and_another_number_of_these(
    whole: Path, folder: Path, start: Callable[..., Group]
) -> None:
    code, output = start("spanned", "--mesh", "sp=4,tp=2", "--sample_prompts", '["7 times"]').end()
    assert code == 0, output
    assert "samples, by one process: xlstm generate runs/spanned" in output
    run = folder / "runs" / "spanned"
    np.testing.assert_allclose(numbers(run, "loss"), numbers(whole, "loss"), rtol=256 * EPS)
    (run / "checkpoints" / f"{STEPS:08d}" / "manifest.json").unlink()  # set aside: the one before it is gone on from
    code, output = start(
        "spanned", "--mesh", "fsdp=4,tp=2", "--fsdp_min_weight_size", "0", processes=4, devices=2
    ).end()
    assert code == 0, output
    assert "the mesh was sp 4 x tp 2 when this run was last trained and is fsdp 4 x tp 2 now" in output
    np.testing.assert_allclose(numbers(run, "loss"), numbers(whole, "loss"), rtol=256 * EPS)


def test_whoever_is_killed_the_same_command_goes_on(whole: Path, folder: Path, start: Callable[..., Group]) -> None:
    def disturbed(victim: Callable[[Group], int], number: signal.Signals, line: int) -> tuple[int, str]:
        group = start("killed")
        group.wait_for(lambda: group.lines() >= line)
        members = group.processes()
        begun = time.monotonic()
        os.kill(victim(group), number)
        code, output = group.end()
        while not gone(members):
            assert time.monotonic() < begun + END_SECONDS
            time.sleep(0.05)
        assert time.monotonic() < begun + END_SECONDS
        assert code != 0
        assert "Traceback" not in output
        return code, output

    code, output = disturbed(lambda group: group.processes()[1], signal.SIGKILL, 5)
    assert "xlstm: process 1 was killed by SIGKILL, so all have ended; the same command goes on" in output
    assert code == 137
    code, output = disturbed(lambda group: group.processes()[0], signal.SIGKILL, 7)
    assert "xlstm: process 0 was killed by SIGKILL" in output
    disturbed(lambda group: group.launcher.pid, signal.SIGKILL, 10)
    code, output = disturbed(lambda group: group.processes()[1], signal.SIGSTOP, 14)
    assert f"process 1 of 2 has shown no sign of life for {SILENT} s (killed, stopped or cut off)" in output
    code, output = disturbed(lambda group: group.processes()[1], signal.SIGTERM, 16)
    assert code == 143
    saved = int(re.findall(r"saved at step (\d+);", output)[0])
    run = folder / "runs" / "killed"
    assert (run / "checkpoints" / f"{saved:08d}").is_dir()

    file = max(run.glob(f"checkpoints/{saved:08d}/state/params/ocdbt.process_1/d/*"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, output = start("killed").end()
    assert code == 0, output
    assert f"so the checkpoint {saved:08d} was moved to" in output
    assert output.count("was moved to") == 1
    assert len(list((run / "checkpoints" / "damaged").iterdir())) == 1
    assert numbers(run, *EXACT) == numbers(whole, *EXACT)


def newest(run: Path) -> int | None:
    return RunFolder(run).checkpoints(read_only=True).latest_step() if run.exists() else None


def test_killed_at_random_moments_nothing_is_lost(whole: Path, folder: Path, start: Callable[..., Group]) -> None:
    steps = max(STEPS, 6 * KILLS)
    if steps > STEPS:
        group = start("undisturbed", "--steps", str(steps))
        code, output = group.end()
        assert code == 0, output
        whole = group.run
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    print("seed", seed)
    run = folder / "runs" / "often"
    for number in range(KILLS):
        group = start("often", "--steps", str(steps))
        group.wait_for(lambda group=group: len(group.processes()) == 2)  # type: ignore[misc]
        members, saved = group.processes(), newest(run)
        if rng.random() < 0.3:  # while it starts
            time.sleep(rng.uniform(0, 8))
        else:
            line = min((saved or 0) + rng.randint(1, 9), steps)
            while group.launcher.poll() is None and group.lines() < line:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.4))
        victim, begun = rng.choice([*members, group.launcher.pid]), time.monotonic()
        print(f"kill {number}: {[*members, group.launcher.pid].index(victim)} at line {group.lines()}, saved {saved}")
        if group.launcher.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        group.end()
        while not gone(members):
            assert time.monotonic() < begun + END_SECONDS
            time.sleep(0.05)
        assert time.monotonic() < begun + END_SECONDS
        assert (newest(run) or 0) >= (saved or 0)
    code, output = start("often", "--steps", str(steps)).end()
    assert code == 0, output
    assert numbers(run, *EXACT) == numbers(whole, *EXACT)


@pytest.mark.parametrize(
    ("fault", "sentence", "code"),
    [
        ("unreadable_store", r"process 1 of 2 \(.*\).*: .*store: Permission denied", 1),
        ("full_disk", r"the checkpoint of step 4 was not saved in .*File too large", 1),
        ("raises", r"process 1 of 2 \(.*\) has ended: planted", 1),
        ("hangs", r"no step has ended for \d+ s; the processes are: .*1 at ", 1),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all(
    fault: str, sentence: str, code: int, start: Callable[..., Group]
) -> None:
    group = start(fault, fault=fault)
    group.wait_for(lambda: len(group.processes()) == 2)
    members = group.processes()
    begun = time.monotonic()
    got, output = group.end()
    assert got == code, output
    assert re.search(sentence, output), output
    assert time.monotonic() < begun + 60 + END_SECONDS  # with the start of all
    assert gone(members)

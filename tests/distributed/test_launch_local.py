"""What `xlstm launch local` starts: who gets which devices, how it ends, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xlstm_jax.cli import main
from xlstm_jax.distributed.launch.local import environment, run_locally, visible_gpus
from xlstm_jax.distributed.start import Start, found_in


def test_each_process_is_told_its_place_and_its_devices() -> None:
    given = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --other=1", "HOME": "here"}
    env = environment(given, 1, 2, 5000, 4)
    assert found_in(env) == Start("explicit", "127.0.0.1:5000", 2, 1, (4, 5, 6, 7))
    assert env["JAX_NUM_CPU_DEVICES"] == "4"
    assert env["XLA_FLAGS"] == "--other=1"
    assert env["HOME"] == "here"
    assert int(env["NPROC"]) >= 8
    assert "JAX_NUM_CPU_DEVICES" not in environment({"NPROC": "3"}, 0, 2, 5000, None)
    assert environment({"NPROC": "3"}, 0, 2, 5000, None)["NPROC"] == "3"


@pytest.mark.parametrize(
    ("environ", "number"),
    [
        ({}, 4),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"JAX_PLATFORMS": "cpu"}, 0),
        ({"JAX_PLATFORMS": "cuda,cpu"}, 4),
    ],
)
def test_the_gpus_that_are_shared_out(environ: dict[str, str], number: int, tmp_path: Path) -> None:
    for name in range(4):
        (tmp_path / str(name)).mkdir()
    assert visible_gpus(environ, tmp_path) == number
    assert visible_gpus(environ, tmp_path / "none") == 0


def test_all_end_with_the_first_that_fails(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_jax.distributed.launch.local.END_SECONDS", 0.5)
    program = """
import os, sys, time
index = int(os.environ["JAX_PROCESS_ID"])
print("I am", index, flush=True)
if index == 1:
    print("it was me", file=sys.stderr)
    sys.exit(3)
time.sleep(60)
"""
    assert run_locally([sys.executable, "-c", program], 3, None) == 3
    shown = capfd.readouterr()
    assert shown.out == "I am 0\n"
    assert "the last lines of process 1:\n  I am 1\n  it was me\n" in shown.err
    assert shown.err.endswith(
        "xlstm: process 1 has ended with exit code 3, so all have ended; the same command goes on\n"
    )
    assert run_locally([sys.executable, "-c", "pass"], 2, 1) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("launch local --processes 0 -- train tiny", "--processes is 0, but must be from 1 to 1024"),
        ("launch local --processes 2 --devices -1 -- train tiny", "--devices is -1, but must be from 1 to 1024"),
        ("launch local --processes 2", "there is no command to launch; it comes after --"),
        ("launch local --processes 2 -- train tiny --mesh xp=2", "a mesh has no axis 'xp'"),
        ("launch local -- train tiny", "required: --processes"),
    ],
)
def test_a_wrong_call_starts_nothing(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert sentence in capsys.readouterr().err

"""`xlstm generate` and `xlstm version` as people call them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from xlstm_jax.cli import main
from xlstm_jax.cli.generate import _in_order
from xlstm_jax.cli.version import installed_extras
from xlstm_jax.inference.generate import Delta, Generator
from xlstm_jax.inference.run import Run
from xlstm_jax.kernels import mlstm, slstm


@pytest.fixture(autouse=True)
def same_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command use the run that is loaded and compiled already."""
    monkeypatch.setattr("xlstm_jax.inference.run.Run", lambda path, step, *rest: run)


def generate(capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    code = main(["generate", *argv])
    shown = capfd.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_prompts_are_continued_one_below_the_other(run: Run, run_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--max-tokens", "20", "--seed", "3", "--temperature", "0.9", "--top-k", "40"]
    settings = {"max_tokens": 20, "seed": 3, "temperature": 0.9, "top_k": 40}
    alone = generate(capfd, str(run_path), "--prompt", "def ", *options)
    assert alone == f"def {run.generate('def ', **settings)}\n"
    a, b = run.generate(["def ", "class"], **settings)
    both = generate(capfd, str(run_path), "--prompt", "def ", "--prompt", "class", *options)
    assert both == f"--- 1 of 2 ---\ndef {a}\n\n--- 2 of 2 ---\nclass{b}\n"
    assert generate(capfd, str(run_path), "--prompt", "def ", *options, "--no-echo") == f"{a}\n"


def test_json_tells_all(run: Run, run_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = generate(
        capfd, str(run_path), "--prompt", "é", "--samples", "2", "--max-tokens", "9", "--json", "--stop", r"\n\t"
    )
    records = [json.loads(line) for line in shown.splitlines()]
    assert [record["text"] for record in records] == run.generate(["é", "é"], max_tokens=9, stop="\n\t")
    assert records[0]["prompt"] == "é"
    assert records[0]["settings"]["stop"] == ["\n\t"]
    assert {record["finish"] for record in records} <= {"end", "stop", "length"}


def test_without_a_prompt_standard_input_is_continued_to_the_last_byte(
    run: Run, run_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x = 1\n\xff")))
    shown = generate(capfd, str(run_path), "--max-tokens", "5")
    assert shown == "x = 1\n\ufffd" + run.generate(b"x = 1\n\xff", max_tokens=5) + "\n"


def test_without_a_prompt_and_a_standard_input_nothing_is_made_up(
    run_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["generate", str(run_path)]) == 2
    assert "standard input is closed" in capfd.readouterr().err


def test_a_terminal_gets_no_control_characters(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Generator, "stream", lambda *_: iter([Delta(0, "a\x1b[2J\r\tb\n\x9b", "end", 9)]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["generate", str(run_path), "--prompt", "x\x07"]) == 0
    assert capsys.readouterr().out == "\x1b[1mx␇\x1b[0ma␛[2J␍\tb\n\ufffd\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["generate", str(run_path), "--prompt", "x\x07"]) == 0
    assert capsys.readouterr().out == "x␇a␛[2J␍\tb\n\ufffd\n"


def test_rows_are_shown_in_order_whoever_ends_first() -> None:
    deltas = [Delta(1, "b"), Delta(0, "a"), Delta(1, "B", "end"), Delta(0, "", "stop"), Delta(2, "c", "length")]
    assert list(_in_order(iter(deltas), 3)) == [
        *((0, "a", False), (0, "", True)),
        *((1, "bB", True), (2, "c", True)),
    ]


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        ([], 2, "arguments are required: RUN"),
        (["nowhere", "--prompt", "x"], 1, "there is no run runs/nowhere"),
        (["RUN", "--promt", "x"], 2, "unrecognized arguments: --promt x (did you mean '--prompt'?)"),
        (["RUN", "--max-new-tokens", "5"], 2, "unrecognized arguments: --max-new-tokens 5; max_tokens is how many"),
        (["RUN", "--no-such=3"], 2, "unrecognized arguments: --no-such=3"),
        (["RUN", "--temperature", "warm"], 2, "invalid float value: 'warm'"),
        (["RUN", "--temperature", "-1"], 2, "temperature is -1.0, but must be a number >= 0"),
        (["RUN", "--top-p", "0"], 2, "top_p is 0.0"),
        (["RUN", "--samples", "0"], 2, "--samples is 0"),
        (["RUN", "--stop", ""], 2, "stop holds ''"),
        (["RUN", "--prompt", "x", "--step", "9"], 1, "no checkpoint of step 9 (there: 3)"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: list[str],
    code: int,
    sentence: str,
    run_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *(str(run_path) if word == "RUN" else word for word in argv)]) == code
    shown = capfd.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_ctrl_c_ends_the_line_and_exits_with_130(run_path: Path) -> None:
    # Whoever runs the tests in the background hands an ignored SIGINT down.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; import sys; from xlstm_jax.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "generate", str(run_path)]
    process = subprocess.Popen(
        [*command, "--prompt", "abc", "--max-tokens", str(10**8), "--temperature", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(200).startswith(b"abc")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert err == b"xlstm: interrupted\n"


def test_an_error_on_the_way_begins_a_line_of_its_own(
    run_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> Iterator[Delta]:
        yield Delta(0, "d", None, 1)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Generator, "stream", fails)
    assert main(["generate", str(run_path), "--prompt", "abc"]) == 1
    shown = capfd.readouterr()
    assert shown.out == "abcd\n"
    assert "fewer prompts or --max-tokens in generation" in shown.err
    assert main(["generate", str(run_path), "--prompt", "abc", "--json"]) == 1
    assert not capfd.readouterr().out


def test_version_tells_versions_devices_and_the_pick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["jax"] == jax.__version__
    assert {"xlstm-jax", "python", "jaxlib", "flax", "optax", "orbax-checkpoint"} < set(facts["versions"])
    assert facts["devices"][0]["platform"] == jax.devices()[0].platform
    picks = {"mlstm": mlstm.pick_implementation(), "slstm": slstm.pick_implementation()}
    for cell, (name, reason) in picks.items():
        assert facts[cell] == {"implementation": name, "reason": reason}
    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert f"jax               {jax.__version__}\n" in shown
    assert f"{jax.device_count()} x {jax.devices()[0].platform}" in shown
    for cell, pick in picks.items():
        assert re.search(rf"^{cell} +{re.escape(': '.join(pick))}$", shown, re.MULTILINE)


def test_version_answers_when_jax_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def devices() -> None:
        raise RuntimeError("no such device\nand much more")

    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=devices))
    assert main(["version"]) == 0
    assert "none can be used: no such device\n" in capsys.readouterr().out


def test_extras_are_those_of_the_installed_package() -> None:
    assert installed_extras()["dev"]["pytest"] is True
    assert "jax-cuda12-plugin" in installed_extras()["cuda12"]  # of jax[cuda12]
    assert installed_extras("no-such-distribution") == {}

"""The `xlstm` command: light, and plain about mistakes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest

from xlstm_jax import cli
from xlstm_jax.config import ConfigError
from xlstm_jax.runs.errors import NoCheckpointError


def use(monkeypatch: pytest.MonkeyPatch, main) -> None:
    """Put `main` behind the verb `version`."""
    real = importlib.import_module
    module = types.SimpleNamespace(main=main)
    monkeypatch.setattr(
        cli.importlib, "import_module", lambda name: module if name == "xlstm_jax.cli.version" else real(name)
    )


def test_help_takes_under_half_a_second_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from xlstm_jax.cli import main; code = main(['--help']); "
        "assert not {'jax', 'numpy', 'rich', 'flax'} & set(sys.modules), sorted(sys.modules); sys.exit(code)"
    )
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    for verb in cli.VERBS:
        assert f"\n  {verb} " in done.stdout
    assert min(times) < 0.5


def test_every_verb_has_a_module_with_a_main() -> None:
    for verb in cli.VERBS:
        assert callable(importlib.import_module(f"xlstm_jax.cli.{verb}").main)


def test_an_unknown_verb_gets_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "there is no verb 'trian' (did you mean 'train'?)" in capsys.readouterr().err
    assert cli.main([]) == 2


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("a.b is 1, but must be 2"), 2, "xlstm: a.b is 1, but must be 2"),
        (NoCheckpointError("no checkpoint"), 1, "xlstm: no checkpoint"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "xlstm: the disk is full (f); what was saved"),
        (
            MemoryError("Unable to allocate 14.6 TiB"),
            1,
            "xlstm: this machine has too little memory (Unable to allocate",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "f"), 1, "xlstm: the disk is full (f); what was saved"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), 1, "xlstm: the disk is full (b)"),
        (shutil.Error([("a", "b", "[Errno 27] File too large")]), 1, "xlstm: b: [Errno 27] File too large"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "xlstm: the device has too little memory"),
        (KeyboardInterrupt(), 130, "xlstm: interrupted"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_an_exit_code(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    use(monkeypatch, main)
    assert cli.main(["version"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(sentence)
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_a_library_turns_into_an_error_is_still_an_interrupt(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise ImportError("the extension cannot be initialised") from error
        return 0

    before = signal.getsignal(signal.SIGTERM)
    use(monkeypatch, main)
    try:
        assert cli.main(["version"]) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "xlstm: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> int:
        raise ZeroDivisionError("a bug")

    use(monkeypatch, main)
    with pytest.raises(ZeroDivisionError):
        cli.main(["version"])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_device_that_is_not_there_is_one_sentence(platform: str, tmp_path: Path) -> None:
    code = "import sys; from xlstm_jax.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "--cell", "slstm"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 0:
        pytest.skip(f"there is a {platform}")
    assert done.returncode == 1
    assert f"JAX_PLATFORMS is '{platform}', but JAX can use no such device here" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["version"], ["generate", "--help"]])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_gone_is_no_news(argv: list[str], buffered: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from xlstm_jax.cli import main; sys.exit(main())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *([] if buffered else ["-u"]), "-c", code, *argv],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        timeout=300,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    # `argparse` does not tell whether its help could be written.
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("verb", ["check", "convert", "data", "eval", "generate", "launch", "version"])
def test_a_wrong_option_is_one_sentence(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--wrong"]) == 2
    shown = capsys.readouterr()
    assert f"(`xlstm {verb} --help` tells more)" in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "launch slurm",
        "launch kubernetes",
        "plan",
        "check",
        "convert",
        "eval",
        "generate",
        "data prepare",
        "version",
    ],
)
def test_help_fits_a_terminal_of_80_columns(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        cli.main([*verb.split(), "--help"])
    shown = capsys.readouterr().out
    assert len(shown) > 100
    assert [line for line in shown.splitlines() if len(line) > 80] == []

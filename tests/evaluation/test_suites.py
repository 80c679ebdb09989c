"""An evaluation is a folder of its own: the command finds it, and writes and shows what it found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_jax import evaluation
from xlstm_jax.cli import main
from xlstm_jax.evaluation.suite import evaluate, suites

TOYS = Path(__file__).parent / "suites"


@pytest.fixture
def coins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The suite of a folder that the package does not know."""
    monkeypatch.setattr(evaluation, "__path__", [*evaluation.__path__, str(TOYS)])
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("coins")
def test_a_folder_is_all_that_a_new_evaluation_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [suite.name for suite in suites()] == ["coins", "length", "lm-eval", "memory", "synthetic", "table", "text"]
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--help"])
    assert "toss coins" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "coins", "--help"])
    assert "(default runs/coins-TOSSES)" in capsys.readouterr().out

    assert main(["eval", "coins", "--tosses", "40"]) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("runs/coins-40/result.json").read_text())
    assert len(record["heads"]) == 2
    assert record["environment"]["platform"] == "cpu"
    assert Path("runs/coins-40/picture.png").read_bytes().startswith(b"\x89PNG")
    for text in (f"coin 0: {record['heads'][0]} heads", "heads: of 40 tosses.", "written: runs/coins-40/result.json"):
        assert text in shown

    assert main(["eval", "coins", "--tosses", "40", "--coins", "1", "--json", "--out", "here"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["heads"] == record["heads"][:1]
    assert "written: here/result.json" in captured.err


@pytest.mark.usefixtures("coins")
def test_a_suites_options_are_checked_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        ([], "required: --tosses"),
        (["--tosses", "0"], "--tosses is 0, but must be a whole number >= 1"),
        (["--tosses", "many"], "argument --tosses: invalid int value: 'many'"),
    ):
        assert main(["eval", "coins", *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["eval", "coin"]) == 1
    assert "(did you mean 'coins'?)" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("coins")
def test_an_interruption_leaves_what_was_found() -> None:
    suite = next(suites())

    def interrupted(*arguments):
        yield from suite.run(*arguments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(dataclasses.replace(suite, run=interrupted), suite.config(tosses=3))
    assert len(json.loads(Path("runs/coins-3/result.json").read_text())["heads"]) == 2


@pytest.mark.usefixtures("coins")
def test_an_interruption_of_the_picture_ends_what_goes_on_beside_it() -> None:
    suite, ended = next(suites()), []

    def watched(*arguments):
        try:
            yield from suite.run(*arguments)
        finally:
            ended.append(True)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # whose traceback would keep the generator alive
        evaluate(dataclasses.replace(suite, run=watched, picture=interrupted), suite.config(tosses=3))
    assert ended
    assert kept.value


def test_the_help_of_all_evaluations_loads_no_jax() -> None:
    code = (
        "import sys\nfrom xlstm_jax.cli.eval import main\n"
        "try: main(['synthetic', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'flax'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

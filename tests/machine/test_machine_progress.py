"""Progress: a bar on a terminal, lines elsewhere, nothing where nothing shall be shown."""

import io
import sys

import pytest
from rich.console import Console

from xlstm_jax.machine.progress import WIDTH, Progress, clock, make_console


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=WIDTH, highlight=False)


def work(progress):
    with progress.bar("xLSTM[0:1]", 4) as bar:
        assert list(bar.track("ab")) == ["a", "b"]
        bar.to(3, "loss 0.5")
        bar()


@pytest.mark.parametrize("unit", ["", "bytes"])
def test_a_terminal_gets_a_bar_that_says_how_it_stands(unit):
    out = console(terminal=True)
    work(Progress(console=out, unit=unit))
    assert "xLSTM[0:1]: loss 0.5" in out.file.getvalue()
    assert ("4/4 bytes" if unit else "4/4") in out.file.getvalue()


def test_a_pipe_gets_lines_and_not_too_many():
    out = console(terminal=False)
    work(Progress(console=out, seconds=0))
    assert out.file.getvalue().splitlines() == [
        "xLSTM[0:1] (25%)",
        "xLSTM[0:1] (50%)",
        "xLSTM[0:1]: loss 0.5 (75%)",
        "xLSTM[0:1]: loss 0.5 (100%)",
    ]
    out = console(terminal=False)
    work(Progress(console=out))
    assert out.file.getvalue() == "xLSTM[0:1]: loss 0.5 (100%)\n"


def test_nothing_is_shown_where_it_is_not_wanted():
    out = console(terminal=True)
    work(Progress(False, out))
    assert out.file.getvalue() == ""


def test_how_much_there_is_may_be_known_later():
    out = console(terminal=False)
    with Progress(console=out, seconds=0).bar("checking") as bar:
        bar.to(0, "compiling")
        bar.to(1, total=2)
    assert out.file.getvalue().splitlines() == ["checking: compiling", "checking: compiling (50%)"]


def test_a_pipe_is_given_a_width(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert make_console().width == WIDTH
    assert make_console(stderr=True).stderr


def test_what_is_printed_meanwhile_goes_where_it_was_sent(capsys):
    out = console(terminal=True)
    with clock("compiling", out):
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "compiling" in out.file.getvalue()

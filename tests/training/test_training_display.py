"""What a person sees: curves, lines, panels, pictures."""

from __future__ import annotations

import io
import math
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from xlstm_jax.machine.signals import StopRequest
from xlstm_jax.report.curve import MOST_POINTS, curve_of, draw_curve, smoothed
from xlstm_jax.report.loss_plot import plot_loss
from xlstm_jax.training.listeners.terminal import LivePanel, PlainLines, duration, make_terminal


def record(step: int, **more: float) -> dict:
    fields = {"step": step, "loss": 5 * math.exp(-step / 30) + 1, "lr": 1e-3, "tokens": 512, "step_time": 0.1}
    return fields | {"tokens_per_second": 5120.0, "flops_share": 0.42} | more


RECORDS = [
    record(s, **({"validation_loss": 2.5, "perplexity": 12.2, "bits_per_byte": 1.875} if s % 50 == 0 else {}))
    for s in range(1, 101)
]


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text(display: Console) -> str:
    return display.file.getvalue()  # type: ignore[attr-defined]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.integers(2, 30), st.integers(2, 8))
def test_a_curve_has_the_size_asked_for_and_names_its_ends(values: list[float], width: int, height: int) -> None:
    lines = draw_curve(list(enumerate(values, 1)), width=width, height=height)
    assert len(lines) == height + 1
    assert f"{max(values):.3f}" in lines[0]
    assert lines[height - 1].lstrip().startswith(f"{min(values):.3f}")
    assert all(len(line.partition("┤")[2]) == width for line in lines[:-1])
    assert any(ch not in " ⠀" for line in lines[:-1] for ch in line.partition("┤")[2])


def test_a_falling_curve_falls_and_gaps_are_left_out() -> None:
    records = [{"step": step, "loss": loss} for step, loss in enumerate([4.0, math.nan, 2.0, 1.0, None], 1)]
    lines = draw_curve(curve_of(records, "loss"), width=10, height=4)
    assert lines[0].partition("┤")[2][0] != "⠀"
    assert lines[3].partition("┤")[2][-1] != "⠀"
    assert lines[0].partition("┤")[2][-1] == "⠀"
    assert draw_curve([]) == smoothed([]) == []


def test_held_out_scores_are_marks_beside_the_curve() -> None:
    lines = draw_curve([(1, 4.0), (10, 1.0)], [(1, 4.5), (10, 1.0)], width=10, height=4)
    assert lines[0].startswith("4.500 ┤o")
    assert lines[3].endswith("o")


def test_a_curve_of_few_steps_is_a_line_between_them() -> None:
    drawn = [line.partition("┤")[2] for line in draw_curve([(1, 4.0), (2, 1.0)], width=16, height=4)[:-1]]
    rows = [next(row for row in range(4) if drawn[row][column] != "⠀") for column in range(16)]
    assert rows == sorted(rows)
    assert set(rows) == {0, 1, 2, 3}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_score_says_of_how_many_documents_it_is(terminal: bool) -> None:
    out = console(terminal)
    display = make_terminal("runs/x", 20, out)
    display.start(99, 101, [])
    display.step(RECORDS[-1] | {"validation_documents": 7})
    display.step(record(101))
    display.close()
    assert ("(step 100, 7 documents)" if terminal else "held out 2.5000 (7 documents, perplexity 12.2") in text(out)


def test_without_a_terminal_there_is_a_line_every_few_steps() -> None:
    out = console(terminal=False)
    display = make_terminal("runs/x", 20, out)
    assert isinstance(display, PlainLines)
    display.start(0, 100, [])
    for one in RECORDS:
        display.step(one)
    display.close()
    lines = text(out).splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 20, 40, 50, 60, 80, 100]
    assert "held out 2.5000 (perplexity 12.2, 1.875 bits/byte)" in lines[3]
    assert "42% of peak" in lines[0]


def test_a_line_tells_the_mean_speed_since_the_last_one() -> None:
    out = console(terminal=False)
    display = make_terminal("runs/x", 4, out)
    display.start(0, 8, [])
    for step in range(1, 9):
        # Of eight tokens a step, the last of four was timed ten times too short.
        seconds = 0.1 if step % 4 else 0.01
        display.step(record(step, step_time=seconds, tokens_per_second=8 / seconds, flops_share=0.01 / seconds))
    assert [line.split("  ")[3] for line in text(out).splitlines()] == ["80 tokens/s", "114 tokens/s", "103 tokens/s"]


def test_on_a_terminal_there_is_a_panel_with_curve_and_time_left() -> None:
    out = console(terminal=True)
    display = make_terminal("runs/x", 20, out)
    assert isinstance(display, LivePanel)
    display.say("a sentence [with brackets]")
    display.start(0, 120, RECORDS[:10])
    for one in RECORDS[10:]:
        display.step(one)
    display.step(record(101) | {"loss": None})
    display.close()
    shown = text(out)
    for part in (
        "runs/x",
        "step 101/120",
        "1.875 bits/byte (step 100)",
        "5,120 tokens/s",
        "left",
        "┤",
        "[with brackets]",
    ):
        assert part in shown


def test_the_clock_of_the_panel_runs_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlstm_jax.training.listeners.terminal.CLOCK_SECONDS", 0.01)
    out = console(terminal=True)
    display = make_terminal("runs/x", 20, out)
    display.start(10, 120, RECORDS[:10])
    before = text(out).count("step 10/120")
    until = time.monotonic() + 20
    while text(out).count("step 10/120") < before + 3 and time.monotonic() < until:
        time.sleep(0.01)
    display.close()
    assert text(out).count("step 10/120") >= before + 3
    assert "left" not in text(out)  # nobody knows before a step is made


def test_damaged_records_of_earlier_steps_are_not_drawn() -> None:
    damaged = [{"loss": 2.0}, record(1) | {"loss": "2"}, {"step": 1, "loss": 2.0}, record(1, validation_loss=2.5)]
    out = console(terminal=True)
    display = make_terminal("runs/x", 20, out)
    display.start(1, 120, damaged)
    display.step(record(2))
    display.close()
    assert "step 2/120" in text(out)


def test_durations_read_well() -> None:
    assert [duration(s) for s in (3.2, 59.6, 185, 7620)] == ["3 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:1], [{"step": 1, "loss": None}, record(2)]])
def test_the_picture_of_any_run_is_a_png(records: list[dict], tmp_path: Path) -> None:
    plot_loss(records, tmp_path / "loss.png", "a run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_the_picture_measures_the_baselines_by_the_text_that_they_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("xlstm_jax.report.loss_plot.save_picture", lambda figure, axes, path: drawn.append(axes))
    comparison = {"model": 2.0, "unigram": 4.5, "gzip": 1.5, "xz": 1.4}
    plot_loss(RECORDS, "loss.png", "a run", {"validation_loss": 2.0, "bits_per_byte": 2.0, "comparison": comparison})
    (axes,) = drawn  # one nat is one bit on all text, 0.75 on that of the records
    levels = [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert sorted(levels) == [1.4, 1.5]
    assert axes.get_legend_handles_labels()[1][-1] == "held out: 2.500 at step 100"


def test_the_line_in_the_picture_follows_the_loss_and_not_its_noise() -> None:
    noisy = [(step, 3 + 30 / step + (-1) ** step) for step in range(1, 1001)]
    line = smoothed(noisy)
    assert len(line) <= MOST_POINTS
    assert line[0] == noisy[0]
    far = [(step, loss - 3 - 30 / step) for step, loss in line if step > 100]
    assert max(abs(off) for _, off in far) < 0.1
    assert far[-1][0] > 995


def test_no_losses_make_no_picture(tmp_path: Path) -> None:
    plot_loss([{"step": 1, "loss": None}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_once_and_old_handlers_come_back(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.exit_code is None
        os.kill(os.getpid(), number)
        assert stop.exit_code == code
    assert signal.getsignal(number) is before

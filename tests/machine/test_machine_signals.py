"""Signals: what asks, what ends, and that the handlers from before come back."""

import os
import signal
import sys
import threading
import time

import pytest

from xlstm_jax.machine.signals import EXIT_CODES, Interrupts, StopRequest


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_asks_once_and_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.exit_code is None
        os.kill(os.getpid(), number)
        assert stop.exit_code == EXIT_CODES[number]
    assert signal.getsignal(number) is before


def test_what_is_said_of_a_signal_may_wait_for_who_prints_now():
    said, printing = [], threading.Lock()

    def say(sentence):
        with printing:
            said.append(sentence)

    with StopRequest(say), printing:
        signal.raise_signal(signal.SIGINT)
    until = time.monotonic() + 20
    while not said and time.monotonic() < until:
        time.sleep(0.01)
    assert "Ctrl-C again leaves at once" in said[0]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_what_runs_and_is_remembered(number, raised):
    before = signal.getsignal(number)
    interrupts = Interrupts()
    with pytest.raises(raised), interrupts:
        signal.raise_signal(number)
    assert interrupts.exit_code == EXIT_CODES[number]
    assert signal.getsignal(number) is before


def test_a_signal_that_python_ignores_comes_again():
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def lose(last):
        last.clear()
        time.sleep(20)

    hook, interrupts = sys.unraisablehook, Interrupts()
    with pytest.raises(KeyboardInterrupt), interrupts:
        lose([Last()])
    assert interrupts.exit_code == EXIT_CODES[signal.SIGINT]
    assert sys.unraisablehook is hook


def test_the_handler_that_somebody_has_for_ctrl_c_stays():
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append("theirs"))
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        assert came == ["theirs"]
        assert interrupts.exit_code is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_than_the_main_one_gets_no_signals():
    entered = []

    def enter():
        with StopRequest() as stop:
            entered.append(stop.exit_code)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]

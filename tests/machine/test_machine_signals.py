"""Signals: what asks, what ends, and that the handlers from before come back."""

import os
import signal
import threading

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


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_ends_what_runs_and_is_remembered(number, raised):
    before = signal.getsignal(number)
    interrupts = Interrupts()
    with pytest.raises(raised), interrupts:
        signal.raise_signal(number)
    assert interrupts.exit_code == EXIT_CODES[number]
    assert signal.getsignal(number) is before


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

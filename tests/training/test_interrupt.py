"""Signals are noted between two steps; only a second Ctrl-C ends the run at once; handlers come back.

What several processes make of a signal is in test_two_processes.
"""

import signal
import threading

import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.training.interrupt import Interrupted, Preempted, interruptible


def test_they_are_not_bugs_and_a_scheduler_can_tell_them_apart():
    assert issubclass(Preempted, Interrupted) and issubclass(Interrupted, UserError)
    assert (Interrupted.exit_code, Preempted.exit_code) == (2, 75)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Preempted)])
def test_the_first_is_noted(number, error):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert interrupted() is None
        signal.raise_signal(number)
        assert interrupted() is error and interrupted() is error
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("signals", "error"), [
    ((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM), Preempted),
    ((signal.SIGTERM, signal.SIGINT), Preempted),
    ((signal.SIGINT, signal.SIGTERM, signal.SIGTERM), Interrupted),
])  # fmt: skip
def test_whatever_else_comes_the_run_saves_itself_for_the_first(signals, error):
    with interruptible() as interrupted:
        for number in signals:
            signal.raise_signal(number)
        assert interrupted() is error


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_never_interrupted():
    answers = []

    def work():
        with interruptible() as interrupted:
            answers.append(interrupted())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [None]

"""Signals are noted between two steps; a second one ends the run at once; handlers come back."""

import signal
import threading

import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.training.interrupt import Interrupted, interruptible


def test_it_is_a_users_doing():
    assert issubclass(Interrupted, UserError)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted(number):
    before = signal.getsignal(number)
    with interruptible() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted() and interrupted()
    assert signal.getsignal(number) is before


def test_the_second_ends_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


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
    assert answers == [False]

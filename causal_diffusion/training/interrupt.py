"""Ctrl-C and SIGTERM end a run between two steps, so that it can save itself.

    Ctrl-C     the user stops the run         Interrupted   exit code 2
    SIGTERM    the scheduler takes it away    Preempted     exit code 75 (EX_TEMPFAIL): schedulers start it again

A second Ctrl-C ends the process at once. A second SIGTERM changes nothing: schedulers repeat it, and the run still
saves itself.

Of several processes a single one may get the signal, while each is in a step of its own. They agree by JAX's preemption
service: the process that was told tells the others through the coordination service, each answers with the step it is
at, and all stop at the one after the latest. Until then asking costs one comparison on the host, no message and
no collective, so it is asked after every step; a signal takes one or two seconds to go round. The service listens to
SIGTERM alone, with a handler of its own: Ctrl-C leaves a note for all, and then raises SIGTERM.
"""

import contextlib
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.distributed import coordination_client

NOTE = "causal_diffusion/ctrl-c"


class Interrupted(UserError):
    """The user stopped the run; its checkpoint is complete."""

    exit_code, word = 2, "interrupted"


class Preempted(Interrupted):
    """The run was told to make room; its checkpoint is complete, and the same command should be started again."""

    exit_code, word = 75, "preempted"


@contextlib.contextmanager
def interruptible():
    """Yields a function, to be called once after every step by all processes alike: the error to stop with, or None.

    Signals are only caught on the main thread.
    """
    if coordination_client() is not None:
        with _handling(signal.SIGINT, _tell_all()):
            yield _agreed()
        return
    asked = []

    def ask(number, frame):
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    with _handling(signal.SIGINT, ask), _handling(signal.SIGTERM, ask):
        yield lambda: (Interrupted if asked[0] == signal.SIGINT else Preempted) if asked else None


def _tell_all():
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        coordination_client().key_value_set(NOTE, "", allow_overwrite=True)
        os.kill(os.getpid(), signal.SIGTERM)

    return ask


def _agreed():
    calls = 0  # of this run alone: the service counts from 0, and a signal that came earlier stops after the first step

    def stop():
        nonlocal calls
        calls += 1
        if not multihost_utils.reached_preemption_sync_point(calls):
            return None
        try:
            coordination_client().key_value_try_get(NOTE)
        except jax.errors.JaxRuntimeError:  # no Ctrl-C
            return Preempted
        return Interrupted

    return stop


@contextlib.contextmanager
def _handling(number, handler):
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)  # None: one that Python did not install

"""Ctrl-C and SIGTERM end a run between two steps, so that it can save itself. A second Ctrl-C ends it at once."""

import contextlib
import signal
import threading

from causal_diffusion.errors import UserError


class Interrupted(UserError):
    """The user stopped the run; its checkpoint is complete."""


@contextlib.contextmanager
def interruptible():
    """Yields a function that says whether the user asked to stop. Signals are only caught on the main thread."""
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

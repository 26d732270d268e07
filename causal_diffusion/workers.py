"""Work on threads of the library: an exception in the caller's thread does not stop it half way.

Ctrl-C raises KeyboardInterrupt in the main thread between any two instructions, for example after a program has
consumed (donated) the arrays of a stream and before its result has a name. Work that must happen wholly or not at all
is a ``Once``: it is stored first, and then waited for. An exception in the waiting thread leaves it in its place, and
whoever looks next waits for the same result.

The threads run under the library's own JAX settings (``jax_settings``).
"""

import _thread
import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from causal_diffusion.jax_settings import enter_own_settings


class Once:
    """A computation that runs once, on a thread of the library, however often its result is asked for.

    Args:
        function: called without arguments; let go as soon as it has returned.
        before: what the computation starts from; let go, too.
        consumes: of ``before``, the arrays that it consumes (donates) when it succeeds.
    """

    def __init__(self, function: Callable[[], Any], before: Any = None, consumes: Any = ()):
        self._function, self._lock, self._outcome = function, threading.Lock(), None
        self._before, self._consumes = before, consumes

    def result(self) -> Any:
        """What the function returned; or raises what it raised, every time."""
        if self._outcome is None:
            if hasattr(_settings, "stack"):  # one of these threads: another one need not be waited for
                self._run()
            else:
                gate = _thread.allocate_lock()  # of this call alone, so that an exception here holds up nobody
                gate.acquire()
                _hand_over(self._run, gate)
                gate.acquire()
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def start(self) -> "Once":
        """Begins, without waiting."""
        _hand_over(self._run, None)
        return self

    def undone(self) -> Any:
        """``before``, where the function raised and has consumed nothing of it; else None."""
        if self._outcome is None or self._outcome[1] is None:
            return None
        consumed = any(leaf.is_deleted() for leaf in jax.tree.leaves(self._consumes) if isinstance(leaf, jax.Array))
        return None if consumed else self._before

    def _run(self):
        with self._lock:
            if self._outcome is not None:
                return
            try:
                self._outcome = (self._function(), None)
                self._before = self._consumes = None
            except BaseException as error:  # raised where the result is asked for
                self._outcome = (None, error)
            self._function = None


def settled(current: Any, assign: Callable[[Any], None]) -> Any:
    """What ``current`` is once it is done, if it is a ``Once``; ``assign`` then stores it in its place.

    Where it raised before it consumed anything, what it started from is stored, so that the next try starts there.
    """
    if not isinstance(current, Once):
        return current
    try:
        value = current.result()
    except BaseException:
        if (before := current.undone()) is not None:
            assign(before)
        raise
    assign(value)
    return value


# The threads. ``concurrent.futures`` and ``threading.Condition`` hold locks in Python code, which an exception can
# leave locked for ever; what is used here are single calls of C.
_jobs, _idle, _running = queue.SimpleQueue(), queue.SimpleQueue(), set()
_settings = threading.local()


def _hand_over(function, gate):
    """Runs a function on a thread that is idle, or on a new one; then opens ``gate``."""
    _jobs.put((function, gate))
    try:
        _idle.get_nowait()
    except queue.Empty:
        _thread.start_new_thread(_work, ())


def _work():
    _settings.stack = contextlib.ExitStack()
    enter_own_settings(_settings.stack)
    me = _thread.get_ident()
    while True:
        function, gate = _jobs.get()
        _running.add(me)
        try:
            function()
        finally:
            _running.discard(me)
            if gate is not None:
                gate.release()
            function = gate = None  # what they hold is let go before the next one comes
        _idle.put(None)


@atexit.register
def _finish():
    """A process ends after what its devices are doing, not in the middle."""
    while _running:
        time.sleep(0.01)

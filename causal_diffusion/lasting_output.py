"""Standard output and error that may go away: a closed terminal or ``| head`` ends what is shown, not the process.

The system tells the processes of a terminal that closes by SIGHUP, which ends those that do not handle it.
"""

import contextlib
import os
import signal
import sys
import threading
from typing import Any


class Lasting:
    """A stream of text whose writes never fail: once nobody reads it, what is written is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        """As of a text file."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """As of a text file."""
        self._try("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, name, *args):
        if self._stream is None:
            return
        try:
            getattr(self._stream, name)(*args)
        except (OSError, ValueError):  # ValueError: it is closed
            _to_nowhere(self._stream)


def lasting(name: str) -> Lasting:
    """``sys.stdout`` or ``sys.stderr``, by ``name``, as it is now."""
    stream = getattr(sys, name)
    return stream if isinstance(stream, Lasting) else Lasting(stream)


@contextlib.contextmanager
def lasting_output():
    """Makes the standard streams lasting inside a ``with`` statement, for everything in this process that prints."""
    with contextlib.suppress(OSError):  # a descriptor that is closed at the start would be that of the next open file
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting("stdout"), lasting("stderr")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def outlasting_the_terminal():
    """Makes SIGHUP change nothing inside a ``with`` statement, where it would end this process."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGHUP, lambda number, frame: None)  # processes that are started in between inherit SIG_IGN
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _to_nowhere(stream):
    """Points a stream's descriptor to where everything may be written, so that nothing else fails by it."""
    with contextlib.suppress(Exception):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

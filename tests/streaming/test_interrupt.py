"""An exception at any instruction leaves a stream that continues with the next block that was not returned."""

import itertools
import signal
import sys
import threading

import jax
import numpy as np
import pytest

from causal_diffusion.workers import Once

BATCH, BLOCKS = 2, 12


class Interrupter:
    """Raises KeyboardInterrupt at the n-th instruction of Python that a call runs in this thread.

    The last instruction of the outermost call is left out: an exception there is one of the caller's code, which Python
    itself raises only at the next call or jump.
    """

    def __init__(self, at: int | None):
        self.at, self.count, self._depth, self.hit = at, 0, 0, False

    def call(self, function, *args, **kwargs):
        self._outer = None
        sys.settrace(self._trace)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(None)

    def _trace(self, frame, event, arg):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if self._outer is None:
            self._outer = frame
        return self._step

    def _step(self, frame, event, arg):
        if event != "opcode" or (frame is self._outer and _returns(frame)):
            return self._step
        self.count += 1
        if self.count == self.at:
            self.hit = True
            sys.settrace(None)
            raise KeyboardInterrupt
        return self._step


def _returns(frame):
    import dis

    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("RETURN_VALUE", "RETURN_CONST")


def goes_on(pipe, given, at, wanted, calls, rng):
    """Streams by ``calls`` and raises at the ``at``-th instruction; repeats an interrupted call; compares all blocks."""
    stream, seen, interrupter = pipe.stream(seed=1, **given), [], Interrupter(at)
    while (done := sum(block.shape[1] for block in seen)) < wanted.shape[1]:
        function, *args = calls(stream, done)
        try:
            seen.append(interrupter.call(function, *args))
        except KeyboardInterrupt:
            continue
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), wanted)
    assert stream.frame.tolist() == [wanted.shape[1] + given["context"].shape[1]] * BATCH
    return interrupter


def one_by_one(stream, done):
    return (stream.__next__,)


def several(stream, done):
    return (stream.take, 4)


@pytest.mark.parametrize("calls", [one_by_one, several])
def test_500_interrupts_at_random_instructions(pipeline, inputs, calls):
    pipe = pipeline("causal")
    given = inputs(pipe, BATCH, context=2, frames=0)
    wanted = pipe.generate(seed=1, frames=BLOCKS, **given)
    instructions = goes_on(pipe, given, None, wanted, calls, None).count
    rng = np.random.default_rng(0)
    for at in rng.integers(1, instructions, 250):
        assert goes_on(pipe, given, int(at), wanted, calls, rng).hit

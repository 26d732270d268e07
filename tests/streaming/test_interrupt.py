"""An exception at any instruction leaves a stream that continues with the next block that was not returned."""

import dis
import sys

import numpy as np
import pytest

from causal_diffusion.exported import read_stream
from causal_diffusion.streaming.exporting import export_stream
from causal_diffusion.workers import Once, settled

BATCH, BLOCKS = 1, 10
WATCHED = ("causal_diffusion", "contextlib", "threading")  # whose instructions are interrupted


class Interrupter:
    """Raises KeyboardInterrupt at the n-th instruction of Python that calls run in this thread; None: never.

    The last instruction of the outermost function is left out: an exception there is one of the caller's code, where
    Python itself raises it at the next call or jump.
    """

    def __init__(self, at: int | None):
        self.at, self.count = at, 0

    def call(self, function, *args):
        self._outer = None
        sys.settrace(self._enter if self.at is None or self.count < self.at else None)
        try:
            return function(*args)
        finally:
            sys.settrace(None)

    def _enter(self, frame, event, arg):
        if not any(name in frame.f_code.co_filename for name in WATCHED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._outer = self._outer or frame
        return self._step

    def _step(self, frame, event, arg):
        if event == "opcode" and not (frame is self._outer and _returns(frame)):
            self.count += 1
            if self.count == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._step


def _returns(frame):
    return dis.opname[frame.f_code.co_code[frame.f_lasti]] in ("RETURN_VALUE", "RETURN_CONST")


def goes_on(stream, at, wanted, blocks, actions=None) -> Interrupter:
    """Takes ``blocks`` at a time, is interrupted once, makes that call again, and gives ``wanted`` all the same."""
    seen, interrupter, done, interrupted = [], Interrupter(at), 0, 0
    while done < wanted.shape[1]:
        given = [] if actions is None else [actions[done : done + blocks]]
        try:
            seen.append(interrupter.call(stream.take, blocks, *given) if blocks > 1 or given else
                        interrupter.call(stream.__next__))  # fmt: skip
        except KeyboardInterrupt:
            interrupted += 1
        done = sum(block.shape[1] for block in seen)
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), wanted)
    assert interrupted == (at is not None)
    return interrupter


def check(start, wanted, blocks, times, seed, actions=None):
    """Interrupts streams at ``times`` random instructions. Each instruction is equally likely."""
    instructions = goes_on(start(), None, wanted, blocks, actions).count
    for at in np.random.default_rng(seed).integers(1, instructions, times):
        goes_on(start(), int(at), wanted, blocks, actions)


@pytest.mark.parametrize(("blocks", "times", "ahead"), [(1, 250, False), (5, 150, False), (1, 100, True)])
def test_500_interrupts_at_random_instructions(pipeline, inputs, blocks, times, ahead):
    pipe = pipeline("causal")
    stream = pipe.stream(seed=1, ahead=ahead, **inputs(pipe, BATCH, context=2, frames=0))
    mark = stream.mark()
    wanted = stream.take(BLOCKS)

    def start():
        stream.rewind(mark)
        return stream

    check(start, wanted, blocks, times, seed=blocks + ahead)


@pytest.mark.full
@pytest.mark.parametrize("blocks", [1, 2])
def test_actions_of_an_interrupted_call_count_once(pipeline, inputs, blocks):
    pipe = pipeline("pyramid")
    given = inputs(pipe, BATCH, context=2, frames=8)
    del given["cond"]["action"]
    stream, actions = pipe.stream(seed=1, **given), np.random.default_rng(0).normal(size=(BLOCKS, 2))
    mark = stream.mark()
    wanted = np.concatenate([stream.next(action) for action in actions], axis=1)

    def start():
        stream.rewind(mark)
        return stream

    check(start, wanted, blocks, 60, blocks, actions)


@pytest.mark.full
def test_an_exported_stream_goes_on_too(pipeline, tmp_path):
    pipe = pipeline("causal")
    export_stream(pipe, tmp_path, batch=BATCH)
    programs = read_stream(tmp_path)
    wanted = programs.start(3).take(BLOCKS)
    for blocks in (1, 5):
        check(lambda: programs.start(3), wanted, blocks, 60, blocks)


def test_a_step_that_fails_before_it_consumes_anything_can_be_tried_again():
    slot = {}

    def fail():
        raise MemoryError("full")

    current = Once(fail, before="before")
    with pytest.raises(MemoryError, match="full"):
        settled(current, lambda value: slot.update(now=value))
    assert slot == {"now": "before"}
    ran = []
    once = Once(lambda: ran.append(1) or len(ran))
    assert [settled(once, lambda value: None) for _ in range(3)] == [1, 1, 1] and once.undone() is None

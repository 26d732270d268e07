"""View: a schedule as a stream sees it, and as a solver sees it.

A stream holds F blocks in flight, oldest first. It runs the rows ``ramp`` once, then the rows ``step`` again and
again; each time the oldest ``emit`` blocks end clean and leave, the others move up and fresh noise enters behind
them. Three kinds of window, drawn for S = 4 (the blocks that leave are bracketed)::

    sliding, u = 2        chunk of 3, full       real time, F = 3, guess = 2
    ramp    4 4           ramp   4 4 4           ramp    4 4 4
            3 4                                          3 3 3
            2 4                                          2 2 2
    step    2 4           step   4 4 4           step    2 2 2
            1 3                  3 3 3                   1 1 1
           (0)2                  2 2 2                  (0)0 0
                                 1 1 1
                                (0 0 0)

In *real time iteration* (RTI-DP) every emission leaves a whole clean window. It moves up by one block, the last block
is repeated in the free place, and the result is taken as it is for a sample at level ``guess``: nothing is noised
again, and no other solver is needed. The first window comes from pure noise.
"""

from typing import NamedTuple

import numpy as np


class LookAhead(NamedTuple):
    """How far ahead of what it shows a stream has to know, in frames.

    action: when a block is asked for, the actions of so many frames beyond its last one are due.
    prompt: a condition that enters now is shown after so many frames that are still under the old one.
    begun: of these so many have lost noise already; the others follow a change ``in_flight`` from pure noise on.
    """

    action: int
    prompt: int
    begun: int


class View(NamedTuple):
    """The levels of the blocks in flight, oldest first, F of them.

    ramp: int [R + 1, F], rows run once at the start of a stream; a single row is nothing to run.
    step: int [R' + 1, F], rows run for every emission. The oldest ``emit`` blocks end clean; the others move up.
    emit: blocks that leave at a time.
    repeat: real-time iteration: all blocks end clean, the last one is copied into the place that falls free, and all
        are relabelled to the level of ``step[0]`` without new noise.
    first: int [S1 + 1, 1], rows of the first block where it takes steps of its own, or None. Its levels index
        ``Schedule.times(first=True)``. A stream runs them on the first block alone and commits it; ramp and step are
        for those that follow.
    """

    ramp: np.ndarray
    step: np.ndarray
    emit: int = 1
    repeat: bool = False
    first: np.ndarray | None = None

    @property
    def in_flight(self) -> int:
        """F, blocks in flight at a time."""
        return self.step.shape[1]

    @property
    def look_ahead(self) -> int:
        """Blocks left whose noise has begun to leave after an emission: how late an entering condition shows."""
        return int(np.sum(self.step[-1] < self.step.max())) - self.emit

    def frames_ahead(self, block: int, knot: int = 0) -> LookAhead:
        """The look-ahead of a stream of blocks of ``block`` frames, which share ``knot`` frames with the next one.

        Blocks take their condition and actions when they enter. Then F - emit others are before them. A knot is
        denoised under the condition of the block before its own, and under that block's last action.
        """
        under_way = (self.in_flight - self.emit) * block
        return LookAhead(action=under_way, prompt=under_way + knot, begun=self.look_ahead * block + knot)

    def matrix(self, blocks: int) -> np.ndarray:
        """Every row that a stream runs until ``blocks`` blocks are clean, int [rows, blocks].

        A block that has not entered waits at the top level, one that has left is 0. Where the level rises between two
        rows, the block was repeated (real time), not noised. Rows that repeat the row before are dropped.
        """
        F, place, rows = self.in_flight, 0, []
        level = np.full(blocks + F + self.emit, int(self.ramp.max()), np.int64)
        if self.first is not None:
            level[0] = self.first[0, 0]

        def run(window):
            for row in window:
                level[place : place + row.shape[0]] = row
                if not rows or np.any(rows[-1] != level[:blocks]):
                    rows.append(level[:blocks].copy())

        if self.first is not None:
            run(self.first)
            place = 1
        if level[:blocks].any():
            run(self.ramp)
        while level[:blocks].any():
            run(self.step)
            place += self.emit
        return np.stack(rows)


def transitions(levels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a solver does between the rows of a matrix in which levels may also rise.

    Blocks that rise are noised again. Neighbouring rows in which nothing falls need no network, so they are folded
    into the next row in which something does: in each of R' moves a block at level ``before`` is first noised up to
    ``start`` >= before, then solved down to ``end`` <= start. Where nothing rises, before == start, and before and
    end are the rows themselves. Rows that repeat the row before are dropped.

    Args:
        levels: int [R + 1, F], for instance ``Schedule.matrix(F)`` or a View's ramp or step.

    Returns:
        (before, start, end), each int [R', F]. Rises after the last fall end in a move whose start is its end.
    """
    levels = np.asarray(levels)
    moves, before, start = [], levels[0], levels[0]
    for row in levels[1:]:
        falls = row < start
        start = np.maximum(start, row)
        if falls.any():
            moves.append((before, start, row))
            before = start = row
    if np.any(start > before):
        moves.append((before, start, start))
    stacked = np.array(moves, levels.dtype).reshape(-1, 3, levels.shape[1])
    return stacked[:, 0], stacked[:, 1], stacked[:, 2]

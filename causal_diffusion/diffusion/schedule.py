"""Schedule: in which order noise leaves the blocks when sampling.

A schedule is an integer matrix ``level[row, block]``: entry S is pure noise, 0 is clean, and between two rows the
solver takes every block from one level to the next. One law gives the usual ones,

    level[r, b] = clip(S + offset(b) - r, 0, S)                                         (1)

and offset says how far block b lags behind the first::

    full            0                 all blocks together (full-sequence diffusion)
    pyramid         floor(b u)        u rows behind the neighbour (AR-Diffusion's AD, CMDM's causal uncertainty)
    rolling         floor(b S / W)    W blocks in flight (Rolling Forcing, MAGI-1)
    autoregressive  b S               the next block starts when this one is clean

Drawn for S = 4 and three blocks, rows downwards::

        autoregressive      pyramid u = 2
        4 4 4               4 4 4
        3 4 4               3 4 4
        2 4 4               2 4 4
        1 4 4               1 3 4
        0 4 4               0 2 4
        0 3 4               0 1 3
        ...                 0 0 2 ...

S may differ by block (more steps for a first block), a block may start below S (warm start from ``start``), and
entries may be pinned to a level (given frames: 0).

Level k of S stands at time t = t_max f(k / S) with the shift f(u) = m u / (1 + (m - 1) u), which spends more steps
at high noise for m > 1 (Esser et al. 2024, arXiv 2403.03206, eq. 23).
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

Array = Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps per block, their times, and the lag between neighbouring blocks."""

    steps: int = 10  # S: rows from pure noise to clean, per block
    offset: str = "autoregressive"  # a key of OFFSETS
    stride: float = 0.0  # u of 'pyramid', in rows
    in_flight: int = 1  # W of 'rolling', in blocks
    shift: float = 1.0  # m: above 1 spends more steps at high noise
    t_max: float = 1.0  # time of level S

    def __post_init__(self):
        if self.offset not in OFFSETS:
            raise ValueError(f"schedule.offset is {self.offset!r}; it is one of {', '.join(OFFSETS)}")
        if self.steps < 1:
            raise ValueError(f"schedule.steps is {self.steps}; at least 1 step is needed")
        if self.offset == "pyramid" and not 0.0 < self.stride <= self.steps:
            raise ValueError(
                f"schedule.stride is {self.stride} and schedule.steps is {self.steps}: a pyramid's stride lies in "
                f"(0, steps], {max(1, self.steps // 2)} would do"
            )
        if self.offset == "rolling" and not 1 <= self.in_flight <= self.steps:
            raise ValueError(
                f"schedule.in_flight is {self.in_flight} and schedule.steps is {self.steps}: between 1 and steps "
                "blocks are in flight"
            )
        if not 0.0 < self.t_max <= 1.0:
            raise ValueError(f"schedule.t_max is {self.t_max}; it lies in (0, 1]")
        if self.shift <= 0.0:
            raise ValueError(f"schedule.shift is {self.shift}; it is positive, 1 leaves the steps uniform")

    def offsets(self, blocks: int) -> np.ndarray:
        """offset(b) for b < blocks, int [blocks]."""
        return np.floor(OFFSETS[self.offset](self, np.arange(blocks))).astype(np.int64)

    def matrix(self, blocks: int) -> np.ndarray:
        """The schedule of ``blocks`` blocks, int [rows, blocks]."""
        return law(self.steps, self.offsets(blocks))

    def times(self) -> np.ndarray:
        """Time of each level 0 .. S, float32 [S + 1], increasing from 0 to t_max."""
        u = np.arange(self.steps + 1) / self.steps
        return (self.t_max * self.shift * u / (1 + (self.shift - 1) * u)).astype(np.float32)

    def view(self) -> "View":
        """The schedule as a stream sees it. ValueError where no window of blocks can hold it."""
        stride = float(OFFSETS[self.offset](self, np.ones(1))[0])
        if stride < 1 or stride != int(stride):
            whole = {
                "pyramid": f"schedule.stride = {max(1, round(self.stride))}",
                "rolling": f"schedule.steps = {-(-self.steps // self.in_flight) * self.in_flight}",
            }.get(self.offset, "schedule.offset = 'autoregressive'")
            raise ValueError(
                f"schedule.offset is {self.offset!r} and schedule.steps is {self.steps}, so neighbours are {stride:g} "
                f"rows apart: a stream emits one block every whole number of rows; {whole} would do"
            )
        stride = int(stride)
        in_flight = -(-self.steps // stride)
        slots = np.arange(in_flight)
        level = self.steps + slots[None] * stride - np.arange(self.steps + 1)[:, None]
        level = np.clip(level, 0, self.steps)
        return View(ramp=level[: self.steps - stride + 1], step=level[self.steps - stride :])


class View(NamedTuple):
    """The levels of the blocks in flight, oldest first, F of them.

    ramp: int [S - stride + 1, F], rows run once at the start of a stream.
    step: int [stride + 1, F], rows run for every emitted block: the oldest ends clean, then all move up by one.
    """

    ramp: np.ndarray
    step: np.ndarray

    @property
    def in_flight(self) -> int:
        """F, blocks in flight at a time."""
        return self.step.shape[1]

    @property
    def look_ahead(self) -> int:
        """Blocks whose noise has begun to leave when a block is emitted: how late an entering condition shows."""
        return int(np.sum(self.step[-1] < self.step.max())) - 1


def law(steps, offsets, *, start=None, pinned=None) -> np.ndarray:
    """Equation (1) in full generality.

    Args:
        steps: S, an int or one per block.
        offsets: offset(b) >= 0, int [blocks].
        start: level each block starts from (warm start), an int or one per block, at most S; None: S. A block waits
            at its start level until its turn comes, and leaves it when the law falls below.
        pinned: dict block -> level; these columns hold that level in every row.

    Returns:
        int [rows, blocks]; the first row is the start, the last one is clean but for pinned entries. Rows that
        repeat the start are dropped.
    """
    offsets = np.asarray(offsets, np.int64)
    steps = np.broadcast_to(np.asarray(steps, np.int64), offsets.shape)
    start = steps if start is None else np.broadcast_to(np.asarray(start, np.int64), offsets.shape)
    if offsets.ndim != 1 or np.any(offsets < 0) or np.any(steps < 1):
        raise ValueError(f"offsets {offsets} must be one non-negative row and steps {steps} positive")
    if np.any(start > steps) or np.any(start < 0):
        raise ValueError(f"start levels {start} must lie between 0 and steps {steps}")
    free = np.ones(offsets.shape, bool)
    free[list(pinned or {})] = False
    rows = int(np.max((steps + offsets)[free], initial=0)) + 1
    level = np.clip(steps + offsets - np.arange(rows)[:, None], 0, start)
    for block, value in (pinned or {}).items():
        level[:, block] = value
    changed = np.any(level != level[0], axis=1)
    first = int(np.argmax(changed)) if changed.any() else len(level)
    return level[max(first - 1, 0) :]


OFFSETS = {
    "full": lambda s, b: 0.0 * b,
    "pyramid": lambda s, b: s.stride * b,
    "rolling": lambda s, b: s.steps * b / s.in_flight,
    "autoregressive": lambda s, b: s.steps * b,
}

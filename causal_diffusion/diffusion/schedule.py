"""Schedule: in which order noise leaves the blocks when sampling.

A schedule is an integer matrix ``level[row, block]``: entry S is pure noise, 0 is clean, and between two rows the
solver takes every block from one level to the next. One law gives the usual ones,

    level[r, b] = clip(S + offset(b) - r, 0, S)                                         (1)

and offset says how far block b of N lags behind the first::

    full            0                    all blocks together (full-sequence diffusion)
    pyramid         floor(b u)           u rows behind the neighbour (Diffusion Forcing, AR-Diffusion's AD, SkyReels-V2)
    rolling         floor(b S / W)       W blocks in flight (Rolling Forcing, MAGI-1, streaming policies: W = S)
    autoregressive  b S                  the next block starts when this one is clean
    trapezoid       min(b, N - 1 - b) u  from both ends to the middle (between given key frames)
    interleaved     (b mod 2) S          even blocks first, then the odd ones between them

Two go beyond it. ``refine`` is full, then ``repeats`` times noises everything again, up to level ``back``, and comes
down (harmonisation as in RePaint, Lugmayr et al. 2022, arXiv 2201.09865). ``real_time`` denoises W blocks together,
then block after block starts over at level ``guess`` from the previous solution (RTI-DP; see ``view.py``).

Drawn for S = 3 and four blocks, rows downwards; u = 2 for pyramid and trapezoid, back 2 and repeats 1 for refine, W = 3
and guess 2 for real_time::

        full       pyramid    trapezoid  interleaved  autoregressive  refine     real_time
        3 3 3 3    3 3 3 3    3 3 3 3    3 3 3 3      3 3 3 3         3 3 3 3    3 3 3 3
        2 2 2 2    2 3 3 3    2 3 3 2    2 3 2 3      2 3 3 3         2 2 2 2    2 2 2 3
        1 1 1 1    1 3 3 3    1 3 3 1    1 3 1 3      1 3 3 3         1 1 1 1    1 1 1 3
        0 0 0 0    0 2 3 3    0 2 2 0    0 3 0 3      0 3 3 3         0 0 0 0    0 0 0 3
                   0 1 3 3    0 1 1 0    0 2 0 2      0 2 3 3         2 2 2 2    0 2 2 2
                   0 0 2 3    0 0 0 0    0 1 0 1      0 1 3 3         1 1 1 1    0 1 1 1
                   0 0 1 3               0 0 0 0      0 0 3 3         0 0 0 0    0 0 0 0
                   0 0 0 2                            0 0 2 3
                   0 0 0 1                            0 0 1 3
                   0 0 0 0                            0 0 0 3
                                                      0 0 0 2
                                                      0 0 0 1
                                                      0 0 0 0

S may differ by block (``first_steps`` for the first block of a stream). In ``law`` a block may also start below S (warm
start from ``start``), and entries may be pinned to a level (given frames: 0); a stream has neither but for real_time's
guess. Levels stand at the times of ``grids.py``.
"""

import dataclasses

import numpy as np

from causal_diffusion.diffusion.grids import GRIDS, nearest, warp
from causal_diffusion.diffusion.view import LookAhead, View, transitions
from causal_diffusion.ranges import FRACTION, POSITIVE, Range, check_numbers

__all__ = ["GRIDS", "OFFSETS", "LookAhead", "Schedule", "View", "law", "nearest", "transitions", "warp"]

ROWS = Range(1, 2**12)  # of a schedule per block, and blocks side by side: matrices of rows x blocks are made
ROWS_OR_NONE = Range(0, 2**12)
SLIDING = ("pyramid", "rolling", "autoregressive")  # one block leaves at a time
CHUNKED = ("full", "trapezoid", "interleaved", "refine")  # a stream denoises ``chunk`` blocks, emits them, starts over
_ONLY = {  # fields that mean something for some offsets only
    "chunk": CHUNKED,
    "back": ("refine",),
    "repeats": ("refine",),
    "guess": ("real_time",),
    "first_steps": ("autoregressive",),
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps per block, their times, and the lag between neighbouring blocks."""

    steps: int = 10  # S: rows from pure noise to clean, per block
    offset: str = "autoregressive"  # a key of OFFSETS
    stride: float = 0.0  # u of 'pyramid' and 'trapezoid', in rows
    in_flight: int = 1  # W of 'rolling' and 'real_time', in blocks
    chunk: int = 1  # blocks that a stream denoises and emits together, for the offsets in CHUNKED
    back: int = 0  # of 'refine': the level up to which everything is noised again
    repeats: int = 0  # of 'refine': how often
    guess: int = 0  # of 'real_time': the level that the shifted previous solution is taken for
    first_steps: int = 0  # steps of the first block of an autoregressive stream; 0: as the others
    grid: str = "uniform"  # a key of GRIDS: the times of the levels
    shift: float = 1.0  # m of 'uniform': above 1 spends more steps at high noise
    t_max: float = 1.0  # time of level S
    grid_steps: int = 1000  # K of 'discrete'
    sigma_min: float = 0.002  # of 'edm', noise of level 1 per standard deviation of the data
    sigma_max: float = 80.0  # of 'edm', noise of level S, in the same unit
    rho: float = 7.0  # of 'edm': higher spends more steps at low noise
    step_times: tuple[float, ...] = ()  # times of levels S .. 1 where a student was distilled at them; see ``warp``

    def __post_init__(self):
        for name, table in (("offset", OFFSETS), ("grid", GRIDS)):
            if getattr(self, name) not in table:
                raise ValueError(f"schedule.{name} is {getattr(self, name)!r}; it is one of {', '.join(table)}")
        check_numbers(
            self, "schedule", steps=ROWS, stride=ROWS_OR_NONE, in_flight=ROWS, chunk=ROWS, back=ROWS_OR_NONE,
            repeats=Range(0, 1_000), guess=ROWS_OR_NONE, first_steps=ROWS_OR_NONE, shift=POSITIVE, t_max=FRACTION,
            grid_steps=Range(1, 100_000), sigma_min=POSITIVE, sigma_max=POSITIVE, rho=POSITIVE, step_times=FRACTION,
        )  # fmt: skip
        if self.offset in ("pyramid", "trapezoid") and not 0.0 < self.stride <= self.steps:
            raise ValueError(
                f"schedule.stride is {self.stride} and schedule.steps is {self.steps}: a {self.offset}'s stride lies "
                f"in (0, steps]; schedule.stride = {max(1, self.steps // 2)} would do"
            )
        if self.offset == "rolling" and not 1 <= self.in_flight <= self.steps:
            raise ValueError(
                f"schedule.in_flight is {self.in_flight} and schedule.steps is {self.steps}: between 1 and steps "
                f"blocks are in flight; schedule.in_flight = {min(max(1, self.in_flight), self.steps)} would do"
            )
        self._check_only()
        self._check_times()

    def _check_only(self):
        for name, offsets in _ONLY.items():
            value, unset = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != unset and self.offset not in offsets:
                raise ValueError(
                    f"schedule.{name} is {value} and schedule.offset is {self.offset!r}: it belongs to "
                    f"{', '.join(offsets)}; schedule.{name} = {unset} would do"
                )
        if self.offset == "refine" and not (1 <= self.back <= self.steps and self.repeats >= 1):
            raise ValueError(
                f"schedule.back is {self.back}, schedule.repeats is {self.repeats} and schedule.steps is {self.steps}: "
                "refining goes back 1 to steps levels at least once; "
                f"schedule.back = {max(1, self.steps // 2)} with schedule.repeats = 1 would do"
            )
        if self.offset == "real_time" and not 1 <= self.guess <= self.steps:
            raise ValueError(
                f"schedule.guess is {self.guess} and schedule.steps is {self.steps}: the previous solution is taken "
                f"for a level in 1 .. steps; schedule.guess = {max(1, self.steps // 4)} would do"
            )

    def _check_times(self):
        if self.shift != 1.0 and self.grid != "uniform":
            raise ValueError(
                f"schedule.shift is {self.shift} and schedule.grid is {self.grid!r}: only the uniform grid is shifted; "
                "schedule.shift = 1.0 would do"
            )
        if self.grid == "edm":
            if self.t_max != 1.0:
                raise ValueError(
                    f"schedule.t_max is {self.t_max} and schedule.grid is 'edm': that grid starts at sigma_max; "
                    "schedule.t_max = 1.0 would do"
                )
            if not self.sigma_min < self.sigma_max:
                raise ValueError(
                    f"schedule.sigma_min is {self.sigma_min} and schedule.sigma_max is {self.sigma_max}: the first is "
                    "smaller; schedule.sigma_min = 0.002 with schedule.sigma_max = 80.0 would do"
                )
        most = round(self.t_max * self.grid_steps)
        if self.grid == "discrete" and max(self.steps, self.first_steps) > most:
            name = "steps" if self.steps > most else "first_steps"
            raise ValueError(
                f"schedule.{name} is {getattr(self, name)} and schedule.grid_steps is {self.grid_steps}: only {most} "
                f"indices lie up to t_max; schedule.{name} = {most} would do"
            )
        if self.step_times:
            self._check_step_times()

    def _check_step_times(self):
        times = self.step_times
        if len(times) != self.steps:
            raise ValueError(
                f"schedule.steps is {self.steps} and schedule.step_times has {len(times)} entries: one time per step; "
                f"schedule.steps = {len(times)} would do"
            )
        if not all(1.0 >= a > b > 0.0 for a, b in zip(times, (*times[1:], times[-1] / 2), strict=True)):
            raise ValueError(f"schedule.step_times is {times}; it falls from at most 1 and ends above 0")
        for name, unset in (("grid", "uniform"), ("shift", 1.0), ("t_max", 1.0), ("first_steps", 0)):
            if getattr(self, name) != unset:
                raise ValueError(
                    f"schedule.{name} is {getattr(self, name)!r} and schedule.step_times is {times}: the times are "
                    f"given already; schedule.{name} = {unset!r} would do"
                )

    def offsets(self, blocks: int) -> np.ndarray:
        """offset(b) for b < blocks, int [blocks]."""
        return np.floor(OFFSETS[self.offset](self, np.arange(blocks))).astype(np.int64)

    def matrix(self, blocks: int) -> np.ndarray:
        """The schedule of ``blocks`` blocks sampled as one clip, int [rows, blocks].

        With ``first_steps`` the levels of block 0 index ``times(first=True)``. Where levels rise, see ``transitions``
        for refine; for real_time a rise only relabels. A stream of chunks is ``view().matrix``.
        """
        if self.offset == "real_time":
            return self.view().matrix(blocks)
        if self.first_steps:
            steps = np.where(np.arange(blocks) == 0, self.first_steps, self.steps)
            return law(steps, np.cumsum(steps) - steps)
        level = law(self.steps, self.offsets(blocks))
        again = np.arange(self.back, -1, -1)[:, None] + np.zeros(blocks, np.int64)
        return np.concatenate([level] + [again] * self.repeats)

    def times(self, first: bool = False) -> np.ndarray:
        """Time of each level, float32 [S + 1], rising from 0 to t_max. ``first``: of the first block of a stream."""
        steps = (first and self.first_steps) or self.steps
        if self.step_times:
            return np.array([0.0, *self.step_times[::-1]], np.float32)
        return GRIDS[self.grid](self, steps).astype(np.float32)

    def window_needed(self) -> int:
        """Blocks that a window sliding over a long sequence must hold so that none leaves it half denoised.

        A window slides when the block behind it is due to start (AR-Diffusion, arXiv 2503.07418, 3.3). Its oldest
        block is clean by then iff floor(F u) >= S, for whole u iff F u >= S.
        """
        if self.offset not in SLIDING:
            return self.in_flight if self.offset == "real_time" else self.chunk
        stride = float(OFFSETS[self.offset](self, np.arange(2))[1])
        return int(np.argmax(self.offsets(int(self.steps / stride) + 3) >= self.steps))

    def view(self) -> View:
        """The schedule as a stream sees it. ValueError where no window of blocks can hold it."""
        S, F = self.steps, self.in_flight
        if self.offset == "real_time":
            level = np.repeat(np.arange(S, -1, -1)[:, None], F, axis=1)
            return View(ramp=level[: S - self.guess + 1], step=level[S - self.guess :], repeat=True)
        if self.offset in CHUNKED:
            if self.chunk == 1 and self.offset != "refine":
                raise ValueError(
                    f"schedule.offset is {self.offset!r} and schedule.chunk is 1: a stream denoises and emits chunk "
                    "blocks together, one by one it is schedule.offset = 'autoregressive'; schedule.chunk = 2 would do"
                )
            level = self.matrix(self.chunk)
            return View(ramp=level[:1], step=level, emit=self.chunk)
        stride = float(OFFSETS[self.offset](self, np.arange(2))[1])
        if stride < 1 or stride != int(stride):
            whole = {
                "pyramid": f"schedule.stride = {max(1, round(self.stride))}",
                "rolling": f"schedule.steps = {-(-self.steps // self.in_flight) * self.in_flight}",
            }[self.offset]
            raise ValueError(
                f"schedule.offset is {self.offset!r} and schedule.steps is {self.steps}, so neighbours are {stride:g} "
                f"rows apart: a stream emits one block every whole number of rows; {whole} would do"
            )
        stride = int(stride)
        level = law(S, np.arange(-(-S // stride)) * stride)[: S + 1]
        first = np.arange(self.first_steps, -1, -1)[:, None] if self.first_steps else None
        return View(ramp=level[: S - stride + 1], step=level[S - stride :], first=first)


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


OFFSETS = {  # (schedule, b = 0 .. N - 1) -> offset(b) before it is rounded down
    "full": lambda s, b: 0.0 * b,
    "pyramid": lambda s, b: s.stride * b,
    "rolling": lambda s, b: s.steps * b / s.in_flight,
    "autoregressive": lambda s, b: s.steps * b,
    "trapezoid": lambda s, b: np.minimum(b, len(b) - 1 - b) * s.stride,
    "interleaved": lambda s, b: b % 2 * s.steps,
    "refine": lambda s, b: 0.0 * b,
    "real_time": lambda s, b: 0.0 * b,
}

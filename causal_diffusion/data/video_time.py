"""When each frame of a file is on the screen, and which frame a player shows at a given time.

    frames      0   1       2 |          3   4   5
    time        |---|-------|-|          |---|---|---|
    sections         0                      1

A frame is shown from its own time stamp until the next frame's: at time t that is the last frame that has begun. A
player shows nothing of a frame before that, so an action never follows its effect. The last frame of a file, and the
last one before a cut, is shown for its declared duration.

The time is cut, and a new section begins, where frames are missing: the clock jumps, or stands still for longer than a
picture is likely to be held. A clip lies in one section.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

LONGEST_HOLD = 30.0  # seconds a frame may be shown; a longer stretch without a new one is a gap
LONGEST_PAUSE = 1.0  # likewise in a file of constant rate, whose frames have kept to it so far
_SLACK = 1e-6        # seconds: a slot that lies so little before a frame's time belongs to that frame


class Jump(NamedTuple):
    """A cut before a frame.

    frame: the file's own number of the first frame after it.
    time: seconds at which the frame before it was last shown.
    length: seconds from there to the next frame, by the file's clock; negative if the clock steps back.
    """

    frame: int
    time: float
    length: float

    def __str__(self) -> str:
        if self.length < 0:
            return f"its clock steps back by {-self.length:.3f} s at {self.time:.3f} s"
        return f"it has no frames from {self.time:.3f} s to {self.time + self.length:.3f} s"


class Clock:
    """Time stamps -> the seconds at which frames begin, one after the other.

    Args:
        tick: the unit of the file's time stamps, seconds.
        rate: frames per second, if the file declares a constant one. Time stamps that were rounded to ticks are
            then put back to multiples of 1 / rate.
        usual: seconds between frames, for those without a time stamp.
        holds: whether the distance of two frames is what the file declares as the first one's duration, so that a
            long one is no sign of missing frames.
        zero: the time stamp from which seconds count, at most the first frame's; None: that.

    Attributes:
        begins: seconds at which each frame begins, rising.
        durations: seconds for which each is shown, as the file declares it or, before a cut, as is usual.
        jumps: the cuts.
    """

    def __init__(self, tick: float, rate: Fraction | None, usual: float, holds: bool,
                 zero: float | None = None):  # fmt: skip
        self._tick, self._rate, self._usual, self._holds = tick, rate, usual, holds
        self._zero = zero
        self._shift = 0.0     # seconds by which the file's clock has stepped back so far
        self._regular = 0     # frames that kept to the rate so far
        self.begins: list[float] = []
        self.durations: list[float] = []
        self.jumps: list[Jump] = []

    @property
    def jumped(self) -> bool:
        """Whether there is a cut before the last frame."""
        return bool(self.jumps) and self.jumps[-1].frame == len(self.begins) - 1

    @property
    def _steady(self) -> bool:
        """Whether frames have come at a constant rate so far."""
        return bool(self._rate) and not self._holds and self._regular >= max(10, 0.95 * (len(self.begins) - 1))

    def place(self, stamp: float | None, duration: float) -> float:
        """The second at which the next frame begins, counted from the first frame.

        Args:
            stamp: the frame's time stamp in seconds; None: it has none, and follows the frame before it.
            duration: as the file declares it, 0 if it does not.
        """
        if not self.begins:
            if self._zero is None or stamp is None:
                self._zero = stamp or 0.0
            begin = self._on_grid((stamp or 0.0) - self._zero)
        else:
            begin = self._follow(stamp)
        self.begins.append(begin)
        self.durations.append(min(duration if duration > 0 else self._usual, LONGEST_HOLD))
        return begin

    def _follow(self, stamp: float | None) -> float:
        before, lasts = self.begins[-1], self.durations[-1]
        begin = before + self._usual if stamp is None else self._on_grid(stamp - self._zero) + self._shift
        step = begin - before
        if -self._usual < step <= 0:  # time stamps that stand still or tremble: the order is what counts
            return before + self._usual
        if step <= 0:
            expected = before + self._usual
            self.jumps.append(Jump(len(self.begins), expected, begin - expected))
            self._shift += expected - begin
            return expected
        longest = max(LONGEST_PAUSE, 4 * self._usual) if self._steady else LONGEST_HOLD
        if step > longest and step > lasts + 2 * self._tick:
            end = before + min(lasts, self._usual)
            self.jumps.append(Jump(len(self.begins), end, begin - end))
            self.durations[-1] = end - before
            return begin
        self.durations[-1] = step
        self._regular += step < 1.5 * self._usual
        if not self._rate:
            self._usual = step
        return begin

    def _on_grid(self, time: float) -> float:
        """The multiple of 1 / rate that was rounded to this time stamp, if one was."""
        if not self._rate or self._tick * 4 > 1 / self._rate:
            return time
        exact = float(round(time * self._rate) / self._rate)
        return exact if abs(exact - time) <= self._tick * 1.001 else time


def slots(begins: Sequence[float], ends: Sequence[float], fps: float) -> tuple[np.ndarray, np.ndarray]:
    """The times k / fps at which a frame is on the screen, rising, and the frame.

    Args:
        begins, ends: of each frame, seconds; begins rise, and a frame ends no later than the next one begins.

    Returns:
        (times float64 [N], frame numbers int64 [N]).
    """
    first, last = (np.ceil((np.asarray(edges, np.float64) - _SLACK) * fps).astype(np.int64) for edges in (begins, ends))
    counts = np.maximum(last - first, 0)
    shown = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(shown)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (first[shown] + offset) / fps, shown


def has_slot(begin: float, end: float, fps: float) -> bool:
    """Whether `slots` shows the frame at all."""
    return fps == 0 or np.ceil((begin - _SLACK) * fps) < np.ceil((end - _SLACK) * fps)

"""Times that are compared: sides take turns in one run, and ratios are taken inside a round.

A machine that slows down does so for all sides alike. One round times every side once, in an order that is turned round
from one round to the next::

    round 0   ours  ring  cat          round 1   cat  ring  ours          round 2   ours  ring  cat

Before each time the side runs once without a clock (its data are in the caches then, and the threads of the side before
it sleep), unless a run takes so long that this hardly matters. The statistic is that of ``vae.py``, a script, which
imports nothing of this package.
"""

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.vae import median_ratio

REST = 0.01  # seconds; threads of OpenMP wait for more work by spinning, and would take a core from the next side


class Ratio(NamedTuple):
    """Median of a ratio of times over rounds, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int


def interleave(
    sides: dict[str, Callable[[], object]], pairs: int, lead_in: int = 1, clock=time.perf_counter, rest: float = REST
) -> dict[str, np.ndarray]:
    """Seconds of every run of every side, {name: [pairs]}.

    Args:
        sides: functions that return when their work is done, compiled and warm.
        pairs: rounds, at least 1.
        lead_in: runs without a clock before each that is timed.
        clock, rest: for tests.
    """
    names, seconds = list(sides), {name: np.zeros(pairs) for name in sides}
    collected = gc.isenabled()
    gc.disable()
    try:
        for pair in range(pairs):
            for name in names if pair % 2 == 0 else reversed(names):
                time.sleep(rest)
                for _ in range(lead_in):
                    sides[name]()
                begun = clock()
                sides[name]()
                seconds[name][pair] = clock() - begun
    finally:
        if collected:
            gc.enable()
    return seconds


def ratio(seconds: dict[str, np.ndarray], theirs: str, ours: str = "ours") -> Ratio:
    """How many times as long ``theirs`` takes as ``ours``: above 1, ours is faster."""
    return Ratio(*median_ratio(seconds[theirs], seconds[ours]), len(seconds[ours]))


class Unequal(Exception):
    """Two sides that should compute the same do not: nothing is timed."""


def difference(ours, theirs, what: str, tolerance: float = 1e-4) -> float:
    """The largest difference of two arrays as a share of the largest value; Unequal above ``tolerance``."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise Unequal(f"{what}: ours is {ours.shape}, theirs {theirs.shape}")
    share = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not share <= tolerance:
        raise Unequal(f"{what}: the two differ by {share:.1e} of the largest value, more than {tolerance:.0e}")
    return share


def median(values, seed: int = 0) -> tuple[float, float, float]:
    """Median of values [n], and the ends of its 95 % interval by a bootstrap over them."""
    return median_ratio(values, np.ones(len(values)), seed)

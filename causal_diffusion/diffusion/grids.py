"""Grids: the times at which the levels of a schedule stand.

Level k of S stands at a time t_k, with t_0 = 0 < t_1 < ... < t_S. With u = k / S::

    uniform    t_max f(u),  f(u) = m u / (1 + (m - 1) u)       shifted: more steps at high noise for m > 1  (1)
    discrete   floor(u K') / K,  K' = t_max K                  every K'/S-th of K trained indices           (2)
    edm        2/pi atan(sigma_k),  sigma_k^(1/rho) evenly spaced from sigma_min (k = 1) to sigma_max (S)   (3)

(1) is the shift of rectified flows (Esser et al. 2024, arXiv 2403.03206, eq. 23); it multiplies the odds t / (1 - t)
by m. (2) is DDIM respacing (Song et al. 2021, arXiv 2010.02502): index trunc(-1 + u K) of K = 1000, where -1 is clean,
and index i stands at t = (i + 1) / K. (3) is the grid of Karras et al. 2022 (arXiv 2206.00364, eq. 5) for paths that
measure time by the angle whose tangent is sigma, the ratio of noise to data: sigma is in units of the data's standard
deviation, so that EDM's published 0.002 .. 80 for data of standard deviation 0.5 is 0.004 .. 160 here.

Few-step students are distilled at explicit times. The published "warped" lists are indices n of 1000 whose times are
f(n / 1000): 1000, 750, 500, 250 with m = 5 stands for 1, 0.9375, 0.8333, 0.625.
"""

import math

import numpy as np


def shifted(u, shift: float):
    """f(u) of (1). u in [0, 1], float64 of any shape."""
    u = np.asarray(u, np.float64)
    return shift * u / (1.0 + (shift - 1.0) * u)


def warp(indices, shift: float, count: int = 1000) -> tuple[float, ...]:
    """Times of a published step list: index n of ``count`` stands at f(n / count). For ``schedule.step_times``.

    A trailing 0 (clean) is a level of training, not a step, and is left out.
    """
    return tuple(float(shifted(n / count, shift)) for n in indices if n)


def nearest(indices, shift: float, count: int = 1000) -> tuple[float, ...]:
    """Times of a step list that was *not* warped: the entries of the shifted table nearest to n / count.

    Such lists name a time outright, and the network was trained at the ``count`` times f(1 / count) .. f(1) only.
    """
    table = shifted(np.arange(1, count + 1) / count, shift)
    return tuple(float(table[np.argmin(np.abs(table - n / count))]) for n in indices if n)


def uniform(schedule, steps: int) -> np.ndarray:
    """(1), float64 [steps + 1]."""
    return schedule.t_max * shifted(np.arange(steps + 1) / steps, schedule.shift)


def discrete(schedule, steps: int) -> np.ndarray:
    """(2), float64 [steps + 1]. In integers, since a float of u K that should be whole may fall short of it."""
    top = round(schedule.t_max * schedule.grid_steps)
    return (np.arange(steps + 1) * top // steps) / schedule.grid_steps


def edm(schedule, steps: int) -> np.ndarray:
    """(3), float64 [steps + 1]."""
    low, high = schedule.sigma_min ** (1 / schedule.rho), schedule.sigma_max ** (1 / schedule.rho)
    # From the noisy end, so that a single step starts at sigma_max.
    sigma = (high + np.arange(steps) / max(steps - 1, 1) * (low - high)) ** schedule.rho
    return np.concatenate([[0.0], 2 / math.pi * np.arctan(sigma[::-1])])


GRIDS = {"uniform": uniform, "discrete": discrete, "edm": edm}

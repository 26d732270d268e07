"""Solvers: how a block moves from one noise level to the next.

A solver takes one row of the schedule for every frame at once, each from its own time t to its own s < t; frames with
s = t keep their bits. On a Gaussian path x_t = a x0 + c eps (c for the path's ``s``, since s is a time here), with
x0 = x0(x_t, t) and eps = eps(x_t, t) read off the network's output, probability flow is

    dx = x0 da + eps dc                                                                 (1)

    euler      x_s = x_t + (s - t) v(x_t, t)                       order 1, in t
    ddim       x_s = a_s x0 + sqrt(c_s^2 - eta^2 b) eps + eta sqrt(b) z                                     (2)
               order 1; exact while x0 and eps stay. b is the variance of q(x_s | x_t, x0), and z ~ N(0, I) is fresh
               noise, none with eta = 0 (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16)
    ddpm       x_s ~ q(x_s | x_t, x0), with the learned variance where the network has one: ancestral sampling (Ho et
               al. 2020, arXiv 2006.11239, alg. 2)
    heun       (1) by the trapezoidal rule, the far end from ddim; order 2 for two evaluations. With a = 1 it is EDM's
               (Karras et al. 2022, arXiv 2206.00364, alg. 1), on the linear path it is Heun's rule in t
    dpmpp_2m   order 2, one evaluation: (4)
    unipc      order 3 (or 2), one evaluation: (4) and then (5)
    x0_noise   x_s = a_s x0 + c_s z, for students that know x0 at once (Song et al. 2023, arXiv 2303.01469, alg. 1)

On the linear path ddim with eta = 0 equals euler, but for rounding.

The multistep rules measure time by half the log-SNR, l = log(a / c), in which (1) is solved by

    x_s = (c_s / c_t) x_t + c_s int_{l_t}^{l_s} e^l x0(l) dl                            (3)

Let h = l_s - l_t, and A = a_s - a_t c_s / c_t = a_s (1 - e^-h) the weight of a constant x0 in (3). Let x0' and l' be
those of the previous evaluation and h' = l_t - l'. Extending x0 along the line through both gives (DPM-Solver++(2M), Lu
et al. 2022, arXiv 2211.01095, alg. 2; UniP-2 of UniPC is the same)

    x_s = (c_s / c_t) x_t + A (x0 + h / (2 h') (x0 - x0'))                              (4)

The next evaluation gives x0* at the far end s of that step, from which UniPC (Zhao et al. 2023, arXiv 2302.04867, alg.
1 with B(h) = e^-h - 1) corrects x_s after the fact, without a further evaluation, before it steps on:

    x_s = (c_s / c_t) x_t + A (x0 + r1 q (x0' - x0) + r2 (x0* - x0)),  q = -h / h'      (5)
    r1 = (b2 - b1) q / (1 - q),  r2 = b1 - r1
    b1 = 1 / (1 - e^-h) - 1 / h = 1/2 + h / 12 - ...,  b2 = 1 / (1 - e^-h) - 2 b1 / h = 1/3 + h / 12 + ...
    (b_n is the mean of u^n over [0, 1] with weight e^(-h (1 - u)))

With these two, ``order`` 2, the rule is of order 3; ``order`` 1 drops x0' and is of order 2 (theorem 3.1).

On the first step of a frame there is no x0': (4) without it is (2), and (5) is the mean of x0 and x0*. A frame starts
over whenever it steps from another time than its last step ended at, so a fresh or re-noised block, or one whose level
was relabelled, needs no reset. Where a = 0, l' is minus infinity and drops out. Every step to s = 0 but euler's ends at
x0, which is what (2) to (4) of first order say there.

Real-time iteration needs no solver of its own: it is the schedule 'real_time' under any of these.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from causal_diffusion.diffusion.process import Process
from causal_diffusion.ranges import SHARE, Range, check_numbers

Array = Any


@dataclasses.dataclass(frozen=True)
class SolverConfig:
    """Which solver, and its one number."""

    kind: str = "euler"  # a key of SOLVERS
    eta: float = 0.0  # of 'ddim': 0 adds no noise, 1 as much as 'ddpm'
    order: int = 2  # of 'unipc', as published: 1 or 2, that of its predictor

    def __post_init__(self):
        if self.kind not in SOLVERS:
            raise ValueError(f"solver.kind is {self.kind!r}; it is one of {', '.join(SOLVERS)}")
        check_numbers(self, "solver", eta=SHARE, order=Range(1, 2))
        if self.eta and self.kind != "ddim":
            raise ValueError(
                f"solver.eta is {self.eta} and solver.kind is {self.kind!r}: only ddim scales its noise; "
                "solver.eta = 0.0 would do"
            )
        if self.order != 2 and self.kind != "unipc":
            raise ValueError(
                f"solver.order is {self.order} and solver.kind is {self.kind!r}: only unipc comes in several orders; "
                "solver.order = 2 would do"
            )


class Solver(NamedTuple):
    """A solver as pure functions, after optax's manner.

    init: x [B, T, ...] -> history, a pytree whose leaves lead with [B, T], so that a stream moves them with its frames.
    step: (history, process, predict, x, t, s, noise) -> (history, x_s). ``predict(x, t)`` is the network's output,
        guided if need be; t and s are [B, T], s <= t; noise ~ N(0, I) is shaped like x, or None.
    stochastic: whether noise is used.
    evaluations: how often a step calls ``predict``.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Any, Array]]
    stochastic: bool = False
    evaluations: int = 1


class History(NamedTuple):
    """What a multistep solver remembers of each frame: the last two evaluations, newest first.

    count: int32 [B, T], evaluations remembered. end: [B, T], the time at which the last step ended.
    t: two times [B, T]. x0: two predictions [B, T, ...]. x: the sample at t[0], as corrected (unipc), or ().
    """

    count: Array
    end: Array
    t: tuple[Array, Array]
    x0: tuple[Array, Array]
    x: Any


def make(config: SolverConfig) -> Solver:
    """The solver of a config."""
    return SOLVERS[config.kind](config)


class _Row(NamedTuple):
    """One row of the schedule. Frames that stay are taken from 1/2 to 1/4, those that end only half way down.

    Nothing is singular at the times t and s that result: a NaN behind ``where`` would still poison the gradient of a
    differentiable rollout. ``finish`` puts the frames where they belong.
    """

    out: Array
    t: Array
    s: Array
    stays: Array
    ends: Array

    @staticmethod
    def of(predict, x, t, s):
        t, s = jnp.asarray(t, jnp.float32), jnp.asarray(s, jnp.float32)
        stays, ends = t == s, (s == 0.0) & (t > 0.0)
        out = predict(x, t)
        safe = jnp.where(stays, 0.5, t)
        return _Row(
            out=jnp.where(_wide(stays, out), 0.0, out),
            t=safe,
            s=jnp.where(stays | ends, 0.5 * safe, s),
            stays=_wide(stays, x),
            ends=_wide(ends, x),
        )

    def finish(self, x, x0, moved):
        return jnp.where(self.stays, x, jnp.where(self.ends, x0, moved))


def _wide(flags, like):
    """[B, T] -> [B, T, 1, ...] with as many axes as ``like``."""
    return flags.reshape(flags.shape + (1,) * (like.ndim - flags.ndim))


def _no_history(x):
    return ()


def _euler_step(history, process: Process, predict, x, t, s, noise):
    row = _Row.of(predict, x, t, s)
    delta = _wide(jnp.asarray(s - t, jnp.float32), x)
    if process.clip:
        (x0, eps), path = process.pair(row.out, x, row.t), process.at(row.t, x)
        velocity = path.da * x0 + path.ds * eps
    else:
        velocity = process.to_velocity(row.out, x, row.t)
    return history, jnp.where(row.stays, x, x + delta * velocity)


def _ddim(config):
    eta = config.eta

    def step(history, process, predict, x, t, s, noise):
        row = _Row.of(predict, x, t, s)
        x0, eps = process.pair(row.out, x, row.t)
        far = process.at(row.s, x)
        if not eta:
            return history, row.finish(x, x0, far.a * x0 + far.s * eps)
        _, variance = process.posterior(x, x0, row.t, row.s)
        # Never negative, as b < c_s^2 and eta <= 1; but it may round to zero, where a square root has no gradient.
        rest = jnp.sqrt(jnp.maximum(far.s**2 - eta**2 * variance, 0.0))
        return history, row.finish(x, x0, far.a * x0 + rest * eps + eta * jnp.sqrt(variance) * noise)

    return Solver(_no_history, step, stochastic=eta > 0.0)


def _ddpm_step(history, process, predict, x, t, s, noise):
    row = _Row.of(predict, x, t, s)
    x0 = process.clipped_x0(row.out, x, row.t)
    mean, variance = process.posterior(x, x0, row.t, row.s)
    _, learned = process.split(row.out)
    if learned is not None:
        variance = process.learned_variance(learned, row.t, row.s)
    return history, row.finish(x, x0, mean + jnp.sqrt(variance) * noise)


def _heun_step(history, process, predict, x, t, s, noise):
    row = _Row.of(predict, x, t, s)
    x0, eps = process.pair(row.out, x, row.t)
    near, far = process.at(row.t, x), process.at(row.s, x)
    guess = far.a * x0 + far.s * eps
    idle = row.stays | row.ends
    out = predict(row.finish(x, x0, guess), jnp.asarray(s, jnp.float32))
    out = jnp.where(idle, 0.0, out)
    x0_far, eps_far = process.pair(out, guess, row.s)
    moved = x + 0.5 * ((far.a - near.a) * (x0 + x0_far) + (far.s - near.s) * (eps + eps_far))
    return history, row.finish(x, x0, moved)


def _x0_noise_step(history, process, predict, x, t, s, noise):
    row = _Row.of(predict, x, t, s)
    x0, far = process.clipped_x0(row.out, x, row.t), process.at(row.s, x)
    return history, row.finish(x, x0, far.a * x0 + far.s * noise)


def _dpmpp_2m(config):
    def step(history, process, predict, x, t, s, noise):
        row = _Row.of(predict, x, t, s)
        x0, count = process.clipped_x0(row.out, x, row.t), _continued(history, t)
        moved = _extend(process, history, count, x, x0, row)
        return _remember(history, count, row, s, x0, ()), row.finish(x, x0, moved)

    return Solver(lambda x: _fresh(x, ()), step)


def _unipc(config):
    def step(history, process, predict, x, t, s, noise):
        row = _Row.of(predict, x, t, s)
        x0, count = process.clipped_x0(row.out, x, row.t), _continued(history, t)
        corrected = _correct(process, history, count, x, x0, row, config.order)
        moved = _extend(process, history, count if config.order == 2 else 0 * count, corrected, x0, row)
        return _remember(history, count, row, s, x0, corrected), row.finish(x, x0, moved)

    return Solver(lambda x: _fresh(x, jnp.zeros_like(x)), step)


def _fresh(x, sample):
    """The history of frames that have taken no step. Its times are any at which nothing is singular."""
    flat = jnp.zeros(x.shape[:2], jnp.float32)
    zeros = jnp.zeros_like(x)
    return History(flat.astype(jnp.int32), flat - 1.0, (flat + 0.5, flat + 0.75), (zeros, zeros), sample)


def _continued(history, t):
    """Evaluations that still count, int32 [B, T]: none where the frame is not where its last step ended."""
    return jnp.where(jnp.asarray(t, jnp.float32) == history.end, history.count, 0)


def _remember(history, count, row, s, x0, sample):
    new = History(
        count=jnp.minimum(count + 1, 2),
        end=jnp.asarray(s, jnp.float32),
        t=(row.t, history.t[0]),
        x0=(x0, history.x0[0]),
        x=sample,
    )
    stays = row.stays.reshape(row.t.shape)
    return jax.tree.map(lambda old, new: jnp.where(_wide(stays, new), old, new), history, new)


def _log_ratio(path):
    """(l, whether it is finite): a may vanish, c does not at the times asked for."""
    finite = path.a > 0.0
    return jnp.log(jnp.where(finite, path.a, 1.0)) - jnp.log(path.s), finite


def _constant(near, far, x, x0):
    """(3) for a constant x0 between two points of the path: (x_s, A)."""
    ratio = far.s / near.s
    weight = far.a - near.a * ratio
    return ratio * x + weight * x0, weight


def _per_step(near, far, before, use):
    """h / h' where ``use`` and all three l are finite, else 0; and h."""
    (l_before, finite), (l_near, begun), (l_far, _) = map(_log_ratio, (before, near, far))
    h, last = l_far - l_near, l_near - l_before
    use = use & finite & begun & (last > 0.0)
    return jnp.where(use, h / jnp.where(use, last, 1.0), 0.0), h


def _extend(process, history, count, x, x0, row):
    """(4); (2) where nothing is remembered."""
    near, far, before = (process.at(time, x) for time in (row.t, row.s, history.t[0]))
    ratio, _ = _per_step(near, far, before, _wide(count > 0, x))
    first, weight = _constant(near, far, x, x0)
    return first + weight * 0.5 * ratio * (x0 - history.x0[0])


def _correct(process, history, count, x, x0, row, order):
    """(5) for the step that led here; x itself where none is remembered."""
    near, far, before = (process.at(time, x) for time in (history.t[0], row.t, history.t[1]))
    second = _wide((count > 1) & (order > 1), x)
    ratio, h = _per_step(near, far, before, second)
    b1, b2 = _corrector_weights(jnp.where(ratio > 0.0, h, 1.0))
    q = -ratio
    r1 = (b2 - b1) * q / (1.0 - q)
    r2 = jnp.where(second, b1 - r1, 0.5)
    first, weight = _constant(near, far, history.x, history.x0[0])
    change = r1 * q * (history.x0[1] - history.x0[0]) + r2 * (x0 - history.x0[0])
    return jnp.where(_wide(count > 0, x), first + weight * change, x)


def _corrector_weights(h):
    """b1 and b2 of (5) for h > 0. Where h is small their terms cancel, and the series is exact to rounding."""
    small = h < 0.3
    safe = jnp.where(small, 1.0, h)
    whole = -1.0 / jnp.expm1(-safe)
    b1 = jnp.where(small, 0.5 + h / 12.0 - h**3 / 720.0 + h**5 / 30240.0, whole - 1.0 / safe)
    series = 1.0 / 3.0 + h / 12.0 + h**2 / 360.0 - h**3 / 720.0 - h**4 / 15120.0
    return b1, jnp.where(small, series, whole - 2.0 * b1 / safe)


SOLVERS = {  # kind -> constructor of a Solver from a SolverConfig
    "euler": lambda config: Solver(_no_history, _euler_step),
    "ddim": _ddim,
    "ddpm": lambda config: Solver(_no_history, _ddpm_step, stochastic=True),
    "heun": lambda config: Solver(_no_history, _heun_step, evaluations=2),
    "dpmpp_2m": _dpmpp_2m,
    "unipc": _unipc,
    "x0_noise": lambda config: Solver(_no_history, _x0_noise_step, stochastic=True),
}

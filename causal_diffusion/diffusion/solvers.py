"""Solvers: how a block moves from one noise level to the next.

A solver is a pure pair, after optax's manner: ``init(x)`` gives its history, ``step`` takes one row of the
schedule for every frame at once. Frames whose level does not change keep their bits.

    euler   x_s = x_t + (s - t) v(x_t, t)      first order; on the linear path it equals DDIM (Song et al. 2021,
                                               arXiv 2010.02502, eq. 12): x_s = (1 - s) x0 + s eps
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from causal_diffusion.diffusion.process import Process

Array = Any


class Solver(NamedTuple):
    """init: x -> history; step: (history, process, x, out, t, s) -> (history, x_s).

    ``out`` is the network's output at (x, t), shaped like x [B, T, ...]; t and s are [B, T].
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Any, Array]]


def _euler_step(history, process: Process, x, out, t, s):
    delta = (s - t).reshape(t.shape + (1,) * (x.ndim - t.ndim))
    # Frames that stay are evaluated in mid-path, where nothing is singular: a NaN behind `where` would still poison
    # the gradient of a differentiable rollout.
    velocity = process.to_velocity(out, x, jnp.where(s == t, 0.5, t))
    return history, jnp.where(delta == 0, x, x + delta * velocity)


SOLVERS = {"euler": Solver(init=lambda x: (), step=_euler_step)}

"""Steering: guidance by the gradient of a loss on the clean data that the network predicts.

Let y be what is known of a sample (a label, a measurement, some of its values) and L(x0, t) = -log p(y | x_t), as a
function of the prediction x0_hat(x_t, t). By Bayes' rule the score of x_t given y is (Dhariwal & Nichol 2021, arXiv
2105.05233; with the loss on x0_hat: DPS, Chung et al. 2023, arXiv 2209.14687, and PiGDM, Song et al. 2023)

    score' = score - w g,  g = grad_x L(x0_hat(x_t, t), t)                                          (1)

with w = 1; other scales w sharpen or blunt p(y | x_t). The gradient passes through the network. On a Gaussian path
x_t = a x0 + s eps the score is -eps / s, and x_t itself does not change, so

    eps' = eps + w s g                                                                              (2)
    x0'  = x0 - (s / a) (eps' - eps) = x0 - w (s^2 / a) g                                           (3)

A prediction P = A x0 + B eps, with (A, B) = (0, 1) for noise, (1, 0) for x0, (a', s') for the velocity and
(-s / sd, a sd) / n for v, n^2 = a^2 sd^2 + s^2 (equations (1) to (3) of ``diffusion.process``), changes by

    P' - P = B w s g - A w (s^2 / a) g = w (s / a) (a B - s A) g                                    (4)
    a B - s A  =  a (noise),  -s (x0),  a s' - s a' (velocity),  n / sd (v)                         (5)

that is, by w s / a times the c of (7) there, with a minus sign for x0 alone. Solvers, clipping and everything else take
P' for P: nothing in them changes. Frames have times of their own; (1) to (5) hold frame by frame, g being the
gradient of the whole sample's loss with respect to the frame, so what is known of one frame steers all noisy ones.

Ends. A frame at t = 0, or where s = 0, is known: it is not moved, and the loss sees the frame itself. Where a = 0 the
state holds nothing of the data, g of an ideal network is 0 and (3) is 0 / 0: the frame is not moved. So on paths that
end there (the linear one, zero terminal SNR) the first step is not steered; ``schedule.t_max`` a little below 1 has it
steered as well. For the ideal network grad x0_hat = (a / s^2) Cov(x0 | x_t), so (3) is x0' = x0 - w Cov(x0 | x_t)
grad L: a mean over the posterior, finite however small a is. The loss sees x0_hat before ``process.clip``, which would
cut the gradient off just where the prediction is farthest out; solvers clip the steered prediction.

Known values (``observed_loss``). With e = y - x0_hat at the known numbers of a sample, summed over them,

    square      L = sum e^2                                     a constant width (TSDiff, Kollovieh et al. 2023,   (6)
                                                                arXiv 2307.11494, mean-square self-guidance)
    quantile    L = sum max(k e, (k - 1) e)                     an asymmetric Laplace density (TSDiff, quantile    (7)
                                                                self-guidance): slope -k below y, 1 - k above
    gaussian    L = sum e^2 / (2 (r^2 + std^2))                 N(y; x0_hat, r^2 + std^2) (PiGDM), std the         (8)
                r^2 = sd^2 s^2 / (a^2 sd^2 + s^2)               error of the values, r^2 = Var(x0 | x_t) of white data

(6) is scaled as in TSDiff's released sampler, whose DDIM form is (2); minus the log-density in its paper is half of it.
TSDiff spreads the levels k of (7) evenly over the samples of a forecast, sample b of B at k = (b + 1) / (B + 1), so
that together they cover the distribution. ``guidance.observe_levels`` names levels instead, which samples take in turn:
then a sample's level depends on its place in the batch alone, and not on how many there are. (6) and (7) weigh the
values alike at all levels and need their w tuned. With w = 1, (8) is exact where the known numbers are Gaussian,
independent of each other and of standard deviation sd. Correlated ones it counts as separate evidence: sampling ends at
the values all the same, but what is unknown between them is pulled too far at high noise.

The cost of a steered prediction is the network's forward and backward pass. A rounding error in its Jacobian is
multiplied by s^2 / a, and by (s / a)^2 where eps is predicted: velocity or v stay precise nearer to pure noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion.diffusion.process import Process

Array = Any
Predict = Callable[[Array, Array], Array]
Loss = Callable[[Array, Array], Array]


def steer(process: Process, predict: Predict, loss: Loss, scale: Any = 1.0) -> Predict:
    """A prediction steered towards a small loss on the clean data: equation (4).

    Args:
        process: what ``predict`` puts out.
        predict: (x [B, T, ..., C], t [B, T]) -> the network's whole output, guided if need be. Differentiable in x.
        loss: (x0 [B, T, ..., C], t [B, T]) -> [B], or a scalar: the sum over samples, not their mean. The loss of a
            sample looks at no other sample. x0 is not clipped; at t = 0 it is x.
        scale: w. A float, 0 being ``predict`` itself, or an array that broadcasts against t, where 0 moves nothing.

    Returns:
        A function like ``predict``. Its variance part, if the process has one, is that of ``predict``.
    """
    if isinstance(scale, (int, float)) and not scale:
        return predict

    def steered(x, t):
        t = jnp.asarray(t, jnp.float32)
        path = process.at(t, x)
        clean = _beside(t, x) == 0.0

        def total(x):
            out = predict(x, t)
            x0 = process.to_x0(process.split(out)[0], x, t)
            return jnp.sum(loss(jnp.where(clean, x, x0), t)), out

        gradient, out = jax.grad(total, has_aux=True)(x)
        mean, variance = process.split(out)
        moves = ~clean & (path.s > 0.0) & (path.a > 0.0)
        slope = process.sizes(path)[process.predict] * path.s / jnp.where(moves, path.a, 1.0)
        weight = _beside(jnp.broadcast_to(jnp.asarray(scale, jnp.float32), t.shape), x)
        change = (-1.0 if process.predict == "x0" else 1.0) * weight * slope * gradient
        mean = jnp.where(moves & (weight != 0.0), mean + change, mean)
        return mean if variance is None else jnp.concatenate([mean, variance], axis=-1)

    return steered


def observed_loss(guidance, process: Process, values: Array, given: Array) -> Loss:
    """The loss of known values, equations (6) to (8), for ``steer`` with ``guidance.observe_scale``.

    Args:
        guidance: a ``Guidance``; of it ``observe``, ``observe_std`` and ``observe_levels``.
        process: for the spread of x0 given x_t, with its ``data_std``.
        values: [B, T, ..., C], in the units of the data. Anything, NaN too, where not given.
        given: bool, [B, T, ..., C] or with fewer axes behind T; axes of length 1 broadcast.

    Returns:
        (x0 [B, T, ..., C], t [B, T]) -> float32 [B].
    """
    values, given = jnp.asarray(values), jnp.asarray(given, bool)
    known = jnp.broadcast_to(_beside(given, values), values.shape)
    values = jnp.where(known, values, 0.0)

    def loss(x0, t):
        error = jnp.where(known, values - x0, 0.0).astype(jnp.float32)
        return jnp.sum(OBSERVED[guidance.observe](guidance, process, error, t), axis=tuple(range(1, error.ndim)))

    return loss


def _none(guidance, process, error, t):
    return jnp.zeros_like(error)


def _square(guidance, process, error, t):
    return jnp.square(error)


def _quantile(guidance, process, error, t):
    B, levels = error.shape[0], guidance.observe_levels
    if levels:
        level = jnp.asarray(levels, jnp.float32)[jnp.arange(B, dtype=jnp.int32) % len(levels)]
    else:
        level = (jnp.arange(B, dtype=jnp.float32) + 1.0) / (B + 1.0)
    level = _beside(level, error)
    return jnp.maximum(level * error, (level - 1.0) * error)


def _gaussian(guidance, process, error, t):
    size = process.sizes(process.at(t, error))
    variance = jnp.square(size["x0"] / size["v"]) + guidance.observe_std**2  # r = s sd / n
    # Zero where a frame is clean and its value has no error: it is not moved, whatever its loss.
    sharp = variance == 0.0
    return jnp.where(sharp, 0.0, 0.5 * jnp.square(error) / jnp.where(sharp, 1.0, variance))


def _beside(a, like):
    """a with as many axes as ``like``, new ones behind its own."""
    return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


OBSERVED = {  # name -> function of (guidance, process, y - x0_hat [B, T, ..., C], t [B, T]): each number's loss
    "none": _none,
    "square": _square,
    "quantile": _quantile,
    "gaussian": _gaussian,
}

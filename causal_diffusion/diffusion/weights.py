"""Loss weights that depend on the level: how much each level's error counts.

With snr = a^2 / s^2 and D as in ``diffusion.process``, a squared error of x0 that weighs m weighs, measured elsewhere,

    x0: m      noise: m / snr      v: m / (snr + 1 / sd^2)      velocity: v's times (n / (sd D))^2          (1)

(equation (7) of ``diffusion.process``; on variance preserving paths of unit data v's is m / (snr + 1)). The weights

    min_snr     m = min(snr, gamma)  (Hang et al. 2023, arXiv 2303.09556)                                    (2)
    sigmoid     noise: sigmoid(bias - log snr), that is m = snr / (1 + snr exp(-bias))                       (3)
                (Kingma & Gao 2023, arXiv 2303.00848; Hoogeboom et al. 2024, arXiv 2410.19324)

are one loss whatever space it is measured in. Fused SNR (Diffusion Forcing, Chen et al. 2024, arXiv 2407.01392) adds
what the past of a sequence tells about frame f. With S = min(snr, gamma) / gamma, R = snr / gamma and g the decay,

    Sbar_0 = S_0,  Sbar_f = g Sbar_{f-1} + (1 - g) S_f                                                       (4)
    C_f = 1 - (1 - g P_f)(1 - S_f),  U_f = 1 - (1 - g P_f)(1 - R_f),  P_f = Sbar_{f-1},  P_0 = 0             (5)
    x0: gamma C      noise: C / U      v: gamma C / (gamma U + 1 / sd^2)                                     (6)

that is (1) with m = gamma C and gamma U for snr. Without decay, g = 0, it is (2). Where frames see their future too
(DFoT, Song et al. 2025, arXiv 2502.06764), P_f is the mean of (4) run forwards and run backwards. Two weights are
plain functions of t, whatever the space:

    ramp        0.9 (1 - t) + 0.1  (Dreamer 4, Hafner et al. 2025, arXiv 2509.24527)                         (7)
    bell        exp(-2 (t - 1/2)^2) less its value at the ends, over its mean over uniform t                 (8)
                (flow matching of the Wan family; mean over [0, 1]: sqrt(pi/2) erf(1/sqrt 2) - exp(-1/2))
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any


def _measured(process, t, m, share, snr):
    """Equation (1). ``share`` is m / snr, given apart because both may be zero, or infinite."""
    if process.space == "x0":
        return m
    if process.space == "noise":
        return share
    weight = m / (snr + process.data_std**-2.0)
    if process.space == "v":
        return weight
    size = process.sizes(process.values(t))
    return weight * (size["v"] / size["velocity"]) ** 2


def _none(process, t):
    return jnp.ones_like(t)


def _min_snr(process, t):
    snr, gamma = process.snr(t), process.gamma
    return _measured(process, t, jnp.minimum(snr, gamma), jnp.minimum(1.0, gamma / snr), snr)


def _sigmoid(process, t):
    snr, soft = process.snr(t), math.exp(-process.bias)
    return _measured(process, t, 1.0 / (1.0 / snr + soft), 1.0 / (1.0 + snr * soft), snr)


def _past(decay: float, n: int) -> np.ndarray:
    """P = _past @ S of equations (4) and (5): row f holds (1 - g) g^(f-1-k) at k < f, its first entry g^(f-1)."""
    matrix = np.zeros((n, n))
    for f in range(1, n):
        matrix[f, :f] = (1 - decay) * decay ** np.arange(f - 1, -1, -1.0)
        matrix[f, 0] = decay ** (f - 1.0)
    return matrix


def _fused(process, t, past):
    snr, gamma = process.snr(t), process.gamma
    S, R = jnp.minimum(snr, gamma) / gamma, snr / gamma
    known = process.decay * jnp.matmul(S, jnp.asarray(past.T, jnp.float32), precision=jax.lax.Precision.HIGHEST)
    C, U = known + (1.0 - known) * S, known + (1.0 - known) * R
    share = jnp.where(U == 0.0, 1.0, C / jnp.where(U == 0.0, 1.0, U))  # the limit: C = U while snr is below gamma
    return _measured(process, t, gamma * C, share, gamma * U)


def _fused_snr(process, t):
    return _fused(process, t, _past(process.decay, t.shape[-1]))


def _fused_snr_bidirectional(process, t):
    past = _past(process.decay, t.shape[-1])
    return _fused(process, t, (past + past[::-1, ::-1]) / 2)


def _ramp(process, t):
    return 0.9 * (1.0 - t) + 0.1


def _bell(process, t):
    edge = math.exp(-0.5)
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - edge
    return (jnp.exp(-2.0 * (t - 0.5) ** 2) - edge) / mean


# name -> function of (process, t), t float32 [..., n] with the sequence on its last axis. The weight, shaped like t,
# is that of a squared error measured in ``process.space``.
WEIGHTS = {
    "none": _none,
    "min_snr": _min_snr,
    "fused_snr": _fused_snr,
    "fused_snr_bidirectional": _fused_snr_bidirectional,
    "sigmoid": _sigmoid,
    "ramp": _ramp,
    "bell": _bell,
}

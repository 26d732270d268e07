"""Gaussian paths: how much data and how much noise is in x_t = a(t) x0 + s(t) eps, t from 0 (clean) to 1 (noise).

Straight line (rectified flow, Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747)

    linear            a = 1 - t,  s = t                                                              (1)

Variance preserving paths keep a^2 + s^2 = 1, so each of them is one rising ANGLE phi(t) in [0, pi/2],

    a = cos phi,  s = sin phi,  a' = -s phi',  s' = a phi',  D = a s' - s a' = phi'                  (2)

    trigflow          phi = pi t / 2. Data and noise have unit variance: divide data by their standard deviation
                      beforehand (Lu & Song 2024, arXiv 2410.11081)
    logsnr_cosine     tan phi = tan(theta) / c,  theta = t0 + t (pi/2 - 2 t0),  t0 = atan(exp(-7.5)), that is
                      log snr = -2 log tan theta + 2 log c. Its ends stay at finite SNR, near data and near noise
                      (Hoogeboom et al. 2023, arXiv 2301.11093; c = 0.125 in DFoT, arXiv 2502.06764)
    vp_linear         beta evenly spaced from 1e-4 to 0.02 (DDPM, Ho et al. 2020, arXiv 2006.11239)
    vp_scaled_linear  sqrt(beta) evenly spaced, from 8.5e-4 to 0.012 (latent diffusion, arXiv 2112.10752)
    vp_cosine         abar = cos^2(pi/2 (u + 0.008) / 1.008), u = k / K, over its value at u = 0; beta <= 0.999
                      (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)
    vp_sigmoid        abar = sigmoid(3 - 6 u), rescaled so that u = 0 gives 1 and u = 1 gives 0; beta <= 0.999
                      (Jabri et al. 2022, arXiv 2212.11972)

The last four are tables of K steps. With alpha_k = 1 - beta_k, abar_k = prod_{j <= k} alpha_j and abar_0 = 1,

    phi(k / K) = acos sqrt(abar_k),  k = 0..K;  linear in t between two entries                      (3)

The published integer timestep i = 0..K-1 is entry k = i + 1, at t = (i + 1) / K; "level -1" is t = 0 and clean to the
bit. Interpolating the angle keeps a^2 + s^2 = 1 between the entries too and makes D piecewise constant and positive.
For K other than 1000 the published betas are scaled by 1000 / K, which keeps where the path ends.

Zero terminal SNR (Lin et al. 2023, arXiv 2305.08891, algorithm 1), with r_k = sqrt(abar_k):

    r_k <- (r_k - r_K) r_1 / (r_1 - r_K)                                                             (4)

For the cosine it leaves out the bound on beta instead, the only thing that keeps that path from zero.
An SNR shift c takes snr to c^2 snr:  tan phi <- tan(phi) / c, and in the tables

    abar <- c^2 abar / (c^2 abar + 1 - abar)                                                         (5)

Variance exploding (EDM, Karras et al. 2022, arXiv 2206.00364)

    edm               a = 1,  s = sigma = sd tan(pi t / 2), sd the data's standard deviation         (6)

whose signal-to-noise ratio at t is that of trigflow on data divided by sd. Noise is infinite at t = 1, so times beyond
1 - 2^-12, sigma = 2608 sd, count as that.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
BETAS = {"vp_linear": (1e-4, 2e-2), "vp_scaled_linear": (8.5e-4, 1.2e-2)}  # published first and last, K = 1000
BETA_MAX = 0.999
EDM_LAST = 1.0 - 2.0**-12
LOGSNR_EDGE = math.atan(math.exp(-7.5))


class Path(NamedTuple):
    """Values at some times: a, s and their derivatives with respect to t, each shaped like t."""

    a: Array
    s: Array
    da: Array
    ds: Array


def _by_angle(sine, cosine, slope) -> Path:
    """Equation (2)."""
    return Path(a=cosine, s=sine, da=-sine * slope, ds=cosine * slope)


def _linear(process, t):
    one = jnp.ones_like(t)
    return Path(a=1.0 - t, s=t, da=-one, ds=one)


def _trigflow(process, t):
    # The cosine is the sine of the complement, here and below: its relative precision matters where it is small.
    quarter = math.pi / 2
    return _by_angle(jnp.sin(quarter * t), jnp.sin(quarter * (1.0 - t)), quarter)


def _edm(process, t):
    t = jnp.minimum(t, EDM_LAST)
    quarter, sd = math.pi / 2, process.data_std
    cosine = jnp.sin(quarter * (1.0 - t))
    one = jnp.ones_like(t)
    return Path(a=one, s=sd * jnp.sin(quarter * t) / cosine, da=0.0 * one, ds=sd * quarter / cosine**2)


def _logsnr_cosine(process, t):
    width, c = math.pi / 2 - 2 * LOGSNR_EDGE, process.shift
    sine, cosine = jnp.sin(LOGSNR_EDGE + width * t), c * jnp.sin(LOGSNR_EDGE + width * (1.0 - t))
    norm = jnp.sqrt(sine**2 + cosine**2)
    return _by_angle(sine / norm, cosine / norm, width * c / norm**2)


def _table(process, t):
    angle, complement, slope = _angles(process.path, process.steps, process.betas, process.zero_snr, process.shift)
    u = index(process, t)
    low = jnp.clip(jnp.floor(u).astype(jnp.int32), 0, process.steps - 1)
    part = u - low
    # Both ends weighted, rather than one end plus a step: exact at either entry.
    phi, rest = ((1.0 - part) * jnp.asarray(x)[low] + part * jnp.asarray(x)[low + 1] for x in (angle, complement))
    return _by_angle(jnp.sin(phi), jnp.sin(rest), jnp.asarray(slope)[low])


def index(process, t: Array) -> Array:
    """K t of equation (3), float32, exact at the entries: t in float32 misses them by some rounding."""
    u = process.steps * jnp.asarray(t, jnp.float32)
    near = jnp.round(u)
    return u + jax.lax.stop_gradient(jnp.where(jnp.abs(u - near) <= process.steps * 2.0**-22, near - u, 0.0))


@functools.lru_cache(maxsize=32)
def alpha_bar(path: str, steps: int, betas: tuple = (), zero_snr: bool = False, shift: float = 1.0) -> np.ndarray:
    """abar_k of equations (3) to (5), float64 [steps + 1], read-only; entry 0 is 1."""
    u = np.arange(steps + 1) / steps
    if path in BETAS:
        first, last = betas or np.array(BETAS[path]) * (1000 / steps)
        power = 1.0 if path == "vp_linear" else 0.5
        beta = np.linspace(first**power, last**power, steps) ** (1 / power)
    else:
        curve = np.cos(np.pi / 2 * (u + 0.008) / 1.008) ** 2
        if path == "vp_sigmoid":
            sigmoid = 1 / (1 + np.exp(6 * u - 3))
            curve = (sigmoid - sigmoid[-1]) / (sigmoid[0] - sigmoid[-1])
        beta = 1 - curve[1:] / curve[:-1]
    unbounded = path == "vp_cosine" and zero_snr
    signal = np.concatenate([[1.0], np.cumprod(1 - (beta if unbounded else np.minimum(beta, BETA_MAX)))])
    if unbounded:
        signal[-1] = 0.0  # the cosine itself, but for the rounding of pi
    elif zero_snr:
        root = np.sqrt(signal[1:])
        signal[1:] = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    signal = shift**2 * signal / (shift**2 * signal + 1 - signal)
    signal.flags.writeable = False
    return signal


@functools.lru_cache(maxsize=32)
def _angles(*key):
    """phi, pi/2 - phi [K + 1] and the slope dphi/dt [K] of equation (3), float32."""
    signal = alpha_bar(*key)
    angle = np.arctan2(np.sqrt(1 - signal), np.sqrt(signal))
    complement = np.arctan2(np.sqrt(signal), np.sqrt(1 - signal))
    return tuple(x.astype(np.float32) for x in (angle, complement, np.diff(angle) * key[1]))


TABLES = ("vp_linear", "vp_scaled_linear", "vp_cosine", "vp_sigmoid")
# name -> function of (process, t), t float32 of any shape, traced or not. It reads data_std, steps, betas, zero_snr
# and shift of the process.
PATHS = {
    "linear": _linear,
    **dict.fromkeys(TABLES, _table),
    "logsnr_cosine": _logsnr_cosine,
    "edm": _edm,
    "trigflow": _trigflow,
}


def published_label(process, t: Array) -> Array:
    """What the released networks of a path are told, in units of their embedding's input over 1000. Shaped like t.

    Time embeddings here multiply by 1000, as the timestep embeddings of flow models do. Networks that take their
    number as it is (EDM, TrigFlow, the shifted cosine) therefore get a thousandth of it.

        linear          t                       flow models: 1000 sigma
        tables          (K t - 1) / 1000        the integer timestep i; -1 where t = 0
        logsnr_cosine   0.125 log snr / 1000    DFoT
        edm             ln(sigma) / 4 / 1000    c_noise; sigma below EDM's smallest, 0.002, counts as that: a clean
                                                frame's would be minus infinity
        trigflow        pi/2 t / 1000           the angle itself
    """
    t = jnp.asarray(t, jnp.float32)
    if process.path in TABLES:
        return (index(process, t) - 1.0) / 1000.0
    if process.path == "linear":
        return t
    if process.path == "trigflow":
        return math.pi / 2 * t / 1000.0
    path = PATHS[process.path](process, t)
    if process.path == "edm":
        return jnp.log(jnp.maximum(path.s, 0.002)) / 4000.0
    return 0.25 * jnp.log(path.a / path.s) / 1000.0

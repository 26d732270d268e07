"""Reconstruction and rate of a variational autoencoder.

A clip has N numbers x, and its latent M with posterior N(m, exp(v)). The negative evidence lower bound of a clip, in
nats, is a sum over both (Kingma & Welling 2014, arXiv 1312.6114):

    -log p(x|z) = sum_n  (x_n - y_n)^2 / (2 s^2) + log s + log(2 pi) / 2                                    (1)
    KL          = sum_m  (m^2 + exp(v) - v - 1) / 2                                                         (2)

The deviation s is the one that fits the batch best, found anew for each (sigma-VAE, Rybkin et al. 2021, arXiv
2006.13202), softly bounded from below; gradients flow through it:

    log s = max' log sqrt(mean (x - y)^2),    max'(a) = -6 + softplus(a + 6)                                (3)

**Everything here is a mean over clips divided by N**, nats per number of the data: learning rates then depend on
neither batch nor crop, and no ratio changes. So with weights beta of the KL and w of r root channels out of C,

    loss = (sum of (1) + beta sum of (2) + w sum over root channels of (1)) / (clips N)                     (4)

is the objective of CMDM's MAC-VAE divided by clips N, but for one thing: code of that lineage (MotionStreamer) adds (1)
over a batch and averages (2) over it, so that its beta at batch B is B times the beta meant here.

The other reconstruction losses are means over numbers too: |d|, sqrt(d^2 + eps^2) (Charbonnier et al. 1994) and d^2.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = Any
LOWEST = -6.0  # about the least log s, equation (3)


def likelihood(x: Array, y: Array) -> Array:
    """Equations (1) and (3) of clips x and their reconstructions y, nats per number; scalar."""
    square = jnp.mean((x - y) ** 2)
    log_s = LOWEST + jax.nn.softplus(0.5 * jnp.log(square + 1e-12) - LOWEST)  # a perfect y has a gradient too
    return 0.5 * square * jnp.exp(-2.0 * log_s) + log_s + 0.5 * math.log(2.0 * math.pi)


def l1(x: Array, y: Array) -> Array:
    """mean |x - y|; scalar."""
    return jnp.mean(jnp.abs(x - y))


def charbonnier(x: Array, y: Array, eps: float = 1e-3) -> Array:
    """mean sqrt((x - y)^2 + eps^2): L1 that is smooth below ``eps``, and eps where y is perfect; scalar."""
    return jnp.mean(jnp.sqrt((x - y) ** 2 + eps**2))


def mse(x: Array, y: Array) -> Array:
    """mean (x - y)^2; scalar."""
    return jnp.mean((x - y) ** 2)


FITS = {"likelihood": likelihood, "l1": l1, "charbonnier": charbonnier, "mse": mse}


def fit(form: str, x: Array, y: Array, root: int = 0, root_weight: float = 7.0) -> Array:
    """A reconstruction loss, with more weight on what moves the whole body; scalar.

    Args:
        form: a key of FITS.
        x, y: [..., C], data and their reconstructions.
        root: how many of the first channels are the root's; 0: none.
        root_weight: w of equation (4). The root's term is the same loss on its channels alone, with a deviation of
            their own, and counts root / C as much as the whole, as a sum over fewer numbers does.

    Raises:
        ValueError: an unknown form, or more root channels than channels.
    """
    if form not in FITS:
        raise ValueError(f"the form of the fit is {form!r}; it is one of {', '.join(FITS)}")
    if not 0 <= root <= x.shape[-1]:
        raise ValueError(f"root is {root} and a frame has {x.shape[-1]} channels; root = 0 would do")
    loss = FITS[form](x, y)
    if root:
        own = FITS[form](x[..., :root], y[..., :root])
        loss = loss + root_weight * root / x.shape[-1] * own
    return loss


def kl(mean: Array, logvar: Array, shape: tuple[int, ...]) -> Array:
    """Equation (2) of posteriors [B, ...], nats per number of the data; ``shape`` [B, ...] is that of the clips."""
    nats = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=tuple(range(1, mean.ndim)))
    return jnp.mean(nats) / math.prod(shape[1:])


def kl_warmup(step: Array, steps: int) -> Array:
    """The factor on the KL's weight: from 0 at the first step to 1 after ``steps`` of them; 0 steps: always 1."""
    return jnp.minimum(1.0, jnp.asarray(step, jnp.float32) / steps) if steps else jnp.float32(1.0)

"""Quantisers: a latent vector to one of finitely many, its number, and back.

Each maps z [..., D] to a ``Quantised``: the vector q that z becomes, its code, and what that adds to the objective.
Rounding has no gradient, so q carries that of z as if it had not been rounded, the straight-through estimator (Bengio
et al. 2013, arXiv 1308.3432); with sg for stop_gradient

    q = u + sg(round(u) - u)                                                                     (1)

    vq    the nearest of learned vectors by their angle. z and the codebook are brought to the sphere of radius
          sqrt(D), u = z sqrt(D) / |z|, so that a latent has about unit variance. Per number, with b for the
          commitment (van den Oord et al. 2017, arXiv 1711.00937, eq. 3; cosine: Yu et al. 2021, arXiv 2110.04627)
              loss = (sg(u) - e)^2 + b (u - sg(e))^2                                             (2)
          The codebook learns by its term of (2) alone; there is no moving average to keep beside the parameters.
    lfq   the signs, u = z: 2^D codes and no codebook (Yu et al. 2023, arXiv 2310.05737). A soft assignment
          p(c | z) ~ exp(-|z - c|^2 / T) over c in {-1, 1}^D is independent bits, p(c_i = 1) = sigmoid(4 z_i / T), and
              loss = a (mean H(p(. | z)) - g H(mean p(. | z))) + b (z - sg(q))^2                 (3)
          The first entropy asks for certainty, the second for all codes to be used. It is of the joint
          distribution, exactly, with no array larger than N 2^(D / 2) or 2^D.
    fsq   every channel rounded to L_i values (Mentzer et al. 2023, arXiv 2309.15505), no codebook, no loss:
              u = r tanh(z + atanh(o / r)) - o,  r = (L - 1) / 2 + 0.001,  o = 1/2 for even L, else 0    (4)
          rounds to whole numbers from -floor(L / 2) on; q is that over floor(L / 2), in [-1, 1], and z = 0 stays.

Codes are int32. Bits and levels are digits of the code, those of the first channel counting least.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = Any
KINDS = ("vq", "lfq", "fsq")


class Quantised(NamedTuple):
    """z: [..., D] float32, equation (1). codes: int32 [...]. loss: float32 scalar."""

    z: Array
    codes: Array
    loss: Array


def straight_through(u, rounded):
    """Equation (1): the value of ``rounded``, the gradient of u."""
    return u + jax.lax.stop_gradient(rounded - u)


def sphere(z):
    """z brought to length sqrt(D); zero stays."""
    return z * jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + 1e-12)


def vq(z, codebook, commitment: float = 0.25) -> Quantised:
    """Equation (2), z [..., D] and codebook [K, D] of any lengths."""
    u, vectors = sphere(jnp.asarray(z, jnp.float32)), sphere(codebook)
    codes = jnp.argmax(jnp.einsum("...d,kd->...k", *jax.lax.stop_gradient((u, vectors))), axis=-1).astype(jnp.int32)
    e = vectors[codes]
    pull = jnp.mean(jnp.square(jax.lax.stop_gradient(u) - e))
    commit = jnp.mean(jnp.square(u - jax.lax.stop_gradient(e)))
    return Quantised(straight_through(u, e), codes, pull + commitment * commit)


def vq_vectors(codes, codebook):
    """The vectors of some codes, [...] -> [..., D]."""
    return sphere(codebook)[codes]


def lfq(
    z, entropy: float = 0.1, commitment: float = 1.0, diversity: float = 2.5, temperature: float = 1.0
) -> Quantised:
    """Equation (3) with a = entropy, b = commitment, g = diversity, T = temperature; at most 30 channels."""
    z = jnp.asarray(z, jnp.float32)
    channels = z.shape[-1]
    bits = z > 0.0
    q = jnp.where(bits, 1.0, -1.0)
    logits = (4.0 / temperature * z).reshape(-1, channels)
    loss = entropy * (jnp.mean(bit_entropy(logits)) - diversity * mean_entropy(logits))
    loss += commitment * jnp.mean(jnp.square(z - q))
    codes = jnp.sum(bits * 2 ** np.arange(channels), axis=-1, dtype=jnp.int32)
    return Quantised(straight_through(z, q), codes, loss)


def lfq_vectors(codes, channels: int):
    """The vectors of some codes, [...] -> [..., channels]."""
    bits = jnp.asarray(codes)[..., None] >> np.arange(channels) & 1
    return 2.0 * bits.astype(jnp.float32) - 1.0


def bit_entropy(logits):
    """Entropy in nats of independent bits, logits [N, D] of 1 over 0 -> [N]."""
    on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.sum(jnp.exp(on) * on + jnp.exp(off) * off, axis=-1)


def mean_entropy(logits):
    """Entropy in nats of the mean over N of the joint distribution of D independent bits, logits [N, D] -> scalar.

    The mean of products of probabilities is one matrix product of the two halves' joint distributions.
    """
    half = logits.shape[-1] // 2
    low, high = _joint(logits[:, :half]), _joint(logits[:, half:])
    mean = jnp.einsum("na,nb->ab", high, low) / logits.shape[0]
    return -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)))


def _joint(logits):
    """[N, d] -> the probability of every combination, [N, 2^d]."""
    joint = jnp.ones((logits.shape[0], 1), jnp.float32)
    for i in range(logits.shape[-1]):
        on = jax.nn.sigmoid(logits[:, i : i + 1])
        joint = jnp.concatenate([joint * (1.0 - on), joint * on], axis=-1)
    return joint


def fsq(z, levels: tuple[int, ...]) -> Quantised:
    """Equation (4); one entry of ``levels`` for every channel of z."""
    z = jnp.asarray(z, jnp.float32)
    count = np.array(levels)
    reach, offset = (count - 1) / 2 + 1e-3, np.where(count % 2, 0.0, 0.5)
    u = reach * jnp.tanh(z + np.arctanh(offset / reach)) - offset
    half = count // 2
    digits = jnp.round(u)
    codes = jnp.sum((digits.astype(jnp.int32) + half) * _places(levels), axis=-1, dtype=jnp.int32)
    return Quantised(straight_through(u, digits) / half, codes, jnp.zeros((), jnp.float32))


def fsq_vectors(codes, levels: tuple[int, ...]):
    """The vectors of some codes, [...] -> [..., D]."""
    digits = jnp.asarray(codes)[..., None] // _places(levels) % np.array(levels)
    return (digits - np.array(levels) // 2) / (np.array(levels) // 2).astype(np.float32)


def _places(levels):
    """What a digit of each channel is worth."""
    return np.cumprod([1, *levels[:-1]])


class Quantiser(nn.Module):
    """One of the three by name, with the codebook where there is one.

    kind: of KINDS. channels: D. codes: K of 'vq'. levels: of 'fsq'.
    """

    kind: str
    channels: int
    codes: int = 0
    levels: tuple[int, ...] = ()

    def setup(self):
        if self.kind == "vq":
            self.codebook = self.param("codebook", nn.initializers.normal(1.0), (self.codes, self.channels))

    def __call__(self, z) -> Quantised:
        if self.kind == "vq":
            return vq(z, self.codebook)
        return lfq(z) if self.kind == "lfq" else fsq(z, self.levels)

    def vectors(self, codes):
        """The vectors of some codes, [...] -> [..., D]."""
        if self.kind == "vq":
            return vq_vectors(codes, self.codebook)
        return lfq_vectors(codes, self.channels) if self.kind == "lfq" else fsq_vectors(codes, self.levels)


def check(section: str, kind: str, latent: int, codes: int, levels: tuple[int, ...]) -> None:
    """ValueError where the sizes of a quantiser do not go with each other; ``section`` is of the config keys."""
    if kind not in ("none", *KINDS):
        raise ValueError(f"{section}.quantise is {kind!r}; it is one of none, {', '.join(KINDS)}, 'none' would do")
    if kind == "vq" and codes < 2:
        raise ValueError(f"{section}.codes is {codes}; vq has at least 2 vectors to choose from, 8192 would do")
    if kind == "lfq" and (latent > 30 or codes != 2**latent):
        near = min(30, max(1, round(math.log2(max(codes, 2)))))
        raise ValueError(
            f"{section}.latent is {latent} and {section}.codes is {codes}: lfq has one bit per channel, "
            f"{section}.latent = {near} and {section}.codes = {2**near} would do"
        )
    if kind != "fsq":
        return
    if len(levels) != latent:
        raise ValueError(
            f"{section}.latent is {latent} and {section}.levels is {levels}: fsq has one number of levels per channel, "
            f"{section}.latent = {len(levels)} would do"
        )
    if min(levels) < 2 or math.prod(levels) >= 2**31:
        raise ValueError(
            f"{section}.levels is {levels}: each at least 2, and fewer than 2^31 codes, (8, 8, 8, 5, 5, 5) would do"
        )

"""How keys and values are stored: in a floating type, or as 8-bit integers with a scale.

Per token and head, with K numbers x and scale s = max|x| / 127,

    q = round(x / s),    x' = s q,    |x' - x| <= s / 2 <= max|x| / 254                                          (1)

so that a token of H heads takes H (K + 4) bytes instead of 4 H K: a quarter and a bit.

And in which order. Keys are made frame by frame and are multiplied head by head, each head a matrix of its own::

    [B, S, N, H, K]     as they are made: S frames of N tokens
    [B, H, S, N, K]     ``HeadsFirst``: as they are multiplied. A cache that lies otherwise is copied by every product
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """Equation (1). values: int8 [..., K]; scale: float32 [..., 1]. Both share all other axes."""

    values: Array
    scale: Array

    @property
    def shape(self):
        """That of what is stored."""
        return self.values.shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadsFirst:
    """Keys or values whose ``array`` is [B, H, S, N, K]."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of what was laid so, (B, S, N, H, K)."""
        B, H, *frames, K = self.array.shape
        return B, *frames, H, K


def lay(x: Array) -> HeadsFirst:
    """[B, S, N, H, K] heads first."""
    return HeadsFirst(jnp.moveaxis(x, 3, 1))


def unlay(x: Array | HeadsFirst) -> Array:
    """[B, S, N, H, K], however it lies."""
    return jnp.moveaxis(x.array, 1, 3) if isinstance(x, HeadsFirst) else x


def heads_first(x: Array | HeadsFirst) -> Array:
    """[B, S, N, H, K], or what lies heads first already -> [B, H, S N, K]."""
    x = (x if isinstance(x, HeadsFirst) else lay(x)).array
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def store(x: Array, dtype) -> Array | Int8:
    """``x`` [..., K] in a floating ``dtype``, or as Int8 where that is 'int8'."""
    if str(dtype) != "int8":
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127.0
    values = jnp.round(x / jnp.where(scale > 0.0, scale, 1.0)).astype(jnp.int8)
    return Int8(values, scale)


def load(x: Array | Int8 | HeadsFirst, dtype) -> Array | HeadsFirst:
    """What was stored, in ``dtype``."""
    if isinstance(x, HeadsFirst):
        return HeadsFirst(x.array.astype(dtype))
    if isinstance(x, Int8):
        x = x.values.astype(jnp.float32) * x.scale
    return x.astype(dtype)

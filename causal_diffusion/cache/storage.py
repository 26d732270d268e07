"""How keys and values are stored: in a floating type, or as 8-bit integers with a scale.

Per token and head, with K numbers x and scale s = max|x| / 127,

    q = round(x / s),    x' = s q,    |x' - x| <= s / 2 <= max|x| / 254                                          (1)

so that a token of H heads takes H (K + 4) bytes instead of 4 H K: a quarter and a bit.
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


def store(x: Array, dtype) -> Array | Int8:
    """``x`` [..., K] in a floating ``dtype``, or as Int8 where that is 'int8'."""
    if str(dtype) != "int8":
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127.0
    values = jnp.round(x / jnp.where(scale > 0.0, scale, 1.0)).astype(jnp.int8)
    return Int8(values, scale)


def load(x: Array | Int8, dtype) -> Array:
    """What was stored, in ``dtype``."""
    if isinstance(x, Int8):
        x = x.values.astype(jnp.float32) * x.scale
    return x.astype(dtype)

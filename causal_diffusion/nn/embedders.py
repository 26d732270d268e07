"""Embedders: patches, times and conditions into tokens and vectors of width D."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.attention import dense
from causal_diffusion.nn.rope import sinusoid

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
    """What steers a sample. Every field may be absent (None) where the model does not take it.

    label: int32 [B, F], a class per block; -1 is the null class.
    text: float [B, F, M, E], M condition tokens of width E per block, or int32 [B, F, M], ids of words that the model
        embeds; all zero is the null text.
    text_mask: bool [B, F, M], False at padding; None where every token takes part.

    text_of: int32 [B, n], which of F captions each of n blocks has; None: F is 1, or every block has its own.

    F is 1 where all frames share the condition, else the number of blocks. Actions are one per frame and travel
    with the frames of a stream.
    """

    label: Array | None = None
    text: Array | None = None
    text_mask: Array | None = None
    text_of: Array | None = None


def patchify(x, patch: tuple[int, ...]):
    """Cuts [B, T, *space, C] into tokens [B, T', N, P]: P = prod(patch) * C values each, N row-major over space.

    ``patch`` has one entry for time and one per spatial axis; each must divide its axis.
    """
    B, C = x.shape[0], x.shape[-1]
    grid = _grid(x.shape, patch)
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    axes = len(patch)
    x = x.reshape(B, *split, C)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return x.transpose(order).reshape(B, grid[0], math.prod(grid[1:]), math.prod(patch) * C)


def unpatchify(tokens, shape: tuple[int, ...], patch: tuple[int, ...]):
    """Inverse of ``patchify``; ``shape`` is [B, T, *space, C] with the channels to come out."""
    B, C = shape[0], shape[-1]
    grid = _grid(shape, patch)
    axes = len(patch)
    x = tokens.reshape(B, *grid, *patch, C)
    order = [0, *(i for axis in range(axes) for i in (1 + axis, 1 + axes + axis)), 2 * axes + 1]
    return x.transpose(order).reshape(*(B, *(g * p for g, p in zip(grid, patch, strict=True))), C)


def _grid(shape, patch):
    sizes = shape[1:-1]
    if len(sizes) != len(patch) or any(size % p for size, p in zip(sizes, patch, strict=True)):
        raise ValueError(f"patch {patch} does not divide the (time, *space) axes {sizes}")
    return tuple(size // p for size, p in zip(sizes, patch, strict=True))


class TimeEmbedding(nn.Module):
    """Sinusoid of 1000 t, then Linear, SiLU, Linear: t [...] in [0, 1] -> float32 [..., D]."""

    width: int
    frequencies: int = 256

    @nn.compact
    def __call__(self, t):
        # Frequencies are made for t in [0, 1000]; on [0, 1] most of them would be constant.
        x = sinusoid(1000.0 * t, self.frequencies)
        x = nn.silu(dense(self.width, jnp.float32, "normal", name="in")(x))
        return dense(self.width, jnp.float32, "normal", name="out")(x)


class LabelEmbedding(nn.Module):
    """A vector per class and one for the null class: label [...] -> float32 [..., D]."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, label):
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (self.classes + 1, self.width), jnp.float32)
        return table[jnp.where(label < 0, self.classes, label)]


class ActionEmbedding(nn.Module):
    """Linear, SiLU, Linear of one action per frame, a learned vector where there is none."""

    width: int

    @nn.compact
    def __call__(self, action, given):
        """action [B, T, A], given bool [B, T] -> float32 [B, T, D]."""
        null = self.param("null", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        x = nn.silu(dense(self.width, jnp.float32, name="in")(jnp.where(given[..., None], action, 0.0)))
        return jnp.where(given[..., None], dense(self.width, jnp.float32, "normal", name="out")(x), null)


class TextEmbedding(nn.Module):
    """Condition tokens to the width of the model: one Linear (CMDM), or Linear, GELU-tanh, Linear (Wan)."""

    width: int
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, text):
        x = dense(self.width, self.dtype, name="in")(text)
        if self.layers == 2:
            x = dense(self.width, self.dtype, name="out")(nn.gelu(x, approximate=True))
        return x

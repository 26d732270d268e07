"""Layers of CDT, and its causal U-Net: a noisy video and features of its latent -> the video.

::

    block      causal convolution, norm over channels, ReLU
    ResNet     block, + Linear(LeakyReLU(step embedding)), block, beside the input (or its projection)
    level      ResNet blocks, linear attention inside each frame, then half the height and width, half the frames
    U-Net      levels | ResNet, attention, ResNet | levels back, each beside what the same one saw on the way down |
               norm, convolution

The features of a latent come at several sizes, the size of frames first. The first levels see them beside their own
input, one each, and halve space and time where the compressor did; the others halve space alone, and the last nothing.
Frames of odd size are rounded up on the way down and cut on the way back. On the way back no level stands beside the
first, whose size its upsampling already has: so has the released network (Yang et al. 2025, arXiv 2503.03708).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.causal_conv import Carry, CausalConv, FrameConv, enlarge, interleave
from causal_diffusion.nn.patches import patchify, unpatchify


def half_identity(key, shape, dtype):
    """Of ``TimeDown``, [3, 1, 1, C, C]: at first a frame is the mean of two. (Their sum, as published, has twice the
    scale.)"""
    return jnp.zeros(shape, dtype).at[1:, 0, 0].set(0.5 * jnp.eye(*shape[-2:], dtype=dtype))


def twice_identity(key, shape, dtype):
    """Of ``TimeUp``, [C, 2 C]: at first both frames are copies."""
    return jnp.tile(jnp.eye(shape[0], dtype=dtype), (1, 2))


def norm(name: str) -> nn.LayerNorm:
    """Over the channels of each position, statistics in float32."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=jnp.float32, name=name)


class Block(nn.Module):
    """[B, T, H, W, C] -> ([B, T, H, W, features], state). size: of the kernel in space."""

    features: int
    size: int = 3
    edge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state=None):
        conv = CausalConv(self.features, (3, self.size, self.size), edge=self.edge, dtype=self.dtype, name="conv")
        x, state = conv(x, state)
        return nn.relu(norm("norm")(x)).astype(self.dtype), state


class ResNet(nn.Module):
    """[B, T, H, W, C] -> ([B, T, H, W, features], state). size: of the first kernel in space."""

    features: int
    size: int = 3
    edge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state=None, step=None):
        """step: embedding [B, D] of the diffusion step, or None."""
        carry = Carry(state)
        h = carry(Block(self.features, self.size, self.edge, self.dtype, name="first"), x)
        if step is not None:
            step = nn.Dense(self.features, dtype=self.dtype, name="step")(nn.leaky_relu(step, 0.2))
            h = h + step[:, None, None, None]
        h = carry(Block(self.features, 3, self.edge, self.dtype, name="second"), h)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name="skip")(x)
        return h + x, carry.state


class FrameAttention(nn.Module):
    """Linear attention inside each frame, beside the input: [B, T, H, W, C] -> the same.

    Queries are a softmax over channels, over sqrt(C), keys one over positions; with one head of C channels the cost is
    linear in positions (Shen et al. 2018, arXiv 1812.01243).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        h = norm("norm")(x).reshape(*x.shape[:2], -1, C)
        q, k, v = jnp.split(nn.Dense(3 * C, use_bias=False, dtype=self.dtype, name="qkv")(h), 3, axis=-1)
        q = jax.nn.softmax(q.astype(jnp.float32), axis=-1).astype(self.dtype) * C**-0.5
        k = jax.nn.softmax(k.astype(jnp.float32), axis=-2).astype(self.dtype)
        h = jnp.einsum("btnd,btde->btne", q, jnp.einsum("btnd,btne->btde", k, v))
        return x + nn.Dense(C, dtype=self.dtype, name="out")(h).reshape(x.shape)


class SpaceDown(nn.Module):
    """Every frame to half its height and width, rounded up."""

    edge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        pads = ((1, 1), (1, 1))
        if self.edge:
            x, pads = jnp.pad(x, ((0, 0), (0, 0), *pads, (0, 0)), mode="edge"), ((0, 0), (0, 0))
        return FrameConv(x.shape[-1], stride=2, pads=pads, dtype=self.dtype, name="conv")(x)


class SpaceUp(nn.Module):
    """Every frame to twice its height and width: nearest neighbours, then a convolution of ``size`` by ``size``."""

    features: int
    size: int = 5
    edge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = (1, self.size, self.size)
        return CausalConv(self.features, kernel, edge=self.edge, dtype=self.dtype, name="conv")(enlarge(x))[0]


def time_down(features: int, edge: bool, dtype, name: str) -> CausalConv:
    """Frames to half as many, the first of a clip by itself; the history is one frame."""
    return CausalConv(
        features, (3, 1, 1), stride=2, apart=True, edge=edge, kernel_init=half_identity, dtype=dtype, name=name
    )  # fmt: skip


class TimeUp(nn.Module):
    """Every frame to two; of the two that the first of a clip becomes, the first is dropped."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state=None):
        dense = nn.Dense(2 * x.shape[-1], kernel_init=twice_identity, dtype=self.dtype, name="dense")
        x = interleave(dense(x), 2)
        return x if state is not None else x[:, 1:], ()


class UNet(nn.Module):
    """The denoiser.

    channels: of the video. widths: of every level. space_down, time_down: which levels halve space and time; the last
    does not. patch: pixels along height and width that a position stands for. blocks: ResNet blocks of a level. wide:
    size in space of the first kernel and the last; up: of those after upsampling. edge: see ``CausalConv``.
    """

    channels: int
    widths: tuple[int, ...]
    space_down: tuple[bool, ...]
    time_down: tuple[bool, ...]
    patch: int = 1
    blocks: int = 2
    wide: int = 7
    up: int = 5
    edge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, state, step, context):
        """x [B, T, H, W, C], step float [B] in [0, 1], context: features at the sizes of the first levels' inputs
        -> (float32 [B, T, H, W, C], state)."""
        patch = (1, self.patch, self.patch)
        x = patchify(x, patch).astype(self.dtype)
        carry, skips, height, width = Carry(state), [], *x.shape[2:4]
        step = nn.Dense(4 * self.widths[0], dtype=self.dtype, name="step_in")(step[:, None])
        step = nn.Dense(self.widths[0], dtype=self.dtype, name="step_out")(nn.gelu(step, approximate=False))
        for level, features in enumerate(self.widths):
            if level < len(context):
                x = jnp.concatenate([x, context[level]], axis=-1)
            x = self.level(carry, x, step, features, f"down{level}", 3 if level else self.wide)
            skips.append(x)
            if self.space_down[level]:
                x = SpaceDown(self.edge, self.dtype, name=f"shrink{level}")(x)
            if self.time_down[level]:
                x = carry(time_down(features, self.edge, self.dtype, f"slow{level}"), x)
        x = self.level(carry, x, step, self.widths[-1], "middle0", blocks=1)
        x = carry(ResNet(self.widths[-1], 3, self.edge, self.dtype, name="middle1"), x, step)
        for level in reversed(range(1, len(self.widths))):
            skip, features = skips[level], self.widths[level - 1]
            x = jnp.concatenate([x[:, :, : skip.shape[2], : skip.shape[3]], skip], axis=-1)
            x = self.level(carry, x, step, features, f"up{level}")
            if self.space_down[level - 1]:
                x = SpaceUp(features, self.up, self.edge, self.dtype, name=f"grow{level}")(x)
            if self.time_down[level - 1]:
                x = carry(TimeUp(self.dtype, name=f"fast{level}"), x)
        x = norm("norm")(x[:, :, :height, :width])
        conv = CausalConv(
            self.channels * self.patch**2, (3, self.wide, self.wide), edge=self.edge, dtype=self.dtype, name="conv_out"
        )
        return unpatchify(carry(conv, x).astype(jnp.float32), patch), carry.state

    def level(self, carry, x, step, features, name, size=3, blocks=0):
        """ResNet blocks and attention; ``size`` is that of the first kernel."""
        for i in range(blocks or self.blocks):
            block = ResNet(features, 3 if i else size, self.edge, self.dtype, name=f"{name}_{i}")
            x = carry(block, x, step)
        return FrameAttention(self.dtype, name=f"{name}_attention")(x)

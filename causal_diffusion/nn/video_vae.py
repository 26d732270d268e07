"""The causal video VAE of Wan 2.1 at any size: a video of 1 + 4n frames <-> 1 + n latents of 8 x 8 pixels each.

::

    encoder   conv_in | stage 0: res res down | stage 1: res res down | ... res res | mid: res attention res | head
    decoder   conv_in | mid: res attention res | stage 0: res res res up | ...                res res res | head

    res       norm, SiLU, conv, norm, SiLU, conv, beside the input (or its projection to another width)
    down      every frame to half its height and width; where ``time_down`` says so, then pairs of frames to one
    up        where the mirrored stage halved time, each frame to two; then every frame to twice its height and width,
              and half as many channels
    head      norm, SiLU, conv

Convolutions are causal, norms see the channels of one position only, and attention stays inside a frame, in the middle
alone. So all that a piece of a clip needs of its past are the last frames that each convolution saw, and the first
frame, which is never paired, makes an image a video of one frame (Wan et al. 2025, arXiv 2503.20314).

Two things speed up learning, and are not in Wan 2.1. ``patch`` pixels along either side enter and leave as channels
(Wan 2.2), so that nothing is computed at the full size. ``shortcuts`` lead around every stage that changes the size,
without parameters (``mean_down``, ``copy_up``; Chen et al. 2024, arXiv 2410.10733, and Wan 2.2): an untrained network
then passes the means of patches on.

With ``time_kernel`` 1 nothing reaches across frames: a plain 2-D VAE of each frame. A decoder may be smaller than the
encoder: the fast one, distilled from a large one.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.autoencoder import Autoencoder, Encoded, Geometry, narrow
from causal_diffusion.nn.causal_conv import (
    Carry,
    CausalConv,
    ChannelNorm,
    FrameConv,
    TimeDownsample,
    TimeUpsample,
    enlarge,
)
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.nn.patches import patchify, unpatchify
from causal_diffusion.ranges import DEPTH, WIDTH, WIDTH_OR_NONE, Range, check_numbers


@dataclasses.dataclass(frozen=True)
class VideoVAEConfig:
    """Sizes; the defaults are Wan 2.1's."""

    channels: int = 3  # of the data
    base: int = 96  # width that the multipliers multiply
    decoder_base: int = 0  # the same of the decoder; 0: as base
    latent: int = 16  # channels of a latent
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # width of each stage over base; space is halved between stages
    blocks: int = 2  # residual blocks in each stage of the encoder
    decoder_blocks: int = 0  # the same of the decoder; 0: one more
    time_down: tuple[bool, ...] = (False, True, True)  # between which stages time is halved as well
    time_kernel: int = 3  # taps along time; 1: each frame by itself
    patch: int = 1  # pixels along height and width that enter and leave as channels
    shortcuts: bool = False  # around every stage that changes the size
    remat: bool = False  # whether the backward pass computes the inside of residual blocks again
    dtype: str = "auto"  # of convolutions: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        check_numbers(
            self, "vae.video", channels=WIDTH, base=WIDTH, decoder_base=WIDTH_OR_NONE, latent=WIDTH,
            multipliers=Range(1, 2**10), blocks=DEPTH, decoder_blocks=Range(0, 1_000), time_kernel=Range(1, 3),
            patch=Range(1, 2**10),
        )  # fmt: skip
        if not 1 <= len(self.multipliers) <= 10:
            raise ValueError(
                f"vae.video.multipliers is {self.multipliers}: one number for every stage, try vae.video.multipliers = "
                "(1, 2)"
            )
        if len(self.time_down) != len(self.multipliers) - 1:
            given = (*self.time_down, *(False,) * len(self.multipliers))[: len(self.multipliers) - 1]
            raise ValueError(
                f"vae.video.time_down is {self.time_down} and vae.video.multipliers is {self.multipliers}: one of True "
                f"and False between every two stages, {given} would do"
            )
        if self.time_kernel not in (1, 3):
            raise ValueError(f"vae.video.time_kernel is {self.time_kernel}; 3 taps or 1, 3 would do")
        if self.time_kernel == 1 and any(self.time_down):
            raise ValueError(
                f"vae.video.time_down is {self.time_down} and vae.video.time_kernel is 1: frames that do not see each "
                f"other stay as many, vae.video.time_down = {(False,) * len(self.time_down)} would do"
            )
        self._check_shortcuts()
        base, name = (self.decoder_base, "decoder_base") if self.decoder_base else (self.base, "base")
        if any(base * m % 2 for m in self.multipliers[1:]):
            raise ValueError(
                f"vae.video.{name} is {base} and vae.video.multipliers is {self.multipliers}: the decoder halves its "
                f"width with every upsampling, vae.video.{name} = {base + 1} would do"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"vae.video.dtype is {self.dtype!r}; one of auto, float32, bfloat16, 'auto' would do")

    def _check_shortcuts(self):
        """Channels are averaged or copied whole."""
        if not self.shortcuts:
            return
        down = (1, *self.multipliers)  # widths that shortcuts leave and reach, over the base
        up = (2 * self.multipliers[-1], *self.multipliers[::-1])  # and on the way back, over half of it
        places = [8 if time else 4 for time in self.time_down]
        uneven = [n * down[i] % down[i + 1] for i, n in enumerate(places)]
        uneven += [n * up[i + 1] % up[i] for i, n in enumerate(reversed(places))]
        if any(uneven):
            raise ValueError(
                f"vae.video.shortcuts is True and vae.video.multipliers is {self.multipliers}: channels are averaged "
                "or copied in equal groups, vae.video.shortcuts = False would do"
            )

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        time, space = 2 ** sum(self.time_down), self.patch * 2 ** len(self.time_down)
        return Geometry(time, time > 1, space, 2, self.channels, self.latent)

    @property
    def compute_dtype(self):
        """The dtype of convolutions on the backend at hand."""
        return compute_dtype(self.dtype)

    def conv(self, features: int, name: str, dtype=None) -> CausalConv:
        """A 3 x 3 convolution with the taps along time that the config asks for."""
        return CausalConv(features, (self.time_kernel, 3, 3), dtype=dtype or self.compute_dtype, name=name)

    def block(self, features: int, name: str) -> "ResBlock":
        """A residual block."""
        return (nn.remat(ResBlock) if self.remat else ResBlock)(self, features, name=name)


class ResBlock(nn.Module):
    """Two convolutions, each after norm and SiLU: [B, T, H, W, C] -> [B, T, H, W, features]."""

    config: VideoVAEConfig
    features: int

    @nn.compact
    def __call__(self, x, state=None):
        carry, h = Carry(state), x
        for i in (1, 2):
            h = nn.silu(ChannelNorm(name=f"norm{i}")(h))
            h = carry(self.config.conv(self.features, f"conv{i}"), h)
        if x.shape[-1] != self.features:
            x = FrameConv(self.features, (1, 1), dtype=self.config.compute_dtype, name="shortcut")(x)
        return x + h, carry.state


class FrameAttention(nn.Module):
    """Attention of one head among the positions of each frame, beside the input: [B, T, H, W, C] -> the same."""

    config: VideoVAEConfig

    @nn.compact
    def __call__(self, x):
        B, T, H, W, C = x.shape
        dtype = self.config.compute_dtype
        h = FrameConv(3 * C, (1, 1), dtype=dtype, name="qkv")(ChannelNorm(name="norm")(x))
        q, k, v = jnp.split(h.reshape(B * T, H * W, 3 * C), 3, axis=-1)
        scores = jnp.einsum("fqc,fkc->fqk", q * C**-0.5, k, preferred_element_type=jnp.float32)
        h = jnp.einsum("fqk,fkc->fqc", jax.nn.softmax(scores).astype(dtype), v).reshape(x.shape)
        return x + FrameConv(C, (1, 1), kernel_init=nn.initializers.zeros_init(), dtype=dtype, name="proj")(h)


class Down(nn.Module):
    """Half the height and width, and half the frames if ``time``: [B, T, H, W, C] -> [B, T', H / 2, W / 2, C]."""

    config: VideoVAEConfig
    time: bool

    @nn.compact
    def __call__(self, x, state=None):
        carry, dtype = Carry(state), self.config.compute_dtype
        x = FrameConv(x.shape[-1], stride=2, pads=((0, 1), (0, 1)), dtype=dtype, name="space")(x)
        if self.time:
            x = carry(TimeDownsample(dtype=dtype, name="time"), x)
        return x, carry.state


class Up(nn.Module):
    """Twice the frames if ``time``, then twice the height and width: [B, T, H, W, C] -> [B, T', 2 H, 2 W, C / 2]."""

    config: VideoVAEConfig
    time: bool

    @nn.compact
    def __call__(self, x, state=None):
        carry, dtype = Carry(state), self.config.compute_dtype
        if self.time:
            x = carry(TimeUpsample(dtype=dtype, name="time"), x)
        return FrameConv(x.shape[-1] // 2, dtype=dtype, name="space")(enlarge(x)), carry.state


def middle(config, carry, x):
    """Residual block, attention, residual block."""
    x = carry(config.block(x.shape[-1], "mid_0"), x)
    x = FrameAttention(config, name="attention")(x)
    return carry(config.block(x.shape[-1], "mid_1"), x)


def head(config, carry, x, features):
    """The last convolution, float32: latents and pixels are finer than bfloat16 is."""
    x = nn.silu(ChannelNorm(name="norm_out")(x))
    return carry(config.conv(features, "conv_out", jnp.float32), x)


class Encoder(nn.Module):
    """[B, T, H, W, C] -> [B, L, H / space, W / space, 2 Z]."""

    config: VideoVAEConfig

    @nn.compact
    def __call__(self, x, state=None):
        c, carry = self.config, Carry(state)
        x = carry(c.conv(c.base, "conv_in"), x)
        for i, multiplier in enumerate(c.multipliers):
            given = x
            for j in range(c.blocks):
                x = carry(c.block(c.base * multiplier, f"res_{i}_{j}"), x)
            if i < len(c.time_down):
                x = carry(Down(c, c.time_down[i], name=f"down_{i}"), x)
                if c.shortcuts:
                    x = x + mean_down(given, c.time_down[i], x.shape[-1], state is None)
        return head(c, carry, middle(c, carry, x), 2 * c.latent), carry.state


class Decoder(nn.Module):
    """[B, L, H / space, W / space, Z] -> [B, T, H, W, C]. Its stages are numbered in the order of their use."""

    config: VideoVAEConfig

    @nn.compact
    def __call__(self, z, state=None):
        c, carry = self.config, Carry(state)
        widths = [m * (c.decoder_base or c.base) for m in reversed(c.multipliers)]
        x = middle(c, carry, carry(c.conv(widths[0], "conv_in"), z))
        for i, width in enumerate(widths):
            given = x
            for j in range(c.decoder_blocks or c.blocks + 1):
                x = carry(c.block(width, f"res_{i}_{j}"), x)
            if i < len(c.time_down):
                x = carry(Up(c, c.time_down[-1 - i], name=f"up_{i}"), x)
                if c.shortcuts:
                    x = x + copy_up(given, c.time_down[-1 - i], x.shape[-1], state is None)
        return head(c, carry, x, c.channels * c.patch**2), carry.state


def mean_down(x, time: bool, features: int, start: bool):
    """Every 2 x 2 positions (of two frames, if ``time``) as channels, and means of these: [..., C] -> [..., features].

    The first frame of a clip, which has no partner, is its own. C times 4 or 8 is a multiple of ``features``.
    """
    if time and start:
        x = jnp.concatenate([x[:, :1], x], axis=1)
    B, T, H, W, C = x.shape
    t = 2 if time else 1
    x = patchify(x, (t, 2, 2)).reshape(B, T // t, H // 2, W // 2, 4 * t, C).swapaxes(-1, -2)
    return jnp.mean(x.reshape(*x.shape[:4], features, -1), axis=-1)


def copy_up(x, time: bool, features: int, start: bool):
    """The way back: every channel as often as its position has places, [..., C] -> [..., features]."""
    B, T, H, W, C = x.shape
    t = 2 if time else 1
    x = jnp.repeat(x, 4 * t * features // C, axis=-1).reshape(B, T, H, W, features, 4 * t).swapaxes(-1, -2)
    x = unpatchify(x.reshape(B, T, H, W, -1), (t, 2, 2))
    return x[:, 1:] if time and start else x


@jax.custom_jvp
def clipped(x):
    """x within [-1, 1]; its gradient is that of x, so that a pixel beyond can learn to come back."""
    return jnp.clip(x, -1.0, 1.0)


@clipped.defjvp
def _clipped_jvp(primals, tangents):
    return clipped(*primals), tangents[0]


class VideoVAE(Autoencoder):
    """Wan 2.1's VAE: see the module's docstring, and ``nn.autoencoder`` for the methods."""

    config: VideoVAEConfig

    encoder_modules = ("encoder", "quant_conv")
    encoder_end = ("quant_conv", "kernel")

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = FrameConv(2 * c.latent, (1, 1), bias_init=narrow)
        self.post_quant_conv = FrameConv(c.latent, (1, 1))

    def encode(self, x, state=None):
        """[B, T, H, W, C] in [-1, 1] -> (Encoded of [B, L, h, w, Z], state)."""
        x, state = self.encoder(patchify(x, (1, self.config.patch, self.config.patch)), state)
        return Encoded.gaussian(self.quant_conv(x)), state

    def decode(self, z, state=None):
        """[B, L, h, w, Z] -> ([B, T, H, W, C] in [-1, 1], state)."""
        x, state = self.decoder(self.post_quant_conv(z), state)
        return clipped(unpatchify(x, (1, self.config.patch, self.config.patch))), state

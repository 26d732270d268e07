"""A causal patch discriminator: real or made up, said of every patch of every group of frames.

PatchGAN (Isola et al. 2017, arXiv 1611.07004) with convolutions over time that see no later frame, factorised as in
R(2+1)D (Tran et al. 2018, arXiv 1711.11248). One level is::

    frames    4 x 4 convolution, stride 2, inside each frame       -> norm (but for the first) -> LeakyReLU 0.2
    time      3 taps, the level's stride in time                   -> norm                     -> LeakyReLU 0.2

and a 3 x 3 x 3 convolution after the last makes a logit per patch. A series has levels of the second line alone. Norms
are over channels, so that there is no BatchNorm to tie the samples of a batch, or the frames of a clip, to each other.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.errors import UserError
from causal_diffusion.nn.autoencoder import Geometry
from causal_diffusion.nn.causal_conv import Carry, CausalConv, ChannelNorm, FrameConv

MOST = 8  # times the width: channels of the widest level


class Discriminator(nn.Module):
    """Clips -> logits, the higher the more real.

    width: channels of the first level; each level has twice as many as the one before, at most eight times the width.
    time: stride in time of each level, so there are as many levels as entries.
    apart: whether the first frame of a clip is a group by itself, as an image is (``Geometry``).
    axes: spatial axes, 2 of a video and 0 of a series.
    """

    width: int = 64
    time: tuple[int, ...] = (2, 2, 1)
    apart: bool = True
    axes: int = 2
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, geometry: Geometry, width: int = 64, depth: int = 3, dtype=jnp.float32) -> "Discriminator":
        """One of ``depth`` levels for the clips of an autoencoder: it scores the groups that latents stand for."""
        time, left = [], geometry.time
        for level in range(depth):
            time.append(2 if left % 2 == 0 and level < depth - 1 else left)
            left //= time[-1]
        return cls(width, tuple(time), geometry.apart, geometry.axes, dtype)

    def __call__(self, x):
        """[B, T, H, W, C] -> float32 [B, T', H', W'], or [B, T, C] -> [B, T'].

        T is 1 + n s with the first frame apart, n s else, with s the product of ``time``; T' is n + 1, or n. H' and W'
        are H and W halved, rounded down, as often as there are levels.

        Raises:
            UserError: a frame count or shape that does not fit, or frames too small for the levels.
        """
        return self.score(x)[0]

    @nn.compact
    def score(self, x, state=None):
        """A clip or a piece of one, of whole groups: (logits, state), as in ``nn.causal_conv``."""
        self._check(x, state)
        carry, features = Carry(state), self.width
        for level, stride in enumerate(self.time):
            if self.axes:
                x = FrameConv(features, (4, 4), 2, ((1, 1), (1, 1)), dtype=self.dtype, name=f"frames_{level}")(x)
                x = jax.nn.leaky_relu(ChannelNorm(name=f"frames_norm_{level}")(x) if level else x, 0.2)
            x = carry(self._causal(features, 1, stride, f"time_{level}"), x)
            x = jax.nn.leaky_relu(ChannelNorm(name=f"time_norm_{level}")(x), 0.2)
            features = min(2 * features, MOST * self.width)
        return carry(self._causal(1, 3, 1, "out"), x)[..., 0].astype(jnp.float32), carry.state

    def _causal(self, features, space, stride, name):
        kernel = (max(3, stride + 1), *(space,) * self.axes)
        return CausalConv(features, kernel, stride, apart=self.apart, dtype=self.dtype, name=name)

    def _check(self, x, state):
        if not self.time or min(self.time) < 1 or self.width < 1 or self.axes not in (0, 2):
            raise UserError(
                f"a discriminator has width {self.width}, strides in time {self.time} and {self.axes} spatial axes: "
                "width 64, strides (2, 2, 1) and 2 axes, or 0 of a series, would do"
            )
        if x.ndim != 3 + self.axes:
            shape = "[B, T, H, W, C]" if self.axes else "[B, T, C]"
            raise UserError(f"a discriminator with {self.axes} spatial axes scores {shape}, not {x.shape}")
        clips = Geometry(math.prod(self.time), self.apart, 1, self.axes, x.shape[-1], 1)
        clips.latents(x.shape[1], start=state is None)
        smallest = 2 ** len(self.time)
        if self.axes and min(x.shape[2:4]) < smallest:
            raise UserError(
                f"frames of {x.shape[2]} x {x.shape[3]} pixels have no patch left after {len(self.time)} levels: "
                f"{smallest} x {smallest} pixels or more, or fewer levels, would do"
            )

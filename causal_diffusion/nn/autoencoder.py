"""What every autoencoder here has in common: what a latent stands for, and how it is made and undone.

An autoencoder is a Linen module with three methods, all of which take a clip or a piece of one::

    encode(x, state=None)  -> (Encoded, state)        x [B, T, *space, C]
    decode(z, state=None)  -> (x, state)              z [B, L, *space', Z]
    reconstruct(x, keys)   -> (Encoded, z, x')        what training looks at: z drawn from the posterior

``state=None`` is the start of a clip; a state's leaves lead with the batch, and its shapes never change after the first
piece (``nn.causal_conv``). Pieces are whole groups of frames. In which groups frames go, ``Geometry`` says.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.errors import UserError
from causal_diffusion.frames import PIXELS
from causal_diffusion.seeds import random_key

Array = Any


class Geometry(NamedTuple):
    """What one latent stands for.

    ::

        apart     0 | 1 2 3 4 | 5 6 7 8 | ...      frames: 1 + time n, the first by itself (an image is a clip)
        else      0 1 2 3 | 4 5 6 7 | ...          frames: time n
    """

    time: int  # frames per latent
    apart: bool  # whether the first frame has a latent of its own
    space: int  # pixels per latent along each spatial axis
    axes: int  # spatial axes: 0 of a series, 2 of a video
    channels: int  # of the data
    latent: int  # channels of a latent

    @property
    def pictures(self) -> bool:
        """Whether frames are pictures, whose values lie in [-1, 1]."""
        return self.axes == 2 and self.channels in PIXELS

    def latents(self, frames: int, start: bool = True) -> int:
        """How many latents a clip (or a later piece of one) of ``frames`` frames has. UserError: no whole number."""
        first = int(self.apart and start)
        if frames < max(first, 1) or (frames - first) % self.time:
            low = first + max(0, frames - first) // self.time * self.time
            near = [n for n in (low, low + self.time) if n > 0]
            rule = f"{first} + {self.time} n" if first else f"{self.time} n"
            raise UserError(
                f"{frames} frames are no whole number of latents: {'a clip' if start else 'a later piece'} has {rule}, "
                f"{' or '.join(map(str, near))} would do"
            )
        return first + (frames - first) // self.time

    def whole_latents(self, frames: Array) -> Array:
        """How many latents the first ``frames`` frames of a longer clip fill; works on arrays."""
        first = int(self.apart)
        return first + (frames - first) // self.time

    def frames(self, latents: int, start: bool = True) -> int:
        """How many frames ``latents`` latents stand for, at the start of a clip or later."""
        return self.time * latents - (self.time - 1 if self.apart and start and latents else 0)

    def latent_shape(self, shape: tuple[int, ...], start: bool = True) -> tuple[int, ...]:
        """[T, *space, C] of a clip, or of a later piece, -> [L, *space', Z]. UserError where it does not fit."""
        frames, *space, channels = shape
        if len(space) != self.axes:
            axes = "[frames, channels]" if not self.axes else "[frames, height, width, channels]"
            raise UserError(f"a clip has the shape {tuple(shape)}: it is {axes}")
        if channels != self.channels:
            raise UserError(f"a clip has {channels} channels: this autoencoder takes {self.channels}")
        for name, size in zip(("height", "width"), space, strict=False):
            if size % self.space or not size:
                low = size // self.space * self.space
                near = " or ".join(str(n) for n in (low, low + self.space) if n)
                raise UserError(f"the {name} is {size}: a multiple of {self.space}, {near} would do")
        return (self.latents(frames, start), *(size // self.space for size in space), self.latent)

    def frame_shape(self, latent: tuple[int, ...]) -> tuple[int, ...]:
        """[*space', Z] of a latent -> [*space, C] of a frame."""
        return (*(size * self.space for size in latent[:-1]), self.channels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoded:
    """What an encoder says of a clip.

    mean: [B, L, *space', Z], the latent itself where there is one only (quantised, or without noise).
    logvar: of a Gaussian posterior, of the same shape, within [-30, 20]; None: the latent is the mean.
    loss: scalar that quantisation adds to the objective; 0 without.
    codes: int32 [B, L, *space'], which entry of the codebook; None without.
    """

    mean: Array
    logvar: Array | None = None
    loss: Any = 0.0
    codes: Array | None = None

    @classmethod
    def gaussian(cls, moments) -> "Encoded":
        """From [..., 2 Z]: mean, then log variance."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, -30.0, 20.0))

    def sample(self, keys):
        """mean + exp(logvar / 2) eps (Kingma & Welling 2014, arXiv 1312.6114), or the mean.

        ``keys``: typed PRNG keys [B], one for each sample.
        """
        if self.logvar is None:
            return self.mean
        return self.mean + jnp.exp(0.5 * self.logvar) * normal(keys, self.mean.shape[1:])


class Autoencoder(nn.Module):
    """Base of all of them. ``encoder_end`` and ``decoder_end`` are the paths of the last kernels on either side, at
    which the gradients of two losses are weighed against each other (Esser et al. 2021, arXiv 2012.09841).
    ``encoder_modules``: the modules that make latents; a distilled decoder leaves them as they are."""

    encoder_modules = ("encoder",)
    encoder_end = ("encoder", "conv_out", "kernel")
    decoder_end = ("decoder", "conv_out", "kernel")

    def encode(self, x, state=None):
        """See the module's docstring."""
        raise NotImplementedError

    def decode(self, z, state=None):
        """See the module's docstring."""
        raise NotImplementedError

    def reconstruct(self, x, keys):
        """See the module's docstring. ``keys`` [B]: a sample's randomness depends on its own key only."""
        encoded, _ = self.encode(x)
        z = encoded.sample(keys)
        return encoded, z, self.decode(z)[0]

    def __call__(self, x):
        """Makes all parameters."""
        return self.reconstruct(x, jax.random.split(random_key(0), x.shape[0]))[2]


def narrow(key, shape, dtype=jnp.float32):
    """Initial bias of the moments of a Gaussian: log variance -6. From 0 a posterior starts as pure noise, and a
    decoder
    learns to ignore it before the encoder has said anything."""
    return jnp.where(jnp.arange(shape[-1], dtype=jnp.int32) < shape[-1] // 2, 0.0, -6.0).astype(dtype)


def normal(keys, shape):
    """Standard normal numbers [B, *shape], those of a sample from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


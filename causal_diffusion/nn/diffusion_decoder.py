"""CDT: a causal autoencoder whose decoder is a diffusion model (Yang et al. 2025, arXiv 2503.03708).

::

    encoder   causal 3-D convolutions: each stage a ResNet block, then space and time halved where the config says so |
              Linear, beside ResNet blocks on the way back to ``base`` channels and a Linear
    context   the same mirrored, from a latent to features of every size: those of the frames first
    unet      (noisy video, step, features) -> the video, see ``nn.cdt_unet``

The latent of a video is Gaussian, the encoder's mean and log variance. A video is decoded from the latent z by DDIM on
the cosine path of N steps, x_i = sqrt(abar_i) x0 + sqrt(1 - abar_i) eps for the published index i = 0 .. N - 1 (entry
i + 1 of ``diffusion.paths``). The network predicts x0. With S steps

    i_k = floor(k (N - 1) / (S - 1)), k = 0 .. S - 1;  N - 1 alone for S = 1                            (1)
    x   = gamma n,  n ~ N(0, I)                                              before step i_(S-1)        (2)
    x0  = unet(x, i_k / N, context(z))
    x  <- sqrt(abar_j) x0 + sqrt(1 - abar_j) (x - sqrt(abar_i) x0) / sqrt(1 - abar_i),  i = i_k, j = i_(k-1)   (3)

and after step i_0 the video is x0. So S = 1 is a single pass from noise.

Everything is causal, group by group: attention stays inside a frame and norms inside a position. A stream runs all
steps on a piece before it takes the next, and keeps a set of the convolutions' frames for every step. The noise of a
frame, equation (2), depends on the key and on how many frames came before it, and on nothing else: a clip decodes alike
whole and in pieces, alone and in a batch.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.solvers import SolverConfig, make
from causal_diffusion.nn.autoencoder import Autoencoder, Encoded, Geometry, narrow, normal
from causal_diffusion.nn.causal_conv import Carry
from causal_diffusion.nn.cdt_unet import ResNet, SpaceDown, SpaceUp, TimeUp, UNet, time_down
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.nn.patches import patchify
from causal_diffusion.ranges import BELOW_ONE, DEPTH, WEIGHT, WIDTH, Range, check_numbers
from causal_diffusion.seeds import random_key

DDIM = make(SolverConfig("ddim"))


@dataclasses.dataclass(frozen=True)
class CDTConfig:
    """Sizes. The defaults are the published base model, of 192,592,755 parameters; the small one, of 120,672,838, has
    base 64, finest 3, pad 'edge', space_down (True, True, True, False), and upsamples by transposed convolutions.
    """

    channels: int = 3  # of the data
    latent: int = 16  # channels of a latent
    base: int = 128  # width that the multipliers multiply, of the encoder and the context decoder
    unet: int = 64  # width that the U-Net's multipliers multiply
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # width of each stage over base
    unet_multipliers: tuple[int, ...] = ()  # of each level of the U-Net; (): 1, 2, ..., for two levels more than stages
    time_down: tuple[bool, ...] = (True, True)  # which of the last stages halve time
    space_down: tuple[bool, ...] = ()  # which of the last stages halve height and width; (): all but the first
    patch: int = 1  # pixels along height and width that enter and leave as channels; as published 1, 2 or more is fast
    blocks: int = 2  # ResNet blocks in each level of the U-Net
    finest: int = 16  # channels of the features that have the size of the frames
    wide: int = 7  # size in space of the first kernels and of the last
    up: int = 5  # size in space of the kernels after upsampling
    pad: str = "zeros"  # what stands outside a clip and its frames, or 'edge': copies of the nearest frame and pixel
    train_steps: int = 8192  # N
    train_from: float = 0.0  # training draws its step from this share of N on; near 1: for single-step decoding alone
    steps: int = 1  # S, passes of the U-Net that decode a video
    noise: float = 0.8  # gamma
    dtype: str = "auto"  # of convolutions: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        check_numbers(
            self, "vae.cdt", channels=WIDTH, latent=WIDTH, base=WIDTH, unet=WIDTH, multipliers=Range(1, 2**10),
            unet_multipliers=Range(1, 2**10), patch=Range(1, 2**10), blocks=DEPTH, finest=WIDTH, wide=Range(1, 255),
            up=Range(1, 255), train_steps=Range(2, 100_000), train_from=BELOW_ONE, steps=Range(1, 100_000),
            noise=WEIGHT,
        )  # fmt: skip
        if not 1 <= len(self.multipliers) <= 10:
            raise ValueError(
                f"vae.cdt.multipliers is {self.multipliers}: one number for every stage, try vae.cdt.multipliers = "
                "(1, 2)"
            )
        stages = len(self.multipliers)
        if self.unet_multipliers and len(self.unet_multipliers) < stages:
            raise ValueError(
                f"vae.cdt.unet_multipliers is {self.unet_multipliers} and vae.cdt.multipliers is {self.multipliers}: "
                f"at least one level for every stage, each >= 1, {tuple(range(1, stages + 1))} would do"
            )
        for name in ("time_down", "space_down"):
            given = getattr(self, name)
            if len(given) > stages:
                raise ValueError(
                    f"vae.cdt.{name} is {given} and vae.cdt.multipliers is {self.multipliers}: no more entries than "
                    f"stages, {given[-stages:]} would do"
                )
        for name, default in (("wide", 7), ("up", 5)):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"vae.cdt.{name} is {getattr(self, name)}; it is odd, {default} would do")
        if self.pad not in ("zeros", "edge"):
            raise ValueError(f"vae.cdt.pad is {self.pad!r}; it is zeros or edge, 'zeros' would do")
        if self.train_steps < max(2, self.steps):
            raise ValueError(
                f"vae.cdt.train_steps is {self.train_steps} and vae.cdt.steps is {self.steps}: at least as many and 2, "
                f"vae.cdt.train_steps = 8192 would do"
            )
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"vae.cdt.dtype is {self.dtype!r}; one of auto, float32, bfloat16, 'auto' would do")

    @property
    def halves(self) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """Which stages halve space, and which time."""
        stages = len(self.multipliers)
        space = self.space_down or (False, *(True,) * (stages - 1))
        return tuple((*(False,) * (stages - len(flags)), *map(bool, flags)) for flags in (space, self.time_down))

    @property
    def levels(self) -> tuple[tuple[int, bool, bool], ...]:
        """Of every level of the U-Net: its width, and whether it halves space, and time."""
        space, time = self.halves
        multipliers = self.unet_multipliers or tuple(range(1, len(space) + 3))
        further = len(multipliers) - len(space)
        space, time = ((*space, *(True,) * further), (*time, *(False,) * further))
        widths = tuple(self.unet * times for times in multipliers)
        return tuple(zip(widths, (*space[:-1], False), (*time[:-1], False), strict=True))

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        space, time = (2 ** sum(flags) for flags in self.halves)
        return Geometry(time, True, space * self.patch, 2, self.channels, self.latent)

    @property
    def process(self) -> Process:
        """The cosine path on which the U-Net predicts x0."""
        return Process(path="vp_cosine", predict="x0", steps=self.train_steps)

    @property
    def indices(self) -> tuple[int, ...]:
        """Equation (1), rising."""
        if self.steps == 1:
            return (self.train_steps - 1,)
        return tuple(k * (self.train_steps - 1) // (self.steps - 1) for k in range(self.steps))

    @property
    def compute_dtype(self):
        """The dtype of convolutions on the backend at hand."""
        return compute_dtype(self.dtype)

    @property
    def form(self) -> dict:
        """What all convolutions share."""
        return dict(edge=self.pad == "edge", dtype=self.compute_dtype)


class Compressor(nn.Module):
    """The encoder: video [B, T, H, W, C] -> (moments [B, L, h, w, 2 Z], state)."""

    config: CDTConfig

    @nn.compact
    def __call__(self, x, state=None):
        c, carry = self.config, Carry(state)
        x = patchify(x, (1, c.patch, c.patch))
        for i, (times, space, time) in enumerate(zip(c.multipliers, *c.halves, strict=True)):
            x = carry(ResNet(c.base * times, 3 if i else c.wide, **c.form, name=f"stage{i}"), x)
            if space:
                x = SpaceDown(**c.form, name=f"shrink{i}")(x)
            if time:
                x = carry(time_down(c.base * times, **c.form, name=f"slow{i}"), x)
        direct = nn.Dense(2 * c.latent, bias_init=narrow, name="direct")(x)
        for i, times in enumerate(reversed(c.multipliers[:-1])):
            x = carry(ResNet(c.base * times, **c.form, name=f"head{i}"), x)
        return nn.Dense(2 * c.latent, name="conv_out")(x) + direct, carry.state


class ContextDecoder(nn.Module):
    """Latents [B, L, h, w, Z] -> (features, state): one for each stage, at the size of the stage's input."""

    config: CDTConfig

    @nn.compact
    def __call__(self, z, state=None):
        c, carry = self.config, Carry(state)
        direct = nn.Dense(c.base * c.multipliers[-1], dtype=c.compute_dtype, name="direct")(z)
        x = nn.Dense(c.base * c.multipliers[0], dtype=c.compute_dtype, name="conv_in")(z)
        for i, times in enumerate(c.multipliers[1:]):
            x = carry(ResNet(c.base * times, **c.form, name=f"head{i}"), x)
        x, features = x + direct, []
        for i in reversed(range(len(c.multipliers))):
            space, time = (flags[i] for flags in c.halves)
            out = c.base * c.multipliers[i - 1] if i else c.finest
            x = carry(ResNet(out if i else x.shape[-1], **c.form, name=f"stage{i}"), x)
            if space:
                x = SpaceUp(out, c.up, **c.form, name=f"grow{i}")(x)
            elif not i:
                x = carry(ResNet(out, **c.form, name="finest"), x)
            if time:
                x = carry(TimeUp(c.compute_dtype, name=f"fast{i}"), x)
            features.append(x)
        return tuple(reversed(features)), carry.state


class CDT(Autoencoder):
    """The autoencoder; see the module's docstring.

    A stream's state of decoding holds the key's numbers ('key', [B, ...]), the frames decoded so far ('frame', int32
    [B]), the state of the features and one of the U-Net for every step. Samples share the key, so that each decodes as
    it would alone; whoever wants samples to differ in their noise gives a key for each.
    """

    config: CDTConfig

    encoder_end = ("encoder", "conv_out", "kernel")
    decoder_end = ("unet", "conv_out", "kernel")

    def setup(self):
        c = self.config
        self.encoder, self.context = Compressor(c), ContextDecoder(c)
        widths, space, time = zip(*c.levels, strict=True)
        self.unet = UNet(
            channels=c.channels,
            widths=widths,
            space_down=space,
            time_down=time,
            patch=c.patch,
            blocks=c.blocks,
            wide=c.wide,
            up=c.up,
            **c.form,
        )

    def encode(self, x, state=None):
        """A clip or a piece, [B, T, H, W, C] -> (Encoded, state). UserError: frames in no whole groups."""
        self.config.geometry.latents(x.shape[1], state is None)
        moments, state = self.encoder(x, state)
        return Encoded.gaussian(moments), state

    def decode(self, z, state=None, key=None):
        """Latents [B, L, h, w, Z] -> (video [B, T, H, W, C], state).

        key: of the noise at the start of a clip, one or [B]; None: key 0. Later pieces go on with the state's.
        """
        c = self.config
        past = self._start(z.shape[0], key) if state is None else state
        context, kept = self.context(z, None if state is None else state["context"])
        frames, height, width = context[0].shape[1:4]
        shape = (frames, height * c.patch, width * c.patch, c.channels)
        x = c.noise * frame_noise(past["key"], past["frame"], shape)
        new = {"key": past["key"], "frame": past["frame"] + x.shape[1], "context": kept, "steps": {}}

        for k in reversed(range(c.steps)):
            name = f"step{k}"

            def predict(x, t, name=name, index=c.indices[k]):
                given = None if state is None else state["steps"][name]
                x0, new["steps"][name] = self._predict(x, jnp.full(x.shape[0], index, jnp.int32), context, given)
                return x0

            here, next_one = self._time(c.indices[k]), self._time(c.indices[k - 1] if k else -1)
            _, x = DDIM.step((), c.process, predict, x, here, next_one, None)
        return x, new

    def reconstruct(self, x, keys):
        """For training: (Encoded, z, x0 as predicted from x at a random step of each sample, and z).

        The step is drawn uniformly from ``train_from`` N .. N - 1. keys [B]: of a sample's z, step and noise.
        """
        c, parts = self.config, jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        encoded, _ = self.encode(x)
        z = encoded.sample(parts[:, 0])
        context, _ = self.context(z)
        first = int(c.train_from * c.train_steps)
        index = jax.vmap(lambda key: jax.random.randint(key, (), first, c.train_steps))(parts[:, 1])
        noisy = c.process.corrupt(x, normal(parts[:, 2], x.shape[1:]), self._time(index))
        return encoded, z, self._predict(noisy, index, context, None)[0]

    def _predict(self, x, index, context, state):
        """The U-Net told the published index, int [B]."""
        return self.unet(x, state, index.astype(jnp.float32) / self.config.train_steps, context)

    def _time(self, index):
        """When an index, int [B] or one number, stands on the path: [B, 1] or [1, 1]. -1 is clean."""
        return (jnp.atleast_1d(jnp.asarray(index))[:, None] + 1) / np.float32(self.config.train_steps)

    def _start(self, batch, key):
        data = jax.random.key_data(random_key(0) if key is None else key)
        return {"key": jnp.broadcast_to(data, (batch, data.shape[-1])), "frame": jnp.zeros(batch, jnp.int32)}


def frame_noise(key_data, first, shape):
    """Standard normal noise [B, T, ...] for ``shape`` [T, ...]: of frame f by the key and f alone.

    key_data: numbers of a key for every sample, [B, ...]. first: int32 [B], the number of the first frame.
    """

    def of_frame(data, frame):
        return jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(data), frame), shape[1:])

    frames = first[:, None] + jnp.arange(shape[0], dtype=jnp.int32)
    return jax.vmap(jax.vmap(of_frame, in_axes=(None, 0)))(key_data, frames)

"""An autoencoder as its users hold it: sizes, shapes that are checked, pieces and whole clips, and how latents are
scaled.

    vae, params = ...                                        # load_vae(run), or interop.wan_vae.load(folder)
    latents = vae.encode(params, video)                      # the mean, [B, L, h, w, Z]; unscaled
    video = vae.decode(params, latents)

    state = None                                             # the same numbers, piece by piece, in constant memory
    for piece in pieces:                                     # 1, 4, 4, 4 ... frames where the first is apart
        latents, state = vae.encode_piece(params, piece, state)

A transformer is trained on latents that are about normal: ``normalise`` takes each channel to mean 0 and deviation 1,
as measured over a data set and kept with the weights.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.frames import as_floats, take_frames
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.nn.autoencoder import Autoencoder, Encoded, Geometry
from causal_diffusion.nn.causal_tokenizer import CausalTokenizer, TokenizerConfig
from causal_diffusion.nn.diffusion_decoder import CDT, CDTConfig
from causal_diffusion.nn.motion_vae import MotionVAE, MotionVAEConfig
from causal_diffusion.nn.video_vae import VideoVAE, VideoVAEConfig

Array = Any

FORMS = {"motion": MotionVAE, "video": VideoVAE, "tokenizer": CausalTokenizer, "cdt": CDT}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Which autoencoder, and its sizes. Only the section that ``form`` names counts."""

    form: str = "none"  # 'none', or a key of FORMS
    checkpoint: str = ""  # where a transformer's latents come from: the workdir of the run that trained it
    motion: MotionVAEConfig = MotionVAEConfig()
    video: VideoVAEConfig = VideoVAEConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    cdt: CDTConfig = CDTConfig()

    def __post_init__(self):
        if self.form not in ("none", *FORMS):
            raise ValueError(f"vae.form is {self.form!r}; it is one of none, {', '.join(FORMS)}")

    @property
    def sizes(self):
        """The section that counts."""
        return getattr(self, self.form)

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        return self.sizes.geometry


@dataclasses.dataclass(frozen=True)
class VAE:
    """An autoencoder without its parameters, and the statistics of its latents.

    config: sizes. mean, std: of each latent channel over a data set; (): not measured, latents are left as they are.
    """

    config: VAEConfig
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        if self.config.form == "none":
            raise ValueError("vae.form is 'none': vae.form = 'video' would do")
        for name in ("mean", "std"):  # hashable, whatever they came as
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
            if len(getattr(self, name)) not in (0, self.geometry.latent) or len(self.mean) != len(self.std):
                raise ValueError(
                    f"latents have {self.geometry.latent} channels, their mean {len(self.mean)} numbers and their "
                    f"deviation {len(self.std)}: as many each, or none, would do"
                )

    @property
    def network(self) -> Autoencoder:
        """The Linen module."""
        return FORMS[self.config.form](self.config.sizes)

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        return self.config.geometry

    @under_own_settings
    def init(self, key):
        """Fresh parameters, float32."""
        return _init(self, key)

    @under_own_settings
    def encode(self, params, video, piece: int = 0):
        """The latents of whole clips, [B, T, *space, C] -> mean [B, L, *space', Z] float32, before ``normalise``.

        Args:
            params: of the network.
            video: see ``causal_diffusion.frames``.
            piece: latents made at a time, in constant memory; 0: all at once. The same numbers either way.

        Raises:
            UserError: a frame count, size or channel count that does not fit, or values that are refused.
        """
        video = self.checked(video)
        if not piece:
            return _encode(self, params, video, None)[0].mean
        out, state, at = [], None, 0
        for take in self._pieces(self.geometry.latents(video.shape[1]), piece):
            frames = self.geometry.frames(take, start=not at)
            encoded, state = _encode(self, params, video[:, at : at + frames], state)
            out.append(encoded.mean)
            at += frames
        return jnp.concatenate(out, axis=1)

    @under_own_settings
    def decode(self, params, latents, piece: int = 0):
        """The clips of latents [B, L, *space', Z] -> float32 [B, T, *space, C]; ``piece`` as for ``encode``."""
        if not piece:
            return self.decode_piece(params, latents)[0]
        out, state, at = [], None, 0
        for take in self._pieces(latents.shape[1], piece):
            video, state = self.decode_piece(params, latents[:, at : at + take], state)
            out.append(video)
            at += take
        return jnp.concatenate(out, axis=1)

    @under_own_settings
    def encode_piece(self, params, video, state=None):
        """One piece of a clip, whole groups of frames: (mean [B, L, *space', Z], state). ``state`` None: the first."""
        encoded, state = _encode(self, params, self.checked(video, start=state is None), state)
        return encoded.mean, state

    @under_own_settings
    def decode_piece(self, params, latents, state=None):
        """One piece of a clip: (video [B, T, *space, C], state). ``state`` None: the first one."""
        g = self.geometry
        if np.ndim(latents) != 3 + g.axes or np.shape(latents)[-1] != g.latent or not all(np.shape(latents)[:2]):
            axes = "height, width, " if g.axes else ""
            raise UserError(f"latents have the shape {np.shape(latents)}: they are [clips, latents, {axes}{g.latent}]")
        return _decode(self, params, latents, state)

    @under_own_settings
    def posterior(self, params, video) -> Encoded:
        """All that the encoder says of whole clips."""
        return _encode(self, params, self.checked(video), None)[0]

    def normalise(self, latents):
        """Each channel to mean 0 and deviation 1."""
        return (latents - np.float32(self.mean)) / np.float32(self.std) if self.mean else latents

    def denormalise(self, latents):
        """The inverse of ``normalise``."""
        return latents * np.float32(self.std) + np.float32(self.mean) if self.mean else latents

    def checked(self, video, start: bool = True):
        """Clips, or pieces of them, as float32; UserError where they cannot be encoded."""
        shape, g = np.shape(video), self.geometry
        if len(shape) != 3 + g.axes or not shape[0]:
            axes = "height, width, " if g.axes else ""
            raise UserError(f"clips have the shape {shape}: they are [clips, frames, {axes}{g.channels}]")
        g.latent_shape(shape[1:], start)
        if isinstance(video, jax.core.Tracer):
            return as_floats(video)
        taken = take_frames("video", video, pictures=g.pictures)
        return as_floats(video) if isinstance(video, jax.Array) else taken  # what is on devices stays there

    def _pieces(self, latents, piece):
        """The first latent alone where it is apart, then ``piece`` at a time."""
        if piece < 0:
            raise UserError(f"piece is {piece}: at least 1 latent is made at a time, or 0 for all at once")
        first = 1 if self.geometry.apart else 0
        rest = latents - first
        return [n for n in (first, *(min(piece, rest - at) for at in range(0, rest, piece))) if n]


class Codec(NamedTuple):
    """An autoencoder with its parameters, between data and the latents that a transformer works on (normalised)."""

    vae: VAE
    params: Any

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        return self.vae.geometry

    def encode(self, video):
        """Whole clips [B, T, *space, C] -> latents [B, L, *space', Z]; errors as ``VAE.encode``."""
        return self.vae.normalise(self.vae.encode(self.params, video))

    def decode(self, latents):
        """Latents of whole clips -> [B, T, *space, C]."""
        return self.vae.decode(self.params, self.vae.denormalise(latents))

    def decode_piece(self, latents, state=None):
        """Latents of one piece -> (its frames, state)."""
        return self.vae.decode_piece(self.params, self.vae.denormalise(latents), state)


@functools.partial(jax.jit, static_argnums=0)  # in one program: layer by layer it takes several times as long
def _init(vae, key):
    g = vae.geometry
    x = jnp.zeros((1, g.frames(2), *(2 * g.space,) * g.axes, g.channels), jnp.float32)
    return vae.network.init(key, x)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(vae, params, video, state):
    return vae.network.apply({"params": params}, video, state, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae, params, latents, state):
    video, state = vae.network.apply({"params": params}, latents, state, method="decode")
    return video.astype(jnp.float32), state

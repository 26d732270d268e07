"""Phenaki's C-ViViT (Villegas et al. 2022, arXiv 2210.02399): a video of 1 + n pt frames <-> 1 + n latents.

::

    encoder   patches | spatial transformer | temporal transformer | head | Gaussian, or quantised
    decoder   embed | temporal transformer | spatial transformer | pixels

    patches   p x p x C numbers of the first frame, pt x p x p x C of every later group of pt frames: Linear and norm,
              of each kind its own. (No norm before it, as ports have: it would hide the brightness and the contrast
              of every patch from an autoencoder.) Pixels likewise: a Linear of each kind
    spatial   full attention inside a frame; a small network of the offset between two cells biases it
    temporal  attention of every cell to its own past; -slope times the distance biases it (ALiBi)
    layer     (temporal: + depth-wise causal 3 x 3 x 3 convolution) + attention + gated feed-forward

Attention compares directions: queries and keys have length 1, times a learned scale per channel and 8. No layer knows
where a token stands but relative to others, so frames may be of any size that the patch divides, and streams of any
length.

The published network sees the whole past, whose keys and values grow without bound in a stream. Here an attention sees
``window`` latents, the present one included, in whole clips and streams alike. On clips of at most ``window`` latents
that is the published network; in a stream each layer keeps the keys and values of the window - 1 latents before a
piece, and of the convolution two frames, so that memory is constant and pieces equal the whole.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.nn import quantise
from causal_diffusion.nn.autoencoder import Autoencoder, Encoded, Geometry, narrow
from causal_diffusion.nn.causal_conv import Carry, CausalConv
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.nn.patches import patchify, unpatchify
from causal_diffusion.ranges import DEPTH, WIDTH, Range, check_numbers


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Sizes."""

    channels: int = 3  # of the data
    latent: int = 16  # channels of a latent, quantised or not
    width: int = 512
    depth: int = 4  # spatial layers and as many temporal ones, in the encoder and in the decoder
    heads: int = 8
    patch: tuple[int, int, int] = (2, 8, 8)  # frames, then height and width in pixels, of one latent
    size: tuple[int, int] = (64, 64)  # of the frames it is trained on, in pixels; others work too
    window: int = 8  # latents along time that an attention sees, the present one included
    quantise: str = "none"  # 'none': Gaussian latents; 'vq', 'lfq' or 'fsq', see nn.quantise
    codes: int = 8192  # of 'vq', and of 'lfq', which has 2^latent
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)  # of 'fsq', one entry per channel of a latent
    dtype: str = "auto"  # of matmuls: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        check_numbers(
            self, "vae.tokenizer", channels=WIDTH, latent=WIDTH, width=WIDTH, depth=DEPTH, heads=WIDTH,
            patch=Range(1, 2**10), size=Range(1, 2**14), window=Range(1, 2**16), codes=Range(1, 2**30),
            levels=Range(2, 2**16),
        )  # fmt: skip
        if self.width % self.heads:
            raise ValueError(
                f"vae.tokenizer.width is {self.width} and vae.tokenizer.heads is {self.heads}: all of one width, "
                f"vae.tokenizer.width = {self.heads * max(1, round(self.width / self.heads))} would do"
            )
        if len(self.patch) != 3 or self.patch[1] != self.patch[2]:
            raise ValueError(
                f"vae.tokenizer.patch is {self.patch}: frames, height and width, the last two equal, (2, 8, 8) would do"
            )
        if len(self.size) != 2 or any(n % self.patch[1] for n in self.size):
            fits = tuple(self.patch[1] * max(1, round(n / self.patch[1])) for n in self.size)
            raise ValueError(
                f"vae.tokenizer.size is {self.size} and vae.tokenizer.patch is {self.patch}: height and width in whole "
                f"patches, vae.tokenizer.size = {fits} would do"
            )
        quantise.check("vae.tokenizer", self.quantise, self.latent, self.codes, self.levels)
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"vae.tokenizer.dtype is {self.dtype!r}; one of auto, float32, bfloat16, 'auto' would do")

    @property
    def geometry(self) -> Geometry:
        """What a latent stands for."""
        return Geometry(self.patch[0], True, self.patch[1], 2, self.channels, self.latent)

    @property
    def compute_dtype(self):
        """The dtype of matmuls on the backend at hand."""
        return compute_dtype(self.dtype)

    def linear(self, features: int, name: str, bias: bool = True, dtype=None, **inits) -> nn.Dense:
        """A Linear layer."""
        return nn.Dense(features, use_bias=bias, dtype=dtype or self.compute_dtype, name=name, **inits)


def layer_norm(name: str, bias: bool = False) -> nn.LayerNorm:
    """Over channels, statistics in float32."""
    return nn.LayerNorm(epsilon=1e-5, use_bias=bias, use_fast_variance=False, dtype=jnp.float32, name=name)


def slopes(heads: int) -> np.ndarray:
    """ALiBi's slope of each head, 2^(-8 i / heads) for i = 1..heads (Press et al. 2021, arXiv 2108.12409)."""
    return 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)


class RelativeBias(nn.Module):
    """Continuous relative position bias (Liu et al. 2021, arXiv 2111.09883): a network of sign(d) log(1 + |d|), the
    offset d between two cells along height and width, gives what is added to their score in each head."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, h: int, w: int):
        """-> float32 [heads, h w, h w]; the network is asked once for every offset, not for every pair."""
        c = self.config
        d = np.stack(np.meshgrid(np.arange(1 - h, h), np.arange(1 - w, w), indexing="ij"), axis=-1).reshape(-1, 2)
        bias = jnp.asarray(np.sign(d) * np.log1p(np.abs(d)), jnp.float32)
        for i in range(2):
            bias = nn.leaky_relu(c.linear(c.width, f"hidden{i}", dtype=jnp.float32)(bias), 0.1)
        bias = c.linear(c.heads, "out", dtype=jnp.float32)(bias)
        y, x = np.divmod(np.arange(h * w), w)
        offset = (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)
        return jnp.moveaxis(bias[offset], -1, 0)


class CosineAttention(nn.Module):
    """Projections of both attentions: queries and keys of length 1, times a learned scale per channel, and 8."""

    config: TokenizerConfig

    def setup(self):
        c = self.config
        self.norm = layer_norm(None)
        self.q, self.kv = c.linear(c.width, None, bias=False), c.linear(2 * c.width, None, bias=False)
        self.out = c.linear(c.width, None, bias=False)
        ones, width = nn.initializers.ones_init(), (c.width // c.heads,)
        self.q_scale, self.k_scale = self.param("q_scale", ones, width), self.param("k_scale", ones, width)

    def project(self, x):
        """[..., D] -> queries, keys, values [..., H, K]."""
        heads = (*x.shape[:-1], self.config.heads, -1)
        x = self.norm(x)
        k, v = jnp.split(self.kv(x), 2, axis=-1)
        q, k, v = (part.reshape(heads) for part in (self.q(x), k, v))
        return unit(q) * (8.0 * self.q_scale).astype(q.dtype), unit(k) * self.k_scale.astype(k.dtype), v


def unit(x):
    """x / |x| over the last axis, in float32; zero stays."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.sum(y * y, axis=-1, keepdims=True) + 1e-12)).astype(x.dtype)


class SpaceAttention(CosineAttention):
    """Every cell sees all cells of its frame."""

    def __call__(self, x, bias):
        """x [B, L, h, w, D], bias [H, N, N] with N = h w -> [B, L, h, w, D]."""
        B, L, h, w, D = x.shape
        q, k, v = self.project(x.reshape(B, L, h * w, D))
        score = jnp.einsum("blqhk,blshk->blhqs", q, k, preferred_element_type=jnp.float32) + bias
        weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("blhqs,blshk->blqhk", weight, v).reshape(x.shape))


class TimeAttention(CosineAttention):
    """Every cell sees itself in the last ``window`` latents, the present one included."""

    def __call__(self, x, state, seen):
        """x [B, L, h, w, D] -> (the same, state).

        state: keys and values [B, window - 1, h, w, H, K] of the latents before, or None.
        seen: int32 [B], how many of those were there; the others came before the clip.
        """
        L, window = x.shape[1], self.config.window
        q, k, v = self.project(x)
        if state is None:
            kept, past = [jnp.zeros((k.shape[0], window - 1, *k.shape[2:]), k.dtype)] * 2, 0
            state = tuple(jnp.concatenate([old, new], axis=1)[:, L:] for old, new in zip(kept, (k, v), strict=True))
        else:
            past = window - 1
            k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(state, (k, v), strict=True))
            state = k[:, L:], v[:, L:]
        distance = past + np.arange(L)[:, None] - np.arange(past + L)
        visible = (distance >= 0) & (distance < window)
        if past:
            visible = visible & (np.arange(past + L) >= past - seen[:, None])[:, None, None, None, None]
        bias = -slopes(self.config.heads)[:, None, None] * distance
        score = jnp.einsum("bqyxhk,bsyxhk->byxhqs", q, k, preferred_element_type=jnp.float32)
        score = jnp.where(visible, score + bias.astype(np.float32), -jnp.inf)
        weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("byxhqs,bsyxhk->bqyxhk", weight, v).reshape(x.shape)), state


class FeedForward(nn.Module):
    """Norm, then a GELU-gated pair of Linear layers of 8/3 the width (Shazeer 2020, arXiv 2002.05202)."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        h, gate = jnp.split(c.linear(2 * (8 * c.width // 3), "up", bias=False)(layer_norm("norm")(x)), 2, axis=-1)
        return c.linear(c.width, "down", bias=False)(h * nn.gelu(gate))


class SpaceTransformer(nn.Module):
    """[B, L, h, w, D] -> the same; no frame sees another."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        bias = RelativeBias(c, name="bias")(*x.shape[2:4])
        for i in range(c.depth):
            x = x + SpaceAttention(c, name=f"attention{i}")(x, bias)
            x = x + FeedForward(c, name=f"mlp{i}")(x)
        return layer_norm("norm")(x)


class TimeTransformer(nn.Module):
    """[B, L, h, w, D] -> (the same, state); no latent sees a later one."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x, state=None):
        c, carry = self.config, Carry(state)
        seen = jnp.zeros(x.shape[0], jnp.int32) if state is None else state["seen"]
        for i in range(c.depth):
            conv = CausalConv(c.width, (3, 3, 3), groups=c.width, dtype=c.compute_dtype, name=f"conv{i}")
            x = x + carry(conv, x)
            x = x + carry(TimeAttention(c, name=f"attention{i}"), x, seen)
            x = x + FeedForward(c, name=f"mlp{i}")(x)
        seen = jnp.minimum(seen + x.shape[1], c.window - 1)
        return layer_norm("norm")(x), carry.state | {"seen": seen}


class Encoder(nn.Module):
    """Video [B, T, H, W, C] -> ([B, L, h, w, moments or latent], state)."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, x, state=None):
        c, first = self.config, int(state is None)
        parts = [("first", (1, *c.patch[1:]), x[:, :first]), ("rest", c.patch, x[:, first:])]
        tokens = []
        for name, patch, part in parts[1 - first :]:
            part = c.linear(c.width, f"{name}_embed")(patchify(part, patch))
            tokens.append(layer_norm(f"{name}_norm", bias=True)(part))
        h = SpaceTransformer(c, name="space")(jnp.concatenate(tokens, axis=1).astype(c.compute_dtype))
        h, state = TimeTransformer(c, name="time")(h, state)
        if c.quantise == "none":
            return c.linear(2 * c.latent, "head", dtype=jnp.float32, bias_init=narrow)(h), state
        return c.linear(c.latent, "head", dtype=jnp.float32)(h), state


class Decoder(nn.Module):
    """Latents [B, L, h, w, Z] -> (video [B, T, H, W, C], state)."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, z, state=None):
        c, first = self.config, int(state is None)
        h, kept = TimeTransformer(c, name="time")(c.linear(c.width, "embed")(z), state)
        h = SpaceTransformer(c, name="space")(h)
        parts = [("first", (1, *c.patch[1:]), h[:, :first]), ("rest", c.patch, h[:, first:])]
        video = [
            unpatchify(c.linear(int(np.prod(patch)) * c.channels, f"{name}_pixels", dtype=jnp.float32)(part), patch)
            for name, patch, part in parts[1 - first :]
        ]
        return jnp.concatenate(video, axis=1), kept


class CausalTokenizer(Autoencoder):
    """The autoencoder; see the module's docstring. Quantised latents are vectors; ``Encoded.codes`` has their numbers.

    The decoder's end is the pixels of later groups: a clip of one frame has no gradient there.
    """

    config: TokenizerConfig

    encoder_modules = ("encoder", "quantiser")
    encoder_end = ("encoder", "head", "kernel")
    decoder_end = ("decoder", "rest_pixels", "kernel")

    def setup(self):
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        if c.quantise != "none":
            self.quantiser = quantise.Quantiser(c.quantise, c.latent, c.codes, c.levels)

    def encode(self, x, state=None):
        """A clip or a piece, [B, T, H, W, C] -> (Encoded, state). UserError: frames in no whole groups."""
        self.config.geometry.latents(x.shape[1], state is None)
        moments, state = self.encoder(x, state)
        if self.config.quantise == "none":
            return Encoded.gaussian(moments), state
        z, codes, loss = self.quantiser(moments)
        return Encoded(z, loss=loss, codes=codes), state

    def decode(self, z, state=None):
        """Latents [B, L, h, w, Z] -> (video [B, T, H, W, C], state)."""
        return self.decoder(z, state)

    def lookup(self, codes):
        """The latents of codes, int32 [B, L, h, w] -> [B, L, h, w, Z]. UserError: latents are not quantised."""
        if self.config.quantise == "none":
            raise UserError("vae.tokenizer.quantise is 'none': latents have no codes, 'fsq' would do")
        return self.quantiser.vectors(codes)

"""Motions and captions in one space, motions part by part of the body: what judges, and what latents are aligned with.

A contrastive model in the manner of CLIP (Radford et al. 2021, arXiv 2103.00020) and TMR (Petrovich, Black & Varol
2023, arXiv 2305.00976), with the motion cut into parts of the body as CMDM's Part-TMR does (arXiv 2602.22594). Of C
numbers per frame, P parts have some each. With W the width, E the width of the space, ``k`` taps along time::

    part p    conv(its numbers -> W, k3), ReLU                  a convolution of its own
              n x [ conv(W -> W, k4, stride 2), residual blocks ], norm, linear(W -> E)       shared by all parts
    features  f [P, B, T / 2^n, E]
    motion    mean of f over parts and frames, linear(E -> E), to unit length

    caption   linear or lookup -> W, plus a learned position, one transformer layer, norm, mean over the words,
              linear(W -> E), to unit length

All convolutions are causal: feature i sees no frame after time i + time - 1, so features stand to a stream as the
latents of a causal autoencoder do, and a clip may be padded at its end. A fit of motion a and caption b is
a . b / temperature, with a learned temperature.

The residual blocks are those of ``motion_vae``. Of a clip of ``length`` frames length // time features count.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.attention import CrossAttention, dense
from causal_diffusion.nn.block import norm
from causal_diffusion.nn.causal_conv import CausalConv
from causal_diffusion.nn.dtypes import compute_dtype
from causal_diffusion.nn.motion_vae import DILATED, Residual
from causal_diffusion.ranges import WIDTH, WIDTH_OR_NONE, Range, check_numbers

TEMPERATURE = 0.1  # at first
COLDEST, HOTTEST = 0.01, 1.0  # what is learned stays between them


@dataclasses.dataclass(frozen=True)
class MotionTextConfig:
    """Sizes; the defaults are near CMDM's Part-TMR. Motions are [B, T, channels], T a multiple of ``time``."""

    channels: int = 263  # numbers per frame
    parts: tuple[tuple[int, ...], ...] = ()  # which of them each part of the body has; none: one part has them all
    width: int = 512  # W
    depth: int = 2  # residual blocks per stage, of dilations 3^(depth - 1) ... 1
    latent: int = 256  # E, width of features and embeddings
    time: int = 4  # frames per feature, a power of 2
    text: int = 0  # width of frozen condition tokens; 0: captions come as ids of words
    vocabulary: int = 0  # ids of words, the null id 0 included; 0: captions come as tokens, or there are none
    tokens: int = 32  # most words of a caption
    heads: int = 4  # of the layer over words
    dtype: str = "auto"  # of matmuls: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        check_numbers(
            self, "motion_text", channels=WIDTH, parts=WIDTH_OR_NONE, width=WIDTH, depth=DILATED, latent=WIDTH,
            time=Range(1, 2**10), text=WIDTH_OR_NONE, vocabulary=Range(0, 10_000_000), tokens=Range(1, 4_096),
            heads=WIDTH,
        )  # fmt: skip
        if self.time & (self.time - 1):
            raise ValueError(f"motion_text.time is {self.time}; a power of 2, such as 4, would do")
        if self.width % self.heads:
            raise ValueError(f"motion_text.heads is {self.heads} and the width {self.width}: heads = 1 would do")
        if self.text and self.vocabulary:
            raise ValueError(f"motion_text.text is {self.text} and vocabulary {self.vocabulary}; text = 0 would do")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"motion_text.dtype is {self.dtype!r}; it is one of auto, float32, bfloat16")
        for i, part in enumerate(self.parts):
            if not part or max(part) >= self.channels:
                raise ValueError(f"motion_text.parts[{i}] is {tuple(part)}; numbers from 0 to {self.channels - 1} do")

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each part."""
        return self.parts or (tuple(range(self.channels)),)

    @property
    def compute_dtype(self):
        """The dtype of matmuls on the backend at hand."""
        return compute_dtype(self.dtype)


class MotionEncoder(nn.Module):
    """[B, T, C] -> features, float32 [P, B, T / time, E]."""

    config: MotionTextConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        B, T, C = x.shape
        if C != c.channels or T % c.time or not T:
            raise ValueError(f"a motion is {x.shape}; [B, T, {c.channels}] with T a multiple of {c.time} would do")
        parts = []
        for i, part in enumerate(c.groups):
            conv = CausalConv(c.width, (3,), dtype=c.compute_dtype, name=f"part_{i}")
            parts.append(conv(x[..., jnp.array(part)])[0])
        h = nn.relu(jnp.concatenate(parts))  # [P B, T, W]
        for i in range(c.time.bit_length() - 1):
            h, _ = CausalConv(c.width, (4,), stride=2, dtype=c.compute_dtype, name=f"down_{i}")(h)
            for j in range(c.depth):
                h, _ = Residual(3 ** (c.depth - 1 - j), c.compute_dtype, name=f"block_{i}_{j}")(h)
        h = dense(c.latent, c.compute_dtype, name="out")(norm(h).astype(c.compute_dtype))
        return h.astype(jnp.float32).reshape(len(c.groups), B, T // c.time, c.latent)


class TextEncoder(nn.Module):
    """Ids [N, M] or tokens [N, M, text], mask bool [N, M] -> float32 [N, E]."""

    config: MotionTextConfig

    @nn.compact
    def __call__(self, tokens, mask):
        c, dtype, small = self.config, self.config.compute_dtype, nn.initializers.normal(0.02)
        M = tokens.shape[1]
        if M > c.tokens:
            raise ValueError(f"a caption has {M} words; at most motion_text.tokens, {c.tokens}, would do")
        if c.vocabulary:
            x = self.param("words", small, (c.vocabulary, c.width), jnp.float32)[tokens]
        else:
            x = dense(c.width, dtype, name="tokens")(tokens).astype(jnp.float32)
        x = x + self.param("position", small, (c.tokens, c.width), jnp.float32)[:M]
        mask = jnp.ones((1, M), bool) if mask is None else mask.astype(bool)
        mask = mask | ~jnp.any(mask, axis=-1, keepdims=True)  # of a caption without words all count: the null caption
        attention = CrossAttention(c.heads, c.width, "none", dtype, name="attention")
        h = norm(x).astype(dtype)[:, None]
        x = x + attention(h, attention.keys_values(h), mask[:, None])[:, 0].astype(jnp.float32)
        h = nn.gelu(dense(2 * c.width, dtype, name="mlp_in")(norm(x).astype(dtype)), approximate=True)
        x = norm(x + dense(c.width, dtype, name="mlp_out")(h).astype(jnp.float32))
        mean = jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=1) / jnp.sum(mask, axis=1, keepdims=True)
        return dense(c.latent, dtype, name="out")(mean.astype(dtype)).astype(jnp.float32)


class MotionText(nn.Module):
    """See the module's docstring."""

    config: MotionTextConfig

    def setup(self):
        c = self.config
        self.motion_encoder = MotionEncoder(c)
        self.projection = dense(c.latent, c.compute_dtype)
        if c.text or c.vocabulary:
            self.text_encoder = TextEncoder(c)
            self.log_temperature = self.param(
                "log_temperature", nn.initializers.constant(jnp.log(TEMPERATURE)), (), jnp.float32
            )

    def motion(self, x, length=None):
        """Motions, and what stands behind them by part and time.

        Args:
            x: [B, T, channels], normalised.
            length: int [B], frames that are the clip's own; the others are padding. At least ``time``. None: all are.

        Returns:
            (embedding float32 [B, E] of unit length, features float32 [P, B, T / time, E]).
        """
        features = self.motion_encoder(x)
        L = features.shape[2]
        count = jnp.full(x.shape[:1], L, jnp.int32) if length is None else jnp.clip(length // self.config.time, 1, L)
        own = (jnp.arange(L, dtype=jnp.int32) < count[:, None])[..., None]
        mean = jnp.sum(jnp.where(own, jnp.mean(features, axis=0), 0.0), axis=1) / count[:, None]
        return _unit(self.projection(mean.astype(self.config.compute_dtype))), features

    def text(self, tokens, mask=None):
        """Captions: ids int [N, M], or frozen tokens [N, M, text], mask bool [N, M] (None: all count) -> [N, E].

        Float32, of unit length. An id beyond the vocabulary is the caller's mistake, which is not seen here.
        """
        c = self.config
        if not (c.text or c.vocabulary):
            raise ValueError("motion_text.text and motion_text.vocabulary are 0: it takes no captions; one would do")
        ids = jnp.issubdtype(tokens.dtype, jnp.integer)
        if ids != bool(c.vocabulary) or tokens.ndim != (2 if ids else 3):
            wanted = "ids [N, M]" if c.vocabulary else f"tokens [N, M, {c.text}]"
            raise ValueError(f"captions are {tokens.dtype} {tokens.shape}; {wanted} would do")
        return _unit(self.text_encoder(tokens, mask))

    def temperature(self):
        """What similarities are divided by: a scalar."""
        return jnp.clip(jnp.exp(self.log_temperature), COLDEST, HOTTEST)

    def __call__(self, x):
        """Makes all parameters from motions [B, T, channels]."""
        c = self.config
        if c.text or c.vocabulary:
            self.text(jnp.zeros((1, 1), jnp.int32) if c.vocabulary else jnp.zeros((1, 1, c.text), jnp.float32))
        return self.motion(x)[0]


def aligned_features(model: MotionText, params, x):
    """What latents are aligned with: motions [B, T, channels] -> float32 [B, T / time, E], the mean over the parts.

    No gradient passes.
    """
    _, features = model.apply({"params": params}, x, method="motion")
    return jax.lax.stop_gradient(jnp.mean(features, axis=0))


def _unit(x):
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

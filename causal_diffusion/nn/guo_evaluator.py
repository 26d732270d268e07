"""The published evaluator of text to motion: Guo et al., "Generating diverse and natural 3D human motions from text",
CVPR 2022, whose embeddings FID, R-precision and MM-Dist of HumanML3D are quoted in.

With its own sizes, C = 259 numbers per frame (263 without the four contacts), every GRU in both directions::

    movement   conv(C -> 512, k4, stride 2, pad 1), LeakyReLU, conv(512 -> 512, k4, stride 2, pad 1), LeakyReLU,
               linear(512 -> 512)                              one per 4 frames; LeakyReLU of slope 0.2 throughout
    motion     linear(512 -> 1024), GRU(1024), head(2048 -> 1024 -> 512)
    caption    word + linear(tag), linear(300 -> 512), GRU(512), head(1024 -> 512 -> 512)

    GRU        the last states of both directions, from learned first ones
    head       linear, LayerNorm, LeakyReLU, linear
    word, tag  a GloVe vector of 300 numbers, and which of 15 kinds of word it is, one-hot

MARDM's evaluator (Meng et al. 2024, arXiv 2411.16575) is the same on other input, the 67 numbers of root and joints.
Numbers of the two do not compare.

Two things decide whether its numbers are the published ones. Its input is normalised by *its own* mean and deviation,
which are not those that models are trained with (``motion.humanml.evaluator_stats``). And the second convolution sees
beyond the end of a clip, where the first has made something of the zeros that clips of less than 196 frames are filled
up with: so motions are filled up to 196 frames here, whatever comes.

A GRU stops at a caption's or motion's own length, as torch's packed sequences do; batches need not be sorted.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

PRECISION = jax.lax.Precision.HIGHEST  # a metric is no place for TF32


@dataclasses.dataclass(frozen=True)
class GuoConfig:
    """Sizes; the defaults are the published ones for HumanML3D. KIT-ML: channels 247; MARDM: 67."""

    channels: int = 259  # C, numbers per frame of the input
    movement_hidden: int = 512  # between the two convolutions
    movement: int = 512  # numbers per 4 frames
    motion_hidden: int = 1024  # of the GRU over movements
    text_hidden: int = 512  # of the GRU over words
    latent: int = 512  # of an embedding
    words: int = 300  # numbers of a word's vector
    tags: int = 15  # kinds of words
    frames: int = 196  # to which motions are filled up with zeros

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"evaluator.{field.name} is {getattr(self, field.name)}; it is at least 1")


def _leaky(x):
    return nn.leaky_relu(x, 0.2)


def _linear(features, name):
    return nn.Dense(features, kernel_init=nn.initializers.xavier_normal(), precision=PRECISION, name=name)


class Movement(nn.Module):
    """[B, T, C] -> [B, T / 4, movement]."""

    config: GuoConfig

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((self.config.movement_hidden, self.config.movement)):
            x = _leaky(
                nn.Conv(width, (4,), strides=2, padding=((1, 1),), kernel_init=nn.initializers.xavier_normal(),
                        precision=PRECISION, name=f"conv_{i}")(x)
            )  # fmt: skip
        return _linear(self.config.movement, "out")(x)


class BiGRU(nn.Module):
    """Last states of a GRU in both directions: [B, T, I] and lengths [B] -> [B, 2 H], forward ones first.

    Cho et al. 2014, arXiv 1406.1078, in torch's form, gates in the order r, z, n:
        n = tanh(W_n x + b_n + r (U_n h + c_n)),    h' = (1 - z) n + z h
    """

    hidden: int

    @nn.compact
    def __call__(self, x, length):
        first = self.param("first", nn.initializers.normal(1.0), (2, self.hidden), jnp.float32)
        own = jnp.arange(x.shape[1], dtype=jnp.int32)[:, None] < length  # [T, B]
        last = [
            self._direction(name, x, own, first[i], reverse=bool(i)) for i, name in enumerate(("forward", "backward"))
        ]
        return jnp.concatenate(last, axis=-1)

    def _direction(self, name, x, own, first, reverse):
        H, bound = self.hidden, self.hidden**-0.5
        init = nn.initializers.uniform(2 * bound)

        def weights(leaf, shape):
            return self.param(
                f"{name}_{leaf}", lambda key, shape, dtype: init(key, shape, dtype) - bound, shape, jnp.float32
            )

        w, u = weights("input", (x.shape[-1], 3 * H)), weights("state", (H, 3 * H))
        b, c = weights("input_bias", (3 * H,)), weights("state_bias", (3 * H,))
        given = jnp.matmul(x.swapaxes(0, 1), w, precision=PRECISION) + b  # [T, B, 3 H]

        def step(h, at):
            gates, counts = at
            mine = jnp.matmul(h, u, precision=PRECISION) + c
            r, z = jnp.split(nn.sigmoid(gates[:, : 2 * H] + mine[:, : 2 * H]), 2, axis=-1)
            n = jnp.tanh(gates[:, 2 * H :] + r * mine[:, 2 * H :])
            return jnp.where(counts[:, None], (1.0 - z) * n + z * h, h), None

        start = jnp.broadcast_to(first, (x.shape[0], H))
        return jax.lax.scan(step, start, (given, own), reverse=reverse)[0]


class Sequence(nn.Module):
    """Linear, GRU and head: [B, T, I] and lengths [B] -> [B, out]."""

    hidden: int
    out: int

    @nn.compact
    def __call__(self, x, length):
        last = BiGRU(self.hidden, name="gru")(_linear(self.hidden, "input")(x), length)
        h = _linear(self.hidden, "head_in")(last)
        h = _leaky(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="head_norm")(h))
        return _linear(self.out, "head_out")(h)


class GuoEvaluator(nn.Module):
    """See the module's docstring. Float32 throughout."""

    config: GuoConfig = GuoConfig()

    def setup(self):
        c = self.config
        self.movement_encoder = Movement(c)
        self.motion_encoder = Sequence(c.motion_hidden, c.latent)
        self.tag = _linear(c.words, None)
        self.text_encoder = Sequence(c.text_hidden, c.latent)

    def motion(self, x, length=None):
        """Motions [B, T, channels], normalised for the evaluator, of which ``length`` [B] frames each count (None: all;
        at least 4) -> float32 [B, latent]."""
        c = self.config
        B, T, C = x.shape
        if C != c.channels:
            raise ValueError(f"a motion has {C} numbers a frame; {c.channels} would do")
        length = jnp.full(B, T, jnp.int32) if length is None else length
        x = jnp.where((jnp.arange(T, dtype=jnp.int32) < length[:, None])[..., None], x.astype(jnp.float32), 0.0)
        x = jnp.pad(x, ((0, 0), (0, max(0, c.frames - T)), (0, 0)))
        return self.motion_encoder(self.movement_encoder(x), length // 4)

    def text(self, words, tags, length=None):
        """Captions: vectors [N, M, words], tags one-hot [N, M, tags], words that count [N] (None: all) -> [N, latent].

        Published captions begin and end with a word that says so, and have 22 at most.
        """
        c = self.config
        if words.shape != (*tags.shape[:2], c.words) or tags.shape[-1] != c.tags:
            raise ValueError(f"captions are {words.shape} with tags {tags.shape}; [N, M, {c.words}] with "
                             f"[N, M, {c.tags}] would do")  # fmt: skip
        length = jnp.full(len(words), words.shape[1], jnp.int32) if length is None else length
        return self.text_encoder(words.astype(jnp.float32) + self.tag(tags.astype(jnp.float32)), length)

    def __call__(self, x):
        """Makes all parameters from motions [B, T, channels]."""
        self.text(jnp.zeros((1, 1, self.config.words), jnp.float32), jnp.zeros((1, 1, self.config.tags), jnp.float32))
        return self.motion(x)

"""The block-causal diffusion transformer.

Named streams of frames go in, each with its own noise levels and positions; they meet only in attention, under a
mask that the layout draws. One block (Wan 2.1's form, which CMDM shares)::

    (shift1, scale1, gate1, shift2, scale2, gate2) = modulation(level, class, action)     one set per *frame*
    x += gate1 * SelfAttention(norm(x) * (1 + scale1) + shift1)
    x += CrossAttention(affine_norm(x), condition tokens)                                 if there are any; no gate
    x += gate2 * MLP(norm(x) * (1 + scale2) + shift2)

The modulation comes in both published forms: ``linear``, a Linear of the embedding in every block (DiT, Peebles &
Xie 2023, arXiv 2212.09748; CMDM), and ``table``, one projection shared by all blocks plus a learned table in each
(PixArt-alpha, Chen et al. 2023, arXiv 2310.00426; Wan 2.1).

Parameters have one canonical form, ``block_0`` ... ``block_{L-1}``. A model with ``layers='scan'`` holds them
stacked under ``blocks``; ``stack_layers`` and ``unstack_layers`` go between the two.
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn import rope
from causal_diffusion.nn.attention import BACKENDS, CrossAttention, SelfAttention, dense
from causal_diffusion.nn.embedders import (
    ActionEmbedding,
    Condition,
    LabelEmbedding,
    TextEmbedding,
    TimeEmbedding,
    patchify,
    unpatchify,
)

Array = Any


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and forms. Data are [B, T, *space, channels] with len(patch) - 1 spatial axes."""

    width: int = 256  # D
    depth: int = 6  # blocks
    heads: int = 4  # H; the head width D / H is even
    mlp: int = 1024  # hidden width of the feed-forward
    patch: tuple[int, ...] = (1, 8, 8)  # frames, then one entry per spatial axis
    channels: int = 1  # of the data, in and out
    positions: str = "rotary"  # 'rotary' on all axes; 'additive'; 'both': rotary, and additive on space alone
    theta: float = 10000.0  # base of the position frequencies
    qk_norm: str = "full"  # RMS norm of q and k: 'full' width, per 'head', 'none'
    modulation: str = "linear"  # adaLN: 'linear' per block, or 'table' on a shared projection
    head: str = "linear"  # modulation of the last norm: 'linear', 'table' or 'none'
    frequencies: int = 256  # width of the time sinusoid
    classes: int = 0  # 0: no class condition
    action: int = 0  # numbers per action; 0: no actions
    text: int = 0  # width of condition tokens; 0: no cross-attention
    text_layers: int = 1  # Linear layers that embed them, 1 or 2
    layers: str = "unrolled"  # or 'scan': shorter compilation for deep models
    remat: str = "none"  # 'none', 'full', or a name in jax.checkpoint_policies
    backend: str = "reference"  # attention, a key of attention.BACKENDS
    dtype: str = "auto"  # of matmuls: 'float32', 'bfloat16'; 'auto' is float32 on CPU, else bfloat16

    def __post_init__(self):
        choices = {
            "positions": ("rotary", "additive", "both"),
            "qk_norm": ("full", "head", "none"),
            "modulation": ("linear", "table"),
            "head": ("linear", "table", "none"),
            "text_layers": (1, 2),
            "layers": ("unrolled", "scan"),
            "backend": tuple(BACKENDS),
            "dtype": ("auto", "float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; it is one of {names}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width is {self.width} and model.heads is {self.heads}: the width per head must be a whole "
                f"even number, model.width = {2 * self.heads * max(1, round(self.width / (2 * self.heads)))} would do"
            )
        if not 1 <= len(self.patch) <= 3 or min(self.patch) < 1:
            raise ValueError(f"model.patch is {self.patch}: one entry for time and up to two for space, each >= 1")
        if self.remat not in ("none", "full") and not hasattr(jax.checkpoint_policies, self.remat):
            raise ValueError(f"model.remat is {self.remat!r}; it is none, full or a name in jax.checkpoint_policies")

    @property
    def compute_dtype(self):
        """The dtype of matmuls on the backend at hand."""
        if self.dtype == "auto":
            return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        return jnp.dtype(self.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """The frames of one stream.

    x: [B, T, *space, C]; t: noise level that the network is told, [B, T]; frame: index in time, int32 [B, T];
    action: [B, T, A] or None; action_given: bool [B, T], None where every frame has its action.
    """

    x: Array
    t: Array
    frame: Array
    action: Array | None = None
    action_given: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodedCondition:
    """A condition after everything that does not depend on the frames was computed.

    vector: [B, F, D] added to the time embedding, or None; keys, values: per layer [B, F, M, H, K] for
    cross-attention, or None; mask: bool [B, F, M] or None.
    """

    vector: Array | None = None
    keys: tuple[Array, ...] | None = None
    values: tuple[Array, ...] | None = None
    mask: Array | None = None


def _norm(x):
    """LayerNorm without affine parameters, in float32."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


class Modulation(nn.Module):
    """``parts`` modulation vectors per frame, [B, T, parts, D], in one of the published forms."""

    width: int
    parts: int
    form: str

    @nn.compact
    def __call__(self, e):
        """e: [B, T, D] for 'linear', the shared projection [B, T, parts, D] (or [B, T, 1, D]) for 'table'."""
        if self.form == "linear":
            out = dense(self.parts * self.width, jnp.float32, "zeros", name="linear")(nn.silu(e))
            return out.reshape(*e.shape[:-1], self.parts, self.width)
        init = nn.initializers.normal(self.width**-0.5)
        return e + self.param("table", init, (self.parts, self.width), jnp.float32)


class Block(nn.Module):
    """One transformer block; see the module docstring."""

    config: TransformerConfig

    def setup(self):
        c, dtype = self.config, self.config.compute_dtype
        self.modulation = Modulation(c.width, 6, c.modulation)
        self.attention = SelfAttention(c.heads, c.width, c.qk_norm, dtype, c.backend)
        if c.text:
            self.cross_norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=jnp.float32)
            self.cross_attention = CrossAttention(c.heads, c.width, c.qk_norm, dtype)
        self.mlp_in = dense(c.mlp, dtype)
        self.mlp_out = dense(c.width, dtype)

    def __call__(self, x_BTND, e, mask, rotary=None, text=None, text_mask=None, past=None):
        """Returns (x, (k, v)) with the block's own keys and values for the cache.

        ``text`` is either embedded condition tokens [B, F, M, D] or their (k, v) from ``text_keys_values``.
        """
        dtype = self.config.compute_dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            part[:, :, None] for part in jnp.moveaxis(self.modulation(e), 2, 0)
        )
        h = (_norm(x_BTND) * (1 + scale1) + shift1).astype(dtype)
        h, kv = self.attention(h, mask, rotary, past)
        x = x_BTND + (gate1 * h).astype(dtype)
        if text is not None:
            keys_values = text if isinstance(text, tuple) else self.text_keys_values(text)
            x = x + self.cross_attention(self.cross_norm(x).astype(dtype), keys_values, text_mask)
        h = (_norm(x) * (1 + scale2) + shift2).astype(dtype)
        h = self.mlp_out(nn.gelu(self.mlp_in(h), approximate=True))
        return x + (gate2 * h).astype(dtype), kv

    def text_keys_values(self, text):
        """Keys and values of condition tokens, computed once per change of the condition."""
        return self.cross_attention.keys_values(text)


class Transformer(nn.Module):
    """Predicts, for every frame of every stream, what the process asks for."""

    config: TransformerConfig

    def setup(self):
        c, dtype = self.config, self.config.compute_dtype
        self.embed = dense(c.width, dtype)
        self.time = TimeEmbedding(c.width, c.frequencies)
        if c.classes:
            self.label = LabelEmbedding(c.classes, c.width)
        if c.action:
            self.action = ActionEmbedding(c.width)
        if c.text:
            self.text = TextEmbedding(c.width, c.text_layers, dtype)
        if c.modulation == "table":
            self.projection = dense(6 * c.width, jnp.float32)
        block = Block
        if c.remat != "none":
            policy = None if c.remat == "full" else getattr(jax.checkpoint_policies, c.remat)
            block = nn.remat(Block, policy=policy, prevent_cse=c.layers != "scan")
        if c.layers == "scan":
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.depth,
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            )(c)
        else:
            self.block = [block(c) for _ in range(c.depth)]
        if c.head != "none":
            self.head_modulation = Modulation(c.width, 2, c.head)
        self.head = dense(functools.reduce(lambda a, b: a * b, c.patch) * c.channels, jnp.float32, "zeros")

    def __call__(self, streams: dict[str, Stream], condition: Condition | EncodedCondition, mask, past=None):
        """Runs all streams together.

        Args:
            streams: name -> Stream, concatenated along frames in this order. All have the same spatial size.
            condition: for the whole sample (F = 1), or per block (then there is one stream).
            mask: bool by frame, [T, W + T] or [B, T, W + T], over [slots of the past | streams].
            past: per layer (k, v) of the slots, each [B, W, N, H, K]; None without a past.

        Returns:
            (outputs, kv): outputs name -> float32 [B, T, *space, C]; kv per layer (k, v) [B, T, N, H, K] of the
            streams' own tokens (stacked on a leading axis with layers='scan').
        """
        c, dtype = self.config, self.config.compute_dtype
        if not isinstance(condition, EncodedCondition):
            condition = self.embed_condition(condition)
        for stream in streams.values():
            B, T = stream.x.shape[0], stream.x.shape[1] // c.patch[0]
            chex.assert_shape([stream.t, stream.frame], (B, T))
            if stream.action is not None:
                chex.assert_shape(stream.action, (B, T, c.action))
        space = next(iter(streams.values())).x.shape[2:-1]
        grid = tuple(size // p for size, p in zip(space, c.patch[1:], strict=True))
        x = jnp.concatenate([self.embed(patchify(s.x.astype(dtype), c.patch)) for s in streams.values()], axis=1)
        e = jnp.concatenate([self._embed_frames(s, condition) for s in streams.values()], axis=1)
        frame = jnp.concatenate([s.frame for s in streams.values()], axis=1)
        rotary = None
        if c.positions != "additive":
            rotary = rope.rotary_table(frame, grid, c.width // c.heads, c.theta)
        if c.positions != "rotary":
            at = frame if c.positions == "additive" else jnp.zeros_like(frame)  # a stream never ends: no absolute time
            x = x + rope.additive_table(at, grid, c.width, c.theta).astype(dtype)
        modulated = e
        if c.modulation == "table":
            modulated = self.projection(nn.silu(e)).reshape(*e.shape[:-1], 6, c.width)
        x, kv = self._run_blocks(x, modulated, mask, rotary, condition, past)
        x = _norm(x)
        if c.head != "none":
            shift, scale = jnp.moveaxis(self.head_modulation(e if c.head == "linear" else e[:, :, None]), 2, 0)
            x = x * (1 + scale[:, :, None]) + shift[:, :, None]
        out, outputs, start = self.head(x), {}, 0
        for name, stream in streams.items():
            frames = stream.x.shape[1] // c.patch[0]
            outputs[name] = unpatchify(out[:, start : start + frames], stream.x.shape, c.patch)
            start += frames
        return outputs, kv

    def embed_condition(self, condition: Condition) -> EncodedCondition:
        """The class vector and the embedded text (as one (tokens,) tuple of keys, projected inside each block)."""
        c = self.config
        vector = self.label(condition.label) if c.classes else None
        tokens = (self.text(condition.text),) if c.text else None
        return EncodedCondition(vector=vector, keys=tokens, mask=condition.text_mask if c.text else None)

    def encode_condition(self, condition: Condition) -> EncodedCondition:
        """Everything about a condition that can be computed once per change. Needs layers='unrolled'."""
        embedded = self.embed_condition(condition)
        if embedded.keys is None:
            return embedded
        pairs = [block.text_keys_values(embedded.keys[0]) for block in self.block]
        keys, values = zip(*pairs, strict=True)
        return dataclasses.replace(embedded, keys=keys, values=values)

    def _embed_frames(self, stream: Stream, condition: EncodedCondition):
        """Time, class and action of every frame, summed: float32 [B, T, D]."""
        e = self.time(stream.t)
        if condition.vector is not None:
            e = e + jnp.repeat(condition.vector, e.shape[1] // condition.vector.shape[1], axis=1)
        if self.config.action:
            given = stream.action_given
            action = stream.action
            if action is None:
                action, given = jnp.zeros((*stream.t.shape, self.config.action)), jnp.zeros(stream.t.shape, bool)
            e = e + self.action(action, jnp.ones(stream.t.shape, bool) if given is None else given)
        return e

    def _run_blocks(self, x, e, mask, rotary, condition, past):
        encoded = condition.values is not None
        if self.config.layers == "scan":
            if encoded:
                raise ValueError("an encoded condition needs layers='unrolled'; see unstack_layers")
            text = None if condition.keys is None else condition.keys[0]
            return self.blocks(x, e, mask, rotary, text, condition.mask, past)
        kv = []
        for i, block in enumerate(self.block):
            text = None
            if condition.keys is not None:
                text = (condition.keys[i], condition.values[i]) if encoded else condition.keys[0]
            x, pair = block(x, e, mask, rotary, text, condition.mask, None if past is None else past[i])
            kv.append(pair)
        return x, tuple(kv)


def unstack_layers(params: dict) -> dict:
    """Parameters of layers='scan' -> the canonical form, one ``block_i`` per layer. Canonical ones pass through."""
    if "blocks" not in params:
        return params
    rest = {name: value for name, value in params.items() if name != "blocks"}
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    return rest | {f"block_{i}": jax.tree.map(lambda p, i=i: p[i], params["blocks"]) for i in range(depth)}


def stack_layers(params: dict) -> dict:
    """Canonical parameters -> those of layers='scan'."""
    if "blocks" in params:
        return params
    names = sorted((name for name in params if name.startswith("block_")), key=lambda name: int(name[6:]))
    rest = {name: value for name, value in params.items() if name not in names}
    return rest | {"blocks": jax.tree.map(lambda *p: jnp.stack(p), *(params[name] for name in names))}

"""Attention: where streams meet, and where the past is read.

Tokens are [B, T, N, D]: T frames of N tokens. Masks are per frame, [T, T'], because the tokens of a frame share their
ids. Keys come from two places, cache slots and the tokens themselves::

        queries [B, T, N]  x  [ slots [B, W, N] | own [B, T, N] ]   under a mask [B, T, W + T]

Frames of different forms (registers, coarse patches) are segments with a T and an N of their own. Every segment asks
for itself, and sees the keys of all of them, each under its columns of the mask.

What comes back beside the output is what a cache would keep: keys, values and, where asked for, the queries of every
frame, summed over its tokens. Keys and queries are turned to where their frame stands, or *raw*: as if it stood at time
0. Raw keys are turned along time when they are read, so that their frames can move; before that, a ``Compaction`` may
drop tokens of them.

How it is computed, and what of it, is the business of ``attention_backends``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from causal_diffusion.cache import Compaction, HeadsFirst, compact, load
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention_backends import attend
from causal_diffusion.nn.rope import rotate
from causal_diffusion.parallel.activations import attended, attended_by_head, by_frame

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """What attention and modulation need to know of T consecutive frames of one form.

    form: 'fine', 'coarse' or 'registers'.
    e: [B, T, D], or the shared projection [B, T, parts, D] of modulation 'table'; None where nothing is modulated.
    clean: bool [B, T], which frames are clean; None where it makes no difference.
    rotary: table of positions, or None. Factorised: a pair, of space and of time.
    stored: the same for the keys and queries that are kept; None: they are kept as they are used.
    queries: whether the summed queries of its frames are kept.
    """

    form: str = dataclasses.field(metadata={"static": True})
    e: Array | None = None
    clean: Array | None = None
    rotary: Any = None
    stored: Any = None
    queries: bool = dataclasses.field(default=False, metadata={"static": True})


class Visibility(NamedTuple):
    """Who sees whom, by frame. Columns are [slots of the past | registers | streams], rows the streams.

    mask: bool [T, S] or [B, T, S], T = 1 where all rows are alike, or a StaticMask; prefix: the same for the prefix
    attention of factorised blocks, or None;
    past_rotary: table that turns the keys of the first slots, None where they need no turning;
    compaction: how the past is compacted before it is read, or None.
    """

    mask: Array | StaticMask
    prefix: Array | StaticMask | None = None
    past_rotary: Any = None
    compaction: Compaction | None = None


def dense(features: int, dtype, init="xavier_uniform", **kwargs):
    """A Linear layer with float32 parameters that multiplies in ``dtype``."""
    inits = {
        "xavier_uniform": nn.initializers.xavier_uniform(),
        "zeros": nn.initializers.zeros_init(),
        "normal": nn.initializers.normal(0.02),
        "identity": lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype),  # further inputs count for nothing
    }
    return nn.Dense(features, dtype=dtype, param_dtype=jnp.float32, kernel_init=inits[init], **kwargs)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, statistics in float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype)


class Heads(nn.Module):
    """Projections that all attentions share, with q and k normed as ``qk_norm`` says.

    'full' norms over all heads at once before they are split (Wan, CMDM), 'head' each head alone, 'none' neither.
    """

    heads: int
    width: int
    qk_norm: str
    dtype: jnp.dtype
    out_init: str = "xavier_uniform"  # 'zeros' where an attention starts as nothing
    joined: bool = False  # whether the parameters are joined, see ``layers``

    def setup(self):
        if self.joined:
            self.qkv = dense(3 * self.width, self.dtype)
        else:
            self.q = dense(self.width, self.dtype)
            self.k = dense(self.width, self.dtype)
            self.v = dense(self.width, self.dtype)
        self.o = dense(self.width, self.dtype, self.out_init)
        if self.qk_norm != "none":
            self.q_norm = RMSNorm()
            self.k_norm = RMSNorm()

    def split(self, x):
        """[..., D] -> [..., H, K]."""
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def project(self, x):
        """Normed queries, normed keys, and values of the same tokens, each [..., D] -> [..., H, K]."""
        if not self.joined:
            return self.queries(x), *self.keys_values(x)
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return self._normed(q, "q"), self._normed(k, "k"), self.split(v)

    def queries(self, x):
        """Normed queries, [..., D] -> [..., H, K]."""
        return self._normed(self.q(x), "q")

    def keys_values(self, x):
        """Normed keys, and values, each [..., D] -> [..., H, K]."""
        return self._normed(self.k(x), "k"), self.split(self.v(x))

    def merge(self, out):
        """[..., H, K] -> [..., D]."""
        out = checkpoint_name(out.reshape(*out.shape[:-2], self.width), "attention")  # see remat
        return checkpoint_name(self.o(out), "attention")

    def _normed(self, x, name):
        norm = None if self.qk_norm == "none" else getattr(self, f"{name}_norm")
        if self.qk_norm == "full":
            return self.split(norm(x))
        return self.split(x) if norm is None else norm(self.split(x))


class SelfAttention(Heads):
    """Attention among the tokens of all segments and the slots of the past."""

    backend: str = "auto"  # a name of attention_backends

    def __call__(
        self,
        xs,
        segments,
        visibility: Visibility,
        past=None,
        coarse: Heads | None = None,
        turn: Callable[[Array, Array], Array] | None = None,
    ):
        """Attends, and returns what the cache would keep.

        Args:
            xs: [B, T, N, D] of each segment.
            segments: a Segment for each, registers (if any) first.
            visibility: see there. Registers see those of their own frame alone.
            past: of the slots, see ``slots``; None without a past.
            coarse: projections of coarse segments, for all but the backend.
            turn: turns raw keys along time, as ``cache.compact`` asks for; needed with a compaction.

        Returns:
            (outputs of each segment, kv). kv is (k, v), each [B, T, N, H, K], of the fine frames, or of the coarse ones
            where there are no fine ones; with ``Segment.queries`` (k, v, q), q float32 [B, T, 1, H, K]. With a
            compaction it is the pair of that and the compacted past.
        """
        heads = [coarse if segment.form == "coarse" else self for segment in segments]
        form = "fine" if any(segment.form == "fine" for segment in segments) else "coarse"
        queries, keys, values, kept, noisy = [], [], [], [], 0
        for own, x, segment in zip(heads, xs, segments, strict=True):
            raw_q, raw_k, v = own.project(x)
            q, k = rotate(raw_q, segment.rotary), rotate(raw_k, segment.rotary)
            queries.append(q)
            keys.append(k)
            values.append(v)
            if segment.form != form:
                continue
            stored_q, stored_k = q, k
            if segment.stored is not None:
                stored_q, stored_k = rotate(raw_q, segment.stored), rotate(raw_k, segment.stored)
            kept.append((stored_k, v, *((_over_tokens(stored_q),) if segment.queries else ())))
            if visibility.compaction is not None:
                shown = 1.0 if segment.clean is None else ~segment.clean[:, :, None, None, None]
                noisy += jnp.sum(shown * _over_tokens(q), axis=(1, 2))
        if visibility.compaction is not None:
            past = compact(past, noisy, visibility.compaction, turn)
        past_k, past_v = slots(past, visibility.past_rotary, keys[0].dtype)
        queries, all_keys, all_values = _placed(queries, [*past_k, *keys], [*past_v, *values])
        outs, start, own_keys = [], 0, slice(len(past_k), len(past_k) + 1)
        for own, q, segment in zip(heads, queries, segments, strict=True):
            T = q.shape[1]
            if segment.form == "registers":
                out = attend(self.backend, q, all_keys[own_keys], all_values[own_keys], StaticMask(np.eye(T)))
            else:
                out = attend(self.backend, q, all_keys, all_values, _rows(visibility.mask, start, start + T))
                start += T
            outs.append(own.merge(by_frame(out)))
        kv = tuple(part[0] if len(part) == 1 else jnp.concatenate(part, axis=1) for part in zip(*kept, strict=True))
        return tuple(outs), kv if visibility.compaction is None else (kv, past)


def _placed(queries, keys, values):
    """``attended``, where some keys and values may be HeadsFirst."""
    frames = [[x for x in xs if not isinstance(x, HeadsFirst)] for xs in (keys, values)]
    queries, *frames = attended(queries, *frames)

    def whole(xs, others):
        others = iter(others)
        return [HeadsFirst(attended_by_head(x.array)) if isinstance(x, HeadsFirst) else next(others) for x in xs]

    return queries, *map(whole, (keys, values), frames)


def _rows(mask, start, end):
    """Some rows of a mask; a single one stands for all."""
    if isinstance(mask, StaticMask):
        return mask[start:end]
    return mask if mask.shape[-2] == 1 else mask[..., start:end, :]


def _over_tokens(q_BTNHK):
    """Summed over the tokens of each frame: float32 [B, T, 1, H, K]."""
    return jnp.sum(q_BTNHK.astype(jnp.float32), axis=2, keepdims=True)


def slots(past, rotary, dtype):
    """Keys and values of the slots as lists of [B, W, N, H, K] (or HeadsFirst of them), empty without a past.

    Args:
        past: pairs (k, v, k, v, ...) in the order of the mask's columns, arrays, Int8 or HeadsFirst; what is left over,
            as the summed queries of (k, v, q), is not read here.
        rotary: table that turns the keys of the first pair, or None.
    """
    if not past:
        return [], []
    keys, values = zip(*zip(past[::2], past[1::2], strict=False), strict=True)
    keys, values = ([load(part, dtype) for part in parts] for parts in (keys, values))
    return [rotate(keys[0], rotary), *keys[1:]], values


class CrossAttention(Heads):
    """Attention to condition tokens. Each of F blocks may have tokens of its own."""

    def __call__(self, x_BTND, keys_values, mask=None):
        """Attends to condition tokens.

        Args:
            x_BTND: queries; T is a multiple of F.
            keys_values: (k, v) from ``keys_values``, each [B, F, M, H, K].
            mask: bool [B, F, M], False hides padding; None shows every token. With F = 1 it may be [B, n, M], n a
                divisor of T: which tokens each of n blocks sees.

        Returns:
            [B, T, N, D].
        """
        k, v = keys_values
        B, T, N, _ = x_BTND.shape
        q = self.queries(x_BTND)
        H, K = q.shape[-2:]
        q = (q * K**-0.5).reshape(B, k.shape[1], -1, H, K)
        score = jnp.einsum("BFQHK,BFMHK->BFHQM", q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            # A row without a single token would be all -inf; there the mask is void, and the tokens themselves are
            # the null condition.
            mask = mask | ~jnp.any(mask, axis=-1, keepdims=True)
            if mask.shape[1] == k.shape[1]:
                mask = mask[:, :, None, None]
            else:
                mask = jnp.repeat(mask, q.shape[2] // mask.shape[1], axis=1)[:, None, None]
            score = jnp.where(mask, score, -jnp.inf)
        weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
        out = jnp.einsum("BFHQM,BFMHK->BFQHK", weight, v)
        return self.merge(out.reshape(B, T, N, H, K))

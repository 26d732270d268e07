"""Attention: where streams meet, and where the past is read.

Tokens are [B, T, N, D]: T frames (of all streams, one after the other) of N tokens. Masks are per frame, [T, T'],
because the tokens of a frame share their ids. Keys come from two places, cache slots (already rotated) and the
tokens themselves::

        queries [B, T, N]  x  [ slots [B, W, N] | own [B, T, N] ]   under a mask [B, T, W + T]
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.rope import rotate


def reference(q_BTNHK, keys, values, mask):
    """Dense masked attention, softmax in float32.

    Args:
        q_BTNHK: queries, already rotated.
        keys, values: lists of [B, S, N, H, K], joined along S.
        mask: bool, [T, sum S] or [B, T, sum S]; every query sees at least one key.

    Returns:
        [B, T, N, H, K] in q's dtype.
    """
    B, T, N, H, K = q_BTNHK.shape
    mask = jnp.broadcast_to(mask, (B, *mask.shape[-2:]))
    q_BHQK = (q_BTNHK * K**-0.5).reshape(B, T * N, H, K).swapaxes(1, 2)
    scores, start = [], 0
    for k_BSNHK in keys:  # scored apart, so that the cache is not copied to join it with the block's own keys
        S = k_BSNHK.shape[1]
        score = jnp.einsum("BHQK,BSNHK->BHQSN", q_BHQK, k_BSNHK, preferred_element_type=jnp.float32)
        score = score.reshape(B, H, T, N, S, N)
        seen = mask[:, None, :, None, start : start + S, None]
        scores.append(jnp.where(seen, score, -jnp.inf).reshape(B, H, T * N, S * N))
        start += S
    weight = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(q_BTNHK.dtype)
    out, start = 0, 0
    for v_BSNHK in values:
        S = v_BSNHK.shape[1] * N
        part = weight[..., start : start + S].reshape(B, H, T * N, -1, N)
        out += jnp.einsum("BHQSN,BSNHK->BQHK", part, v_BSNHK)
        start += S
    return out.reshape(B, T, N, H, K)


BACKENDS = {"reference": reference}


def dense(features: int, dtype, init="xavier_uniform", **kwargs):
    """A Linear layer with float32 parameters that multiplies in ``dtype``."""
    inits = {
        "xavier_uniform": nn.initializers.xavier_uniform(),
        "zeros": nn.initializers.zeros_init(),
        "normal": nn.initializers.normal(0.02),
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


class _Heads(nn.Module):
    """Projections shared by both attentions, with q and k normed as ``qk_norm`` says.

    'full' norms over all heads at once before they are split (Wan, CMDM), 'head' each head alone, 'none' neither.
    """

    heads: int
    width: int
    qk_norm: str
    dtype: jnp.dtype

    def setup(self):
        self.q = dense(self.width, self.dtype)
        self.k = dense(self.width, self.dtype)
        self.v = dense(self.width, self.dtype)
        self.o = dense(self.width, self.dtype)
        if self.qk_norm != "none":
            self.q_norm = RMSNorm()
            self.k_norm = RMSNorm()

    def split(self, x):
        """[..., D] -> [..., H, K]."""
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def queries(self, x):
        """Normed queries, [..., D] -> [..., H, K]."""
        return self._normed(self.q(x), "q")

    def keys_values(self, x):
        """Normed keys, and values, each [..., D] -> [..., H, K]."""
        return self._normed(self.k(x), "k"), self.split(self.v(x))

    def merge(self, out):
        """[..., H, K] -> [..., D]."""
        return self.o(out.reshape(*out.shape[:-2], self.width))

    def _normed(self, x, name):
        norm = None if self.qk_norm == "none" else getattr(self, f"{name}_norm")
        if self.qk_norm == "full":
            return self.split(norm(x))
        return self.split(x) if norm is None else norm(self.split(x))


class SelfAttention(_Heads):
    """Attention among the tokens of all streams and the slots of the past."""

    backend: str = "reference"

    def __call__(self, x_BTND, mask, rotary=None, past=None):
        """Returns (output [B, T, N, D], (k, v)): the own keys (rotated) and values, [B, T, N, H, K], to commit.

        Args:
            x_BTND: tokens.
            mask: bool [T, W + T] or [B, T, W + T], by frame, slots of the past first.
            rotary: table of ``rope.rotary_table`` for the own frames; None leaves q and k as they are.
            past: (k, v) of the slots, each [B, W, N, H, K], keys rotated; None without a past.
        """
        q = self.queries(x_BTND)
        k, v = self.keys_values(x_BTND)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        past_k, past_v = ([], []) if past is None else ([past[0].astype(k.dtype)], [past[1].astype(v.dtype)])
        out = BACKENDS[self.backend](q, [*past_k, k], [*past_v, v], mask)
        return self.merge(out), (k, v)


class CrossAttention(_Heads):
    """Attention to condition tokens. Each of F blocks may have tokens of its own."""

    def __call__(self, x_BTND, keys_values, mask=None):
        """Attends to condition tokens.

        Args:
            x_BTND: queries; T is a multiple of F.
            keys_values: (k, v) from ``keys_values``, each [B, F, M, H, K].
            mask: bool [B, F, M], False hides padding; None shows every token.

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
            score = jnp.where(mask[:, :, None, None], score, -jnp.inf)
        weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
        out = jnp.einsum("BFHQM,BFMHK->BFQHK", weight, v)
        return self.merge(out.reshape(B, T, N, H, K))

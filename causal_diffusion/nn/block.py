"""One transformer block with joint attention, and what all blocks share.

Wan 2.1's form, which CMDM, ACDiT and FAR have too::

    (shift1, scale1, gate1, shift2, scale2, gate2) = modulation(level, class, action)     one set per *frame*
    x += gate1 * SelfAttention(norm(x) * (1 + scale1) + shift1)
    x += CrossAttention(affine_norm(x), condition tokens)                                 if there are any; no gate
    x += gate2 * MLP(norm(x) * (1 + scale2) + shift2)

The modulation comes in both published forms: ``linear``, a Linear of the embedding in every block (DiT, Peebles &
Xie 2023, arXiv 2212.09748; CMDM), and ``table``, one projection shared by all blocks plus a learned table in each
(PixArt-alpha, Chen et al. 2023, arXiv 2310.00426; Wan 2.1).

Three kinds of frames differ from that:

* clean ones, where ``modulate_clean`` is off, pass with shift = scale = 0 and gate = 1: what they leave behind depends
  on neither level nor class, so that all branches of guidance could share it (ACDiT, Hu et al. 2024, arXiv 2412.07720);
* registers are never modulated and take no text, but share every weight (AR-Diffusion, Sun et al. 2025, arXiv
  2503.07418);
* coarse ones have q, k, v, o and norms of q and k of their own and share the rest (FAR, Gu et al. 2025, arXiv
  2503.19325).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from causal_diffusion.nn.attention import CrossAttention, Heads, Segment, SelfAttention, Visibility, dense
from causal_diffusion.nn.config import TransformerConfig
from causal_diffusion.nn.rope import turn
from causal_diffusion.parallel.activations import constrain, tokens


def norm(x):
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
        """e: [B, T, D] for 'linear', the shared projection [B, T, parts or more, D] (or [B, T, 1, D]) for 'table'."""
        if self.form == "linear":
            out = dense(self.parts * self.width, jnp.float32, "zeros", name="linear")(nn.silu(e))
            return out.reshape(*e.shape[:-1], self.parts, self.width)
        init = nn.initializers.normal(self.width**-0.5)
        return e[..., : self.parts, :] + self.param("table", init, (self.parts, self.width), jnp.float32)


class BlockBase(nn.Module):
    """Modulation, cross-attention and feed-forward of every block."""

    config: TransformerConfig
    joined: bool = False  # whether the parameters are joined, see ``layers``

    def modulate(self, modulation, segment: Segment) -> list:
        """(shift, scale, gate) of each modulated half, [B, T, 1, D] each, or numbers where nothing is modulated."""
        if segment.e is None:
            return [(0.0, 0.0, 1.0)]
        parts = [part[:, :, None] for part in jnp.moveaxis(tokens(modulation(segment.e)), 2, 0)]
        if not self.config.modulate_clean and segment.clean is not None:
            clean = segment.clean[:, :, None, None]
            parts = [jnp.where(clean, 1.0 if i % 3 == 2 else 0.0, part) for i, part in enumerate(parts)]
        return [tuple(parts[i : i + 3]) for i in range(0, len(parts), 3)]

    def normed(self, x, shift, scale):
        """norm(x), shifted and scaled, ready for matmuls."""
        return (norm(x) * (1 + scale) + shift).astype(self.config.compute_dtype)

    def gated(self, x, gate, h):
        """x + gate * h."""
        return tokens(x + (gate * h).astype(self.config.compute_dtype))

    def add_text(self, x, keys_values, mask):
        """x + CrossAttention(affine_norm(x))."""
        return x + self.cross_attention(self.cross_norm(x).astype(self.config.compute_dtype), keys_values, mask)

    def text_keys_values(self, text):
        """Keys and values of condition tokens, computed once per change of the condition."""
        return tuple(constrain(x, "batch", None, None, "heads") for x in self.cross_attention.keys_values(text))

    def shared_setup(self, parts):
        """The modules that every block has."""
        c, dtype = self.config, self.config.compute_dtype
        self.modulation = Modulation(c.width, parts, c.modulation)
        if c.text:
            self.cross_norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, param_dtype=jnp.float32)
            self.cross_attention = CrossAttention(c.heads, c.width, c.qk_norm, dtype)
        self.mlp_in = dense(c.mlp, dtype)
        self.mlp_out = dense(c.width, dtype)

    def mlp(self, h):
        """Linear, GELU-tanh, Linear."""
        return self.feed_forward(self.mlp_in, self.mlp_out, h)

    def feed_forward(self, first, last, h):
        """``mlp`` with the two Linear layers given."""
        hidden = checkpoint_name(constrain(first(h), "batch", "frames", None, "mlp"), "mlp")  # see remat
        return checkpoint_name(last(nn.gelu(hidden, approximate=True)), "mlp")


class Block(BlockBase):
    """Joint attention over space and time; see the module docstring."""

    def setup(self):
        c, dtype = self.config, self.config.compute_dtype
        self.shared_setup(6)
        sizes = (c.heads, c.width, c.qk_norm, dtype)
        self.attention = SelfAttention(*sizes, joined=self.joined, backend=c.backend)
        if c.coarse:
            self.coarse_attention = Heads(*sizes, joined=self.joined)

    def __call__(self, xs, segments, visibility: Visibility, text=None, text_mask=None, past=None):
        """Returns (xs, kv), kv as ``SelfAttention`` returns it.

        Args:
            xs: tuple of tokens [B, T, N, D], one per segment.
            segments: tuple of Segment, registers first.
            visibility: who sees whom.
            text: embedded condition tokens [B, F, M, D], or their (k, v) from ``text_keys_values``; None without.
            text_mask: bool [B, F, M] or None.
            past: of the slots, see ``attention.slots``, or None.
        """
        modulation = [self.modulate(self.modulation, segment) for segment in segments]
        hs = tuple(self.normed(x, *parts[0][:2]) for x, parts in zip(xs, modulation, strict=True))
        coarse = self.coarse_attention if self.config.coarse else None
        hs, kv = self.attention(hs, segments, visibility, past, coarse, self.turn)
        if text is not None and not isinstance(text, tuple):
            text = self.text_keys_values(text)
        out = []
        for x, h, parts, segment in zip(xs, hs, modulation, segments, strict=True):
            x = self.gated(x, parts[0][2], h)
            if text is not None and segment.form != "registers":
                x = self.add_text(x, text, text_mask)
            shift, scale, gate = parts[-1]
            out.append(self.gated(x, gate, self.mlp(self.normed(x, shift, scale))))
        return tuple(out), kv

    def turn(self, x_BTNHK, position):
        """Raw keys or queries, turned along time; additive positions turn nothing."""
        c = self.config
        return x_BTNHK if c.positions == "additive" else turn(x_BTNHK, position, c.theta, len(c.patch), c.rope_split)

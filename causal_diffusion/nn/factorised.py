"""One transformer block with factorised attention: inside each frame, then along every cell of space through time.

Ca2-VDM's form (Gao et al. 2024, arXiv 2411.16375; the spatio-temporal DiT of Latte, 2401.03048, and Open-Sora)::

    (shift1, scale1, gate1, shift2, scale2, gate2) = modulation(level, class, action)     one set per *frame*
    x += gate1 * SpaceAttention(norm(x) * (1 + scale1) + shift1)
    x += gate1 * PrefixAttention(x)                  if model.prefix; its output starts at zero
    x += gate1 * TimeAttention(x)                    x bare: neither normed nor modulated a second time
    x += CrossAttention(affine_norm(x), condition tokens)
    x += gate2 * MLP(norm(x) * (1 + scale2) + shift2)

Oasis' form (Decart 2024), ``axial_mlp``, of twelve vectors: space and time are a half block each::

    x += gate1 * SpaceAttention(..1)   x += gate2 * MLP(..2)   x += gate3 * TimeAttention(..3)   x += gate4 * MLP'(..4)

Who sees whom, for three frames of two cells each, queries as rows (``s`` in space, ``t`` in time, frame-causal)::

                00 01  10 11  20 21
            00  #  s   .  .   .  .
            01  s  #   .  .   .  .
            10  t  .   #  s   .  .          # is itself, seen by both
            11  .  t   s  #   .  .
            20  t  .   t  .   #  s
            21  .  t   .  t   s  #

The prefix attention lets every token of a noisy frame see all tokens of the last ``model.prefix`` clean frames before
it; other frames see themselves. Which those are comes in as a mask by frame, drawn by the layout; a row without a frame
means the frame itself. Its keys and values, too, are kept for the cache.

``mask_channel``: before the first attention along time, one more channel says which frames are clean, and a Linear
(D + 1 -> D), at first the identity of the other D, merges it. ``time_every`` = n leaves out all attention along time
but that of layers n - 1, 2n - 1, ... (Dreamer 4, Hafner et al. 2025, arXiv 2509.24527).

Positions: rotary ones turn the whole head, by space inside a frame and by time along a cell. Additive ones are added at
the embedding, of space and of time. (Ca2-VDM adds those of time to the input of the first attention along time alone.)
"""

import jax.numpy as jnp
import numpy as np

from causal_diffusion.layout import StaticMask
from causal_diffusion.nn.attention import Heads, Visibility, dense, slots
from causal_diffusion.nn.attention_backends import along_cells, attend, within_frames
from causal_diffusion.nn.block import BlockBase
from causal_diffusion.nn.rope import rotate
from causal_diffusion.parallel.activations import attended, by_frame


class FactorisedBlock(BlockBase):
    """Attention in space, then in time; see the module docstring."""

    layer: int = 0  # of the model

    @property
    def sees_time(self) -> bool:
        """Whether this layer attends along time."""
        return (self.layer + 1) % self.config.time_every == 0

    def setup(self):
        c, dtype = self.config, self.config.compute_dtype
        self.shared_setup(c.modulations if self.sees_time else 6)
        sizes = (c.heads, c.width, c.qk_norm, dtype)
        self.space_attention = Heads(*sizes, joined=self.joined)
        if c.prefix:
            self.prefix_attention = Heads(*sizes, out_init="zeros", joined=self.joined)
        if self.sees_time:
            self.time_attention = Heads(*sizes, joined=self.joined)
            if c.axial_mlp:
                self.time_mlp_in = dense(c.mlp, dtype)
                self.time_mlp_out = dense(c.width, dtype)
        if c.mask_channel and self.layer == 0:
            self.merge_mask = dense(c.width, dtype, "identity")

    def __call__(self, xs, segments, visibility: Visibility, text=None, text_mask=None, past=None):
        """As ``Block``, of one segment whose ``rotary`` is a pair (space, time).

        Returns (xs, kv), where kv are (k, v) along time, or (k, v, prefix k, prefix v) with model.prefix, each
        [B, T, N, H, K], or () in a layer without attention along time. ``past`` is the same of the slots. The prefix
        attention knows space alone: its keys are the same raw or not.
        """
        (x,), (segment,) = xs, segments
        c, dtype = self.config, self.config.compute_dtype
        space = None if segment.rotary is None else segment.rotary[0]
        halves = self.modulate(self.modulation, segment)
        shift, scale, gate = halves[0]

        h = self.normed(x, shift, scale)
        heads = self.space_attention
        q, k, v = heads.project(h)
        q, k, v = (by_frame(each) for each in (rotate(q, space), rotate(k, space), v))
        x = self.gated(x, gate, heads.merge(within_frames(c.backend, q, k, v)))

        kv, prefix_kv = (), ()
        if c.prefix:
            h, prefix_kv = self._see_prefix(x, space, visibility.prefix, None if past is None else past[2:])
            x = self.gated(x, gate, h)
        if self.sees_time:
            h = x.astype(dtype)
            if c.axial_mlp:
                shift, scale, gate = halves[1]
                x = self.gated(x, gate, self.mlp(self.normed(x, shift, scale)))
                shift, scale, gate = halves[2]
                h = self.normed(x, shift, scale)
            if c.mask_channel and self.layer == 0:
                clean = jnp.zeros(x.shape[:2], jnp.float32) if segment.clean is None else segment.clean
                channel = jnp.broadcast_to(clean[:, :, None, None], (*x.shape[:3], 1)).astype(dtype)
                h = self.merge_mask(jnp.concatenate([h, channel], axis=-1))
            h, kv = self._see_past(h, segment, visibility, None if past is None else past[:2])
            x = self.gated(x, gate, h)
        if text is not None:
            x = self.add_text(x, text if isinstance(text, tuple) else self.text_keys_values(text), text_mask)
        shift, scale, gate = halves[-1]
        h = self.normed(x, shift, scale)
        if c.axial_mlp and self.sees_time:
            h = self.feed_forward(self.time_mlp_in, self.time_mlp_out, h)
        else:
            h = self.mlp(h)
        return (self.gated(x, gate, h),), (*kv, *prefix_kv)

    def _see_past(self, h, segment, visibility, past):
        """Attention along time: (out, (k, v))."""
        heads = self.time_attention
        q, raw_k, v = heads.project(h)
        rotary = None if segment.rotary is None else segment.rotary[1]
        q, k = rotate(q, rotary), rotate(raw_k, rotary)
        past_k, past_v = slots(past, visibility.past_rotary, k.dtype)
        (q,), keys, values = attended([q], [*past_k, k], [*past_v, v])
        out = by_frame(along_cells(self.config.backend, q, keys, values, visibility.mask))
        return heads.merge(out), (k if segment.stored is None else rotate(raw_k, segment.stored[1]), v)

    def _see_prefix(self, x, rotary, mask, past):
        """Attention to all tokens of the frames that ``mask`` shows, of the own frame where it shows none."""
        heads = self.prefix_attention
        h = x.astype(self.config.compute_dtype)
        q, k, v = heads.project(h)
        q, k = rotate(q, rotary), rotate(k, rotary)
        past_k, past_v = slots(past, None, k.dtype)
        T, W = x.shape[1], past[0].shape[1] if past else 0
        own = np.eye(T, W + T, k=W, dtype=bool)
        seen = StaticMask(own)
        if isinstance(mask, StaticMask):
            seen = StaticMask(mask.array | (own & ~mask.array.any(axis=-1, keepdims=True)))
        elif mask is not None:
            seen = mask | (own & ~jnp.any(mask, axis=-1, keepdims=True))
        (q,), keys, values = attended([q], [*past_k, k], [*past_v, v])
        return heads.merge(by_frame(attend(self.config.backend, q, keys, values, seen))), (k, v)

"""A small diffusion network per token, conditioned on what the transformer says of it.

Autoregression over continuous tokens (MAR, Li et al. 2024, arXiv 2406.11838; MotionStreamer, Xiao et al. 2025, arXiv
2503.15451). The transformer sees the clean past and, in the place of a noisy token, one learned query; it runs once per
token, whatever the number of denoising steps. Only the head sees the noisy token x_t and its level t:

    c = time(t) + Linear(h)                                 h: the transformer's output at the query         (1)
    y = Linear(x_t);   y += gate * MLP(norm(y) * (1 + scale) + shift)   in every block, all three from SiLU(c)     (2)
    out = Linear(norm(y) * (1 + scale) + shift)                                                              (3)

Gates and the last Linear begin at zero.
"""

import flax.linen as nn
import jax.numpy as jnp

from causal_diffusion.nn.attention import dense
from causal_diffusion.nn.block import norm
from causal_diffusion.nn.embedders import TimeEmbedding
from causal_diffusion.parallel.activations import tokens


class DiffusionHead(nn.Module):
    """Equations (1) to (3).

    width: W of its blocks. depth: how many. outputs: numbers per token that come out. dtype: of matmuls.
    """

    width: int
    depth: int
    outputs: int
    frequencies: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, t, h):
        """x [B, T, N, P] noisy tokens, t [B, T] their levels, h [B, T, N, D] -> float32 [B, T, N, outputs]."""
        time = TimeEmbedding(self.width, self.frequencies, name="time")(t)
        c = nn.silu(time[:, :, None] + dense(self.width, self.dtype, name="condition")(h.astype(self.dtype)))
        y = dense(self.width, self.dtype, name="in")(x.astype(self.dtype))
        for i in range(self.depth):
            shift, scale, gate = jnp.split(dense(3 * self.width, self.dtype, "zeros", name=f"modulation_{i}")(c), 3, -1)
            z = norm(y) * (1 + scale) + shift
            z = nn.silu(dense(self.width, self.dtype, name=f"in_{i}")(z.astype(self.dtype)))
            y = tokens(y + gate * dense(self.width, self.dtype, name=f"out_{i}")(z))
        shift, scale = jnp.split(dense(2 * self.width, self.dtype, "zeros", name="modulation")(c), 2, -1)
        return dense(self.outputs, jnp.float32, "zeros", name="out")(norm(y) * (1 + scale) + shift)

"""Ids of words as vectors: the part of a text encoder that the transformer trains (``words`` makes the ids).

A table of words, one of positions, and a layer of self-attention, so that 'left' can tell whether it is a hand or a
turn. It gives exactly zero at padding, so that a caption of nothing but zeros is the null text.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from causal_diffusion.nn.text.layers import TokenAttention, layer_norm

Array = Any
PADDING = 0  # the id of no word


class WordEmbedding(nn.Module):
    """Word ids as vectors that know their neighbours.

        x = word + position;    x += attention(LN(x)) among the words;    LN(x);        0 where there is no word

    vocabulary: number of ids; at least ``Vocabulary.size``.
    width: D. There are four heads where it is a multiple of four.
    tokens: the largest M.
    """

    vocabulary: int
    width: int
    tokens: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Array:
        """Embeds.

        Args:
            ids: int32 [..., M], 0 where there is no word.
            mask: bool [..., M], False hides words too; None shows all.

        Returns:
            float32 [..., M, D], exactly zero where there is no word.

        Raises:
            ValueError: M is larger than ``tokens``.
        """
        M, heads = ids.shape[-1], math.gcd(4, self.width)
        if M > self.tokens:
            raise ValueError(f"the captions have {M} tokens; {self.tokens} or fewer would do")
        init = nn.initializers.normal(0.02)
        words = self.param("words", init, (self.vocabulary, self.width), jnp.float32)
        positions = self.param("positions", init, (self.tokens, self.width), jnp.float32)
        given = ids != PADDING if mask is None else (ids != PADDING) & mask
        shown = given[..., None]
        x = words[ids] + positions[:M]
        h = layer_norm(1e-6, "norm1")(x).astype(self.dtype)
        attention = TokenAttention(heads, self.width // heads, self.dtype, name="attention")
        x = x + attention(h, given[..., None, None, :]).astype(jnp.float32)
        return jnp.where(shown, layer_norm(1e-6, "norm2")(x), 0.0)

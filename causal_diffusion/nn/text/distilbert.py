"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), the text encoder of CMDM: post-norm, bidirectional.

    x = LN(words + positions);    x = LN(x + attention(x));    x = LN(x + MLP(x))    in every layer
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from causal_diffusion.nn.attention import dense
from causal_diffusion.nn.text.layers import (
    ACTIVATIONS,
    Names,
    TokenAttention,
    check_activation,
    check_heads,
    layer_norm,
    taken,
)

MODEL_TYPES = ("distilbert",)
EPSILON = 1e-12

NAMES = Names(
    prefixes=("distilbert.", ""),
    layers="transformer.layer.",
    table={
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm",
        "layer/attention/q": "transformer.layer.{}.attention.q_lin",
        "layer/attention/k": "transformer.layer.{}.attention.k_lin",
        "layer/attention/v": "transformer.layer.{}.attention.v_lin",
        "layer/attention/o": "transformer.layer.{}.attention.out_lin",
        "layer/norm1": "transformer.layer.{}.sa_layer_norm",
        "layer/in": "transformer.layer.{}.ffn.lin1",
        "layer/out": "transformer.layer.{}.ffn.lin2",
        "layer/norm2": "transformer.layer.{}.output_layer_norm",
    },
)


@dataclasses.dataclass(frozen=True)
class DistilBertConfig:
    """Sizes; the defaults are distilbert-base-uncased's."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 768
    layers: int = 6
    heads: int = 12
    mlp: int = 3072
    activation: str = "gelu"

    def __post_init__(self):
        check_heads(self.width, self.heads, "n_heads")
        check_activation(self.activation, "activation")

    @property
    def most_tokens(self) -> int:
        """The longest caption, in tokens; 0 where there is no limit."""
        return self.positions

    @classmethod
    def read(cls, said: Mapping) -> "DistilBertConfig":
        """From the content of a config.json; ValueError where a value is none that we know."""
        fields = {
            "vocab_size": "vocabulary", "max_position_embeddings": "positions", "dim": "width", "n_layers": "layers",
            "n_heads": "heads", "hidden_dim": "mlp", "activation": "activation",
        }  # fmt: skip
        return taken(cls, said, fields)


class DistilBertLayer(nn.Module):
    """Attention and MLP, each followed by its norm."""

    config: DistilBertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        """x [B, M, D], mask bool [B, 1, 1, M] -> [B, M, D]."""
        c = self.config
        h = TokenAttention(c.heads, c.width // c.heads, self.dtype, name="attention")(x, mask)
        x = layer_norm(EPSILON, "norm1")(x + h).astype(self.dtype)
        h = ACTIVATIONS[c.activation](dense(c.mlp, self.dtype, name="in")(x))
        h = dense(c.width, self.dtype, name="out")(h)
        return layer_norm(EPSILON, "norm2")(x + h).astype(self.dtype)


class DistilBert(nn.Module):
    """ids int32 [B, M], mask bool [B, M], True at tokens -> the last hidden states, float32 [B, M, D]."""

    config: DistilBertConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask):
        c = self.config
        x = nn.Embed(c.vocabulary, c.width, param_dtype=jnp.float32, name="words")(ids)
        positions = nn.Embed(c.positions, c.width, param_dtype=jnp.float32, name="positions")
        x = x + positions(jnp.arange(ids.shape[-1], dtype=jnp.int32))
        x = layer_norm(EPSILON, "norm")(x).astype(self.dtype)
        for i in range(c.layers):
            x = DistilBertLayer(c, self.dtype, name=f"layer_{i}")(x, mask[:, None, None])
        return x.astype(jnp.float32)

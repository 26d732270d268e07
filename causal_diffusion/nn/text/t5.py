"""The encoders of T5 (Raffel et al. 2020, arXiv 1910.10683) and UMT5 (Chung et al. 2023, arXiv 2304.09151).

    x = words;    x += attention(RMS(x));    x += MLP(RMS(x)) in every layer;    RMS at the end

There are no biases, scores are not scaled, and where tokens stand is told by a bias on the scores alone: a number per
head for each bucket of distances. Half of the buckets are for keys ahead of the query. Of each half, one half is for
single distances, the others grow with the logarithm of the distance up to ``most_distance``, beyond which there is one.

T5 has one such table, in its first layer, for all; UMT5 has one per layer. T5 1.1 and UMT5 have a gated MLP.
"""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from causal_diffusion.nn.attention import RMSNorm, dense
from causal_diffusion.nn.text.layers import ACTIVATIONS, Names, TokenAttention, check_activation, taken

NAMES = Names(
    prefixes=("",),
    layers="encoder.block.",
    table={
        "words": ("shared", "encoder.embed_tokens"),
        "layer/norm1": "encoder.block.{}.layer.0.layer_norm",
        "layer/attention/q": "encoder.block.{}.layer.0.SelfAttention.q",
        "layer/attention/k": "encoder.block.{}.layer.0.SelfAttention.k",
        "layer/attention/v": "encoder.block.{}.layer.0.SelfAttention.v",
        "layer/attention/o": "encoder.block.{}.layer.0.SelfAttention.o",
        "layer/distances": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias",
        "layer/norm2": "encoder.block.{}.layer.1.layer_norm",
        "layer/in": "encoder.block.{}.layer.1.DenseReluDense.wi",
        "layer/gate": "encoder.block.{}.layer.1.DenseReluDense.wi_0",
        "layer/linear": "encoder.block.{}.layer.1.DenseReluDense.wi_1",
        "layer/out": "encoder.block.{}.layer.1.DenseReluDense.wo",
        "norm": "encoder.final_layer_norm",
    },
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes; the defaults are t5-small's."""

    vocabulary: int = 32128
    width: int = 512
    head_width: int = 64
    heads: int = 8
    layers: int = 6
    mlp: int = 2048
    activation: str = "relu"
    gated: bool = False  # activation(gate(x)) * linear(x) in place of activation(in(x))
    buckets: int = 32  # of distances, a multiple of four
    most_distance: int = 128
    epsilon: float = 1e-6
    each_layer: bool = False  # UMT5: a table of distances in every layer

    def __post_init__(self):
        check_activation(self.activation, "feed_forward_proj")
        if self.buckets % 4:
            raise ValueError(f"relative_attention_num_buckets is {self.buckets}; a multiple of 4, such as 32, would do")
        if self.most_distance <= self.buckets // 4:
            raise ValueError(f"relative_attention_max_distance is {self.most_distance}; {4 * self.buckets} would do")

    @property
    def most_tokens(self) -> int:
        """The longest caption, in tokens; 0 where there is no limit."""
        return 0

    @classmethod
    def read(cls, said: Mapping) -> "T5Config":
        """From the content of a config.json, T5's or UMT5's."""
        fields = {
            "vocab_size": "vocabulary", "d_model": "width", "d_kv": "head_width", "num_heads": "heads",
            "num_layers": "layers", "d_ff": "mlp", "activation": "activation", "gated": "gated",
            "relative_attention_num_buckets": "buckets", "relative_attention_max_distance": "most_distance",
            "layer_norm_epsilon": "epsilon", "each_layer": "each_layer",
        }  # fmt: skip
        umt5 = said.get("model_type") == "umt5"
        form = str(said.get("feed_forward_proj") or ("gated-gelu" if umt5 else "relu"))
        gated, activation = form.startswith("gated-"), form.removeprefix("gated-")
        if form == "gated-gelu":
            activation = "gelu_new"  # the name is that of T5 1.1, which has the tanh form
        if umt5:  # its own defaults, where they differ
            said = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6} | dict(said)
        return taken(cls, dict(said) | {"activation": activation, "gated": gated, "each_layer": umt5}, fields)


def buckets_of(distance, buckets: int, most_distance: int) -> np.ndarray:
    """The bucket of each distance (key's place less query's), int [...] -> int32 [...] in 0 .. buckets - 1."""
    ahead, distance = np.asarray(distance) > 0, np.abs(distance)
    half, single = buckets // 2, buckets // 4
    # In float32, as the encoders were trained: a boundary such as 16 could fall to the other side.
    grown = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single))
    grown = grown / np.float32(math.log(most_distance / single)) * np.float32(half - single)
    grown = np.minimum(single + grown.astype(np.int32), half - 1)
    return (ahead * half + np.where(distance < single, distance, grown)).astype(np.int32)


class T5Layer(nn.Module):
    """Attention and MLP, each behind its norm."""

    config: T5Config
    distances: bool  # whether it has a table of distances
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask, position_bias):
        """x [B, M, D], mask bool [B, 1, 1, M], position_bias [H, M, M] or None -> (x, its position bias)."""
        c, M = self.config, x.shape[-2]
        if self.distances:
            place = np.arange(M)
            bucket = buckets_of(place[None] - place[:, None], c.buckets, c.most_distance)
            table = nn.Embed(c.buckets, c.heads, param_dtype=jnp.float32, name="distances")
            position_bias = jnp.moveaxis(table(bucket), -1, 0)
        attention = TokenAttention(c.heads, c.head_width, self.dtype, bias=False, scale=1.0, name="attention")
        h = RMSNorm(c.epsilon, name="norm1")(x)
        x = x + attention(h, mask, position_bias)
        h = RMSNorm(c.epsilon, name="norm2")(x)
        activation = ACTIVATIONS[c.activation]
        if c.gated:
            gate = activation(dense(c.mlp, self.dtype, name="gate", use_bias=False)(h))
            h = gate * dense(c.mlp, self.dtype, name="linear", use_bias=False)(h)
        else:
            h = activation(dense(c.mlp, self.dtype, name="in", use_bias=False)(h))
        return x + dense(c.width, self.dtype, name="out", use_bias=False)(h), position_bias


class T5Encoder(nn.Module):
    """ids int32 [B, M], mask bool [B, M], True at tokens -> the last hidden states, float32 [B, M, D]."""

    config: T5Config
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask):
        c = self.config
        x = nn.Embed(c.vocabulary, c.width, param_dtype=jnp.float32, name="words")(ids).astype(self.dtype)
        position_bias = None
        for i in range(c.layers):
            layer = T5Layer(c, c.each_layer or i == 0, self.dtype, name=f"layer_{i}")
            x, position_bias = layer(x, mask[:, None, None], position_bias)
        return RMSNorm(c.epsilon, name="norm")(x).astype(jnp.float32)

"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): pre-norm, causal.

    x = words + positions;    x += attention(LN(x));    x += MLP(LN(x)) in every layer;    LN at the end

A token sees the tokens before it alone, so a caption's features do not depend on what follows its end. The pooled
feature is that of the end-of-text token, the only one that has seen the whole caption.
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

MODEL_TYPES = ("clip", "clip_text_model")

NAMES = Names(
    prefixes=("text_model.", ""),
    layers="encoder.layers.",
    table={
        "words": "embeddings.token_embedding",
        "positions": "embeddings.position_embedding",
        "layer/norm1": "encoder.layers.{}.layer_norm1",
        "layer/attention/q": "encoder.layers.{}.self_attn.q_proj",
        "layer/attention/k": "encoder.layers.{}.self_attn.k_proj",
        "layer/attention/v": "encoder.layers.{}.self_attn.v_proj",
        "layer/attention/o": "encoder.layers.{}.self_attn.out_proj",
        "layer/norm2": "encoder.layers.{}.layer_norm2",
        "layer/in": "encoder.layers.{}.mlp.fc1",
        "layer/out": "encoder.layers.{}.mlp.fc2",
        "norm": "final_layer_norm",
    },
)

# Configs of before 2023 give this in place of the end-of-text token, whose id is the largest of the vocabulary.
UNTOLD_END = 2


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes; the defaults are those of clip-vit-base-patch32's text encoder."""

    vocabulary: int = 49408
    positions: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp: int = 2048
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    end: int = 49407  # id of the end-of-text token

    def __post_init__(self):
        check_heads(self.width, self.heads, "num_attention_heads")
        check_activation(self.activation, "hidden_act")

    @property
    def most_tokens(self) -> int:
        """The longest caption, in tokens; 0 where there is no limit."""
        return self.positions

    @classmethod
    def read(cls, said: Mapping) -> "ClipTextConfig":
        """From the content of a config.json, of both encoders of CLIP or of the text encoder alone."""
        fields = {
            "vocab_size": "vocabulary", "max_position_embeddings": "positions", "hidden_size": "width",
            "num_hidden_layers": "layers", "num_attention_heads": "heads", "intermediate_size": "mlp",
            "hidden_act": "activation", "layer_norm_eps": "epsilon", "eos_token_id": "end",
        }  # fmt: skip
        if said.get("model_type") == "clip":
            said = said.get("text_config") or {}
        return taken(cls, said, fields)


class ClipTextLayer(nn.Module):
    """Attention and MLP, each behind its norm."""

    config: ClipTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        """x [B, M, D], mask bool [B, 1, M, M] -> [B, M, D]."""
        c = self.config
        h = layer_norm(c.epsilon, "norm1")(x).astype(self.dtype)
        x = x + TokenAttention(c.heads, c.width // c.heads, self.dtype, name="attention")(h, mask)
        h = layer_norm(c.epsilon, "norm2")(x).astype(self.dtype)
        h = ACTIVATIONS[c.activation](dense(c.mlp, self.dtype, name="in")(h))
        return x + dense(c.width, self.dtype, name="out")(h)


class ClipText(nn.Module):
    """ids int32 [B, M], mask bool [B, M], True at tokens -> (last hidden states float32 [B, M, D], pooled [B, D]).

    ``pooled`` is the hidden state at the first end-of-text token, before any projection.
    """

    config: ClipTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask):
        c, M = self.config, ids.shape[-1]
        x = nn.Embed(c.vocabulary, c.width, param_dtype=jnp.float32, name="words")(ids)
        positions = nn.Embed(c.positions, c.width, param_dtype=jnp.float32, name="positions")
        x = x + positions(jnp.arange(M, dtype=jnp.int32))
        x = x.astype(self.dtype)
        seen = mask[:, None, None] & jnp.tril(jnp.ones((M, M), bool))
        for i in range(c.layers):
            x = ClipTextLayer(c, self.dtype, name=f"layer_{i}")(x, seen)
        x = layer_norm(c.epsilon, "norm")(x)
        end = jnp.argmax(ids if c.end == UNTOLD_END else ids == c.end, axis=-1)
        return x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]

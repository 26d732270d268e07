"""What the text encoders share: attention among the tokens of a caption, norms, activations, and their names."""

import dataclasses
import re
from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from causal_diffusion.nn.attention import dense


def quick_gelu(x):
    """x sigmoid(1.702 x), the GELU that CLIP was trained with."""
    return x * nn.sigmoid(1.702 * x)


# By the names that config.json gives them.
ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    """An affine LayerNorm in float32; its variance is that of the centred values, as in the encoders' own code."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=jnp.float32, param_dtype=jnp.float32, use_fast_variance=False, name=name
    )


class TokenAttention(nn.Module):
    """Self-attention among M tokens, softmax in float32.

    heads, head_width: H and K; H K may differ from the width D of the tokens.
    bias: whether the four projections have one.
    scale: of the scores; None is K**-0.5.
    """

    heads: int
    head_width: int
    dtype: jnp.dtype = jnp.float32
    bias: bool = True
    scale: float | None = None

    @nn.compact
    def __call__(self, x, mask, position_bias=0.0):
        """Attends.

        Args:
            x: [..., M, D].
            mask: bool, broadcastable to [..., H, M, M], False where a query does not see a key. A query that sees none
                gets the mean of all values.
            position_bias: float32, added to the scores [..., H, M, M].

        Returns:
            [..., M, D] in ``dtype``.
        """
        q, k, v = (
            dense(self.heads * self.head_width, self.dtype, name=name, use_bias=self.bias)(x).reshape(
                *x.shape[:-1], self.heads, self.head_width
            )
            for name in ("q", "k", "v")
        )
        scale = self.head_width**-0.5 if self.scale is None else self.scale
        score = jnp.einsum("...QHK,...SHK->...HQS", q, k, preferred_element_type=jnp.float32) * scale
        score = jnp.where(mask, score + position_bias, jnp.finfo(jnp.float32).min)
        weight = jax.nn.softmax(score, axis=-1).astype(self.dtype)
        out = jnp.einsum("...HQS,...SHK->...QHK", weight, v)
        out = out.reshape(*x.shape[:-1], self.heads * self.head_width)
        return dense(x.shape[-1], self.dtype, name="o", use_bias=self.bias)(out)


@dataclasses.dataclass(frozen=True)
class Names:
    """How weight files call our parameters.

    prefixes: what may stand in front of every key, the one in use being that of the first parameter in ``table``.
    layers: how the keys of the numbered layers begin; a file may hold none of them that we have no place for.
    table: {our module, with its layer's number left out: theirs, '{}' for the number}; a tuple where there are several.
    """

    prefixes: tuple[str, ...]
    layers: str
    table: Mapping[str, str | tuple[str, ...]]

    def keys(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Path of our parameter, ('layer_3', 'attention', 'q', 'kernel') -> the keys it may have, without a prefix."""
        *modules, leaf = path
        where = "/".join(modules)
        number = re.search(r"(?<=layer_)\d+", where)
        theirs = self.table[re.sub(r"(?<=layer)_\d+", "", where)]
        suffix = "bias" if leaf == "bias" else "weight"
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        return tuple(f"{key.format(number and number[0])}.{suffix}" for key in theirs)


def taken(cls, said: Mapping, fields: Mapping[str, str]):
    """The dataclass ``cls`` from a config.json; what it does not say has the default.

    ``fields`` is {their name: ours}.

    Raises:
        ValueError: a value has another type than the default of its field, or ``cls`` refuses it.
    """
    given = {ours: said[theirs] for theirs, ours in fields.items() if said.get(theirs) is not None}
    for field in dataclasses.fields(cls):
        value, kind = given.get(field.name, field.default), type(field.default)
        if kind is float and type(value) is int:
            given[field.name] = float(value)
        elif type(value) is not kind:
            name = {ours: theirs for theirs, ours in fields.items()}[field.name]
            raise ValueError(f"{name} is {value!r}; a value such as {field.default!r} would do")
        elif kind in (int, float) and value <= 0:
            name = {ours: theirs for theirs, ours in fields.items()}.get(field.name, field.name)
            raise ValueError(f"{name} is {value!r}; a value such as {field.default!r} would do")
    return cls(**given)


def check_activation(name: str, key: str) -> None:
    """Raises ValueError where an activation is not among ``ACTIVATIONS``."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{key} is {name!r}; one of {', '.join(map(repr, ACTIVATIONS))} would do")


def check_heads(width: int, heads: int, key: str) -> None:
    """Raises ValueError where the heads do not divide the width."""
    if width % heads:
        raise ValueError(f"{key} is {heads}, which does not divide the width {width}; 1 would do")

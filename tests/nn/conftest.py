"""Tiny transformers with every parameter away from its initial value."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream, Transformer, TransformerConfig

TINY = dict(width=16, depth=2, heads=2, mlp=24, patch=(1, 2, 2), channels=2, classes=3, action=2, text=5)


def random_params(model, *inputs):
    """Normal parameters, none at zero: an output layer that starts at zero would hide all that is behind it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(0.2 * rng.normal(size=s.shape) + (path[-1].key == "scale"), jnp.float32), shapes
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, streams, condition, mask):
    return model.apply({"params": params}, streams, condition, mask)[0]


class Tiny(NamedTuple):
    """A tiny transformer, its inputs and its parameters."""

    model: Transformer
    params: dict
    streams: dict[str, Stream]
    condition: Condition
    mask: np.ndarray

    def apply(self, params=None, streams=None, condition=None, mask=None):
        """The outputs by stream; what is left out is the tiny model's own."""
        given = (params, streams, condition, mask)
        own = (self.params, self.streams, self.condition, self.mask)
        return apply(self.model, *(b if a is None else a for a, b in zip(given, own, strict=True)))


def make(layout=None, frames=4, space=(4, 4), batch=2, **sizes) -> Tiny:
    """``TINY`` with some ``sizes`` changed, over ``frames`` frames under ``layout`` (frame_causal, block 1)."""
    config, layout = TransformerConfig(**TINY | sizes), layout or Layout("frame_causal")
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    streams = {}
    for name, ids in layout.training_ids(frames).items():
        T = len(ids.frame)
        streams[name] = Stream(
            x=normal(batch, T, *space, config.channels),
            t=jnp.asarray(rng.uniform(0.1, 0.9, (batch, T)), jnp.float32),
            frame=jnp.broadcast_to(jnp.asarray(ids.frame, jnp.int32), (batch, T)),
            action=normal(batch, T, config.action) if config.action else None,
        )
    condition = Condition(
        label=jnp.arange(batch, dtype=jnp.int32)[:, None] % config.classes if config.classes else None,
        text=normal(batch, 1, 3, config.text) if config.text else None,
        text_mask=jnp.ones((batch, 1, 3), bool).at[0, 0, 2].set(False) if config.text else None,
    )
    model, mask = Transformer(config), layout.training_mask(frames)
    return Tiny(model, random_params(model, streams, condition, mask), streams, condition, mask)


@pytest.fixture(scope="session")
def tiny():
    """The function that makes a ``Tiny``."""
    return make

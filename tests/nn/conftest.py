"""Tiny transformers with every parameter away from its initial value."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream, Transformer, TransformerConfig

TINY = dict(width=16, depth=2, heads=2, mlp=24, patch=(1, 2, 2), channels=2, classes=3, action=2, text=5)


def moved(params, scale=0.2):
    """Every parameter plus noise: zero-initialised layers hide what is behind them, and ones hide their axis."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + scale * rng.normal(size=p.shape).astype(np.float32), params)


class Tiny(NamedTuple):
    """A tiny transformer, its inputs and its parameters."""

    model: Transformer
    params: dict
    streams: dict[str, Stream]
    condition: Condition
    mask: np.ndarray

    def apply(self, params=None, streams=None, condition=None, mask=None):
        """The outputs by stream; what is left out is the tiny model's own."""
        given = (streams, condition, mask)
        own = (self.streams, self.condition, self.mask)
        inputs = (b if a is None else a for a, b in zip(given, own, strict=True))
        return self.model.apply({"params": self.params if params is None else params}, *inputs)[0]


def make(layout=None, frames=4, space=(4, 4), batch=2, **sizes) -> Tiny:
    """A clip of ``frames`` under ``layout`` (default: frame_causal, block 1), and ``TINY`` with some ``sizes`` changed."""
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
    shapes = jax.eval_shape(model.init, jax.random.key(0), streams, condition, mask)["params"]
    params = moved(jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes))
    scales = jax.tree_util.tree_map_with_path(lambda path, p: p + (path[-1].key == "scale"), params)
    return Tiny(model, scales, streams, condition, mask)


@pytest.fixture(scope="session")
def tiny():
    """The function that makes a ``Tiny``."""
    return make

"""Tiny transformers with every parameter away from its initial value."""

import dataclasses
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


def run(model, flags, params, streams, condition, mask, inputs):
    return model.apply({"params": params}, streams, condition, mask, **dict(flags), **inputs)


forward = jax.jit(run, static_argnums=(0, 1))


class Tiny(NamedTuple):
    """A tiny transformer, its inputs and its parameters."""

    model: Transformer
    params: dict
    streams: dict[str, Stream]
    condition: Condition
    mask: np.ndarray

    def apply(self, params=None, streams=None, condition=None, mask=None):
        """The outputs by stream; what is left out is the tiny model's own."""
        return self.forward(params, streams, condition, mask)[0]

    def forward(self, params=None, streams=None, condition=None, mask=None, compiled=True, **inputs):
        """(outputs, kv), with the further inputs of the model."""
        given = (params, streams, condition, mask)
        own = (self.params, self.streams, self.condition, self.mask)
        given = (b if a is None else a for a, b in zip(given, own, strict=True))
        flags = tuple((name, value) for name, value in inputs.items() if isinstance(value, bool))  # static ones
        inputs = {name: value for name, value in inputs.items() if not isinstance(value, bool)}
        return (forward if compiled else run)(self.model, flags, *given, inputs)


def make(layout=None, frames=4, space=(4, 4), batch=2, **sizes) -> Tiny:
    """``TINY`` with some ``sizes`` changed, over ``frames`` frames under ``layout`` (block_causal, block 1)."""
    layout = layout or Layout("frame_causal")
    times = {name: ids.frame for name, ids in layout.training_ids(frames).items()}
    return assemble(times, layout.training_mask(frames), space, batch, **sizes)


def assemble(times, mask, space=(4, 4), batch=2, clean=None, **sizes) -> Tiny:
    """``TINY`` with some ``sizes`` changed, over streams of the frames ``times`` {name: [T]} under a mask by frame.

    ``clean``: {name: bool [T]}, frames marked clean.
    """
    config, clean = TransformerConfig(**TINY | sizes), clean or {}
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    streams = {}
    for name, frame in times.items():
        T = len(frame)
        streams[name] = Stream(
            x=normal(batch, T, *space, config.channels),
            t=jnp.asarray(rng.uniform(0.1, 0.9, (batch, T)), jnp.float32),
            frame=jnp.broadcast_to(jnp.asarray(frame, jnp.int32), (batch, T)),
            action=normal(batch, T, config.action) if config.action else None,
            clean=jnp.broadcast_to(jnp.asarray(clean[name], bool), (batch, T)) if name in clean else None,
        )
    text = normal(batch, 1, 3, config.text) if config.text else None
    if config.vocabulary:
        text = jnp.asarray(rng.integers(1, config.vocabulary, (batch, 1, 3)), jnp.int32)
    condition = Condition(
        label=jnp.arange(batch, dtype=jnp.int32)[:, None] % config.classes if config.classes else None,
        text=text,
        text_mask=jnp.ones((batch, 1, 3), bool).at[0, 0, 2].set(False) if config.text else None,
    )
    model = Transformer(config)
    return Tiny(model, random_params(model, streams, condition, mask), streams, condition, mask)


@pytest.fixture(scope="session")
def tiny():
    """The function that makes a ``Tiny``."""
    return make


@pytest.fixture(scope="session")
def assembled():
    """The function that makes a ``Tiny`` of given streams and mask."""
    return assemble


@pytest.fixture(scope="session")
def influence():
    """The function that says which frame's output depends on which frame's input."""
    return frame_influence


def frame_influence(system, **inputs):
    """Whether the gradient of each frame's output in each frame's x, t and action is anything but zero.

    Returns:
        {input name: bool [frames out, frames in]} over the frames of all streams that have outputs (of all streams),
        one after the other.
    """
    names, rng = list(system.streams), np.random.default_rng(0)
    weight = {name: rng.normal(size=s.x.shape).astype(np.float32) for name, s in system.streams.items()}

    def each_frame(given):
        streams = {n: dataclasses.replace(system.streams[n], **given[n]) for n in names}
        out = system.forward(streams=streams, compiled=False, **inputs)[0]
        space = tuple(range(2, weight[names[0]].ndim))
        return jnp.concatenate([jnp.sum(out[n] * weight[n], axis=(0, *space)) for n in names if n in out])

    given = {n: {"x": s.x, "t": s.t, "action": s.action} for n, s in system.streams.items()}
    jacobian = jax.jit(jax.jacrev(each_frame))(given)

    def by_frame(name):
        parts = []
        for n in names:
            part = np.abs(np.moveaxis(jacobian[n][name], 2, 1))  # [out, T, B, ...]
            parts.append(part.reshape(*part.shape[:2], -1).max(axis=-1) > 0)
        return np.concatenate(parts, axis=1)

    return {name: by_frame(name) for name in ("x", "t", "action") if given[names[0]][name] is not None}

"""Tiny systems of every kind with random parameters, and the inputs that they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import Config, override
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

BASE = {
    "data.source": "video_folder", "data.height": 4, "data.width": 4, "data.channels": 1, "data.frames": 12,
    "model.width": 16, "model.depth": 2, "model.heads": 2, "model.mlp": 24, "model.patch": (1, 2, 2),
    "stream.capacity": 3,
}  # fmt: skip
CONDITIONS = {
    "data.classes": 3, "data.action_dim": 2, "model.classes": 3, "model.action": 2, "model.text": 5,
    "guidance.kind": "cfg", "guidance.scale": 1.5,
}  # fmt: skip
SYSTEMS = {
    # One block in flight, everything at once: sinks, guidance, every condition, a noised past.
    "teacher": CONDITIONS | {
        "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.sinks": 2,
        "process.predict": "x0", "schedule.steps": 3, "schedule.shift": 2.0,
        "levels.context": 0.3, "cache.commit_level": 0.1,
    },
    # Two blocks in flight, of one frame each.
    "pyramid": CONDITIONS | {
        "layout.kind": "frame_causal", "layout.block": 1, "layout.window": 3, "layout.sinks": 1,
        "process.predict": "velocity", "schedule.steps": 4, "schedule.offset": "pyramid", "schedule.stride": 2.0,
        "guidance.drop": ("label", "text", "action"),
    },
    # Three blocks of two frames in flight, a window shorter than they are, no condition.
    "rolling": {
        "layout.kind": "frame_causal", "layout.block": 2, "layout.window": 2, "model.depth": 1,
        "process.predict": "noise", "schedule.steps": 6, "schedule.offset": "rolling", "schedule.in_flight": 3,
        "schedule.t_max": 0.9, "cache.commit_level": 0.2,
    },
    # Steps that the stride does not divide.
    "uneven": {
        "layout.kind": "frame_causal", "layout.block": 1, "layout.window": 2, "model.qk_norm": "head",
        "process.predict": "x0", "schedule.steps": 5, "schedule.offset": "pyramid", "schedule.stride": 3.0,
    },
    # One clean block after the other in one stream, no condition: the plainest of all.
    "causal": {
        "layout.kind": "frame_causal", "layout.block": 1, "layout.window": 3, "model.depth": 1,
        "model.modulation": "table", "model.head": "table", "model.positions": "additive",
        "process.predict": "x0", "schedule.steps": 2,
    },
}  # fmt: skip


def make_config(**changes):
    """``BASE`` with the given sections changed, flat keys as in SYSTEMS."""
    return override(Config(), BASE | changes)


def random_params(recipe):
    """Normal parameters, none at zero, scaled so that a stream neither dies nor explodes."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(recipe.streaming().init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(0.2 * rng.normal(size=s.shape) + (path[-1].key == "scale"), jnp.float32), shapes
    )


@functools.cache
def make_pipeline(name: str) -> Pipeline:
    """The pipeline of one of SYSTEMS; compiled once for all tests."""
    config = make_config(**SYSTEMS[name])
    return Pipeline(config, random_params(build(config)))


def make_inputs(pipe, batch: int, context: int, frames: int) -> dict:
    """Arguments of ``stream`` and ``generate``: given frames and every condition that the system takes."""
    rng = np.random.default_rng(7)
    model, cond = pipe.recipe.model.config, {}
    if model.classes:
        cond["label"] = np.arange(batch) % model.classes
    if model.text:
        cond["text"] = rng.normal(size=(batch, 3, model.text)).astype(np.float32)
        cond["text_mask"] = np.array([[True, True, i % 2 == 0] for i in range(batch)])
    if model.action:
        cond["context_action"] = rng.normal(size=(batch, context, model.action)).astype(np.float32)
        cond["action"] = rng.normal(size=(batch, frames, model.action)).astype(np.float32)
    given = rng.uniform(-1, 1, (batch, context, *pipe.recipe.frame_shape)).astype(np.float32)
    return dict(batch=batch, cond=cond, context=given)


@pytest.fixture(scope="session")
def pipeline():
    """name -> Pipeline."""
    return make_pipeline


@pytest.fixture(scope="session")
def inputs():
    """The function ``make_inputs``."""
    return make_inputs


@pytest.fixture(scope="session")
def config():
    """The function ``make_config``."""
    return make_config

"""Streams on an accelerator: random weights, and seconds per block once the ring is full."""

import functools
import time

import jax
import numpy as np

from benchmarks import costs
from benchmarks.paired import median
from benchmarks.rows import Figure
from benchmarks.systems import backend
from causal_diffusion.cost import step_cost
from causal_diffusion.recipe import build, null_condition
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.state import Action, sample_keys

WARM = 3  # blocks without a clock after the ring is full


def on_device(config, size: str):
    """The system with the attention that is fastest on a GPU, where there is one and heads are wide enough."""
    return backend(config, "cudnn") if size == "full" and jax.default_backend() == "gpu" else config


def random_pipeline(config, codec=None) -> Pipeline:
    """A pipeline whose parameters are as at the beginning of training; they are made on the device."""
    return Pipeline(config, jax.jit(build(config).streaming().init_params)(jax.random.key(0)), codec=codec)


def condition(config) -> dict:
    """One value of whatever the system can be told."""
    rng, told = np.random.default_rng(0), {}
    if config.model.text:
        told["text"] = rng.standard_normal((config.text.tokens, config.model.text), np.float32)
    if config.model.action:
        told["action"] = np.zeros((1, config.model.action), np.float32)
    return told


def full_ring(pipe: Pipeline):
    """A stream that has emitted as many blocks as it remembers, and a few more."""
    stream = pipe.stream(seed=0, cond=condition(pipe.config))
    for _ in range(pipe.recipe.slots // pipe.rollout.emit + WARM):
        stream.next()
    return stream


def seconds_per_block(stream, count: int) -> np.ndarray:
    """Wall time of ``count`` calls of ``next``, each until its frames are on the host."""
    seconds = np.zeros(count)
    for i in range(count):
        begun = time.perf_counter()
        stream.next()
        seconds[i] = time.perf_counter() - begun
    return seconds


def time_figure(name: str, seconds, least: float | None, most: float | None = None) -> Figure:
    """Milliseconds, their median with its interval; ``least``: the limit in seconds; ``most``: asked, in ms."""
    value, low, high = (1e3 * x for x in median(seconds))
    limit = least and 1e3 * least
    asked = most and ("value", "<=", most)
    return Figure(name, value, "ms", (low, high), len(seconds), asked, limit, limit and limit / value)


def rate_figure(name: str, frames: int, seconds, least: float | None, fewest: float | None = None) -> Figure:
    """Frames per second, likewise; ``frames`` in each of ``seconds``."""
    value, high, low = (frames / x for x in median(seconds))
    limit = least and frames / least
    asked = fewest and ("value", ">=", fewest)
    return Figure(name, value, "FPS", (low, high), len(seconds), asked, limit, limit and value / limit)


def least_seconds(recipe) -> float | None:
    """Of one step of a stream with a full ring."""
    return costs.least_seconds(step_cost(recipe))


def traced(config):
    """Shapes of (state, emitted blocks) of a stream's step, traced without an array: does it build at this size?"""
    recipe = build(config).streaming()
    rollout, model = Rollout(recipe), recipe.model.config
    params = jax.eval_shape(recipe.init_params, jax.random.key(0))
    told = jax.eval_shape(lambda: null_condition(model, 1, tokens=config.text.tokens))
    encoded = jax.eval_shape(rollout.encode_condition, params, told)
    state = jax.eval_shape(rollout.init_state, params, jax.eval_shape(lambda: sample_keys(0, 1)), encoded)
    action = None
    if model.action:
        shape = (1, 1, rollout.emit)
        action = Action(
            jax.ShapeDtypeStruct((*shape, model.action), np.float32), jax.ShapeDtypeStruct(shape, np.bool_)
        )
    advance = functools.partial(rollout.advance, capacity=1)
    return jax.eval_shape(advance, params, state, encoded, action, None, np.int32(1))

"""A network that hands on a state instead of keys and values: the interface that linear attention fills."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.transformer import EncodedCondition
from causal_diffusion.recipe import build
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.state import sample_keys

DECAY = 0.8
LAYERS = (3.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """Every layer keeps a decayed sum of what it has seen, S <- d S + sum of a block, and predicts from it."""

    config: object

    def apply(self, variables, streams, condition, mask, past=None, prefix_mask=None):
        del condition, prefix_mask
        (name, stream), weight = *streams.items(), variables["params"]
        assert mask.shape[-1] == stream.x.shape[1]  # a state has no columns
        seen = jnp.sum(stream.x, axis=1)
        old = [jnp.zeros_like(seen) for _ in LAYERS] if past is None else past
        out = weight * stream.x + sum(jnp.tanh(state / size)[:, None] for state, size in zip(old, LAYERS, strict=True))
        return {name: out}, tuple(DECAY * state + seen for state in old)


@pytest.fixture(scope="module")
def rollout(config):
    changed = {"layout.kind": "block_causal", "layout.block": 2, "layout.window": 2, "process.predict": "x0"}
    recipe = build(config(**changed, **{"schedule.steps": 3, "solver.kind": "euler"})).streaming()
    cache = dataclasses.replace(recipe.cache, kind="state")
    return Rollout(recipe._replace(cache=cache, model=Recurrent(recipe.model.config)))


def by_hand(rollout, weight, key, context, blocks):
    """The stream of one sample as a Python loop over blocks and rows."""
    recipe, out = rollout.recipe, []
    states = [np.zeros(recipe.frame_shape) for _ in LAYERS]

    def commit(block):
        return [DECAY * state + block.sum(axis=0) for state in states]

    for first in range(0, len(context), 2):
        states = commit(context[first : first + 2])
    times = recipe.schedule.times()[::-1].astype(np.float64)
    for block in range(len(context) // 2, len(context) // 2 + blocks):
        noise = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, block), 0), 0)
        x = np.asarray(jax.random.normal(noise, (2, *recipe.frame_shape)), np.float64)
        for t, s in zip(times, times[1:], strict=False):
            x0 = weight * x + sum(np.tanh(state / size) for state, size in zip(states, LAYERS, strict=True))
            x = x + (s - t) * (x - x0) / t
        states = commit(x)
        out.append(x)
    return np.concatenate(out)


def test_a_state_is_handed_on_once_per_block(rollout):
    """However many rows read it; a sample that begins again begins with nothing."""
    keys, weight = sample_keys(3, 2), jnp.float32(0.3)
    context = np.random.default_rng(0).normal(size=(2, 4, *rollout.recipe.frame_shape)).astype(np.float32)
    nothing = EncodedCondition()
    begin, step = jax.jit(rollout.init_state), jax.jit(rollout.step)
    state = begin(weight, keys, nothing, context)
    fresh, out = state, []
    for i in range(5):
        if i == 2:
            state = rollout.replace_samples(state, dataclasses.replace(fresh, slots=state.slots), jnp.array([0, 1]) > 0)
        state, block = step(weight, state, nothing)
        out.append(block)
    out = np.concatenate(out, axis=1)
    for sample in range(2):
        expected = by_hand(rollout, 0.3, keys[sample], context[sample], 5)
        if sample:
            np.testing.assert_allclose(out[1, :4], expected[:4], atol=1e-5)
            np.testing.assert_allclose(out[1, 4:], expected[:6], atol=1e-5)
        else:
            np.testing.assert_allclose(out[0], expected, atol=1e-5)
    assert np.abs(out[0] - by_hand(rollout, 0.3, keys[0], context[0][:0], 5)).max() > 0.1  # the state matters


def test_a_block_that_is_not_there_leaves_the_state_alone(rollout):
    keys, nothing = sample_keys(0, 2), EncodedCondition()
    state = rollout.init_state(jnp.float32(0.3), keys, nothing)
    block = jnp.ones((2, 2, *rollout.recipe.frame_shape))
    frame = jnp.array([[0, 1], [-(1 << 30)] * 2], jnp.int32)
    after = rollout.commit(jnp.float32(0.3), state, nothing, block, frame, None)
    for layer in after.caches:
        assert np.asarray(layer[0]).all() and not np.asarray(layer[1]).any()

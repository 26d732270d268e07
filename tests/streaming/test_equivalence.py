"""Rule 1: the training forward on a block is what streaming computes for it from the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import NOISY
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream
from causal_diffusion.recipe import build
from causal_diffusion.streaming.passes import Own
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.state import Action, sample_keys

BLOCKS = 6
CONDITIONS = {"data.classes": 3, "data.action_dim": 2, "model.classes": 3, "model.action": 2, "model.text": 5}
LAYOUTS = [
    ("teacher_forcing", 1, 3, 1),
    ("block_causal", 3, 6, 0),
    pytest.param(("teacher_forcing", 2, 4, 2), marks=pytest.mark.full),
    pytest.param(("block_causal", 1, 2, 0), marks=pytest.mark.full),
]


class Clip:
    """A noisy clip under every condition; in sample i of the batch, block i is the one to look at."""

    def __init__(self, layout, model, frame_shape):
        rng = np.random.default_rng(3)
        self.B, self.b = BLOCKS, layout.block
        self.T = BLOCKS * layout.block

        def same(*shape):  # the same clip in every sample
            return np.broadcast_to(rng.normal(size=shape).astype(np.float32), (self.B, *shape))

        self.clean, self.noisy = same(self.T, *frame_shape), same(self.T, *frame_shape)
        self.action, self.given = same(self.T, model.action), np.ones((self.B, self.T), bool)
        self.given[:, 2::5] = False
        self.t = np.repeat(rng.uniform(0.1, 0.9, (1, BLOCKS)).astype(np.float32), self.b, axis=1).repeat(self.B, axis=0)
        self.frame = np.broadcast_to(np.arange(self.T, dtype=np.int32), (self.B, self.T))
        self.condition = Condition(
            label=np.full((self.B, 1), 2, np.int32),
            text=same(1, 3, model.text),
            text_mask=np.ones((self.B, 1, 3), bool),
        )

    def stream(self, x, t, frames=None):
        cut = slice(None, frames)
        parts = (x, t, self.frame, self.action, self.given)
        return Stream(*(jnp.asarray(part[:, cut]) for part in parts))

    def of_block(self, a):
        """Block i of sample i, [B, b, ...]."""
        return np.stack([a[i, i * self.b : (i + 1) * self.b] for i in range(self.B)])


def trained(recipe, params, clip):
    """The noisy blocks as training computes them, all in one forward pass per sample."""
    layout = recipe.layout
    if layout.separate_clean:
        past = clip.T - layout.block
        clean = clip.stream(clip.clean, np.zeros_like(clip.t), past)
        streams = {"clean": clean, "noisy": clip.stream(clip.noisy, clip.t)}
    else:  # the past of block i stands in the stream itself, clean and at level 0
        is_past = clip.frame < (np.arange(clip.B) * clip.b)[:, None]
        x = np.where(is_past[..., None, None, None], clip.clean, clip.noisy)
        streams = {"noisy": clip.stream(x, np.where(is_past, 0, clip.t))}
    model, mask = recipe.model, jnp.asarray(layout.training_mask(clip.T))
    out, _ = jax.jit(model.apply)({"params": params}, streams, clip.condition, mask)
    return clip.of_block(np.asarray(out["noisy"]))


class System:
    """A recipe of one layout with random parameters, its clip, and what training computes for it."""

    def __init__(self, recipe):
        self.recipe, self.rollout = recipe, Rollout(recipe)
        self.clip = Clip(recipe.layout, recipe.model.config, recipe.frame_shape)
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
        self.params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32), shapes)
        self.trained = trained(recipe, self.params, self.clip)
        assert (np.abs(self.trained).max(axis=(1, 2, 3, 4)) > 0.1).all()

    def predict(self, params, state, encoded, of_block):
        """The block that ``of_block`` cuts out of the clip, from the cache."""
        clip = self.clip
        own = map(of_block, (clip.noisy, clip.t, clip.frame, clip.action, clip.given))
        x, t, frame, action, given = own
        own = Own(x, t, t, frame, NOISY, encoded, Action(action, given))
        out = self.rollout.next_pass(params, state, own)
        return out[:, 0]


@pytest.fixture
def system(config):
    """(kind, block, window, sinks) -> System, exact and with a window shorter than its clip."""

    def system(kind, block, window, sinks):
        layout = {"layout.kind": kind, "layout.block": block, "layout.window": window, "layout.sinks": sinks}
        recipe = build(config(**CONDITIONS, **layout)).streaming()
        assert recipe.kind == "exact" and window < (BLOCKS - 1) * block
        return System(recipe)

    return system


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_training_forward_is_what_the_cache_gives(system, layout):
    """Every block at once. Sample i sits out at first and then commits its i blocks, so that block i is next."""
    system = system(*layout)
    rollout, clip = system.rollout, system.clip

    @jax.jit
    def streamed(params):
        encoded = rollout.encode_condition(params, clip.condition)

        def commit(state, turn):
            first = (turn - (BLOCKS - 1 - jnp.arange(clip.B))) * clip.b  # negative: sits out
            here = jnp.maximum(first, 0)[:, None] + jnp.arange(clip.b)
            x, value, given = (
                jnp.asarray(a)[jnp.arange(clip.B)[:, None], here] for a in (clip.clean, clip.action, clip.given)
            )
            frame = jnp.where(first[:, None] < 0, -1, here)
            return rollout.commit(params, state, encoded, x, frame, Action(value, given)), None

        state = rollout.init_state(params, sample_keys(0, clip.B), encoded)
        state, _ = jax.lax.scan(commit, state, jnp.arange(BLOCKS - 1))
        return system.predict(params, state, encoded, clip.of_block)

    error = np.abs(streamed(system.params) - system.trained)
    assert error.max() < 1e-5 * np.abs(system.trained).max()


@pytest.mark.full
@pytest.mark.parametrize("layout", [("teacher_forcing", 3, 6, 3), ("block_causal", 1, 2, 1)], ids=str)
def test_given_context_is_remembered_as_training_saw_it(system, layout):
    """The last block after all others were given to ``init_state``."""
    system = system(*layout)
    rollout, clip = system.rollout, system.clip

    @jax.jit
    def streamed(params):
        encoded = rollout.encode_condition(params, clip.condition)
        past, last = slice(None, -clip.b), slice(-clip.b, None)
        action = Action(clip.action[:, past], clip.given[:, past])
        state = rollout.init_state(params, sample_keys(0, clip.B), encoded, clip.clean[:, past], action)
        return system.predict(params, state, encoded, lambda a: a[:, last])

    error = np.abs(streamed(system.params) - system.trained[-1])
    assert error.max() < 1e-5 * np.abs(system.trained).max()


def test_a_cache_in_half_precision_is_named_an_approximation(config):
    exact = build(config())
    rough = build(config(**{"cache.dtype": "bfloat16"}))
    assert exact.kind == "exact" and not exact.approximations
    assert rough.kind == "approximate"
    assert rough.approximations == ("keys and values are computed in float32 and stored in bfloat16",)
    state = Rollout(rough.streaming())
    shapes = jax.eval_shape(
        lambda params, keys: state.init_state(params, keys, state.encode_condition(params, Condition())),
        jax.eval_shape(rough.init_params, jax.random.key(0)),
        jax.eval_shape(lambda: sample_keys(0, 2)),
    )
    assert {a.dtype for a in jax.tree.leaves(shapes.caches)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.full
def test_a_stream_is_as_exact_after_years(config, systems, random_params, inputs):
    """Whatever stands at frame f stands at f + 10^9, and what is predicted is the same."""
    changed = config(**systems["ranges"] | {"cache.keys": "raw"})
    pipe = Pipeline(changed, random_params(build(changed)))
    stream = pipe.stream(seed=1, **inputs(pipe, 2, context=2, frames=4))
    stream.take(4)
    state = stream.mark().state
    x, t = state.x, jnp.full(state.x.shape[:2], 0.4)

    @jax.jit
    def predicted(params, state):
        return pipe.rollout.next_pass(params, state, pipe.rollout._in_flight(state, x, t, None))

    slots = dataclasses.replace(state.slots, frame=state.slots.frame + 10**9)
    late = dataclasses.replace(state, slots=slots, frame=state.frame + 10**9)
    assert (np.asarray(state.slots.frame) >= 0).all()
    now, then = predicted(pipe.params, state), predicted(pipe.params, late)
    np.testing.assert_allclose(then, now, atol=1e-5 * np.abs(now).max())
    near = dataclasses.replace(state, frame=state.frame + 1)
    assert np.abs(predicted(pipe.params, near) - now).max() > 1e-3 * np.abs(now).max()  # places do matter

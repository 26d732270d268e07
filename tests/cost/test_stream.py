"""Costs of a streaming step: the passes, and who sees whom in them, are those that the stream runs; products and bytes
are those of its program."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.cost import condition_cost, step_cost
from causal_diffusion.cost.stream import calls
from causal_diffusion.recipe import build, null_condition
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.state import Action, sample_keys
from tests.cost.products import products

systems = importlib.import_module("tests.streaming.conftest")
QUICK = ("prefix", "fused_rolling", "two_level", "per_token")
BATCH = 2
tiers = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in systems.SYSTEMS]
)


@functools.cache
def recipe_of(name, **changes):
    keys = systems.SYSTEMS[name] | {"text.tokens": 3, "model.backend": "reference"} | changes
    return build(systems.make_config(**keys)).streaming()


class Network:
    """In the place of the transformer: says zeros in the right shapes, and tells who sees whom when it runs."""

    def __init__(self, model):
        self._model, self.seen = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, *arguments, method=None, **options):
        if method is None:
            (name, stream), mask = *arguments[0].items(), arguments[2]
            note = functools.partial(self._note, name, stream.x.shape[:2])
            mask = getattr(mask, "array", mask)  # as a constant of the program
            jax.debug.callback(note, mask, options.get("prefix_mask"), ordered=True)
            method = type(self._model).__call__
        elif method == "per_token":
            jax.debug.callback(self._note, ordered=True)

        def real(variables, *arguments):
            return self._model.apply(variables, *arguments, method=method, **options)

        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(real, variables, *arguments))

    def _note(self, name=None, frames=(), mask=None, prefix=None):
        self.seen.append((name, frames, mask, prefix))


class Silent(Rollout):
    """Draws no noise: who sees whom does not depend on it."""

    def noise(self, keys, frame, use, blocks, visit=0):
        return jnp.zeros((len(keys), blocks * self.block, *self.recipe.frame_shape))


def begin(recipe, rollout, params):
    """(arguments of a step, with the state of a stream without context)."""
    c, layout = recipe.model.config, recipe.layout

    def action(frames):
        return Action(jnp.zeros((BATCH, frames, c.action)), jnp.ones((BATCH, frames), bool)) if c.action else None

    condition = rollout.encode_condition(params, null_condition(c, BATCH, tokens=recipe.config.text.tokens))
    reference = jnp.zeros((BATCH, *recipe.frame_shape)) if layout.reference else None
    waiting = action(rollout.waiting) if rollout.waiting else None
    state = rollout.init_state(params, sample_keys(0, BATCH), condition, action=waiting, reference=reference)
    return state, condition, action(rollout.emit)


def by_part(mask, call):
    """How many frames each row sees among the fine slots, the coarse ones, and its own pass."""
    return [part.sum(axis=-1) for part in np.split(mask, np.cumsum([call.run.slots, call.run.coarse_slots]), axis=-1)]


@tiers
def test_who_sees_whom_is_what_the_stream_shows(name):
    recipe = recipe_of(name)
    network, params = Network(recipe.model), jax.eval_shape(recipe.init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), params)
    rollout, expected = Silent(recipe._replace(model=network)), list(calls(recipe))
    rounds = len(range(recipe.cache.recent, recipe.slots, recipe.layout.block)) if recipe.cache.budget else 1
    layout, far = recipe.layout, recipe.cache.kind == "two_level"
    full = -(-(layout.sinks + recipe.slots + far * (layout.coarse + recipe.slots) + layout.pad) // rollout.emit) + 1
    state, condition, action = jax.jit(functools.partial(begin, recipe, rollout))(params)
    run = jax.jit(rollout.step)
    for _ in range(full):
        state, _ = run(params, state, condition, action)
    jax.effects_barrier()
    network.seen.clear()
    for _ in range(rounds):
        state, _ = run(params, state, condition, action)
    jax.effects_barrier()
    assert len(network.seen) == rounds * len(expected)
    for i, call in enumerate(expected):
        each = network.seen[i :: len(expected)]
        name, frames, _, prefix = each[0]
        if call.run.mask is None:
            assert name is None
            continue
        assert name == ("coarse" if call.run.coarse else "own")
        assert frames == (BATCH * call.branches, call.run.fine + call.run.coarse)
        mask = np.mean([np.broadcast_to(seen[2], (frames[0], *seen[2].shape[-2:])) for seen in each], axis=(0, 1))
        for ours, theirs in zip(by_part(call.run.mask, call), by_part(mask, call), strict=True):
            np.testing.assert_allclose(np.sort(ours), np.sort(theirs), atol=1e-6)  # slots go round
        if recipe.model.config.prefix:
            alone = ~prefix[0].any(axis=-1)
            assert (alone == (call.run.prefix[:, -frames[1] :].diagonal() > 0)).all()
            np.testing.assert_array_equal(np.where(alone, 1, prefix[0].sum(axis=-1)), call.run.prefix.sum(axis=-1))


@tiers
def test_products_of_a_step_are_those_of_its_program(name):
    recipe = recipe_of(name)
    rollout, params = Rollout(recipe), jax.eval_shape(recipe.init_params, jax.random.key(0))
    state, condition, action = jax.eval_shape(functools.partial(begin, recipe, rollout), params)
    assert products(rollout.step, params, state, condition, action) == step_cost(recipe, BATCH, visible=False).flops
    kept, texts = (
        sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
        for tree in (state.caches, (condition.keys, condition.values))
    )
    if name in ("teacher", "per_token"):
        null = null_condition(recipe.model.config, BATCH, tokens=3)
        once = condition_cost(recipe, BATCH)
        assert products(rollout.encode_condition, params, null) == once.flops
        assert once.written == texts
    passes = [call for call in calls(recipe) if call.run.mask is not None]
    if recipe.cache.kind == "kv" and not recipe.cache.commit_drop:
        shares = sum(call.branches for call in passes) / len(recipe.guidance.branches())
        assert step_cost(recipe, BATCH).read == len(passes) * kept + shares * texts


def test_steered_passes_count_twice():
    plain = step_cost(recipe_of("causal"), BATCH, visible=False)
    steered = recipe_of("causal", **{"guidance.observe": "square"})
    assert len(list(calls(steered))) == len(list(calls(recipe_of("causal")))) + 2  # of three, the last one commits
    both = step_cost(steered, BATCH, visible=False)
    rollout, params = Rollout(steered), jax.eval_shape(steered.init_params, jax.random.key(0))
    state, condition, action = jax.eval_shape(functools.partial(begin, steered, rollout), params)
    assert plain.flops < both.flops
    # A gradient of inputs alone needs none of what a frame's level decides.
    assert 0.8 < products(rollout.step, params, state, condition, action) / both.flops < 1.0


def test_keys_in_8_bits_and_written_blocks():
    wide, narrow = (recipe_of("int8", **{"cache.dtype": dtype}) for dtype in ("float32", "int8"))
    c, read = wide.model.config, [step_cost(recipe, BATCH) for recipe in (wide, narrow)]
    kept = BATCH * 4 * 2 * c.depth * 1 * c.width * 4  # slots, keys and values, layers, a token, numbers of 4 bytes
    assert [cost.read for cost in read] == [3 * kept, 3 * kept * (c.width + 4 * c.heads) // (4 * c.width)]
    assert [cost.written * 12 for cost in read] == [cost.read for cost in read]  # of 4 slots, read 3 times, 1
    assert read[0].flops == read[1].flops and read[0].weights == read[1].weights


def test_a_network_with_a_state_of_its_own_is_not_known():
    recipe = recipe_of("causal")
    with pytest.raises(ValueError, match="cache.kind is 'state': what a network costs"):
        step_cost(recipe._replace(cache=dataclasses.replace(recipe.cache, kind="state")))

"""Costs of a streaming step: the passes, and who sees whom in them, are those that the stream runs; products and bytes
are those of its program."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.cost import Cost, condition_cost, step_cost
from causal_diffusion.cost.stream import calls
from causal_diffusion.recipe import build, null_condition
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.state import Action, sample_keys
from tests.cost.products import products

systems = importlib.import_module("tests.streaming.conftest")
EVERY = tuple(name for name in systems.SYSTEMS if name != "observed")
QUICK = ("teacher", "rolling", "prefix", "axial", "one_past", "fused_rolling", "two_level", "deep", "knot", "per_token")
BATCH = 2
tiers = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in EVERY]
)


@functools.cache
def recipe_of(name, **changes):
    return build(systems.make_config(**systems.SYSTEMS[name] | {"text.tokens": 3} | changes)).streaming()


class Network:
    """In the place of the transformer: says zeros in the right shapes, and remembers who saw whom."""

    def __init__(self, model):
        self._model, self._shapes, self.seen = model, {}, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, *arguments, method=None, prefix_mask=None, **options):
        if method is None and not isinstance(arguments[2], jax.core.Tracer):
            self.seen.append((arguments[0], arguments[2], arguments[3], prefix_mask))
        if method == self.per_token:
            self.seen.append(None)

        def real(variables, *arguments):
            return self._model.apply(variables, *arguments, method=method, prefix_mask=prefix_mask, **options)

        if method is not None:
            real = functools.partial(self._model.apply, method=method)
        leaves, tree = jax.tree.flatten((arguments, prefix_mask, options))
        form = (getattr(method, "__name__", None), tree, *((jnp.shape(a), jnp.result_type(a)) for a in leaves))
        if form not in self._shapes:
            self._shapes[form] = jax.eval_shape(real, variables, *arguments)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self._shapes[form])


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
    rollout, expected = Rollout(recipe._replace(model=network)), list(calls(recipe))
    rounds = len(range(recipe.cache.recent, recipe.slots, recipe.layout.block)) if recipe.cache.budget else 1
    layout, far = recipe.layout, recipe.cache.kind == "two_level"
    full = -(-(layout.sinks + recipe.slots + far * (layout.coarse + recipe.slots) + layout.pad) // rollout.emit) + 1
    with jax.disable_jit():
        state, condition, action = begin(recipe, rollout, params)
        for step in range(full + rounds):
            if step == full:
                network.seen.clear()
            state, _ = rollout.step(params, state, condition, action)
    assert len(network.seen) == rounds * len(expected)
    for i, call in enumerate(expected):
        each = network.seen[i :: len(expected)]
        if call.run.mask is None:
            assert each == [None] * rounds
            continue
        streams = each[0][0]
        assert list(streams) == ["coarse" if call.run.coarse else "own"]
        (frames,) = (stream.x.shape[:2] for stream in streams.values())
        assert frames == (BATCH * call.branches, call.run.fine + call.run.coarse)
        mask = np.mean([np.broadcast_to(shown, (frames[0], *shown.shape[-2:])) for _, shown, _, _ in each], axis=(0, 1))
        for ours, theirs in zip(by_part(call.run.mask, call), by_part(mask, call), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        if recipe.model.config.prefix:
            shown = np.asarray(each[0][3][0])
            assert shown.any(axis=-1).tolist() == (call.run.prefix[:, -frames[1] :].diagonal() == 0).tolist()
            np.testing.assert_array_equal(np.maximum(shown.sum(axis=-1), 1), call.run.prefix.sum(axis=-1))


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
    if name in ("teacher", "deep"):
        null = null_condition(recipe.model.config, BATCH, tokens=3)
        once = condition_cost(recipe, BATCH)
        assert products(rollout.encode_condition, params, null) == once.flops
        assert once.written == texts
    passes = [call for call in calls(recipe) if call.run.mask is not None]
    if recipe.cache.kind == "kv" and not recipe.cache.commit_drop:
        shares = sum(call.branches for call in passes) / len(recipe.guidance.branches())
        assert step_cost(recipe, BATCH).read == len(passes) * kept + shares * texts

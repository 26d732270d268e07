"""The train state: the average's recursion, and where every leaf lies."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.recipe import build
from causal_diffusion.run_config import TrainConfig
from causal_diffusion.training import state as states
from causal_diffusion.training.optimizer import make_optimizer
from causal_diffusion.training.state import TrainState, apply_gradients, create, sharded_state


@pytest.mark.parametrize("decay", [0.9, 0.3, 0.0])
def test_the_average_follows_its_recursion(decay):
    """e_n+1 = d e_n + (1 - d) p_n+1 with d = min(decay, (1 + n) / (10 + n)), against float64."""
    config = TrainConfig(steps=100, warmup=0, lr=0.1, ema=decay, clip=0.0)
    recipe = SimpleNamespace(config=SimpleNamespace(train=config))
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    state = TrainState(jnp.int32(0), params, params, make_optimizer(config).init(params), jax.random.key(0))
    step = jax.jit(functools.partial(apply_gradients, recipe))
    rng = np.random.default_rng(0)
    wanted = {name: np.asarray(p, np.float64) for name, p in params.items()}
    for n in range(30):
        grads = {name: jnp.asarray(rng.standard_normal(p.shape), jnp.float32) for name, p in params.items()}
        state = step(state, grads)
        d = min(decay, (1 + n) / (10 + n))
        wanted = {name: d * e + (1 - d) * np.asarray(state.params[name], np.float64) for name, e in wanted.items()}
        for name, e in wanted.items():
            np.testing.assert_allclose(state.ema[name], e, rtol=1e-5, atol=1e-6)
    assert state.step == 30 and state.key == jax.random.key(0)
    assert decay or np.array_equal(state.ema["w"], state.params["w"])


@pytest.fixture(scope="module")
def recipe(small):
    return build(small())


@pytest.mark.parametrize("sizes", [
    pytest.param(MeshConfig(8, 1), marks=pytest.mark.full), pytest.param(MeshConfig(1, 8), marks=pytest.mark.full),
    MeshConfig(2, 4),
], ids=str)
def test_a_fresh_state_is_the_same_on_every_mesh(recipe, sizes, monkeypatch):
    """Bit for bit; moments and averages lie where their parameter lies, and fsdp really splits."""
    monkeypatch.setattr(states, "param_shardings", functools.partial(param_shardings, min_size=64))
    mesh = make_mesh(sizes)
    state = sharded_state(recipe, mesh, seed=3)
    one = jax.jit(lambda key: create(recipe, key))(jax.random.key(3))
    data = jax.tree.map(lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a,
                        (state, one))
    jax.tree.map(np.testing.assert_array_equal, *data)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    check_placement(state, mesh)


def check_placement(state, mesh):
    mu, nu = optax.tree.get(state.opt_state, "mu"), optax.tree.get(state.opt_state, "nu")
    for same in (state.ema, mu, nu):
        assert jax.tree.all(jax.tree.map(lambda p, s: p.sharding == s.sharding, state.params, same))
    split = [p for p in jax.tree.leaves(state.params) if not p.is_fully_replicated]
    whole = [p for p in jax.tree.leaves(state.params) if p.is_fully_replicated]
    if mesh.shape["fsdp"] == 1:
        assert not split
    else:
        assert sum(p.size for p in split) > 5 * sum(p.size for p in whole)
    assert state.step.is_fully_replicated


def test_the_average_is_a_copy(recipe):
    """Donation would otherwise give one buffer away twice."""
    state = jax.jit(lambda key: create(recipe, key))(jax.random.key(0))
    for p, e in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        assert p.unsafe_buffer_pointer() != e.unsafe_buffer_pointer()


def test_seeds_differ(recipe):
    a, b = (jax.jit(lambda key: create(recipe, key).params)(jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(a["embed"]["kernel"], b["embed"]["kernel"])

"""The network per token: the transformer knows nothing of the noisy token, and the head no other token."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.diffusion_head import DiffusionHead
from causal_diffusion.nn.transformer import TransformerConfig
from tests.nn.conftest import random_params

HEAD = dict(head="diffusion", head_width=12, head_depth=2)


@pytest.fixture(scope="module")
def system(assembled):
    """Three clean frames and four noisy ones under teacher forcing, all of them marked."""
    layout = Layout("teacher_forcing")
    times = {name: ids.frame for name, ids in layout.training_ids(4).items()}
    clean = {"clean": np.ones(3, bool), "noisy": np.zeros(4, bool)}
    return assembled(times, layout.training_mask(4), clean=clean, **HEAD)


def test_a_noisy_frame_and_its_level_reach_its_own_output_alone(system, influence):
    """Derivatives of the seven outputs by the seven frames: exactly zero but where said; levels of clean ones count."""
    seen = influence(system)
    noisy = slice(3, None)
    past = np.tril(np.ones((4, 3), bool), -1)
    for name in ("x", "t"):
        np.testing.assert_array_equal(seen[name][noisy, noisy], np.eye(4, dtype=bool))
        np.testing.assert_array_equal(seen[name][noisy, :3], past)
        assert not seen[name][:3, noisy].any()
    np.testing.assert_array_equal(seen["action"][noisy, noisy], np.eye(4, dtype=bool))


def test_what_the_transformer_says_of_a_token_does_not_depend_on_its_noise(assembled):
    """Inside a block too, where noisy frames see each other: the head is given the same h, bit for bit."""
    layout, heard = Layout("teacher_forcing", block=2), []
    times = {name: ids.frame for name, ids in layout.training_ids(4).items()}
    clean = {"clean": np.ones(2, bool), "noisy": np.zeros(4, bool)}
    system = assembled(times, layout.training_mask(4), (2, 2), 1, clean, depth=1, **HEAD)
    noisy, rng = system.streams["noisy"], np.random.default_rng(5)

    def listen(call, arguments, options, context):
        if isinstance(context.module, DiffusionHead) and context.method_name == "__call__":
            heard.append(arguments)
        return call(*arguments, **options)

    @jax.jit
    def told(x, t):
        with nn.intercept_methods(listen):
            stream = dataclasses.replace(noisy, x=x, t=t)
            out = system.forward(streams=system.streams | {"noisy": stream}, compiled=False)[0]["noisy"]
        return heard[-1][2], out

    (h, out), (h_other, other) = (
        told(*(jnp.asarray(rng.uniform(size=a.shape), jnp.float32) for a in (noisy.x, noisy.t))) for _ in range(2)
    )
    np.testing.assert_array_equal(h, h_other)
    assert np.abs(h).max() > 0.1 and np.abs(out - other).max() > 1e-3


def test_every_parameter_of_it_learns_and_the_query_too(system):
    target = jnp.asarray(np.random.default_rng(3).normal(size=system.streams["noisy"].x.shape), jnp.float32)

    @jax.jit
    def grads(params):
        def loss(params):
            out = system.forward(params, compiled=False)[0]["noisy"]
            return jnp.mean((out - target) ** 2)

        return jax.grad(loss)(params)

    got = grads(system.params)
    still = [jax.tree_util.keystr(path, simple=True, separator="/")
             for path, leaf in jax.tree_util.tree_leaves_with_path(got) if not np.abs(leaf).max() > 0]  # fmt: skip
    assert still == ["action/null"]  # in training none is missing
    assert np.abs(got["query"]).max() > 0


def test_it_starts_at_zero_and_is_the_written_equations():
    head = DiffusionHead(width=6, depth=2, outputs=3, frequencies=8, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x, h = (jnp.asarray(rng.normal(size=(2, 3, 4, n)), jnp.float32) for n in (5, 7))
    t = jnp.asarray(rng.uniform(size=(2, 3)), jnp.float32)
    fresh = jax.jit(head.init)(jax.random.key(0), x, t, h)
    np.testing.assert_array_equal(head.apply(fresh, x, t, h), 0.0)
    params = random_params(head, x, t, h)
    got = jax.jit(head.apply)({"params": params}, x, t, h)
    assert got.dtype == jnp.float32 and got.shape == (2, 3, 4, 3)

    def linear(name, v, at=params):
        return v @ np.asarray(at[name]["kernel"], np.float64) + np.asarray(at[name]["bias"], np.float64)

    def silu(v):
        return v / (1 + np.exp(-v))

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-6)

    angle = 1000.0 * np.asarray(t, np.float64)[..., None] * 10000.0 ** (-np.arange(4) / 4)
    waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    time = linear("out", silu(linear("in", waves, params["time"])), params["time"])
    c = silu(time[:, :, None] + linear("condition", np.asarray(h)))
    y = linear("in", np.asarray(x))
    for i in range(2):
        shift, scale, gate = np.split(linear(f"modulation_{i}", c), 3, -1)
        z = silu(linear(f"in_{i}", norm(y) * (1 + scale) + shift))
        y = y + gate * linear(f"out_{i}", z)
    shift, scale = np.split(linear("modulation", c), 2, -1)
    np.testing.assert_allclose(got, linear("out", norm(y) * (1 + scale) + shift), atol=2e-4)


def test_sizes_that_make_no_head_are_refused():
    with pytest.raises(ValueError, match="model.head_width is 0; it is at least 1"):
        TransformerConfig(head="diffusion", head_width=0)
    with pytest.raises(ValueError, match="model.vocabulary is -1; it is at least 0"):
        TransformerConfig(vocabulary=-1)

"""Layers scanned or unrolled, recomputed or kept: the same outputs and the same gradient of every parameter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.layers import join_projections, split_projections, stack_layers, unstack_layers
from causal_diffusion.nn.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def system(tiny):
    made = tiny(Layout("teacher_forcing"), frames=3)
    streams = {  # one action is unknown, so that the vector which stands for it takes part
        name: dataclasses.replace(stream, action_given=stream.frame != 1) for name, stream in made.streams.items()
    }
    return made._replace(streams=streams)


def outputs_and_gradients(system, params, **sizes):
    """Outputs of a variant of the system's model, and gradients of their sum of squares."""
    config = system.model.config
    model = Transformer(TransformerConfig(**{**vars(config), **sizes}))

    @jax.jit
    def both(params):
        def loss(params):
            out, kv = model.apply({"params": params}, system.streams, system.condition, system.mask)
            return jnp.sum(out["noisy"] ** 2) + jnp.sum(out["clean"] ** 2), (out, kv)

        return jax.grad(loss, has_aux=True)(params)

    gradients, (out, kv) = both(params)
    return out, kv, gradients


@pytest.fixture(scope="module")
def plain(system):
    return outputs_and_gradients(system, system.params)


def assert_gradients_equal(one, two, limit=1e-5):
    """Per leaf: |d| <= limit * (|g_leaf| + 1e-3 |g_all|)."""
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(one)))

    def check(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        allowed = limit * (np.linalg.norm(a) + 1e-3 * whole)
        assert np.linalg.norm(a - b) <= allowed, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, one, two)


def test_every_parameter_is_at_work(plain):
    """Else the comparisons below would compare zeros."""
    _, _, gradients = plain
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.linalg.norm(leaf) > 1e-3, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("layers", "remat"),
    [
        ("scan", "full"),
        pytest.param("scan", "none", marks=pytest.mark.full),
        pytest.param("unrolled", "full", marks=pytest.mark.full),
        pytest.param("unrolled", "dots_saveable", marks=pytest.mark.full),
    ],
)
def test_scanned_and_recomputed_layers_equal_plain_ones(system, plain, layers, remat):
    out, kv, gradients = plain
    params = stack_layers(system.params) if layers == "scan" else system.params
    other_out, other_kv, other_gradients = outputs_and_gradients(system, params, layers=layers, remat=remat)
    for name in out:
        np.testing.assert_allclose(other_out[name], out[name], atol=1e-5 * np.abs(out[name]).max())
    for layer, pair in enumerate(kv):
        others = [part[layer] for part in other_kv] if layers == "scan" else other_kv[layer]
        for ours, theirs in zip(others, pair, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert_gradients_equal(gradients, unstack_layers(other_gradients), 1e-6 if layers == "unrolled" else 1e-5)


def test_stacking_goes_there_and_back(system):
    stacked = stack_layers(system.params)
    assert "block_0" not in stacked and jax.tree.leaves(stacked["blocks"])[0].shape[0] == 2
    assert stack_layers(stacked) is stacked and unstack_layers(system.params) is system.params
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), system.params)
    model = Transformer(TransformerConfig(**{**vars(system.model.config), "layers": "scan"}))
    made = jax.eval_shape(model.init, jax.random.key(0), system.streams, system.condition, system.mask)["params"]
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, stacked)


def test_more_than_ten_layers_keep_their_order():
    params = {f"block_{i}": {"w": np.full(1, i)} for i in range(12)} | {"head": np.zeros(1)}
    stacked = stack_layers(params)
    np.testing.assert_array_equal(stacked["blocks"]["w"][:, 0], np.arange(12))
    assert {int(unstack_layers(stacked)[f"block_{i}"]["w"][0]) == i for i in range(12)} == {True}


@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        pytest.param(dict(coarse=2, registers=2, qk_norm="head"), marks=pytest.mark.full),
        dict(attention="factorised", prefix=2, mask_channel=True, axial_mlp=True, qk_norm="none"),
    ],
    ids=["joint", "coarse", "factorised"],
)
def test_joined_projections_are_the_same_network(tiny, sizes):
    """Of every attention but the one to the condition, q, k and v become one product; outputs and keys stay."""
    kind = "frame_causal"
    made = tiny(Layout(kind, coarse=2 if "coarse" in sizes else 0), frames=4, **sizes)
    joined, params = Transformer(made.model.config, joined=True), join_projections(made.params)
    given = (made.streams, made.condition, made.mask)
    shapes = jax.eval_shape(lambda: joined.init(jax.random.key(0), *given))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, join_projections(params), params))
    jax.tree.map(np.testing.assert_array_equal, split_projections(params), made.params)
    out, kv = jax.jit(joined.apply)({"params": params}, *given)
    for new, old in zip(jax.tree.leaves((out, kv)), jax.tree.leaves(made.forward()), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-5 * np.abs(old).max())

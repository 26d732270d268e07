"""Gradients of micro-batches: the same mean, summed in float32, and never whole on a device that holds a part.

The objective is a toy without noise, so that only the way of summing can make a difference.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import load_config
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.training import step as steps
from causal_diffusion.training.runs import make_recipe

L, D, M, ROWS = 3, 32, 48, 64


class Toy:
    """Scanned layers x + W' tanh(W x), and the mean square of what comes out."""

    @staticmethod
    def gradients(recipe, params, batch, key, step, dtype=jnp.float32):
        def loss(params):
            def layer(x, kernels):
                return x + jnp.tanh(x @ kernels["in"]) @ kernels["out"], None

            x, _ = jax.lax.scan(layer, batch["x"], params["blocks"])
            error = jnp.mean((x * params["scale"] - batch["y"]) ** 2, axis=-1)
            return jnp.mean(error), {"loss": jnp.mean(error)}

        grads, metrics = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda g: g.astype(dtype), (grads, metrics))


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(steps.OBJECTIVES, Toy, Toy.gradients)


def inputs():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    params = {"blocks": {"in": 0.2 * normal(L, D, M), "out": 0.2 * normal(L, M, D)}, "scale": 1 + 0.1 * normal(D)}
    return params, {"x": normal(ROWS, D), "y": normal(ROWS, D)}


def compiled(accumulate, mesh, pin=True):
    """The compiled gradients, without a word about where they shall lie but the pin, and the parameters' shardings."""
    params, batch = inputs()
    shardings, rows = param_shardings(params, mesh, min_size=64), batch_sharding(mesh)
    run = functools.partial(steps.gradients, Toy(), accumulate=accumulate, shardings=shardings if pin else None)
    places = (shardings, dict.fromkeys(batch, rows))
    jitted = jax.jit(lambda params, batch: run(params, batch, None), in_shardings=places)
    with jax.set_mesh(mesh):
        return jitted.lower(params, batch).compile(), shardings


def assert_same_gradients(found, wanted):
    """Per leaf: |d| <= 1e-5 (|g_leaf| + 1e-3 |g_all|)."""
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(wanted)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(b) > 0
        assert np.linalg.norm(a - b) <= 1e-5 * (np.linalg.norm(b) + 1e-3 * whole)


@pytest.mark.parametrize(("accumulate", "sizes"), [
    (4, MeshConfig(2, 4)),
    *(pytest.param(*case, marks=pytest.mark.full) for case in [
        (1, None), (4, None), (16, None), (2, MeshConfig(8, 1)), (8, MeshConfig(1, 8)), (16, MeshConfig(2, 4)),
    ]),
], ids=str)  # fmt: skip
def test_the_mean_over_micro_batches_is_that_of_the_batch(accumulate, sizes):
    mesh = make_mesh(sizes) if sizes else make_mesh(devices=jax.devices()[:1])
    params, batch = inputs()
    wanted, metrics = jax.jit(Toy.gradients, static_argnums=0)(None, params, batch, None, 0)
    program, shardings = compiled(accumulate, mesh)
    args = jax.device_put((params, batch), (shardings, dict.fromkeys(batch, batch_sharding(mesh))))
    found, other = program(*args)
    assert_same_gradients(found, wanted)
    assert float(other["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)


def places(program, shardings):
    """Of each gradient that the program returns, whether it lies where its parameter does."""
    params, (grads, _) = inputs()[0], program.output_shardings
    each = zip(jax.tree.leaves(grads), jax.tree.leaves(shardings), jax.tree.leaves(params), strict=True)
    return [a.is_equivalent_to(b, p.ndim) for a, b, p in each]


def test_gradients_lie_where_the_parameters_do():
    """The compiler, left to itself, gives every device those of scanned layers whole: hence the pin."""
    mesh = make_mesh(MeshConfig(2, 4))
    assert all(places(*compiled(1, mesh)))
    assert not all(places(*compiled(1, mesh, pin=False)))


def test_sums_lie_where_the_parameters_do():
    program, shardings = compiled(4, make_mesh(MeshConfig(2, 4)))
    assert all(places(program, shardings))
    own = shardings["blocks"]["in"].shard_shape((L, D, M))
    assert own == (L, D, M // 4) and own in carried(program)


def carried(program):
    """Shapes on one device of what loops of the program carry."""
    shapes = set()
    for line in program.as_text().splitlines():
        if loop := re.search(r"= \((.*)\) while\(", line):
            shapes |= {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", loop[1])}
    return shapes


def test_sums_and_means_are_float32_whatever_the_gradients_are(monkeypatch):
    monkeypatch.setitem(steps.OBJECTIVES, Toy, functools.partial(Toy.gradients, dtype=jnp.bfloat16))
    params, batch = inputs()
    one = jax.jit(lambda params, batch: Toy.gradients(None, params, batch, None, 0, jnp.bfloat16))
    parts = [one(params, jax.tree.map(lambda x, i=i: x[i::16], batch)) for i in range(16)]
    wanted = jax.tree.map(lambda *parts: np.mean([np.asarray(p, np.float64) for p in parts], axis=0), *parts)
    found = jax.jit(lambda params, batch: steps.gradients(Toy(), params, batch, None, accumulate=16))(params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-8), found, wanted)


@pytest.mark.parametrize(("name", "changes", "said"), [
    ("motion_text:tiny", {}, "trains is 'motion_text'"),
    ("motion_vae:tiny", {"reconstruction.fit": "likelihood"}, "reconstruction.fit is 'likelihood'"),
    ("motion_vae:tiny", {"reconstruction.fit": "l1", "reconstruction.gan": 0.1}, "reconstruction.gan is 0.1"),
    ("video_vae:tiny", {"reconstruction.gan": 0.0, "reconstruction.align": 0.0, "reconstruction.fit": "likelihood"},
     "reconstruction.fit is 'likelihood'"),
])  # fmt: skip
def test_losses_of_the_whole_batch_are_refused(name, changes, said):
    recipe = make_recipe(load_config(name, changes))
    with pytest.raises(UserError, match=said) as refused:
        steps.gradients(recipe, None, {}, None, accumulate=2)
    assert "try train.accumulate = 1" in str(refused.value) and "\n" not in str(refused.value)
    steps.check_accumulate(recipe, 1)


@pytest.mark.parametrize(("name", "changes"), [
    ("quickstart:tiny", {}),
    ("motion_vae:tiny", {"reconstruction.fit": "charbonnier", "reconstruction.gan": 0.0, "reconstruction.align": 0.0}),
])  # fmt: skip
def test_means_over_clips_are_accumulated(name, changes):
    steps.check_accumulate(make_recipe(load_config(name, changes)), 4)

"""The trap: split the tokens of a frame, flatten them with the frames, and gradients are wrong without a word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from causal_diffusion.parallel.activations import tokens
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh

B, T, N, C, W = 8, 4, 8, 8, 16


def kernel_gradient(mesh, spec, place):
    """(loss, d loss / d kernel) of one Linear on tokens; ``spec``: of the input, ``place``: of what comes out."""
    rng = np.random.default_rng(0)
    z, k = (rng.standard_normal(shape).astype(np.float32) for shape in ((B, T, N, C), (C, W)))
    target = rng.standard_normal((B, T * N, W)).astype(np.float32)

    def loss(k, z):
        return jnp.mean((place(jnp.tanh(z @ k)) - target) ** 2)

    with jax.set_mesh(mesh):
        z = jax.device_put(z, jax.NamedSharding(mesh, spec))
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(k, z))


def flat(x):
    return x.reshape(B, T * N, W)


def split_tokens(x):
    """What nobody should do."""
    return jax.lax.with_sharding_constraint(flat(x), P("data", "context"))


def off(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def alone():
    return kernel_gradient(make_mesh(devices=jax.devices()[:1]), P(), flat)


def test_the_trap_is_there(alone):
    """On the CPU backend of jax 0.10 and 0.12. Where it is gone, this test and the warnings of it can go."""
    mesh = make_mesh(MeshConfig(2, 1, 4))
    loss, grad = kernel_gradient(mesh, P("data", None, "context"), split_tokens)
    assert loss == pytest.approx(alone[0], rel=1e-6)  # nothing shows
    assert off(grad, alone[1]) > 0.1


@pytest.mark.parametrize("sizes", [(2, 1, 4), (4, 1, 2), (1, 2, 4), (2, 2, 2)], ids=str)
def test_split_frames_do_not_fall_into_it(alone, sizes):
    """By the place that this library gives tokens, flattened afterwards, as attention does."""
    mesh = make_mesh(MeshConfig(*sizes))
    loss, grad = kernel_gradient(mesh, P(("data", "fsdp")), lambda x: flat(tokens(x)))
    assert loss == pytest.approx(alone[0], rel=1e-6)
    assert off(grad, alone[1]) < 1e-6

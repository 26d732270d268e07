"""Hinge losses, and one gradient that trains both sides, each by its own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.discriminator import Discriminator
from causal_diffusion.training.objectives.adversarial import (
    discriminator_loss,
    discriminator_term,
    generator_loss,
    generator_term,
    ramp,
)

D = Discriminator(8, (2,), apart=False, axes=0)


def discriminate(params, x):
    return D.apply({"params": params}, x)


def generate(params, noise):
    return noise * params["scale"] + params["shift"]


def real_clips(key):
    return 2.0 + 0.5 * jax.random.normal(key, (16, 4, 2))


@pytest.fixture(scope="module")
def params():
    vae = {"scale": jnp.ones(2), "shift": jnp.zeros(2)}
    return {"vae": vae, "discriminator": jax.jit(D.init)(jax.random.key(0), jnp.zeros((1, 4, 2)))["params"]}


def joint(params, real, noise, weight):
    """Some loss of the generator's own and both adversarial terms."""
    fake, d = generate(params["vae"], noise), params["discriminator"]
    own = 0.1 * jnp.mean(fake**2)
    return own + weight * generator_term(discriminate, d, fake) + discriminator_term(discriminate, d, real, fake)


def test_hinge_by_hand():
    real, fake = jnp.array([[2.0, 0.5], [-1.0, 1.0]]), jnp.array([-3.0, 0.0, 0.5])
    assert generator_loss(fake) == pytest.approx(2.5 / 3)
    assert discriminator_loss(real, fake) == pytest.approx((0.0 + 0.5 + 2.0 + 0.0) / 4 + (0.0 + 1.0 + 1.5) / 3)
    assert discriminator_loss(jnp.full(3, 1.0), jnp.full(3, -1.0)) == 0.0  # at the margin all is said


def test_one_gradient_gives_each_side_that_of_its_own_loss(params):
    real, noise, weight = real_clips(jax.random.key(0)), jax.random.normal(jax.random.key(1), (16, 4, 2)), 0.3
    both = jax.jit(jax.grad(joint))(params, real, noise, weight)

    def generators(vae):
        fake = generate(vae, noise)
        return 0.1 * jnp.mean(fake**2) + weight * generator_loss(discriminate(params["discriminator"], fake))

    def discriminators(d):
        return discriminator_loss(discriminate(d, real), discriminate(d, generate(params["vae"], noise)))

    alone = {
        "vae": jax.jit(jax.grad(generators))(params["vae"]),
        "discriminator": jax.jit(jax.grad(discriminators))(params["discriminator"]),
    }
    assert all(any(np.any(g) for g in jax.tree.leaves(side)) for side in alone.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), both, alone)


def test_neither_term_leaks_into_the_other_side(params):
    real, noise = real_clips(jax.random.key(0)), jax.random.normal(jax.random.key(1), (16, 4, 2))

    def one(params):
        return generator_term(discriminate, params["discriminator"], generate(params["vae"], noise))

    def other(params):
        made = generate(params["vae"], noise)
        return discriminator_term(discriminate, params["discriminator"], real + params["vae"]["shift"], made)

    for term, silent in ((one, "discriminator"), (other, "vae")):
        gradient = jax.jit(jax.grad(term))(params)
        assert not any(np.any(g) for g in jax.tree.leaves(gradient.pop(silent)))
        assert any(np.any(g) for g in jax.tree.leaves(gradient))


def test_trained_together_the_made_up_moves_to_the_real(params):
    """At first the discriminator tells the two apart; then the generator's mean goes from 0 towards 2."""

    @jax.jit
    def step(params, i):
        k_real, k_noise = jax.random.split(jax.random.fold_in(jax.random.key(7), i))
        real, noise = real_clips(k_real), jax.random.normal(k_noise, (16, 4, 2))
        weight = 1.0 * ramp(i, 20)
        gradient = jax.grad(joint)(params, real, noise, weight)
        loss = discriminator_loss(
            discriminate(params["discriminator"], real),
            discriminate(params["discriminator"], generate(params["vae"], noise)),
        )
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), loss

    losses, shifts = [], []
    for i in range(80):
        params, loss = step(params, i)
        losses.append(float(loss))
        shifts.append(float(params["vae"]["shift"].mean()))
    assert losses[19] < 0.5 * losses[0]  # nobody listens yet, so the generator is easy prey
    assert abs(shifts[19]) < 0.05 and shifts[-1] > 1.0


def test_the_ramp_is_a_step():
    assert [float(ramp(i, 3)) for i in (0, 2, 3, 1000)] == [0.0, 0.0, 1.0, 1.0]
    assert float(jax.jit(ramp, static_argnums=1)(jnp.int32(2), 3)) == 0.0
    assert float(ramp(0, 0)) == 1.0

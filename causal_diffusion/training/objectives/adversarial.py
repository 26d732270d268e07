"""Adversarial losses in hinge form: a discriminator D and what it judges, trained by one gradient.

With x real and x' made by the generator (Lim & Ye 2017, arXiv 1705.02894),

    generator:      -mean D(x')                                                                           (1)
    discriminator:   mean relu(1 - D(x)) + mean relu(1 + D(x'))                                           (2)

The two pull in opposite directions, so each must reach its own parameters only. ``generator_term`` holds D's parameters
fixed and ``discriminator_term`` the clips; the sum of both, under any weights, may then be differentiated at once::

    def loss(params, real):
        fake = generate(params["vae"], real)
        own = generator_term(discriminate, params["discriminator"], fake)
        return reconstruction + ramp(step, start) * weight * own + discriminator_term(
            discriminate, params["discriminator"], real, fake)

    jax.grad(loss)(params, real)     # {"vae": of the first two terms, "discriminator": of the last}

``discriminate(params, clips) -> logits`` is a function, such as ``lambda p, x: d.apply({"params": p}, x)``.
"""

import jax
import jax.numpy as jnp

fixed = jax.lax.stop_gradient


def generator_loss(fake):
    """Equation (1), of logits of any shape."""
    return -jnp.mean(fake)


def discriminator_loss(real, fake):
    """Equation (2), of logits of any shapes."""
    return jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake))


def generator_term(discriminate, params, fake):
    """Equation (1) of clips, with a gradient in the clips and none in the discriminator's ``params``."""
    return generator_loss(discriminate(fixed(params), fake))


def discriminator_term(discriminate, params, real, fake):
    """Equation (2) of clips, with a gradient in the discriminator's ``params`` and none in the clips."""
    return discriminator_loss(discriminate(params, fixed(real)), discriminate(params, fixed(fake)))


def ramp(step, start: int):
    """0.0 before step ``start``, 1.0 from there on: the discriminator learns before anyone listens to it."""
    return jnp.where(jnp.asarray(step) >= start, 1.0, 0.0)

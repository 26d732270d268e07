"""Warm-up and decay, AdamW and clipping against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from causal_diffusion.config import TrainConfig
from causal_diffusion.errors import UserError
from causal_diffusion.training.optimizer import DECAYS, learning_rate, make_optimizer

FACTOR = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
}


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize("decay", DECAYS)
def test_warm_up_then_decay(decay, warmup):
    steps, peak = 50, 2e-3
    rate = learning_rate(TrainConfig(steps=steps, lr=peak, warmup=warmup, decay=decay))
    for step in range(steps + 5):
        done = min(1.0, (step - warmup) / (steps - warmup))
        wanted = peak * (step / warmup if step < warmup else FACTOR[decay](done))
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-9), step


@pytest.mark.parametrize(("config", "words"), [
    (dict(decay="cosinus"), ("train.decay is 'cosinus'", "cosine, linear, constant")),
    (dict(steps=100, warmup=100), ("train.warmup is 100", "train.steps is 100", "train.warmup = 10 would do")),
])
def test_impossible_rates_are_refused(config, words):
    with pytest.raises(UserError) as error:
        learning_rate(TrainConfig(**config))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_betas_are_two():
    with pytest.raises(UserError, match=r"train.betas is \(0.9,\); it holds two"):
        make_optimizer(TrainConfig(betas=(0.9,)))


def run(config, params, grads):
    """Parameters after each of the gradients, one after the other."""
    optimizer = make_optimizer(config)
    state, out = optimizer.init(params), []
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out, state


def test_adamw_step_by_step():
    rng = np.random.default_rng(0)
    config = TrainConfig(steps=20, warmup=3, lr=0.1, decay="linear", betas=(0.8, 0.95), weight_decay=0.3, clip=0.0)
    start = rng.standard_normal((3, 2))
    grads = rng.standard_normal((8, 3, 2))
    found, _ = run(config, {"w": jnp.asarray(start, jnp.float32)}, [{"w": jnp.asarray(g, jnp.float32)} for g in grads])
    p, m, v = start, 0.0, 0.0
    for n, (g, params) in enumerate(zip(grads, found, strict=True)):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        unbiased = (m / (1 - 0.8 ** (n + 1))) / (np.sqrt(v / (1 - 0.95 ** (n + 1))) + 1e-8)
        p = p - float(learning_rate(config)(n)) * (unbiased + 0.3 * p)
        np.testing.assert_allclose(params["w"], p, rtol=2e-4, atol=1e-5)


def test_only_matrices_decay():
    config = TrainConfig(steps=10, warmup=0, lr=0.1, decay="constant", weight_decay=0.5)
    params = {"kernel": jnp.ones((2, 3)), "stacked": jnp.ones((4, 2, 3)), "bias": jnp.ones(3), "scalar": jnp.ones(())}
    (after, *_), _ = run(config, params, [jax.tree.map(jnp.zeros_like, params)])
    np.testing.assert_allclose(after["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(after["stacked"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert np.all(after["bias"] == 1.0) and after["scalar"] == 1.0


@pytest.mark.parametrize(("clip", "size"), [(1.0, 5.0), (1.0, 0.5), (0.0, 5.0)])
def test_clipping_keeps_the_direction(clip, size):
    """The first moment after one step is (1 - beta1) times the clipped gradient."""
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # of norm 5 over both
    grads = jax.tree.map(lambda g: g * size / 5.0, grads)
    config = TrainConfig(steps=10, warmup=0, betas=(0.9, 0.99), clip=clip)
    _, state = run(config, jax.tree.map(jnp.ones_like, grads), [grads])
    factor = min(1.0, clip / size) if clip else 1.0
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * factor * g, rtol=1e-5),
                 optax.tree.get(state, "mu"), grads)

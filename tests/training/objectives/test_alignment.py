import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.training.objectives import alignment as losses


def sample(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cosine(a, b):
    return np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_cosines_by_hand(margin):
    z, f = (sample(2, 3, 4, seed=i) for i in range(2))
    expected = np.mean([max(0, 1 - margin - cosine(z[b, i], f[b, i])) for b in range(2) for i in range(3)])
    np.testing.assert_allclose(losses.margin_cosine(z, f, margin), expected, rtol=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_distances_by_hand(margin):
    """Frames of one clip only, and of unlike widths."""
    z, f = sample(2, 3, 4), sample(2, 3, 7, seed=1)
    expected = np.mean([
        max(0, abs(cosine(z[b, i], z[b, j]) - cosine(f[b, i], f[b, j])) - margin)
        for b in range(2) for i in range(3) for j in range(3)
    ])  # fmt: skip
    np.testing.assert_allclose(losses.margin_distances(z, f, margin), expected, rtol=1e-4, atol=1e-6)
    assert expected > 0


def test_what_is_aligned_costs_nothing_however_long_the_vectors():
    f = sample(2, 5, 4)
    turned = 3.0 * f @ np.linalg.qr(sample(4, 4, seed=1))[0]
    assert float(losses.alignment(0.1 * f, turned, f, 0.0, 0.0)) < 1e-5
    assert float(losses.alignment(-f, turned, f, 0.0, 0.0)) == pytest.approx(2.0, abs=1e-5)


def test_inside_the_margins_no_gradient_flows_and_none_ever_into_the_features():
    f = sample(1, 4, 6)
    near = f + 0.05 * sample(1, 4, 6, seed=1)
    gradients = jax.grad(losses.alignment, (0, 1, 2))(near, near, f)
    assert not any(np.any(g) for g in gradients)
    gradients = jax.grad(losses.alignment, (0, 1, 2))(-f, sample(1, 4, 6, seed=2), f)
    assert np.any(gradients[0]) and np.any(gradients[1]) and not np.any(gradients[2])


def test_descent_aligns():
    f, z, w = sample(2, 4, 3), sample(2, 4, 3, seed=1), 0.1 * sample(3, 3, seed=2)

    def loss(z, w):
        return losses.alignment(z @ w, z, f)

    step = jax.jit(lambda z, w: tuple(a - 0.2 * g for a, g in zip((z, w), jax.grad(loss, (0, 1))(z, w), strict=True)))
    first = float(loss(z, w))
    for _ in range(200):
        z, w = step(z, w)
    assert float(loss(z, w)) < 0.1 * first


def test_a_latent_of_zeros_has_a_finite_gradient():
    zero = jnp.zeros((1, 3, 4))
    assert all(np.isfinite(g).all() for g in jax.grad(losses.alignment, (0, 1))(zero, zero, sample(1, 3, 4)))


def test_the_adaptive_weight():
    rec, other = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}, jnp.array([[0.0, 2.0]])
    np.testing.assert_allclose(losses.adaptive_weight(rec, other), 5 / 2.0001, rtol=1e-6)
    assert losses.adaptive_weight(rec, jnp.zeros(2)) == pytest.approx(5e4)
    assert losses.adaptive_weight(jnp.array([1e9]), jnp.zeros(2)) == pytest.approx(1e8)
    assert losses.adaptive_weight(rec, jnp.zeros(2), limit=10.0) == 10.0
    gradient = jax.grad(lambda g: losses.adaptive_weight(g, g**2))(jnp.array([1.0, 2.0]))
    assert not np.any(gradient)


def test_shapes_that_do_not_go_together_are_named():
    with pytest.raises(ValueError, match=r"projected to \(1, 4, 3\), cannot be aligned with features \(1, 4, 6\)"):
        losses.alignment(sample(1, 4, 3), sample(1, 4, 2), sample(1, 4, 6))
    with pytest.raises(ValueError, match="as many frames"):
        losses.alignment(sample(1, 4, 6), sample(1, 3, 2), sample(1, 4, 6))

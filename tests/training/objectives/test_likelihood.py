import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.training.objectives import likelihood as losses


def log_density(x, mean, std):
    x, mean, std = (np.asarray(a, np.float64) for a in (x, mean, std))
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def pair(shape=(3, 8, 5), error=0.7, seed=0):
    a, b = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return a, a + error * b


@pytest.mark.parametrize("error", [0.05, 0.7, 20.0])
def test_the_likelihood_is_that_of_the_best_gaussian(error):
    """Far above the bound: the density with s^2 = mse, and no other s is better."""
    x, y = pair(error=error)
    s = np.sqrt(np.mean((x - y) ** 2))
    np.testing.assert_allclose(losses.likelihood(x, y), -log_density(x, y, s).mean(), atol=3e-3)
    for other in (0.8, 1.25):
        assert losses.likelihood(x, y) < -log_density(x, y, other * s).mean()
    expected = float(np.log(s) + 0.5 + 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(losses.likelihood(x, y), expected, atol=3e-3)


def test_the_deviation_is_bounded_softly_from_below():
    """Equation (3) written out where the bound bites, and its limit at a perfect reconstruction."""
    x, y = pair()
    y = x + (y - x) * 1e-3
    a = 0.5 * np.log(np.mean((np.asarray(x, np.float64) - y) ** 2))
    log_s = -6 + np.log1p(np.exp(a + 6))
    expected = 0.5 * np.exp(2 * a - 2 * log_s) + log_s + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(losses.likelihood(x, y), expected, rtol=1e-4)
    value, gradient = jax.value_and_grad(losses.likelihood, 1)(x, x)
    np.testing.assert_allclose(value, -6 + 0.5 * np.log(2 * np.pi), atol=1e-3)
    assert np.isfinite(gradient).all()


def test_the_gradient_flows_through_the_deviation():
    """d/dy of log s(mse) + mse / (2 s(mse)^2), by finite differences; with s held it would be another."""
    x, y = pair(error=0.02)
    y = x + (y - x) / 8  # log s is near the bound, where holding s matters
    direction = y - x
    gradient = np.vdot(jax.grad(losses.likelihood, 1)(x, y), direction)

    def at(scale):
        return float(losses.likelihood(x, x + scale * direction))

    np.testing.assert_allclose(gradient, (at(1.02) - at(0.98)) / 0.04, rtol=0.01)
    square = np.mean(direction**2)
    log_s = -6 + np.log1p(np.exp(0.5 * np.log(square) + 6))
    held = square * np.exp(-2 * log_s)
    assert abs(gradient - held) > 0.1 * abs(held)


def test_the_other_losses_by_hand():
    x, y = jnp.array([0.0, 0.0, 1.0, 2.0]), jnp.array([0.0, 3.0, -1.0, 2.0])
    assert losses.l1(x, y) == 5 / 4 and losses.mse(x, y) == 13 / 4
    np.testing.assert_allclose(losses.charbonnier(x, y, eps=4.0), (4 + 5 + 20**0.5 + 4) / 4, rtol=1e-6)
    np.testing.assert_allclose(losses.charbonnier(x, x), 1e-3, rtol=1e-6)
    assert np.isfinite(jax.grad(losses.charbonnier, 1)(x, x)).all()


@pytest.mark.parametrize("form", losses.FITS)
def test_losses_do_not_depend_on_batch_or_length(form):
    x, y = pair()
    loss = losses.FITS[form]
    for axis in (0, 1):
        np.testing.assert_allclose(
            loss(np.concatenate([x, x], axis), np.concatenate([y, y], axis)), loss(x, y), rtol=1e-5
        )


@pytest.mark.parametrize("form", losses.FITS)
def test_the_root_counts_as_a_sum_over_its_numbers_does(form):
    """(sum over all + 7 sum over the root) / all numbers."""
    x, y = pair()
    loss = losses.FITS[form]
    sums = [part.size * loss(part, y[..., : part.shape[-1]]) for part in (x, x[..., :2])]
    expected = (sums[0] + 7.0 * sums[1]) / x.size
    np.testing.assert_allclose(losses.fit(form, x, y, root=2), expected, rtol=1e-6)
    assert losses.fit(form, x, y) == loss(x, y)
    none = losses.fit(form, x, y, root=2, root_weight=0.0)
    np.testing.assert_allclose(none, loss(x, y), rtol=1e-6)


def test_kl_against_the_integral():
    """KL of one number, by quadrature; then summed over a clip's latents and averaged over clips."""
    grid = np.linspace(-30.0, 30.0, 20001)
    for mean, logvar in ((0.0, 0.0), (1.5, 0.0), (-0.3, 1.2), (2.0, -3.0)):
        log_q, log_p = log_density(grid, mean, np.exp(logvar / 2)), log_density(grid, 0, 1)
        integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), grid)
        value = losses.kl(np.full((1, 1, 1), mean, np.float32), np.full((1, 1, 1), logvar, np.float32), (1, 1))
        np.testing.assert_allclose(value, integral, atol=1e-4)
    mean, logvar = pair((3, 4, 5))
    each = [losses.kl(mean[i, None, t], logvar[i, None, t], (1, 1)) for i in range(3) for t in range(4)]
    np.testing.assert_allclose(losses.kl(mean, logvar, (3, 5, 2)), sum(each) / 3 / 10, rtol=1e-5)


def test_nothing_changes_the_ratio_of_distortion_and_rate():
    """Both are nats of a clip over its numbers: their sum is the bound itself."""
    x, y = pair()
    mean, logvar = pair((3, 2, 4))
    nats = -log_density(x, y, np.sqrt(np.mean((x - y) ** 2))).sum(axis=(1, 2))
    nats = nats + 0.5 * (mean**2 + np.exp(logvar) - logvar - 1).sum(axis=(1, 2))
    per_clip = x[0].size * (losses.likelihood(x, y) + losses.kl(mean, logvar, x.shape))
    np.testing.assert_allclose(per_clip, nats.mean(), rtol=2e-3)


def test_warm_up_is_linear_and_then_one():
    assert [float(losses.kl_warmup(step, 4)) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert float(losses.kl_warmup(0, 0)) == 1.0
    assert float(jax.jit(losses.kl_warmup, static_argnums=1)(3, 4)) == 0.75


def test_bad_input_is_named():
    x, y = pair()
    with pytest.raises(ValueError, match="the form of the fit is 'l2'; it is one of likelihood, l1, charbonnier, mse"):
        losses.fit("l2", x, y)
    with pytest.raises(ValueError, match="root is 6 and a frame has 5 channels"):
        losses.fit("l1", x, y, root=6)

"""Solvers that add noise: chains of Gaussian data have the mean and the variance that they should at every time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.schedule import Schedule
from tests.diffusion.solving import MEAN, NOISY, STD, denoiser, step, truth


def marginals(name, process, predict, runs, std=STD):
    """Mean and variance at every time of chains that start at their true marginal, each float64 [rows + 1].

    Where the network is affine in x, so is a step: x_s = gain x + push z + rest. All rows of all runs in one call.
    """
    rows = np.concatenate([np.stack([run[:-1], run[1:]], axis=1) for run in runs]).astype(np.float32)
    t, s = (np.broadcast_to(column, (3, len(rows))) for column in rows.T)
    x, z = (np.broadcast_to(np.array(unit, np.float32)[:, None, None], (*t.shape, 1)) for unit in np.eye(3)[1:])
    take = jax.jit(lambda x, z: step(name, process, predict, x, t, s, noise=z))
    rest, one, noised = np.asarray(take(x, z), np.float64)[..., 0]
    table, chains = iter(np.stack([one - rest, noised - rest, rest], axis=1)), []
    for run in runs:
        mean, variance = ([float(value)] for value in truth(process, run[0], std))
        for time in run[1:]:
            gain, push, rest = next(table)
            assert (push == 0) == (time == 0)  # noise on every row but the last
            mean.append(gain * mean[-1] + rest)
            variance.append(gain**2 * variance[-1] + push**2)
        chains.append((np.array(mean), np.array(variance)))
    return chains


@pytest.mark.parametrize("path", ["linear", "vp_sigmoid", "edm"])
@pytest.mark.parametrize("name", NOISY)
def test_marginals_of_one_point_of_data_are_exact(name, path):
    """x0 is known, so each transition is the true one: in any number of steps the variance is the path's."""
    process, times = Process(path=path, predict="x0"), Schedule(5, shift=2.0, t_max=0.9).times()[::-1]
    [chain] = marginals(name, process, lambda x, t: jnp.full_like(x, MEAN), [times], std=0.0)
    for ours, theirs in zip(chain, truth(process, times, std=0.0), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("path", ["linear", "vp_cosine"])
def test_students_that_know_the_end_of_the_path_have_the_right_marginals_in_any_number_of_steps(path):
    """Noise put on x0(x_t) = m + d (x_t - a m) / n, where probability flow ends, gives the marginal at every time."""
    process, times = Process(path=path, predict="x0"), Schedule(3, shift=5.0).times()[::-1]

    def student(x, t):
        near = process.at(t, x)
        return MEAN + STD * (x - near.a * MEAN) / jnp.sqrt(near.a**2 * STD**2 + near.s**2)

    [chain] = marginals("x0_noise", process, student, [times])
    for ours, theirs in zip(chain, truth(process, times), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("path", ["linear", "vp_cosine"])
@pytest.mark.parametrize("name", ["ddpm", "ddim eta"])
def test_the_variance_of_the_data_is_reached_in_the_limit(name, path):
    """Noise of the posterior's variance lacks what the data leave open, of second order in each step."""
    process, counts = Process(path=path, predict="x0"), np.array([256, 512, 1024])
    ends = marginals(name, process, denoiser(process), [Schedule(int(n)).times()[::-1] for n in counts])
    np.testing.assert_allclose([mean[-1] for mean, _ in ends], MEAN, atol=1e-3)
    error = np.abs([variance[-1] - STD**2 for _, variance in ends])
    np.testing.assert_allclose(-np.diff(np.log2(error)), 1, atol=0.1)
    assert error[-1] < 0.01 * STD**2


def test_with_the_true_variance_learned_ancestral_sampling_is_exact():
    """p(x_s | x_t) = N(., n_s^2 - (a_t / a_s)^2 n_s^4 / n_t^2) for Gaussian data, n^2 the variances of x."""
    process = Process(path="vp_linear", predict="x0", variance="learned")
    times = (np.array([900, 700, 500, 300, 150, 50, 10]) / 1000).astype(np.float32)
    t, s = times[None, :-1], times[None, 1:]
    (near, n2_t), (far, n2_s) = ((process.values(time), truth(process, time)[1]) for time in (t, s))
    exact = n2_s - (near.a / far.a * n2_s) ** 2 / n2_t
    like = jnp.ones((1, len(times) - 1, 1))
    bound = jax.jit(process.learned_variance)
    low, high = (np.log(bound(sign * like, t, s))[..., 0] for sign in (-1, 1))
    part = 2 * (np.log(exact) - low) / (high - low) - 1
    assert (np.abs(part) < 1).all()  # between a point and white data

    def network(x, t):
        return jnp.concatenate([denoiser(process)(x, t), jnp.broadcast_to(part[..., None], x.shape)], axis=-1)

    [chain] = marginals("ddpm", process, network, [times])
    for ours, theirs in zip(chain, truth(process, times), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)

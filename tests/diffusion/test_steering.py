"""Steering: every space and path says the same, and Gaussian processes are in-filled as their conditional says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.guidance import Guidance
from causal_diffusion.diffusion.paths import PATHS, TABLES
from causal_diffusion.diffusion.process import SPACES, Process
from causal_diffusion.diffusion.schedule import Schedule
from causal_diffusion.diffusion.solvers import SolverConfig, make
from causal_diffusion.diffusion.steering import OBSERVED, observed_loss, steer
from tests.compiling import AS_SHIPPED

FAMILIES = tuple(path for path in PATHS if path not in TABLES or path == "vp_cosine")  # tables differ in numbers alone
rng = np.random.default_rng(0)
X, Y = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
MIX = (rng.normal(size=(12, 12)) / 4).astype(np.float32)
LEVELS = np.array([[0.15, 0.5, 0.8], [0.3, 0.0, 0.95]], np.float32)


def guess(x):
    """Some smooth x0_hat in which every frame tells of every other."""
    return jnp.tanh(x.reshape(-1, 12) @ MIX).reshape(x.shape)


def network(process):
    """A network that puts out, in the space of the process, what stands for ``guess``."""

    def predict(x, t):
        if process.predict == "x0":
            return guess(x)
        return getattr(Process(path=process.path, predict="x0"), f"to_{process.predict}")(guess(x), x, t)

    return predict


def pull(x0, t):
    return jnp.sum((0.5 + t[..., None]) * (x0 - Y) ** 2, axis=(1, 2))


@pytest.mark.parametrize("path", FAMILIES)
def test_every_space_is_steered_alike(path):
    """Equations (2) and (3), with g by the chain rule on paper: tanh' = 1 - tanh^2."""
    t, clean = LEVELS, (LEVELS == 0)[..., None]
    x0 = np.asarray(guess(X))
    inner = np.where(clean, 0.0, 2 * (0.5 + t[..., None]) * (x0 - Y) * (1 - x0**2))
    gradient = (inner.reshape(2, 12) @ MIX.T).reshape(X.shape) + np.where(clean, 2 * 0.5 * (X - Y), 0.0)

    @functools.partial(jax.jit, compiler_options=AS_SHIPPED)
    def all_spaces(x):
        out = {}
        for space in SPACES:
            process = Process(path=path, predict=space)
            predict = network(process)
            plain, steered = predict(x, t), steer(process, predict, pull, 0.7)(x, t)
            out[space] = plain, steered, process.to_x0(steered, x, t), process.to_noise(steered, x, t)
        return out

    at = Process(path=path).at(t, X)
    a, s = np.asarray(at.a), np.asarray(at.s)
    wanted_x0 = x0 - 0.7 * s**2 / a * gradient
    wanted_eps = np.where(clean, 0.0, (X - a * x0) / np.where(clean, 1.0, s) + 0.7 * s * gradient)
    for space, (plain, steered, x0_of, eps_of) in all_spaces(X).items():
        moved = np.broadcast_to(~clean, X.shape)
        np.testing.assert_array_equal(np.asarray(steered)[~moved], np.asarray(plain)[~moved])
        for ours, theirs in ((x0_of, wanted_x0), (eps_of, wanted_eps)):
            tolerance = 2e-5 * (1.0 + np.abs(wanted_x0) + np.abs(wanted_eps) / a)[moved]
            assert np.all(np.abs(np.asarray(ours) - theirs)[moved] <= tolerance), space


def test_no_scale_is_no_steering_to_the_bit():
    process = Process()
    predict = network(process)
    assert steer(process, predict, pull, 0.0) is predict
    plain = predict(X, LEVELS)
    none = steer(process, predict, pull, jnp.zeros(()))(X, LEVELS)
    np.testing.assert_array_equal(none, plain)
    some = steer(process, predict, pull, np.array([[0.0, 1.0, 1.0]], np.float32))(X, LEVELS)  # per frame
    whole = steer(process, predict, pull, 1.0)(X, LEVELS)
    np.testing.assert_array_equal(some[:, :1], plain[:, :1])
    np.testing.assert_array_equal(some[:, 1:], whole[:, 1:])
    assert np.all(np.asarray(some)[LEVELS > 0.3] != np.asarray(plain)[LEVELS > 0.3])


def test_samples_are_steered_apart_and_a_sum_is_the_sum():
    process = Process(predict="v")
    predict = network(process)
    steered = jax.jit(steer(process, predict, pull, 2.0))
    whole, changed = steered(X, LEVELS), steered(jnp.stack([X[0], 9 * X[1]]), LEVELS)
    np.testing.assert_array_equal(whole[0], changed[0])
    summed = jax.jit(steer(process, predict, lambda x0, t: jnp.sum(pull(x0, t)), 2.0))(X, LEVELS)
    np.testing.assert_allclose(summed, whole, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_passes_through_and_clipping_comes_after():
    process, plain = Process(predict="noise", variance="learned", clip=0.1), Process(predict="noise")
    spread = np.full_like(X, 0.25)
    out = steer(process, lambda x, t: jnp.concatenate([network(plain)(x, t), spread], axis=-1), pull, 0.7)(X, LEVELS)
    mean, variance = process.split(out)
    np.testing.assert_array_equal(variance, spread)
    np.testing.assert_allclose(mean, steer(plain, network(plain), pull, 0.7)(X, LEVELS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", FAMILIES)
def test_ends_of_the_path_are_finite_and_so_are_their_gradients(path):
    """Frames that are clean keep their bits, and so do those without any data; a rollout through them has gradients."""
    t = np.array([[0.0, 1.0, 0.5]] * 2, np.float32)
    guidance, given = Guidance(observe="gaussian"), np.ones((2, 3), bool)

    @jax.jit
    def run(x):
        def steered(x, space, observe=True):
            process = Process(path=path, predict=space, zero_snr=path.startswith("vp_"))
            loss = observed_loss(guidance, process, Y, given)
            predict = lambda x, t: jnp.tanh(x.reshape(-1, 12) @ MIX).reshape(x.shape)  # noqa: E731
            return steer(process, predict, loss)(x, t) if observe else predict(x, t)

        def size(x, space):
            return jnp.sum(jnp.square(steered(x, space)[:, 2]))

        return {space: (steered(x, space), steered(x, space, False), jax.grad(size)(x, space)) for space in SPACES}

    empty = float(Process(path=path, zero_snr=path.startswith("vp_")).values(1.0).a) == 0.0
    assert empty == (path in ("linear", "trigflow") or path.startswith("vp_"))
    for steered, plain, gradient in run(X).values():
        assert np.isfinite(steered).all() and np.isfinite(gradient).all()
        np.testing.assert_array_equal(steered[:, 0], plain[:, 0])
        if empty:
            np.testing.assert_array_equal(steered[:, 1], plain[:, 1])
        assert np.any(steered[:, 2] != plain[:, 2])


# Known values.


@pytest.mark.parametrize("observe", [name for name in OBSERVED if name != "none"])
def test_losses_and_their_gradients_are_the_equations(observe):
    """Unknown numbers, NaN among them, count for nothing."""
    more = {"gaussian": {"observe_std": 0.3}}.get(observe, {})
    process, guidance = Process(path="edm", data_std=0.5), Guidance(observe=observe, **more)
    given = rng.random(X.shape) < 0.5
    loss = observed_loss(guidance, process, np.where(given, Y, np.nan), given)
    value, gradient = loss(X, LEVELS), jax.grad(lambda x0: jnp.sum(loss(x0, LEVELS)))(X)
    error = np.where(given, Y - X, 0.0)
    path = process.at(LEVELS, X)
    variance = 0.5**2 * path.s**2 / (path.a**2 * 0.5**2 + path.s**2) + 0.3**2
    level = np.array([1 / 3, 2 / 3])[:, None, None]
    each, slope = {
        "square": (error**2, -2 * error),
        "quantile": (np.where(error > 0, level, level - 1) * error, np.where(error > 0, -level, 1 - level) * given),
        "gaussian": (error**2 / (2 * variance), -error / variance),
    }[observe]
    np.testing.assert_allclose(value, np.sum(each, axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


def test_levels_are_taken_in_turn_and_a_frame_may_be_given_whole():
    x0 = np.zeros((5, 2, 3), np.float32)
    given = np.array([[True, False]])
    loss = observed_loss(Guidance(observe="quantile", observe_levels=(0.1, 0.7)), Process(), x0 + 1.0, given)
    np.testing.assert_allclose(loss(x0, np.ones((5, 2))), 3 * np.array([0.1, 0.7, 0.1, 0.7, 0.1]), rtol=1e-6)
    nothing = observed_loss(Guidance(), Process(), x0 + 1.0, given)
    np.testing.assert_array_equal(nothing(x0, np.ones((5, 2))), np.zeros(5))


# Gaussian processes over T times, in-filled by sampling. Everything is known.

T, STD = 16, 0.3
TIMES = np.arange(T)
KERNELS = {
    "rbf": np.exp(-0.5 * ((TIMES[:, None] - TIMES) / 2.0) ** 2) + 1e-3 * np.eye(T),
    "ar1": 0.8 ** np.abs(TIMES[:, None] - TIMES),
    "white": np.eye(T),
}
INFILL = np.isin(TIMES, (1, 4, 5, 9, 14))
FORECAST = TIMES < T // 2
VALUES = 1.5 * np.cos(0.7 * TIMES).astype(np.float32)
SAMPLES = 2048


def conditional(kernel, given, std):
    """Mean [T] and covariance [T, T] of the process given its values at some times, measured with error std."""
    gain = kernel[:, given] @ np.linalg.inv(kernel[np.ix_(given, given)] + std**2 * np.eye(given.sum()))
    return gain @ VALUES[given], kernel - gain @ kernel[given]


class Ideal:
    """The ideal predictor of a Gaussian process, all frames at one time, and the exact loss of known values.

    x0_hat = a C (a^2 C + s^2)^-1 x and C_t = Cov(x0 | x_t) = s^2 C (a^2 C + s^2)^-1.
    """

    def __init__(self, process, kernel):
        self.process = process
        self.variances, self.axes = (jnp.asarray(z, jnp.float32) for z in np.linalg.eigh(kernel))

    def predict(self, x, t):
        path, v = self.process.values(t[0, 0]), self.variances
        share = v / (path.a**2 * v + path.s**2)
        x0 = jnp.einsum("ik,k,jk,bjc->bic", self.axes, path.a * share, self.axes, x)
        eps = path.s * jnp.einsum("ik,k,jk,bjc->bic", self.axes, share / v, self.axes, x)
        return self.process.target(x0, eps, t)

    def loss(self, given):
        """1/2 e^T (A C_t A^T + std^2)^-1 e; rows of unknown times are those of the identity and meet e = 0."""

        def loss(x0, t):
            path, v = self.process.values(t[0, 0]), self.variances
            spread = (self.axes * (path.s**2 * v / (path.a**2 * v + path.s**2))) @ self.axes.T
            spread = jnp.where(given[:, None] & given, spread, 0.0) + jnp.diag(jnp.where(given, STD**2, 1.0))
            error = jnp.where(given, VALUES - x0[..., 0], 0.0)
            return 0.5 * jnp.sum(error * jnp.linalg.solve(spread, error.T).T, axis=-1)

        return loss


STATIC = ("process", "kernel", "solver", "schedule", "guidance")


@functools.partial(jax.jit, static_argnames=STATIC, compiler_options=AS_SHIPPED)  # many steps of many samples
def generate(key, given, process, kernel, solver, schedule, guidance):
    """Samples [SAMPLES, T]; steered by the exact loss if there is no guidance."""
    ideal, solver, times = Ideal(process, KERNELS[kernel]), make(solver), schedule.times()[::-1]
    start, key = jax.random.split(key)
    loss = ideal.loss(given)
    if guidance is not None:
        values = jnp.broadcast_to(jnp.where(given, VALUES, jnp.nan)[:, None], (SAMPLES, T, 1))
        loss = observed_loss(guidance, process, values, given[None])
    predict = steer(process, ideal.predict, loss, 1.0 if guidance is None else guidance.observe_scale)

    def row(carry, now):
        (history, x), (t, s, key) = carry, now
        t, s = (jnp.full(x.shape[:2], time) for time in (t, s))
        noise = jax.random.normal(key, x.shape) if solver.stochastic else None
        return solver.step(history, process, predict, x, t, s, noise), None

    x = process.start(jax.random.normal(start, (SAMPLES, T, 1)), jnp.full((SAMPLES, T), times[0]))
    keys = jax.random.split(key, len(times) - 1)
    (_, x), _ = jax.lax.scan(row, (solver.init(x), x), (times[:-1], times[1:], keys))
    return x[..., 0]


def check_moments(samples, mean, covariance, errors=4.5):
    """Within Monte-Carlo error: means err by sd / sqrt(n), covariances by sqrt((C_ii C_jj + C_ij^2) / n).

    4.5 standard errors: all of some 150 numbers lie within them but once in 1000 times; the seed is fixed.
    """
    n, variance = len(samples), np.diag(covariance)
    samples = np.asarray(samples, np.float64)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < errors * np.sqrt(variance / n))
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert np.all(np.abs(np.cov(samples.T) - covariance) < errors * error)


@pytest.mark.parametrize("path", ["linear", "vp_cosine", "edm"])
def test_the_steered_prediction_is_that_of_the_conditional_process(path):
    """E[x0 | x_t, y] = m + a S (a^2 S + s^2)^-1 (x_t - a m) for y of mean m and covariance S, at any level."""
    mean, covariance = conditional(KERNELS["ar1"], INFILL, STD)
    levels = np.array([0.05, 0.4, 0.7, 0.95], np.float32)
    noise = rng.normal(size=(3, T, 1)).astype(np.float32)

    @jax.jit
    def all_spaces(t):
        out = []
        for space in SPACES:
            process = Process(path=path, predict=space)
            ideal, times = Ideal(process, KERNELS["ar1"]), jnp.full((3, T), t)
            x = process.start(noise, times)
            steered = steer(process, ideal.predict, ideal.loss(jnp.asarray(INFILL)))
            out.append((x, process.to_x0(steered(x, times), x, times)))
        return out

    for t in levels:
        now = Process(path=path).values(t)
        a, s = float(now.a), float(now.s)
        for x, x0 in all_spaces(t):
            x = np.asarray(x, np.float64)[..., 0]
            wanted = mean + (x - a * mean) @ np.linalg.solve(a**2 * covariance + s**2 * np.eye(T), a * covariance)
            np.testing.assert_allclose(x0[..., 0], wanted, atol=1e-3)


CHAINS = [
    pytest.param(("rbf", Process(predict="velocity"), SolverConfig("heun"), Schedule(48, t_max=0.999)),
                 marks=pytest.mark.full, id="rbf-linear-heun"),
    ("ar1", Process(path="edm", predict="v"), SolverConfig("unipc"), Schedule(48, grid="edm")),
    ("rbf", Process(path="vp_cosine", predict="noise"), SolverConfig("dpmpp_2m"), Schedule(64, t_max=0.99)),
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain[0]}-{chain[1].path}-{chain[2].kind}")
def test_sampling_in_fills_and_forecasts_a_gaussian_process(chain):
    kernel, process, solver, schedule = chain
    for seed, given in enumerate((INFILL, FORECAST)):
        samples = generate(jax.random.key(seed), given, process, kernel, solver, schedule, None)
        check_moments(samples, *conditional(KERNELS[kernel], given, STD))


def test_the_gaussian_form_is_exact_where_values_are_independent():
    guidance = Guidance(observe="gaussian", observe_std=STD)
    process, solver, schedule = Process(), SolverConfig("heun"), Schedule(48, t_max=0.999)
    samples = generate(jax.random.key(0), INFILL, process, "white", solver, schedule, guidance)
    check_moments(samples, *conditional(KERNELS["white"], INFILL, STD))


def test_the_gaussian_form_steers_a_correlated_process_to_exact_values():
    """Those between follow, but not exactly: it counts correlated values as separate evidence."""
    given, process = INFILL, Process()
    samples = generate(jax.random.key(0), given, process, "ar1", SolverConfig("heun"), Schedule(48, t_max=0.999),
                       Guidance(observe="gaussian"))  # fmt: skip
    samples = np.asarray(samples)
    assert np.max(np.abs(samples[:, given] - VALUES[given])) < 0.01
    mean, covariance = conditional(KERNELS["ar1"], given, 0.0)
    missed = (samples.mean(axis=0) - mean)[~given]
    assert np.sum(missed**2) < 0.25 * np.sum(mean[~given] ** 2)
    assert np.all(np.abs(samples.var(axis=0)[~given] / np.diag(covariance)[~given] - 1.0) < 0.25)

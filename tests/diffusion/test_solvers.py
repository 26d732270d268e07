"""Solvers: exact where the path is straight, first order elsewhere, and blind to frames that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.process import SPACES, Process
from causal_diffusion.diffusion.schedule import Schedule
from causal_diffusion.diffusion.solvers import SOLVERS

ORDER = {"euler": 1}
rng = np.random.default_rng(0)
X0, EPS = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(2))


def test_every_solver_has_its_order_here():
    assert set(ORDER) == set(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("predict", SPACES)
def test_with_the_true_data_one_step_arrives(name, predict):
    """The path of one pair of data and noise is straight, so every jump along it is exact, also the one to s = 0."""
    process, solver = Process(predict=predict), SOLVERS[name]
    t = np.array([[0.9, 0.5, 0.2]] * 2, np.float32)
    s = np.array([[0.0, 0.3, 0.1], [0.4, 0.0, 0.0]], np.float32)
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
    _, moved = solver.step(solver.init(x), process, x, out, t, s)
    np.testing.assert_allclose(moved, process.corrupt(X0, EPS, s), atol=3e-6)
    arrived = np.broadcast_to((s == 0)[..., None], X0.shape)
    np.testing.assert_allclose(np.asarray(moved)[arrived], X0[arrived], atol=3e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_euler_is_ddim(name):
    """x_s = (1 - s) x0 + s eps with both read off the same output (Song et al. 2021, equation 12)."""
    process, solver = Process(predict="x0"), SOLVERS[name]
    t, s = np.full((2, 3), 0.7, np.float32), np.full((2, 3), 0.3, np.float32)
    x, out = EPS, X0  # any output at all
    _, moved = solver.step(solver.init(x), process, x, out, t, s)
    x0, eps = process.to_x0(out, x, t), process.to_noise(out, x, t)
    np.testing.assert_allclose(moved, 0.7 * x0 + 0.3 * eps, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("predict", SPACES)
def test_frames_that_stay_keep_their_bits(name, predict):
    process, solver = Process(predict=predict), SOLVERS[name]
    t = np.array([[0.0, 1.0, 0.5]] * 2, np.float32)  # both ends, where conversions divide by zero
    out = np.where(np.arange(3)[:, None] == 2, X0, np.nan).astype(np.float32)
    _, stayed = jax.jit(lambda x: solver.step(solver.init(x), process, x, out, t, t))(EPS)
    np.testing.assert_array_equal(stayed, EPS)

    def moved(x, out):
        s = jnp.asarray(t).at[:, 2].set(0.25)
        return jnp.sum(solver.step(solver.init(x), process, x, out, t, s)[1] ** 2)

    for gradient in jax.grad(moved, argnums=(0, 1))(EPS, X0):  # and poison no gradient
        assert np.isfinite(gradient).all()


def gaussian_ode(solver, process, steps, mean, std, x):
    """Solves x' = v with the exact posterior mean of N(mean, std^2) data, from t = 1 to 0."""
    times = Schedule(steps).times()

    def row(carry, pair):
        history, x = carry
        t, s = pair
        a, var = 1 - t, (1 - t) ** 2 * std**2 + t**2
        x0 = mean + a * std**2 / var * (x - a * mean)
        wide = jnp.full(x.shape[:2], t), jnp.full(x.shape[:2], s)
        return solver.step(history, process, x, x0, *wide), None

    (_, x), _ = jax.lax.scan(row, (solver.init(x), x), (times[:0:-1], times[-2::-1]))
    return x


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_shrinks_as_the_order_says(name):
    """Data N(m, c^2): (x_t - a m) / sqrt(a^2 c^2 + t^2) is constant along the flow, so x_0 = m + c x_1."""
    mean, std = 0.7, 0.4
    solve = jax.jit(
        lambda x, steps: gaussian_ode(SOLVERS[name], Process(predict="x0"), steps, mean, std, x), static_argnums=1
    )
    counts = np.array([16, 32, 64, 128])
    error = [float(np.max(np.abs(solve(EPS, int(n)) - (mean + std * EPS)))) for n in counts]
    slopes = -np.diff(np.log(error)) / np.diff(np.log(counts))
    np.testing.assert_allclose(slopes, ORDER[name], atol=0.2)
    assert error[-1] < 0.02


@pytest.mark.parametrize("name", SOLVERS)
def test_one_point_of_data_is_reached_in_any_number_of_steps(name):
    for steps in (1, 3, 10):
        out = gaussian_ode(SOLVERS[name], Process(predict="x0"), steps, 0.7, 0.0, jnp.asarray(EPS))
        np.testing.assert_allclose(out, np.full_like(EPS, 0.7), atol=1e-5)


@pytest.mark.parametrize("offset", ["autoregressive", "pyramid", "rolling"])
@pytest.mark.parametrize("name", SOLVERS)
def test_finished_blocks_are_bit_identical_through_later_rows(name, offset):
    schedule = Schedule(4, offset, stride=2.0, in_flight=2, shift=2.0)
    solver, process = SOLVERS[name], Process(predict="velocity")
    levels = schedule.matrix(3)
    times = schedule.times()[levels]
    step = jax.jit(lambda x, t, s: solver.step((), process, x, jnp.sin(7 * x + t[..., None]), t, s)[1])
    rows = [jnp.asarray(EPS)]
    for t, s in zip(times[:-1], times[1:], strict=True):
        rows.append(step(rows[-1], np.stack([t, t]), np.stack([s, s])))
    rows = np.asarray(rows)  # [rows, B, blocks, C]
    for block in range(3):
        done = int(np.argmax(levels[:, block] == 0))
        begins = int(np.argmax(levels[:, block] < schedule.steps)) - 1
        after, before = rows[done:, :, block], rows[: begins + 1, :, block]
        np.testing.assert_array_equal(after, np.broadcast_to(after[0], after.shape))
        np.testing.assert_array_equal(before, np.broadcast_to(EPS[:, block], before.shape))
        assert (rows[begins, :, block] != rows[begins + 1, :, block]).all()

"""Solvers: exact where they should be, of the order and the variance they claim, blind to frames that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.process import SPACES, Process
from causal_diffusion.diffusion.schedule import Schedule, transitions
from causal_diffusion.diffusion.solvers import SOLVERS, SolverConfig, _corrector_weights, make
from tests.diffusion.solving import (
    EPS,
    MEAN,
    MULTISTEP,
    NOISY,
    ORDER,
    STD,
    X0,
    Z,
    columns,
    denoiser,
    solve,
    solver_of,
    step,
    truth,
)  # fmt: skip


def test_every_solver_is_tested():
    assert {*ORDER, *(name.split()[0] for name in NOISY)} == set(SOLVERS)
    for name in SOLVERS:
        assert make(SolverConfig(name)).stochastic == (name not in ORDER)
    assert make(SolverConfig("ddim", eta=0.5)).stochastic


@pytest.mark.parametrize("path", ["linear", "vp_cosine", "edm"])
@pytest.mark.parametrize("predict", SPACES)
def test_with_the_true_data_one_step_arrives(path, predict):
    """Along the path of one pair of data and noise x0 and eps stay, so every jump is exact, also the one to s = 0."""
    process = Process(path=path, predict=predict)
    t = np.array([[0.9, 0.5, 0.2]] * 2, np.float32)
    s = np.array([[0.0, 0.3, 0.1], [0.4, 0.0, 0.0]], np.float32)
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)

    def truth(x, t):
        return process.target(X0, EPS, t)

    for name in (*ORDER, "x0_noise"):
        if name == "euler" and path != "linear":  # straight in x, not in t
            continue
        moved = step(name, process, truth if name == "heun" else out, x, t, s, noise=EPS)
        np.testing.assert_allclose(moved, process.corrupt(X0, EPS, s), atol=1e-5, err_msg=name)
        arrived = np.broadcast_to((s == 0)[..., None], X0.shape)
        np.testing.assert_allclose(np.asarray(moved)[arrived], X0[arrived], atol=1e-5, err_msg=name)


def test_euler_is_ddim_on_the_linear_path():
    process = Process(predict="x0")
    t, s = np.full((2, 3), 0.7, np.float32), np.full((2, 3), 0.3, np.float32)
    x, out = EPS, X0  # any output at all
    x0, eps = process.to_x0(out, x, t), process.to_noise(out, x, t)
    for name in ("euler", "ddim"):
        np.testing.assert_allclose(step(name, process, out, x, t, s), 0.7 * x0 + 0.3 * eps, atol=1e-6)


def test_full_noise_in_ddim_is_ancestral_sampling():
    process = Process(path="vp_linear", predict="x0")
    t, s = np.full((2, 3), 0.7, np.float32), np.full((2, 3), 0.3, np.float32)
    solver = make(SolverConfig("ddim", eta=1.0))
    _, moved = solver.step((), process, lambda x, t: X0, EPS, t, s, Z)
    np.testing.assert_allclose(moved, step("ddpm", process, X0, EPS, t, s), atol=2e-6)


def test_clipping_holds_in_every_solver():
    process = Process(predict="velocity", clip=0.5)
    t, s = np.full((2, 3), 0.7, np.float32), np.zeros((2, 3), np.float32)
    for name in (*ORDER, *NOISY):
        moved = step(name, process, 9 * X0, EPS, t, s)
        np.testing.assert_allclose(moved, np.clip(EPS - 0.7 * 9 * X0, -0.5, 0.5), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", [*ORDER, *NOISY])
def test_frames_that_stay_keep_their_bits(name):
    t = np.array([[0.0, 1.0, 0.5]] * 2, np.float32)  # both ends, where conversions divide by zero
    out = np.where(np.arange(3)[:, None] == 2, X0, np.nan).astype(np.float32)
    s = jnp.asarray(t).at[:, 2].set(0.25).at[1, 2].set(0.0)
    for predict in SPACES:
        process = Process(predict=predict)
        np.testing.assert_array_equal(step(name, process, out, EPS, t, t), EPS)
        moved = step(name, process, out, EPS, t, s)
        np.testing.assert_array_equal(moved[:, :2], EPS[:, :2])
        assert np.isfinite(moved).all()

    @jax.jit
    def gradients(x, out):  # and poison no gradient
        def squares(x, out):
            return sum(jnp.sum(step(name, Process(predict=p), out, x, t, s) ** 2) for p in ("velocity", "noise"))

        return jax.grad(squares, argnums=(0, 1))(x, out)

    for gradient in gradients(EPS, X0):
        assert np.isfinite(gradient).all() and np.any(gradient[:, 2] != 0)


def test_evaluations_are_counted():
    t, s = np.full((2, 3), 0.7, np.float32), np.full((2, 3), 0.3, np.float32)
    for name in SOLVERS:
        calls = []
        step(name, Process(), lambda x, t, calls=calls: calls.append(t) or x, EPS, t, s)
        assert len(calls) == make(SolverConfig(name)).evaluations


@pytest.mark.parametrize("path", ["linear", "trigflow"])
def test_the_error_shrinks_as_the_order_says(path):
    """Data N(m, d^2): (x_t - a m) / n is constant along the flow, n^2 = a^2 d^2 + c^2. Every frame takes another number
    of steps, even in log-SNR on the linear path: orders hold where a step is small in it."""
    process, counts = Process(path=path, predict="x0"), np.array([16, 32, 64])
    times = columns([1 / (1 + np.exp(-np.linspace(3, -3, n + 1))) for n in counts])
    x = np.broadcast_to(EPS[:, :1], EPS.shape)
    (mean, variance), (end_mean, end_variance) = (truth(process, time) for time in (times[0, 0], times[-1, 0]))
    exact = end_mean + np.sqrt(end_variance / variance) * (x - mean)
    orders = ORDER | {"unipc 1": 2}
    for name, order in orders.items():
        solver = make(SolverConfig("unipc", order=1)) if name == "unipc 1" else solver_of(name)
        out = jax.jit(lambda x, solver=solver: solve(solver, process, denoiser(process), x, times))(x)
        error = np.max(np.abs(out - exact), axis=(0, 2))
        np.testing.assert_allclose(-np.diff(np.log2(error)), order, atol=0.2, err_msg=name)
        assert error[-1] < 0.03 / 10 ** (order - 1), name


def test_down_to_clean_data_higher_orders_are_nearer():
    """x_0 = m + d x_1. In 12 steps from pure noise, where log-SNR is infinite at both ends."""
    process, times = Process(predict="x0"), columns([Schedule(12).times()[::-1]] * 3)
    error = {}
    for name in ORDER:
        out = jax.jit(lambda x, name=name: solve(solver_of(name), process, denoiser(process), x, times))(EPS)
        error[name] = np.max(np.abs(out - (MEAN + STD * EPS)))
    assert error["ddim"] < 0.2 and all(error[name] < 0.3 * error["ddim"] for name in ("heun", *MULTISTEP))


# Histories.


def published(times, x, order, unipc):
    """DPM-Solver++(2M), or UniPC as its authors write it, for one frame in float64 on the linear path: the linear
    system for the weights is solved anew each step, and the corrector runs where the loop has the next evaluation."""
    a, c = 1 - times, times
    with np.errstate(divide="ignore"):
        lam = np.log(a) - np.log(c)

    def network(x, i):
        return MEAN + a[i] * STD**2 / (a[i] ** 2 * STD**2 + c[i] ** 2) * (x - a[i] * MEAN)

    def weights(h, ratios):
        hh, rows, b = -h, [], []
        phi, factorial = np.expm1(hh) / hh - 1, 1
        for i in range(1, len(ratios) + 1):
            rows.append(np.power(ratios, i - 1))
            b.append(phi * factorial / np.expm1(hh))
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        return np.linalg.solve(np.array(rows), np.array(b))

    outs = [network(x, 0)]
    for i in range(len(times) - 1):
        h = lam[i + 1] - lam[i]
        base = c[i + 1] / c[i] * x - a[i + 1] * np.expm1(-h) * outs[i]
        use = min(order, i + 1, 1 if i + 2 == len(times) else 2)
        ratios = [(lam[i - 1] - lam[i]) / h] if use == 2 else []
        slopes = [(outs[i - 1] - outs[i]) / r for r in ratios]
        scale = -a[i + 1] * np.expm1(-h)
        x = base + scale * (0.5 * slopes[0] if slopes else 0.0)
        if i + 2 < len(times):
            outs.append(network(x, i + 1))
            if unipc:
                rho = weights(h, np.array([*ratios, 1.0])) if use == 2 else np.array([0.5])
                x = base + scale * np.tensordot(rho, [*slopes, outs[-1] - outs[i]], 1)
    return x


@pytest.mark.parametrize(("name", "order"), [("dpmpp_2m", 2), ("unipc", 2), ("unipc", 1)])
def test_multistep_solvers_are_the_published_ones(name, order):
    process, times = Process(predict="x0"), Schedule(7, shift=3.0, t_max=0.95).times()[::-1]
    x = EPS[:1, :1]
    solver = make(SolverConfig(name, order=order))
    out = solve(solver, process, denoiser(process), x, times[:, None])
    theirs = published(times.astype(np.float64), x.astype(np.float64), order, name == "unipc")
    np.testing.assert_allclose(out, theirs, atol=2e-6)
    assert np.abs(theirs - (published(times.astype(np.float64), x, 1, False))).max() > 1e-3  # order matters here


def test_corrector_weights_in_every_range():
    """b_n is the mean of u^n over [0, 1] with weight e^(-h (1 - u)), here by Gauss-Legendre quadrature."""
    h = np.geomspace(1e-4, 80, 200)[:, None]
    u, w = np.polynomial.legendre.leggauss(60)
    u, w = (u + 1) / 2, w / 2
    kernel = w * np.exp(-h * (1 - u)) * h / -np.expm1(-h)
    exact = np.sum(kernel * u, axis=1), np.sum(kernel * u**2, axis=1)
    np.testing.assert_allclose(_corrector_weights(jnp.asarray(h[:, 0], jnp.float32)), exact, rtol=3e-5)


@pytest.mark.parametrize("name", [*ORDER])
def test_frames_do_not_meet_in_a_solver(name):
    """Frames at other times, in another order, that begin, wait and start over: each as if it ran alone."""
    solver, process = make(SolverConfig(name)), Process(path="trigflow", predict="x0")
    predict = denoiser(process)
    run = jax.jit(lambda x, times: solve(solver, process, predict, x, times))
    runs = [schedule.times()[::-1] for schedule in (Schedule(6), Schedule(3), Schedule(4, shift=2.0))]
    runs[1] = np.insert(runs[1], 2, runs[1][2])  # waits in mid-way
    runs[2] = np.insert(runs[2], 0, runs[2][0])  # begins later
    together = np.asarray(run(EPS, columns(runs)))
    for frame, own in enumerate(runs):
        place = (frame + 1) % 3
        others = [np.zeros(7)] * 3
        others[place] = own[np.diff(own, prepend=2.0) != 0]  # never waits
        alone = run(np.roll(EPS, 1, axis=1), columns(others))
        np.testing.assert_array_equal(alone[:, place], together[:, frame])


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_history_starts_over_where_its_frame_does(name):
    """Fresh noise in a used place, frames noised again, or relabelled: as with no history. And it can be moved."""
    solver, process = solver_of(name), Process(predict="x0")
    predict = denoiser(process)

    @jax.jit
    def go(history, x, t, s):
        return solver.step(history, process, predict, x, t, s, None)

    def wide(*times):
        return np.broadcast_to(np.array(times, np.float32), (2, 3))

    used, x = go(solver.init(EPS), EPS, wide(1.0, 1.0, 0.8), wide(0.8, 0.8, 0.6))
    used, x = go(used, x, wide(0.8, 0.8, 0.6), wide(0.6, 0.6, 0.6))
    t, s = wide(1.0, 0.9, 0.6), wide(0.7, 0.7, 0.3)
    kept, fresh = go(used, Z, t, s), go(solver.init(Z), Z, t, s)
    np.testing.assert_array_equal(kept[1][:, :2], fresh[1][:, :2])
    assert (np.asarray(kept[1][:, 2]) != np.asarray(fresh[1][:, 2])).all()  # this one goes on
    np.testing.assert_array_equal(kept[0].count, [[1, 1, 2]] * 2)
    moved = jax.tree.map(lambda leaf: leaf[::-1, ::-1], used)
    np.testing.assert_array_equal(go(moved, Z[::-1, ::-1], t[::-1, ::-1], s[::-1, ::-1])[1][::-1, ::-1], kept[1])


@pytest.mark.parametrize("name", [*ORDER, *NOISY])
def test_finished_blocks_are_bit_identical_through_later_rows(name):
    schedules = [
        Schedule(4, "autoregressive", shift=2.0),
        Schedule(4, "pyramid", stride=2.0),
        Schedule(4, "trapezoid", stride=3.0),
        Schedule(3, "interleaved"),
    ]
    solver, process = solver_of(name), Process(predict="velocity")

    @jax.jit
    def go(history, x, t, s):
        noise = Z if solver.stochastic else None
        return solver.step(history, process, lambda x, t: jnp.sin(7 * x + t[..., None]), x, t, s, noise)

    for schedule in schedules:
        levels, times = schedule.matrix(3), schedule.times()
        history, rows = solver.init(EPS), [EPS]
        for before, start, end in zip(*transitions(levels), strict=True):
            np.testing.assert_array_equal(before, start)
            history, x = go(history, rows[-1], *(np.stack([times[level]] * 2) for level in (start, end)))
            rows.append(x)
        rows = np.asarray(rows)  # [rows, B, blocks, C]
        for block in range(3):
            done = int(np.argmax(levels[:, block] == 0))
            begins = int(np.argmax(levels[:, block] < schedule.steps)) - 1
            after, before = rows[done:, :, block], rows[: begins + 1, :, block]
            np.testing.assert_array_equal(after, np.broadcast_to(after[0], after.shape))
            np.testing.assert_array_equal(before, np.broadcast_to(EPS[:, block], before.shape))
            assert (rows[begins, :, block] != rows[begins + 1, :, block]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(kind="rk4"), "solver.kind is 'rk4'; it is one of euler, ddim, ddpm, heun, dpmpp_2m, unipc, x0_noise"),
        (dict(kind="ddim", eta=1.5), "solver.eta is 1.5; it lies in [0, 1], try solver.eta = 1.0"),
        (
            dict(kind="heun", eta=0.5),
            "solver.eta is 0.5 and solver.kind is 'heun': only ddim scales its noise; solver.eta = 0.0 would do",
        ),
        (dict(kind="unipc", order=3), "solver.order is 3; it lies in [1, 2], try solver.order = 2"),
        (
            dict(kind="dpmpp_2m", order=1),
            "solver.order is 1 and solver.kind is 'dpmpp_2m': only unipc comes in several orders; solver.order = 2 "
            "would do",
        ),
    ],
)
def test_values_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError) as refusal:
        SolverConfig(**wrong)
    assert str(refusal.value) == said

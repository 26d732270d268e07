"""What tests of solvers share: names, one step of each, and Gaussian data, of which everything is known."""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion.solvers import SolverConfig, make

ORDER = {"euler": 1, "ddim": 1, "heun": 2, "dpmpp_2m": 2, "unipc": 3}  # of those that need no noise
NOISY = ("ddpm", "x0_noise", "ddim eta")
MULTISTEP = ("dpmpp_2m", "unipc")
rng = np.random.default_rng(0)
X0, EPS, Z = (rng.normal(size=(2, 3, 4)).astype(np.float32) for _ in range(3))


def solver_of(name):
    """A solver by its name here."""
    kind, *eta = name.split()
    return make(SolverConfig(kind, eta=0.6 if eta else 0.0))


def step(name, process, out, x, t, s, noise=Z, history=None):
    """One step whose network always says ``out``: x_s."""
    solver = solver_of(name)
    predict = out if callable(out) else lambda x, t: out
    history = solver.init(x) if history is None else history
    return solver.step(history, process, predict, x, t, s, noise if solver.stochastic else None)[1]


MEAN, STD = 0.7, 0.4


def denoiser(process):
    """The posterior mean of data N(MEAN, STD^2)."""

    def predict(x, t):
        path = process.at(t, x)
        return MEAN + path.a * STD**2 / (path.a**2 * STD**2 + path.s**2) * (x - path.a * MEAN)

    return predict


def columns(runs):
    """Rows of times in which frame j runs the levels runs[j] from noise to data, then waits, float32 [rows + 1, T]."""
    rows = max(map(len, runs))
    return np.stack([np.pad(run, (0, rows - len(run)), mode="edge") for run in runs], axis=1).astype(np.float32)


def solve(solver, process, predict, x, times):
    """All rows, each frame at its own times [rows + 1, T]."""

    def row(carry, pair):
        history, x = carry
        t, s = (jnp.broadcast_to(time, x.shape[:2]) for time in pair)
        return solver.step(history, process, predict, x, t, s, None), None

    (_, x), _ = jax.lax.scan(row, (solver.init(x), x), (times[:-1], times[1:]))
    return x


def truth(process, times, std=STD):
    """Mean and variance of x at ``times``."""
    path = process.values(times)
    return path.a * MEAN, path.a**2 * std**2 + path.s**2

"""Process: what is noise, what the network predicts, how its error is weighed.

Time t runs from 0 (clean) to 1 (pure noise). A Gaussian path (``diffusion.paths``) mixes data x0, of standard
deviation sd, and noise eps ~ N(0, I), as a stochastic interpolant (Albergo et al. 2023, arXiv 2303.08797):

    x_t = a(t) x0 + s(t) eps,  of variance n^2 = a^2 sd^2 + s^2                         (1)
    dx_t/dt = a'(t) x0 + s'(t) eps                                                      (2)

The network may predict x0, eps (``noise``), (2) (``velocity``) or ``v``, the combination of x0 / sd and eps with unit
variance that is uncorrelated with x_t when the data are white,

    v = (a sd eps - s x0 / sd) / n                                                      (3)

On variance preserving paths of unit data v = a eps - s x0 (Salimans & Ho 2022, arXiv 2202.00512), and on trigflow
(2) = pi/2 v. On the edm path v = -F, the target of EDM's network (Karras et al. 2022, arXiv 2206.00364, eq. 8):
(4) below reads x0 = c_skip x_t - c_out v with c_skip = sd^2 / (s^2 + sd^2) and c_out = s sd / n.

Given x_t, each prediction determines the others. With D = a s' - s a', never zero on a path worth its name,

    x0 = (s' x_t - s u) / D,  eps = (a u - a' x_t) / D                  u the velocity (2)
    x0 = (a sd^2 / n^2) x_t - (s sd / n) v,  eps = (s / n^2) x_t + (a sd / n) v         (4)
    x0 = (x_t - s eps) / a,  eps = (x_t - a x0) / s                                     (5)

The ends of (5) are singular: at s = 0 nothing is known of eps, at a = 0 (zero terminal SNR, and the linear path at
t = 1) nothing of x0. There the missing one is taken to be zero, its mean; nothing is NaN. Short of the end an error in
eps is multiplied by s / a: see ``Process.singular``. Velocity and v have no singular end.

A prediction P = A x0 + B eps has c_P = |a B - s A|, and an error d in x0 at fixed x_t is one of c_P / s d in P. So the
squared error measured in space L of a network that predicts P is its squared error in P times

    w_L/P = (c_L / c_P)^2                                                               (6)
    c_x0 = s,  c_noise = a,  c_velocity = D,  c_v = n / sd                              (7)

Between two times t > s, with rho = a_t s_s / (a_s s_t) and a_s and s_s the path at s, (1) is a Markov chain:

    q(x_t | x_s) = N((a_t / a_s) x_s, b),  b = s_t^2 - (a_t / a_s)^2 s_s^2              (8)
    q(x_s | x_t, x0) = N(a_s (1 - rho^2) x0 + rho (s_s / s_t) x_t, s_s^2 (1 - rho^2))   (9)

(9) is (8) times q(x_s | x0), the square completed; on DDPM's path and grid it is its posterior (Ho et al. 2020, arXiv
2006.11239, eq. 7). Differences of nearly equal squares are taken as products,

    1 - rho^2 = (s_t a_s - a_t s_s) (s_t a_s + a_t s_s) / (a_s s_t)^2                   (10)

A learned variance of p(x_s | x_t) lies, by its logarithm, between that of (9), right if the data were one point, and
that of white data, b n_s^2 / n_t^2 (b itself where n = 1; Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion.diffusion.paths import BETAS, PATHS, TABLES, Path, published_label
from causal_diffusion.diffusion.weights import WEIGHTS
from causal_diffusion.ranges import BELOW_ONE, FRACTION, INSIDE, POSITIVE, WEIGHT, Range, check_numbers

Array = Any
SPACES = ("velocity", "x0", "noise", "v")
PRESENTED = ("noised", "scaled", "clean")


@dataclasses.dataclass(frozen=True)
class Process:
    """Corruption, prediction target and loss weight of a Gaussian path.

    Training calls ``corrupt``, ``show``, ``network_input``, ``label``, ``outputs`` and ``frame_loss``; sampling
    ``start``, ``split``, ``to_*``, ``pair``, ``posterior``, ``renoise`` and ``learned_variance``. Another family,
    masked tokens say, is another class with those methods.

    Throughout, x, x0 and eps are [B, T, ..., C], times are float [B, T] (states and labels may have more axes in front
    of T, such as guidance branches), and a network's output ``out`` is shaped like x but for ``outputs`` times its
    channels. Methods that need only its mean part take the whole or that part alone.
    """

    path: str = "linear"  # a key of PATHS
    predict: str = "velocity"  # what the network's output means, one of SPACES
    loss: str = ""  # the space in which its error is measured; '' is the one it predicts
    weight: str = "none"  # a key of WEIGHTS, on top of the space's own weight (6)
    floor: float = 0.05  # lower bound of c_P in (6), so that no single level dominates
    steps: int = 1000  # K: entries of a table path, and the grid on which a learned variance is trained
    betas: tuple[float, ...] = ()  # first and last beta of vp_linear, vp_scaled_linear; () is the published pair
    zero_snr: bool = False  # a table path's last entry holds no data at all
    shift: float = 1.0  # c: snr becomes c^2 snr, on table paths and logsnr_cosine
    data_std: float = 1.0  # sd, the standard deviation of the data
    gamma: float = 5.0  # where min-SNR and fused-SNR weights clip the SNR
    decay: float = 0.96  # of fused-SNR weights, per entry of the sequence
    bias: float = -1.0  # of the sigmoid weight, in log SNR
    variance: str = "fixed"  # or 'learned': the network also tells the variance of p(x_s | x_t)
    vlb: float = 1e-3  # weight of the variational bound that trains a learned variance (arXiv 2102.09672, eq. 16)
    clip: float = 0.0  # bound of estimates of x0 while sampling; 0 is none
    labels: str = "time"  # or 'published': what the network is told of t, see ``label``

    def __post_init__(self):
        tables = (
            ("path", PATHS),
            ("predict", SPACES),
            ("loss", ("", *SPACES)),
            ("weight", WEIGHTS),
            ("variance", ("fixed", "learned")),
            ("labels", ("time", "published")),
        )
        for name, table in tables:
            value = getattr(self, name)
            if value not in table:
                names = ", ".join(repr(x) for x in table)
                raise ValueError(f"process.{name} is {value!r}; it is one of {names}")
        check_numbers(
            self, "process", floor=FRACTION, steps=Range(2, 100_000), betas=INSIDE, shift=POSITIVE, data_std=POSITIVE,
            gamma=POSITIVE, decay=BELOW_ONE, bias=Range(-100, 100), vlb=WEIGHT, clip=WEIGHT,
        )  # fmt: skip
        rising = len(self.betas) == 2 and self.betas[0] <= self.betas[1]
        if self.betas and not rising:
            raise ValueError(f"process.betas is {self.betas}; it is () or two numbers, 0 < first <= last < 1")
        table, shifts = self.path in TABLES, "levels.shift and schedule.shift move the levels instead"
        refused = (
            ("betas", (), self.path in BETAS, "it is not made of betas"),
            ("zero_snr", False, table, "only a table of steps is rescaled"),
            ("shift", 1.0, table or self.path == "logsnr_cosine", shifts),
            ("data_std", 1.0, self.path != "trigflow", "it is for data of unit variance, scale the data instead"),
        )
        for name, plain, allowed, why in refused:
            if getattr(self, name) != plain and not allowed:
                raise ValueError(
                    f"process.{name} is {getattr(self, name)} and process.path is {self.path!r}: {why}; "
                    f"process.{name} = {plain} would do"
                )

    @property
    def space(self) -> str:
        """The space in which the error is measured, one of SPACES."""
        return self.loss or self.predict

    @property
    def outputs(self) -> int:
        """How many times the data's channels the network puts out: 2 with a learned variance, else 1."""
        return 2 if self.variance == "learned" else 1

    def singular(self, t_max: float) -> bool:
        """Whether x0 is lost in rounding at t_max: eps is predicted and the noise is over 1000 times the signal."""
        path = self.values(t_max)
        return self.predict == "noise" and bool(path.a < 1e-3 * path.s)

    # The path.

    def values(self, t: Array) -> Path:
        """The path at times t, each value shaped like t."""
        return PATHS[self.path](self, jnp.asarray(t, jnp.float32))

    def at(self, t: Array, like: Array) -> Path:
        """The path at times t [B, T], shaped to broadcast against ``like`` [B, T, ...]."""
        return self.values(_beside(t, like))

    def snr(self, t: Array) -> Array:
        """a^2 / s^2, shaped like t; infinite where t is clean."""
        path = self.values(t)
        return jnp.square(path.a / path.s)

    def sizes(self, path: Path) -> dict[str, Array]:
        """c of equation (7) for every space."""
        n = self._deviation(path)
        return {"x0": path.s, "noise": path.a, "velocity": _wronskian(path), "v": n / self.data_std}

    def label(self, t: Array) -> Array:
        """What the time embedding, which multiplies by 1000, is told. Shaped like t.

        'time' is t itself, 'published' what the released networks of this path are told
        (``paths.published_label``): with it their weights can be loaded and their label conventions kept.
        """
        return published_label(self, t) if self.labels == "published" else jnp.asarray(t, jnp.float32)

    # States.

    def corrupt(self, x0: Array, eps: Array, t: Array) -> Array:
        """x_t of equation (1). x0 and eps [B, T, ...], t [B, T]."""
        path = self.at(t, x0)
        return path.a * x0 + path.s * eps

    def show(self, x0: Array, eps: Array, level: Array, data: str) -> Array:
        """Context frames at a level: 'noised' as equation (1), 'scaled' a x0 without its noise, 'clean' x0."""
        if data not in PRESENTED:
            raise ValueError(f"data is {data!r}; it is one of {', '.join(map(repr, PRESENTED))}")
        if data == "noised":
            return self.corrupt(x0, eps, level)
        return self.at(level, x0).a * x0 if data == "scaled" else x0

    def start(self, eps: Array, t: Array) -> Array:
        """The state a sample starts from at t: n eps, as wide as x_t is. At pure noise s eps."""
        return self._deviation(self.at(t, eps)) * eps

    def network_input(self, x: Array, t: Array) -> Array:
        """x as the network sees it: on the edm path x / n, EDM's c_in, of unit variance at any t; else x itself."""
        return x / self._deviation(self.at(t, x)) if self.path == "edm" else x

    # Predictions.

    def target(self, x0: Array, eps: Array, t: Array) -> Array:
        """What a perfect network would output for this pair of data and noise, in its mean part."""
        return self._combine(self.predict, x0, eps, self.at(t, x0))

    def split(self, out: Array) -> tuple[Array, Array | None]:
        """(mean part, variance part or None) of the whole output: the variance has the last half of the channels."""
        if self.outputs == 1:
            return out, None
        if out.shape[-1] % 2:
            raise ValueError(f"process.variance is 'learned' and the output has {out.shape[-1]} channels: odd")
        return tuple(jnp.split(out, 2, axis=-1))

    def to_x0(self, out: Array, x: Array, t: Array) -> Array:
        """The clean data that the network's output ``out`` at (x, t) stands for, not clipped."""
        return self._to("x0", out, x, t)

    def to_noise(self, out: Array, x: Array, t: Array) -> Array:
        """The noise that the network's output stands for."""
        return self._to("noise", out, x, t)

    def to_velocity(self, out: Array, x: Array, t: Array) -> Array:
        """The velocity dx/dt that the network's output stands for."""
        return self._to("velocity", out, x, t)

    def to_v(self, out: Array, x: Array, t: Array) -> Array:
        """The v of equation (3) that the network's output stands for."""
        return self._to("v", out, x, t)

    def clipped_x0(self, out: Array, x: Array, t: Array) -> Array:
        """``to_x0`` within +-clip."""
        return self.pair(out, x, t)[0]

    def pair(self, out: Array, x: Array, t: Array) -> tuple[Array, Array]:
        """(x0, eps) that the output stands for, x0 within +-clip and eps the noise that x then holds, equation (5)."""
        x0 = self.to_x0(out, x, t)
        if not self.clip:
            return x0, self.to_noise(out, x, t)
        x0, path = jnp.clip(x0, -self.clip, self.clip), self.at(t, x)
        return x0, _divide(x - path.a * x0, path.s)

    # Transitions.

    def posterior(self, x: Array, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """(mean, variance) of q(x_s | x_t = x, x0), equation (9), for s <= t.

        The variance is [B, T, 1, ...]. Where s = t they are x and 0.
        """
        at_s, rho, spread, x_t = self._between(t, s, x)
        mean = at_s.a * spread * x0 + rho * _divide(at_s.s, x_t.s) * x
        return jnp.where(_beside(t, x) == _beside(s, x), x, mean), jnp.square(at_s.s) * spread

    def renoise(self, x: Array, t: Array, s: Array, noise: Array) -> Array:
        """x_t of equation (8) from x_s = x: forward from s up to t >= s, with fresh standard normal noise."""
        at_s, _, spread, at_t = self._between(t, s, x)
        up = _divide(at_t.a, at_s.a) * x + at_t.s * jnp.sqrt(spread) * noise  # b = s_t^2 (1 - rho^2)
        return jnp.where(_beside(t, x) == _beside(s, x), x, up)

    def learned_variance(self, out_var: Array, t: Array, s: Array) -> Array:
        """Variance of p(x_s | x_t) from the variance part [B, T, ..., C] of the output; 0 where x_s is clean.

        -1 stands for that of (9), 1 for that of white data; in between their logarithms are mixed.
        """
        noisy = (self.at(s, out_var).s > 0.0) & (_beside(t, out_var) > _beside(s, out_var))
        return jnp.where(noisy, jnp.exp(self._log_variance(out_var, t, s)), 0.0)

    # The loss.

    def loss_weight(self, t: Array) -> Array:
        """Factor on the squared error of the network's output: ``weight`` times equation (6).

        Shaped like t, whose last axis is the sequence (fused-SNR weights look along it).
        """
        t = jnp.asarray(t, jnp.float32)
        factor = WEIGHTS[self.weight](self, t)
        if self.space != self.predict:
            size = self.sizes(self.values(t))
            factor *= (size[self.space] / jnp.maximum(jnp.abs(size[self.predict]), self.floor)) ** 2
        return factor

    def frame_loss(self, out: Array, x0: Array, eps: Array, x: Array, t: Array) -> Array:
        """The loss of every frame, float32 [B, T]: its mean squared error times ``loss_weight``, per number.

        out: the network's whole output at x = corrupt(x0, eps, t).

        A learned variance adds vlb K L_t, after Nichol & Dhariwal (2021, arXiv 2102.09672, section 3.1), so that the
        mean over K levels is vlb times the bound. In bits per number, with s = t - 1/K,

            L_t = KL(q(x_s | x_t, x0) || p(x_s | x_t))      t beyond the grid's first level
            L_t = -log N(x0; x0_hat, variance)              at it, or before: a density, data being continuous

        It trains the variance alone: the mean part has its gradient stopped.
        """
        mean, variance = self.split(out)
        error = jnp.square(mean - self.target(x0, eps, t))
        axes = tuple(range(2, error.ndim))
        loss = self.loss_weight(t) * jnp.mean(error, axis=axes)
        if variance is None:
            return loss
        return loss + self.vlb * self.steps * jnp.mean(self._bound(mean, variance, x0, x, t), axis=axes)

    def _bound(self, mean, variance, x0, x, t):
        t = jnp.asarray(t, jnp.float32)
        first = t < 1.5 / self.steps
        top, s = jnp.maximum(t, 1.0 / self.steps), jnp.where(first, 0.0, t - 1.0 / self.steps)
        missed = x0 - self.to_x0(jax.lax.stop_gradient(mean), x, t)
        model, true = self._log_variance(variance, top, s), self._least_log_variance(top, s, x)
        at_s, _, spread, _ = self._between(top, s, x)
        apart = jnp.square(at_s.a * spread * missed)  # of the two means, by (9)
        kl = 0.5 * (model - true - 1.0 + jnp.exp(true - model) + apart * jnp.exp(-model))
        nll = 0.5 * (math.log(2 * math.pi) + model + jnp.square(missed) * jnp.exp(-model))
        return jnp.where(_beside(first, x), nll, kl) / math.log(2.0)

    def _log_variance(self, out_var, t, s):
        low = self._least_log_variance(t, s, out_var)
        at_s, _, spread, at_t = self._between(t, s, out_var)
        scale = at_t.s * self._deviation(at_s) / self._deviation(at_t)
        high = jnp.log(jnp.where(spread > 0.0, jnp.square(scale) * spread, 1.0))
        part = 0.5 * (out_var + 1.0)
        return part * high + (1.0 - part) * low

    def _least_log_variance(self, t, s, like):
        """log of (9)'s variance. It is no less than on the grid's second step: on the first it would be log 0."""
        scalar = jnp.zeros((), jnp.float32)
        _, least = self.posterior(scalar, scalar, 2.0 / self.steps, 1.0 / self.steps)
        _, value = self.posterior(like, like, t, s)
        return jnp.log(jnp.maximum(value, least))

    def _between(self, t, s, like):
        """(path at s, rho, 1 - rho^2, path at t) for equations (8) to (10); rho = 1 where s = t."""
        at_t, at_s, same = self.at(t, like), self.at(s, like), _beside(t, like) == _beside(s, like)
        base = jnp.where(same, 1.0, at_s.a * at_t.s)
        up, down = at_t.s * at_s.a, at_t.a * at_s.s
        spread = jnp.maximum(up - down, 0.0) * (up + down) / jnp.square(base)
        return at_s, jnp.where(same, 1.0, down / base), jnp.where(same, 0.0, spread), at_t

    def _deviation(self, path: Path) -> Array:
        """n of equation (1)."""
        return jnp.sqrt(jnp.square(path.a * self.data_std) + jnp.square(path.s))

    def _combine(self, space, x0, eps, path):
        """The value in a space of data and noise at x_t: equations (2) and (3)."""
        if space in ("x0", "noise"):
            return x0 if space == "x0" else eps
        if space == "velocity":
            return path.da * x0 + path.ds * eps
        sd = self.data_std
        return (path.a * sd * eps - path.s / sd * x0) / self._deviation(path)

    def _to(self, space, out, x, t):
        """Equations (4) and (5)."""
        if self.outputs == 2 and out.shape[-1] != x.shape[-1]:
            out = self.split(out)[0]
        if space == self.predict:
            return out
        path, sd = self.at(t, x), self.data_std
        if self.predict == "x0":
            return self._combine(space, out, _divide(x - path.a * out, path.s), path)
        if self.predict == "noise":
            return self._combine(space, _divide(x - path.s * out, path.a), out, path)
        if self.predict == "velocity":
            D = _wronskian(path)
            x0, eps = (path.ds * x - path.s * out) / D, (path.a * out - path.da * x) / D
        else:
            n = self._deviation(path)
            unit = x / n
            x0, eps = sd / n * (path.a * sd * unit - path.s * out), (path.s * unit + path.a * sd * out) / n
        return self._combine(space, x0, eps, path)


def _beside(t: Array, like: Array) -> Array:
    """t [B, T] shaped to broadcast against ``like`` [B, T, ...]."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


def _divide(x: Array, y: Array) -> Array:
    """x / y, and 0 where y is 0, without a NaN in its gradient either."""
    return jnp.where(y == 0.0, 0.0, x / jnp.where(y == 0.0, 1.0, y))


def _wronskian(path: Path) -> Array:
    return path.a * path.ds - path.s * path.da

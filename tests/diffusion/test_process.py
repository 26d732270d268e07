"""The process: conversions, transitions and loss, each against a direct computation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.paths import PATHS, TABLES, alpha_bar
from causal_diffusion.diffusion.process import SPACES, Process

rng = np.random.default_rng(0)
SHAPE = (2, 32, 3, 2)  # [B, T, ..., C]
X0, EPS, ERROR = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=5, deadline=None, derandomize=True)
K = 1000
# Every path, and those whose data are not of unit variance or whose noise is total.
VARIANTS = [dict(path=path) for path in PATHS] + [
    dict(path="edm", data_std=0.5),
    dict(path="linear", data_std=2.0),
    dict(path="vp_scaled_linear", zero_snr=True),
    dict(path="logsnr_cosine", shift=0.125),
]
every_path = pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))


def levels(seed, low=0.0625, high=0.9375):
    return np.random.default_rng(seed).uniform(low, high, size=SHAPE[:2]).astype(np.float32)


def apart(t):
    return t[..., None, None]


@given(seed=SEEDS)
@quick
def test_the_linear_path_has_closed_forms(seed):
    process, t = Process(path="linear", predict="velocity"), levels(seed)
    np.testing.assert_allclose(process.corrupt(X0, EPS, t), (1 - apart(t)) * X0 + apart(t) * EPS, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(process.target(X0, EPS, t), EPS - X0)


@every_path
def test_the_ends_of_a_path_are_data_and_noise(options):
    process = Process(**options)
    zero, one = np.zeros(SHAPE[:2]), np.ones(SHAPE[:2])
    start = np.asarray(process.start(EPS, one))
    if process.path == "logsnr_cosine":  # stays at a finite SNR, exp(+-15) before the shift
        np.testing.assert_allclose(process.corrupt(X0, EPS, zero), X0, atol=0.02)
    else:
        np.testing.assert_array_equal(process.corrupt(X0, EPS, zero), X0)
    # A sample starts as wide as the path ends, and all noise but for the data still in it.
    a, s = (float(x[0, 0]) for x in process.values(one)[:2])
    np.testing.assert_allclose(start, math.hypot(a * process.data_std, s) * EPS, rtol=1e-6)
    np.testing.assert_allclose(process.corrupt(X0, EPS, one), a * X0 + s * EPS, rtol=1e-6, atol=1e-6)
    if process.path in ("linear", "trigflow") or process.zero_snr:
        np.testing.assert_array_equal(process.corrupt(X0, EPS, one), EPS)
        np.testing.assert_array_equal(start, EPS)


@every_path
@pytest.mark.parametrize("predict", SPACES)
@given(seed=SEEDS)
@quick
def test_every_prediction_stands_for_the_same_data_and_noise(options, predict, seed):
    process, t = Process(**options, predict=predict), levels(seed)
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
    close = dict(rtol=2e-4, atol=2e-4)  # 1/16 from the ends of the path, where (5) divides by little
    np.testing.assert_allclose(process.to_x0(out, x, t), X0, **close)
    np.testing.assert_allclose(process.to_noise(out, x, t), EPS, **close)
    for space, convert in (("velocity", process.to_velocity), ("v", process.to_v)):
        np.testing.assert_allclose(convert(out, x, t), Process(**options, predict=space).target(X0, EPS, t), **close)


@every_path
@pytest.mark.parametrize("predict", SPACES)
def test_nothing_is_nan_at_the_ends(options, predict):
    """Not even in a gradient, and where an end is not singular the conversions hold there too."""
    process = Process(**options, predict=predict)
    t = np.tile(np.array([0.0, 1.0], np.float32), (2, 16))
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
    for convert in (process.to_x0, process.to_noise, process.to_velocity, process.to_v):
        value, pull = jax.vjp(lambda out, x, convert=convert: convert(out, x, t), out, x)
        assert all(np.all(np.isfinite(y)) for y in (value, *pull(value)))
    if not process.singular(1.0):
        keep = dict(rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(process.to_x0(out, x, t), X0, **keep)
    if predict in ("velocity", "v", "noise"):
        np.testing.assert_allclose(process.to_noise(out, x, t), EPS, rtol=1e-3, atol=2e-3)


def test_noise_says_nothing_of_the_data_at_zero_snr():
    process = Process(path="vp_linear", zero_snr=True, predict="noise")
    one = np.ones(SHAPE[:2], np.float32)
    np.testing.assert_array_equal(process.to_x0(EPS, EPS, one), np.zeros(SHAPE))
    for options, t, lost in (
        (dict(path="vp_linear", zero_snr=True), 1.0, True),
        (dict(path="vp_linear"), 1.0, False),
        (dict(path="vp_cosine"), 1.0, True),
        (dict(path="linear"), 1.0, True),
        (dict(path="linear"), 0.99, False),
    ):
        assert Process(**options, predict="noise").singular(t) is lost
        assert not Process(**options, predict="v").singular(t)


@pytest.mark.parametrize("predict", SPACES)
def test_frames_keep_to_themselves(predict):
    """Another level in one frame changes that frame alone, bit for bit."""
    process, t = Process(predict=predict), np.full(SHAPE[:2], 0.5, np.float32)
    other = t.copy()
    other[:, 1] = 0.25
    x = process.corrupt(X0, EPS, t)
    for convert in (process.to_x0, process.to_noise, process.to_velocity, process.to_v):
        one, two = (np.asarray(convert(X0, x, level)) for level in (t, other))
        np.testing.assert_array_equal(one[:, ::2], two[:, ::2])
    assert not np.array_equal(process.corrupt(X0, EPS, other)[:, 1], x[:, 1])


def test_v_on_the_edm_path_is_minus_the_target_of_edms_network():
    sd = 0.5
    process, t = Process(path="edm", data_std=sd, predict="v"), levels(3)
    sigma = sd * np.tan(np.pi / 2 * apart(t))
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / np.sqrt(sigma**2 + sd**2)
    x = sd * X0 + sigma * EPS
    F = (sd * X0 - c_skip * x) / c_out
    np.testing.assert_allclose(process.target(sd * X0, EPS, t), -F, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(process.to_x0(-F, x, t), sd * X0, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(process.network_input(x, t), x / np.sqrt(sigma**2 + sd**2), rtol=1e-5, atol=1e-6)
    plain = Process()
    assert plain.network_input(x, t) is x


def test_v_on_variance_preserving_paths_is_salimans_and_hos():
    t = levels(4)
    for path in (*TABLES, "trigflow", "logsnr_cosine"):
        process = Process(path=path, predict="v")
        at = process.at(t, X0)
        np.testing.assert_allclose(process.target(X0, EPS, t), at.a * EPS - at.s * X0, rtol=1e-5, atol=2e-6)
    v, velocity = (Process(path="trigflow", predict=p).target(X0, EPS, t) for p in ("v", "velocity"))
    np.testing.assert_allclose(velocity, np.pi / 2 * np.asarray(v), rtol=1e-5, atol=2e-6)


@every_path
@pytest.mark.parametrize("predict", SPACES)
@given(seed=SEEDS)
@settings(quick, max_examples=3)
def test_the_weight_is_the_error_measured_in_the_other_space(options, predict, seed):
    """Equation (6): an error made in what is predicted, carried over and measured where the loss looks."""
    t = levels(seed)
    for loss in SPACES:
        process = Process(**options, predict=predict, loss=loss, floor=0.001)
        to = dict(x0=process.to_x0, noise=process.to_noise, velocity=process.to_velocity, v=process.to_v)
        x = np.zeros(SHAPE, np.float32)  # conversions are linear: x and the output itself drop out
        direct = np.mean(np.square(to[loss](ERROR, x, t)), axis=(2, 3))
        np.testing.assert_allclose(process.loss_weight(t) * np.mean(ERROR**2, axis=(2, 3)), direct, rtol=1e-4)


def test_a_loss_in_its_own_space_weighs_nothing_more():
    t = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    for predict in SPACES:
        np.testing.assert_array_equal(Process(predict=predict).loss_weight(t), np.ones((2, 3)))
        np.testing.assert_array_equal(Process(predict=predict, loss=predict).loss_weight(t), np.ones((2, 3)))


def test_the_floor_bounds_the_weight():
    t = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 1.0], np.float32)
    weight = Process(predict="x0", loss="velocity", floor=0.2).loss_weight(t)
    np.testing.assert_allclose(weight, 1 / np.maximum(t, 0.2) ** 2, rtol=1e-6)  # D = 1, c_x0 = t
    weight = Process(predict="noise", loss="velocity", floor=0.2).loss_weight(t)
    np.testing.assert_allclose(weight, 1 / np.maximum(1 - t, 0.2) ** 2, rtol=1e-6)


def test_context_is_shown_noised_scaled_or_clean():
    process, t = Process(path="vp_sigmoid"), levels(5)
    np.testing.assert_array_equal(process.show(X0, EPS, t, "noised"), process.corrupt(X0, EPS, t))
    a = np.sqrt(alpha_bar("vp_sigmoid", K)[15])  # Diffusion Forcing shows its past at timestep 14
    level = np.full(SHAPE[:2], 15 / K, np.float32)
    np.testing.assert_allclose(process.show(X0, EPS, level, "scaled"), a * X0, rtol=1e-6)
    assert process.show(X0, EPS, t, "clean") is X0
    with pytest.raises(ValueError, match="data is 'noisy'; it is one of 'noised', 'scaled', 'clean'"):
        process.show(X0, EPS, t, "noisy")


def test_a_clipped_estimate_and_its_noise_make_up_the_state():
    t = levels(6)
    for predict in SPACES:
        process = Process(path="vp_linear", predict=predict, clip=0.75)
        x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
        x0, eps = process.pair(out, x, t)
        np.testing.assert_allclose(x0, np.clip(X0, -0.75, 0.75), atol=2e-4)
        np.testing.assert_array_equal(process.clipped_x0(out, x, t), x0)
        np.testing.assert_allclose(process.corrupt(x0, eps, t), x, atol=1e-5)
        whole = Process(path="vp_linear", predict=predict).pair(out, x, t)
        np.testing.assert_allclose(whole, (X0, EPS), atol=5e-4)


# Transitions between two times.


def pairs(seed):
    """Times s < t over the whole of [0, 1], its ends and a single grid step among them."""
    low, high = np.sort(np.random.default_rng(seed).uniform(size=(2, *SHAPE[:2])).astype(np.float32), axis=0)
    low[:, 0], high[:, 1], low[:, 2], high[:, 2] = 0.0, 1.0, 0.5, 0.501
    return high, low


@every_path
@given(seed=SEEDS)
@quick
def test_the_posterior_and_the_step_forward_belong_to_one_chain(options, seed):
    """Marginals and covariance of (x_s, x_t) given x0, from the coefficients of both transitions."""
    process = Process(**options)
    t, s = pairs(seed)
    one, zero = np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    (on_x, variance), (on_x0, _) = process.posterior(one, zero, t, s), process.posterior(zero, one, t, s)
    up, fresh = process.renoise(one, t, s, zero), process.renoise(zero, t, s, one)
    every = (on_x, on_x0, variance, up, fresh)
    on_x, on_x0, variance, up, fresh = (np.asarray(x, np.float64)[..., 0, 0] for x in every)
    at_t, at_s = (tuple(np.asarray(x, np.float64) for x in process.values(time)) for time in (t, s))
    (a_t, s_t), (a_s, s_s) = at_t[:2], at_s[:2]
    close = dict(rtol=3e-5, atol=1e-6)
    np.testing.assert_allclose(on_x0 + on_x * a_t, a_s, **close)  # E[x_s | x0]
    np.testing.assert_allclose(on_x**2 * s_t**2 + variance, s_s**2, **close)  # Var[x_s | x0]
    np.testing.assert_allclose(up * a_s, a_t, **close)
    np.testing.assert_allclose(up**2 * s_s**2 + fresh**2, s_t**2, **close)
    np.testing.assert_allclose(on_x * s_t**2, up * s_s**2, **close)  # Cov[x_s, x_t | x0], either way
    assert np.all(variance >= 0)


INDICES = np.resize([0, 1, 2, 10, 50, 300, 500, 998, 999], SHAPE[:2])  # of DDPM's timesteps


def ddpm(i):
    """(beta, alpha_bar, alpha_bar before) of DDPM's timesteps i, in float64, shaped [..., 1, 1]."""
    beta = np.linspace(1e-4, 2e-2, K)
    bar = np.cumprod(1 - beta)
    return apart(beta[i]), apart(bar[i]), apart(np.where(i, bar[i - 1], 1.0))


def test_the_posterior_on_ddpms_grid_is_ddpms():
    process = Process(path="vp_linear")
    t, s = ((INDICES + k).astype(np.float32) / K for k in (1, 0))
    beta, bar, before = ddpm(INDICES)
    mean, variance = process.posterior(X0, EPS, t, s)
    want = (np.sqrt(before) * beta * EPS + np.sqrt(1 - beta) * (1 - before) * X0) / (1 - bar)
    np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, beta * (1 - before) / (1 - bar), rtol=1e-4)
    up = process.renoise(np.zeros(SHAPE, np.float32), t, s, np.ones(SHAPE, np.float32))
    np.testing.assert_allclose(np.square(up), np.broadcast_to(beta, SHAPE), rtol=1e-4)


@every_path
def test_frames_that_stay_keep_their_bits(options):
    process, t = Process(**options, variance="learned"), np.tile(np.array([0.0, 0.3, 0.999, 1.0], np.float32), (2, 8))
    mean, variance = process.posterior(X0, EPS, t, t)
    np.testing.assert_array_equal(mean, X0)
    np.testing.assert_array_equal(variance, np.zeros((*SHAPE[:2], 1, 1)))
    np.testing.assert_array_equal(process.renoise(X0, t, t, EPS), X0)
    np.testing.assert_array_equal(process.learned_variance(ERROR, t, t), np.zeros(SHAPE))


# Learned variance.


@every_path
def test_a_learned_variance_lies_between_a_point_and_white_data(options):
    process, (t, s) = Process(**options, variance="learned"), pairs(7)
    s = np.maximum(s, 0.01)  # below the second step of the grid the lower end is held up
    t = np.maximum(t, s + 0.01)
    low, middle, high = (process.learned_variance(np.full(SHAPE, v, np.float32), t, s) for v in (-1.0, 0.0, 1.0))
    np.testing.assert_allclose(low, np.broadcast_to(process.posterior(X0, X0, t, s)[1], SHAPE), rtol=2e-5)
    np.testing.assert_allclose(middle, np.sqrt(np.asarray(low) * np.asarray(high)), rtol=2e-5)
    (a_t, s_t), (a_s, s_s) = ([np.asarray(x, np.float64) for x in process.values(time)[:2]] for time in (t, s))
    n_t, n_s = ((a * process.data_std) ** 2 + b**2 for a, b in ((a_t, s_t), (a_s, s_s)))
    white = n_s - (a_t / a_s * n_s) ** 2 / n_t  # Var[x_s | x_t] with x0 ~ N(0, sd^2)
    np.testing.assert_allclose(np.asarray(high)[..., 0, 0], white, rtol=2e-4)
    assert np.all(np.asarray(low) <= np.asarray(high) * (1 + 1e-5))
    if process.path != "logsnr_cosine":  # whose clean end still holds noise
        assert not np.any(process.learned_variance(EPS, t, np.zeros_like(s)))


def test_only_the_mean_part_is_read():
    assert Process().outputs == 1 and Process().split(X0) == (X0, None)
    t = levels(8)
    both = np.concatenate([ERROR, EPS], axis=-1)
    for predict in SPACES:
        process = Process(predict=predict, variance="learned", clip=0.5)
        assert process.outputs == 2
        np.testing.assert_array_equal(process.split(both), (ERROR, EPS))
        for name in ("to_x0", "to_noise", "to_velocity", "to_v", "clipped_x0"):
            convert = getattr(process, name)
            np.testing.assert_array_equal(convert(both, X0, t), convert(ERROR, X0, t))
    with pytest.raises(ValueError, match="process.variance is 'learned' and the output has 3 channels"):
        process.split(np.zeros((1, 1, 3)))


@pytest.mark.parametrize("predict", SPACES)
def test_the_loss_is_the_weighted_square(predict):
    process, t = Process(path="vp_cosine", predict=predict, weight="min_snr"), levels(9)
    x = process.corrupt(X0, EPS, t)
    loss = process.frame_loss(process.target(X0, EPS, t) + ERROR, X0, EPS, x, t)
    want = process.loss_weight(t) * np.mean(np.square(ERROR), axis=(2, 3))
    np.testing.assert_allclose(loss, want, rtol=1e-3)  # a velocity of 1000 steps in one is large beside its error


def test_the_variational_bound_is_the_kl_by_hand():
    """Per level against DDPM's own terms in float64: KL in bits, and a density at the first level."""
    t = ((INDICES + 1) / K).astype(np.float32)
    wrong, v = 0.2 * ERROR, np.tanh(EPS[..., ::-1])
    process = Process(path="vp_linear", predict="noise", variance="learned", vlb=1e-3)
    x = process.corrupt(X0, EPS, t)
    loss = process.frame_loss(np.concatenate([EPS + wrong, v], axis=-1), X0, EPS, x, t)
    bits = np.asarray(loss, np.float64) - np.mean(wrong.astype(np.float64) ** 2, axis=(2, 3))  # vlb K = 1

    beta, bar, before = ddpm(INDICES)
    later = ddpm(np.maximum(INDICES, 1))  # the first posterior variance is 0: the second stands in
    least = later[0] * (1 - later[2]) / (1 - later[1])
    part = (v.astype(np.float64) + 1) / 2
    model = np.exp(part * np.log(beta) + (1 - part) * np.log(least))
    missed = np.sqrt((1 - bar) / bar) * wrong  # of x0, from the noise that was missed
    density = 0.5 * np.log(2 * np.pi * model) + missed**2 / (2 * model)
    gap = np.sqrt(before) * beta / (1 - bar) * missed
    kl = 0.5 * (np.log(model / least) + (least + gap**2) / model - 1)
    want = np.mean(np.where(apart(INDICES == 0), density, kl), axis=(2, 3)) / np.log(2)
    np.testing.assert_allclose(bits, want, rtol=2e-3, atol=2e-6)


def test_the_bound_trains_the_variance_alone():
    t = levels(10, 0.0, 1.0)
    t[:, :3] = 0.0, 1 / K, 1.0
    both = np.concatenate([ERROR, np.tanh(EPS)], axis=-1)

    def gradient(vlb):
        process = Process(path="vp_cosine", zero_snr=True, predict="v", variance="learned", vlb=vlb)
        x = process.corrupt(X0, EPS, t)
        return jnp.split(jax.grad(lambda out: jnp.sum(process.frame_loss(out, X0, EPS, x, t)))(both), 2, axis=-1)

    (mean, variance), (plain, nothing) = gradient(0.1), gradient(0.0)
    np.testing.assert_array_equal(mean, plain)
    assert np.all(np.isfinite(variance)) and np.mean(np.asarray(variance) != 0.0) > 0.99 and not np.any(nothing)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(path="cubic"), "process.path is 'cubic'; it is one of " + ", ".join(map(repr, PATHS))),
        (dict(predict="x"), "process.predict is 'x'; it is one of 'velocity', 'x0', 'noise', 'v'"),
        (dict(loss="eps"), "process.loss is 'eps'; it is one of '', 'velocity', 'x0', 'noise', 'v'"),
        (dict(weight="snr"), "process.weight is 'snr'; it is one of 'none', 'min_snr', 'fused_snr', "
         "'fused_snr_bidirectional', 'sigmoid', 'ramp', 'bell'"),
        (dict(variance="both"), "process.variance is 'both'; it is one of 'fixed', 'learned'"),
        (dict(labels="index"), "process.labels is 'index'; it is one of 'time', 'published'"),
        (dict(floor=0.0), "process.floor is 0.0; it lies in (0, 1], try process.floor = 0.05"),
        (dict(steps=1), "process.steps is 1; it is at least 2, try process.steps = 2"),
        (dict(gamma=0.0), "process.gamma is 0.0; it is positive, try process.gamma = 5.0"),
        (dict(decay=1.0), "process.decay is 1.0; it lies in [0, 1), try process.decay = 0.96"),
        (dict(vlb=-1.0), "process.vlb is -1.0; it is at least 0, try process.vlb = 0.0"),
        (dict(clip=-1.0), "process.clip is -1.0; it is at least 0, try process.clip = 0.0"),
        (dict(path="vp_linear", betas=(0.02, 1e-4)),
         "process.betas is (0.02, 0.0001); it is () or two numbers, 0 < first <= last < 1"),
        (dict(path="vp_cosine", betas=(1e-4, 0.02)), "process.betas is (0.0001, 0.02) and process.path is 'vp_cosine': "
         "it is not made of betas; process.betas = () would do"),
        (dict(zero_snr=True), "process.zero_snr is True and process.path is 'linear': only a table of steps is "
         "rescaled; process.zero_snr = False would do"),
        (dict(shift=3.0), "process.shift is 3.0 and process.path is 'linear': levels.shift and schedule.shift move the "
         "levels instead; process.shift = 1.0 would do"),
        (dict(path="trigflow", data_std=0.5), "process.data_std is 0.5 and process.path is 'trigflow': it is for data "
         "of unit variance, scale the data instead; process.data_std = 1.0 would do"),
    ],
)
def test_unknown_and_clashing_choices_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        Process(**wrong)
    assert str(refusal.value) == named

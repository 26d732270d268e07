"""Loss weights: closed forms in float64, fused SNR by its recursion, and what must not depend on the space."""

import numpy as np
import pytest

from causal_diffusion.diffusion.paths import PATHS
from causal_diffusion.diffusion.process import SPACES, Process
from causal_diffusion.diffusion.weights import WEIGHTS

rng = np.random.default_rng(0)
T = rng.uniform(0.02, 0.98, size=(2, 32)).astype(np.float32)
T[:, 5:7] = 0.1, 0.7  # an SNR above gamma and one below
VP = ("vp_cosine", "logsnr_cosine", "trigflow")


def of(weight, predict, path="vp_cosine", t=T, **options):
    return np.asarray(Process(path=path, predict=predict, weight=weight, **options).loss_weight(t), np.float64)


def snr(path="vp_cosine", t=T, **options):
    return np.asarray(Process(path=path, **options).snr(t), np.float64)


@pytest.mark.parametrize("path", VP)
def test_min_snr_is_the_papers(path):
    r = snr(path)
    clipped = np.minimum(r, 5.0)
    np.testing.assert_allclose(of("min_snr", "x0", path), clipped, rtol=1e-5)
    np.testing.assert_allclose(of("min_snr", "noise", path), clipped / r, rtol=1e-5)
    np.testing.assert_allclose(of("min_snr", "v", path), clipped / (r + 1), rtol=1e-5)


def test_min_snr_of_a_velocity():
    np.testing.assert_allclose(of("min_snr", "velocity", "linear"), np.minimum((1 - T) ** 2, 5 * T**2), rtol=1e-5)
    v, velocity = of("min_snr", "v", "trigflow"), of("min_snr", "velocity", "trigflow")
    np.testing.assert_allclose(velocity, v / (np.pi / 2) ** 2, rtol=1e-5)  # an error pi/2 as large, weighed back


def fused(r, decay, past=None, gamma=5.0):
    """(C, U) one frame after the other, in the words of the reference: Sbar of what lies behind, then the products."""
    S, R = np.minimum(r, gamma) / gamma, r / gamma
    if past is None:
        past = behind(S, decay)
    return 1 - (1 - decay * past) * (1 - S), 1 - (1 - decay * past) * (1 - R)


def behind(S, decay):
    past, bar = np.zeros_like(S), S[:, 0].copy()
    for f in range(1, S.shape[1]):
        past[:, f] = bar
        bar = decay * bar + (1 - decay) * S[:, f]
    return past


@pytest.mark.parametrize("path", VP)
@pytest.mark.parametrize("decay", [0.3, 0.96])
def test_fused_snr_is_its_recursion(path, decay):
    r = snr(path)
    C, U = fused(r, decay)
    options = dict(path=path, decay=decay)
    np.testing.assert_allclose(of("fused_snr", "noise", **options), C / U, rtol=1e-5)
    np.testing.assert_allclose(of("fused_snr", "x0", **options), 5 * C, rtol=1e-5)
    np.testing.assert_allclose(of("fused_snr", "v", **options), 5 * C / (5 * U + 1), rtol=1e-5)
    S = np.minimum(r, 5.0) / 5
    C, U = fused(r, decay, (behind(S, decay) + behind(S[:, ::-1], decay)[:, ::-1]) / 2)
    np.testing.assert_allclose(of("fused_snr_bidirectional", "noise", **options), C / U, rtol=1e-5)
    np.testing.assert_allclose(of("fused_snr_bidirectional", "v", **options), 5 * C / (5 * U + 1), rtol=1e-5)


@pytest.mark.parametrize("predict", SPACES)
@pytest.mark.parametrize("path", ["linear", *VP, "edm"])
def test_fused_snr_without_decay_is_min_snr(path, predict):
    for weight in ("fused_snr", "fused_snr_bidirectional"):
        plain = of("min_snr", predict, path)
        np.testing.assert_allclose(of(weight, predict, path, decay=0.0), plain, rtol=1e-6)
        assert np.max(np.abs(of(weight, predict, path, decay=0.9) / plain - 1)) > 0.05


@pytest.mark.parametrize("predict", SPACES)
def test_the_bidirectional_weight_is_symmetric_and_the_causal_one_is_causal(predict):
    both, flipped = (of("fused_snr_bidirectional", predict, t=t) for t in (T, T[:, ::-1]))
    np.testing.assert_allclose(both[:, ::-1], flipped, rtol=1e-6)
    other = T.copy()
    other[:, 4] = 0.3
    before, after = (of("fused_snr", predict, t=t) for t in (T, other))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 5:7] != after[:, 5:7], axis=1))


def test_the_sigmoid_weight_of_the_shifted_cosine():
    """DFoT predicts v and measures the noise: a^2 sigmoid(bias - log snr) times the squared error of v."""
    options = dict(path="logsnr_cosine", shift=0.125)
    r = snr(**options)
    want = 1 / (1 + r * np.exp(1.0))
    a = np.asarray(Process(**options).values(T).a, np.float64)
    np.testing.assert_allclose(of("sigmoid", "noise", **options), want, rtol=1e-5)
    np.testing.assert_allclose(of("sigmoid", "v", **options), a**2 * want, rtol=1e-5)
    np.testing.assert_allclose(of("sigmoid", "v", loss="noise", **options), a**2 * want, rtol=1e-5)
    np.testing.assert_allclose(of("sigmoid", "noise", bias=2.0, **options), 1 / (1 + r * np.exp(-2.0)), rtol=1e-5)


@pytest.mark.parametrize("weight", ["min_snr", "sigmoid"])
@pytest.mark.parametrize("path", ["linear", *VP, "edm"])
@pytest.mark.parametrize("predict", SPACES)
def test_snr_weights_are_one_loss_in_every_space(weight, path, predict):
    """What a loss measured elsewhere gains by (6), the weight there gives back."""
    weights = [of(weight, predict, path, loss=space, floor=1e-6) for space in SPACES]
    np.testing.assert_allclose(weights, [weights[0]] * len(SPACES), rtol=1e-4)


def test_ramp_and_bell():
    np.testing.assert_allclose(of("ramp", "x0"), 1 - 0.9 * T, rtol=1e-6)
    index = np.arange(1001)
    published = np.exp(-2 * ((index - 500) / 1000) ** 2)
    published -= published.min()
    published /= np.sum(published) / 1000  # both ends are zero: this is the trapezoidal rule
    bell = of("bell", "velocity", "linear", index.astype(np.float32) / 1000)
    np.testing.assert_allclose(bell, published, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_every_weight_is_finite_at_both_ends(path):
    t = np.tile(np.array([0.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0], np.float32), (2, 4))
    for predict in SPACES:
        for weight in WEIGHTS:
            assert np.all(np.isfinite(of(weight, predict, path, t))), (predict, weight)
            assert np.all(of(weight, predict, path, t) >= 0), (predict, weight)

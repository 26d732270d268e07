import numpy as np
import pytest

from causal_diffusion.evaluation import distributions, video


def clips(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def test_psnr_of_a_known_error():
    a = clips(2, 3, 5, 6, 1)
    error = np.array([[0.1, 0.2, 0.4], [1.0, 0.5, 0.02]])
    signs = np.sign(clips(2, 3, 5, 6, 1, seed=1))
    curve = video.psnr(a, a + signs * error[..., None, None, None])
    np.testing.assert_allclose(curve, 20 * np.log10(2 / error), rtol=1e-12)
    np.testing.assert_allclose(video.psnr(a, a + 0.1, data_range=1.0), 20.0)
    assert np.all(video.psnr(a, a) == np.inf)


def test_psnr_does_not_wrap_integers():
    a, b = np.zeros((1, 1, 4, 4, 3), np.uint8), np.full((1, 1, 4, 4, 3), 255, np.uint8)
    assert video.psnr(b, a, data_range=255) == pytest.approx(0.0)
    assert video.psnr(a, b, data_range=255) == pytest.approx(0.0)


def test_ssim_of_equal_frames_is_one_and_is_symmetric():
    a, b = clips(2, 3, 14, 16, 3), clips(2, 3, 14, 16, 3, seed=1)
    np.testing.assert_allclose(video.ssim(a, a), 1.0, rtol=1e-12)
    np.testing.assert_allclose(video.ssim(a, b), video.ssim(b, a), rtol=1e-12)
    assert np.all(video.ssim(a, b) < 0.2)


def test_ssim_of_flat_frames_is_the_luminance_term():
    a, b = np.full((1, 1, 12, 12, 1), 0.5), np.full((1, 1, 12, 12, 1), 0.25)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * 0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    np.testing.assert_allclose(video.ssim(a, b), expected, rtol=1e-9)


@pytest.mark.parametrize("size, window", [(11, 11), (8, 7), (3, 3)])
def test_ssim_against_a_slow_window(size, window):
    """Frames as large as the (shrunken) window, or one pixel larger: every window position written out."""
    a, b = clips(1, 1, size, size, 1), clips(1, 1, size, size, 1, seed=1)
    b = 0.7 * a + 0.3 * b
    at = np.arange(window) - window // 2
    weights = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for y in range(size - window + 1):
        for x in range(size - window + 1):
            p, q = (v[0, 0, y:y + window, x:x + window, 0] for v in (a, b))
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            c1, c2 = 0.02**2, 0.06**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    np.testing.assert_allclose(video.ssim(a, b), np.mean(values), rtol=1e-10)


def two_layers(frames):
    return [frames, frames[:, ::2, ::2] ** 2 + 0.1]


def test_lpips_by_hand():
    a, b = clips(2, 3, 4, 4, 2).astype(np.float32), clips(2, 3, 4, 4, 2, seed=1).astype(np.float32)
    weights = [np.array([1.0, 3.0]), np.array([0.5, 0.0])]
    got = video.lpips(a, b, two_layers, weights=weights, network="squares", batch=4)
    assert got.value.shape == (2, 3)
    for i in range(2):
        for t in range(3):
            total = 0.0
            for w, x, y in zip(weights, two_layers(a[i, t][None]), two_layers(b[i, t][None]), strict=True):
                x, y = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))
                total += ((x - y) ** 2 * w).sum(-1).mean()
            assert got.value[i, t] == pytest.approx(total, rel=1e-5)
    assert np.all(video.lpips(a, a, two_layers).value == 0)
    assert "squares" in got.protocol and "2 clips of 3 frames at 4x4x2" in got.protocol
    assert "linear weights" in got.protocol and got.protocol in str(got)


def mean_colour(frames):
    return frames.mean(axis=(1, 2))


def test_frechet_by_frame_shows_drift():
    real = clips(20, 4, 3, 3, 2)
    fake = real + np.arange(4)[None, :, None, None, None]
    got = video.frechet_by_frame(real, fake, mean_colour, batch=7)
    np.testing.assert_allclose(got.value, 2 * np.arange(4) ** 2, atol=1e-9)
    assert "mean_colour" in got.protocol and "20 real and 20 fake" in got.protocol


def test_fvd_of_whole_clips_and_of_windows():
    real, fake = clips(12, 6, 2, 2, 1), clips(9, 6, 2, 2, 1, seed=1) + 0.3

    def embed(video_BTHWC):
        return video_BTHWC.mean(axis=(2, 3, 4))

    whole = video.fvd(real, fake, embed, network="means", batch=5)
    assert whole.value == pytest.approx(distributions.frechet_distance(embed(real), embed(fake)))
    assert "12 real and 9 fake clips of 6 frames at 2x2x1" in whole.protocol and "means" in whole.protocol
    curve = video.fvd(real, fake, embed, window=2, stride=4)
    expected = [distributions.frechet_distance(embed(real[:, s:s + 2]), embed(fake[:, s:s + 2])) for s in (0, 4)]
    np.testing.assert_allclose(curve.value, expected)
    assert "windows of 2 frames every 4" in curve.protocol


def test_networks_may_return_jax_arrays():
    import jax.numpy as jnp
    a = clips(3, 2, 4, 4, 1)
    np.testing.assert_allclose(video.lpips(a, -a, lambda x: [jnp.asarray(x)]).value, 4.0, rtol=1e-5)
    assert video.frechet_by_frame(a, a, lambda x: jnp.asarray(x).mean((1, 2))).value.shape == (2,)


@pytest.mark.parametrize("call, words", [
    (lambda x: video.psnr(x, x[:, :1]), "one shape"),
    (lambda x: video.psnr(x[0], x[0]), r"\[B, T, H, W, C\]"),
    (lambda x: video.psnr(x, x, data_range=0), "data_range"),
    (lambda x: video.ssim(x, x, window=4), "odd"),
    (lambda x: video.lpips(x, x, two_layers, weights=[np.ones(2)]), "2 layers"),
    (lambda x: video.lpips(x, x, two_layers, weights=[np.ones(3), np.ones(2)]), r"weights\[0\]"),
    (lambda x: video.lpips(x, x, lambda f: [f.mean()]), "list of maps"),
    (lambda x: video.fvd(x, x[:, :1], mean_colour), "two sets"),
    (lambda x: video.fvd(x, x, mean_colour), "embed must return"),
    (lambda x: video.fvd(x, x, mean_colour, window=9), "window is 9"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(clips(3, 2, 4, 4, 2))


def test_the_network_is_never_a_silent_default():
    for metric in (video.lpips, video.fvd, video.frechet_by_frame):
        with pytest.raises(TypeError, match="embed"):
            metric(clips(2, 2, 4, 4, 1), clips(2, 2, 4, 4, 1))

import numpy as np
import pytest

from causal_diffusion.evaluation import motion_smoothness as smoothness


def test_jerk_of_a_cubic_is_six_times_its_coefficient():
    t = np.arange(12.0)
    x = np.zeros((12, 3, 3))
    x[:, 0] = 5 + 2 * t[:, None] - t[:, None] ** 2  # a parabola has none
    x[:, 1, 0], x[:, 1, 2] = 0.01 * t**3, -0.02 * t**3
    x[:, 2, 1] = 0.015 * t**3
    np.testing.assert_allclose(smoothness.jerk(x), np.full(9, 6 * 0.03), rtol=1e-9)
    np.testing.assert_allclose(smoothness.jerk(x[None, :, [0]]), np.zeros((1, 9)), atol=1e-10)


def test_peak_and_area_are_of_the_mean_over_clips():
    curves = np.array([[0.0, 0.2, 0.1], [0.1, 0.0, 0.3]])  # mean 0.05, 0.1, 0.2
    assert smoothness.peak_jerk(curves) == pytest.approx(0.2)
    assert smoothness.area_under_jerk(curves, 0.1) == pytest.approx(0.05 + 0.0 + 0.1)
    assert smoothness.area_under_jerk(curves, np.array([0.05, 0.2, 0.2])) == pytest.approx(0.1)
    published = sum(abs(j - 0.033031363) for j in (0.05, 0.1, 0.2))
    assert smoothness.area_under_jerk(curves) == pytest.approx(published)
    assert smoothness.peak_jerk(curves[0]) == 0.2


def foot(height, step, frames=21):
    """[T, 2, 3]: joint 1 moves along x by ``step`` metres a frame at one height, joint 0 is high and fast."""
    x = np.zeros((frames, 2, 3))
    x[:, 1, 0], x[:, 1, 1] = step * np.arange(frames), height
    x[:, 0] = [0, 1, 0]
    x[:, 0, 2] = 9 * np.arange(frames)
    return x


@pytest.mark.parametrize("height, step, ratio, speed", [
    (0.02, 0.05, 1.0, 1.0),    # 1 m/s on the ground
    (0.02, 0.02, 0.0, 0.4),    # too slow to count
    (0.07, 0.05, 0.0, 0.0),    # in the air
])  # fmt: skip
def test_skating_of_a_sliding_foot(height, step, ratio, speed):
    got = smoothness.foot_skating(foot(height, step), (0, 1), fps=20, smooth=1)
    assert got.ratio == ratio and got.speed == pytest.approx(speed)
    lifted = foot(height, step) + [0, 3, 0]
    assert smoothness.foot_skating(lifted, (1,), 20, floor=None, smooth=1).ratio == float(step > 0.025)


def test_skating_needs_the_ground_in_both_frames_and_a_fast_mean():
    x = foot(0.02, 0.05)
    x[10:, 1, 1] = 0.2  # it leaves the ground in frame 10: steps 0 .. 8 are on it
    assert smoothness.foot_skating(x, (1,), 20, smooth=1).ratio == pytest.approx(9 / 20)
    # One fast step among slow ones: the mean over five frames stays below the threshold.
    x = foot(0.02, 0.0)
    x[11:, 1, 0] += 0.05
    assert smoothness.foot_skating(x, (1,), 20, smooth=1).ratio == pytest.approx(1 / 20)
    assert smoothness.foot_skating(x, (1,), 20).ratio == 0.0
    assert smoothness.foot_skating(x, (1,), 20).speed == pytest.approx(1.0 / 20)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_moving_mean_is_that_of_scipy(frames):
    from scipy import ndimage
    x = np.random.default_rng(0).standard_normal((2, 13, 3))
    expected = ndimage.uniform_filter1d(x, frames, axis=1, mode="constant")
    np.testing.assert_allclose(smoothness._moving_mean(x, frames), expected, atol=1e-12)


def stream(frames, seed=0):
    rng = np.random.default_rng(seed)
    x = 0.01 * rng.standard_normal((frames, 4, 3)).cumsum(axis=0)
    x[:, :, 1] = 0.9 + 0.05 * rng.standard_normal((frames, 1))
    return x


def test_drift_of_the_data_itself_is_none():
    x = stream(2000)
    usual = smoothness.Range.of([x[:700], x[700:]], fps=20)
    pieces = smoothness.drift(x.reshape(20, 100, 4, 3), usual, 20)
    assert len(pieces.height) == 20 and pieces.within(usual).all()
    assert pieces.height_outside.mean() == pytest.approx(0.002, abs=1e-3)
    assert pieces.speed_outside.mean() == pytest.approx(0.001, abs=5e-4)
    np.testing.assert_allclose(pieces.height, x[:, 0, 1].reshape(20, 100).mean(axis=1))
    speeds = np.linalg.norm(np.diff(x, axis=0), axis=-1) * 20
    np.testing.assert_allclose(pieces.speed[1:], speeds[99:].reshape(19, 100, 4).mean(axis=(1, 2)))
    assert usual.speed == np.percentile(np.concatenate([speeds[:699], speeds[700:]]), 99.9)
    assert str(pieces).startswith("20 windows: root 0.7")


def test_a_stream_that_sinks_and_one_that_jumps_between_windows_are_seen():
    usual = smoothness.Range.of([stream(2000)], fps=20)
    x = stream(400, seed=1)
    x[:, :, 1] -= np.linspace(0, 1, 400)[:, None]
    sunk = smoothness.drift(iter(x.reshape(4, 100, 4, 3)), usual, 20)
    assert sunk.within(usual).tolist() == [True, False, False, False]
    assert sunk.height_outside[0] < sunk.height_outside[1] <= sunk.height_outside[2] == 1.0
    x = stream(400, seed=1)
    x[200:] += [3.0, 0, 0]
    jumped = smoothness.drift(x.reshape(4, 100, 4, 3), usual, 20)
    assert np.argmax(jumped.fastest) == 2 and jumped.fastest[2] > 59 and jumped.speed_outside[2] >= 0.01
    one = smoothness.drift([x[:1]], usual, 20)
    assert one.speed == 0.0 and one.height == x[0, 0, 1]


@pytest.mark.parametrize("call, words", [
    (lambda x: smoothness.jerk(x[:3]), "with 4 frames or more"),
    (lambda x: smoothness.jerk(x[..., :2]), "joints, 3"),
    (lambda x: smoothness.area_under_jerk(smoothness.jerk(x), np.zeros(3)), "windows of as many frames"),
    (lambda x: smoothness.foot_skating(x, (0,), 20, smooth=0), "smooth is 0"),
    (lambda x: smoothness.Range.of([], 20), "no clip"),
    (lambda x: smoothness.drift([], smoothness.Range(0, 1, 2), 20), "no window"),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(stream(8))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.resample import resample

RNG = np.random.default_rng(0)


def clip(*lead, frames=25):
    q = RNG.standard_normal((*lead, frames, 3, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True), RNG.standard_normal((*lead, frames, 3))


@pytest.mark.parametrize("rates, stride", [((120, 20), 6), ((30, 15), 2), ((30, 30), 1), ((59.94, 19.98), 3)])
@pytest.mark.parametrize("kind, lead", [(np.asarray, ()), (np.asarray, (2,)), (jnp.asarray, (2,))])
def test_whole_strides_take_frames_as_they_are(rates, stride, lead, kind):
    q, root = (kind(a.astype(np.float32)) for a in clip(*lead))
    x = q[..., :3]
    for given, got in ((x, resample(x, *rates)), (q, resample((q, root), *rates)[0])):
        np.testing.assert_array_equal(got, given[..., ::stride, :, :])
        assert type(got) is type(given) and got.dtype == given.dtype
    np.testing.assert_array_equal(resample((q, root), *rates)[1], root[..., ::stride, :])


@pytest.mark.parametrize("fps_from, fps_to", [(30, 20), (20, 30), (119.88, 30), (24, 25), (30, 7), (10, 1000)])
def test_constant_speed_is_met_at_every_time_and_nothing_lies_beyond(fps_from, fps_to):
    """Positions that move and joints that turn evenly, whose values at any time are known."""
    at = np.arange(25) / fps_from
    x = np.stack([at, 2 * at, -at], axis=-1)[:, None] + np.arange(2)[:, None]
    q, root = rot.multiply(rot.yaw(3 * at), rot.from_euler([0.3, 0.2, 0.1], "XYZ"))[:, None], x[:, 0]
    frames = int(24 / fps_from * fps_to + 1e-9) + 1
    new = np.arange(frames) / fps_to
    assert new[-1] <= at[-1] + 1e-9 and new[-1] + 1 / fps_to > at[-1]
    np.testing.assert_allclose(
        resample(x, fps_from, fps_to), np.interp(new, at, at)[:, None, None] * [1, 2, -1] + np.arange(2)[:, None],
        atol=1e-12,
    )  # fmt: skip
    turns, path = resample((q, root), fps_from, fps_to)
    expected = rot.multiply(rot.yaw(3 * new), rot.from_euler([0.3, 0.2, 0.1], "XYZ"))[:, None]
    np.testing.assert_allclose(rot.to_matrix(turns), rot.to_matrix(expected), atol=1e-7)
    np.testing.assert_allclose(path, resample(x, fps_from, fps_to)[:, 0], atol=1e-15)


@pytest.mark.parametrize("times", [2, 3, 5])
def test_up_and_back_is_the_identity(times):
    q, root = clip(2)
    up = resample((q, root), 30, 30 * times)
    assert up[1].shape == (2, 24 * times + 1, 3)
    np.testing.assert_array_equal(up[0][:, ::times], q)
    for a, b in zip(resample(up, 30 * times, 30), (q, root), strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_stay_between_their_neighbours():
    x = clip()[0][..., :3]
    y = resample(x, 30, 47.3)
    left = np.floor(np.arange(len(y)) * 30 / 47.3).astype(int)
    low, high = np.minimum(x[left], x[left + 1]), np.maximum(x[left], x[left + 1])
    assert (y >= low - 1e-15).all() and (y <= high + 1e-15).all()
    q = resample((np.tile(rot.IDENTITY, (9, 1, 1)) * -np.ones((9, 1, 1)) ** np.arange(9)[:, None, None],
                  np.zeros((9, 3))), 30, 47)[0]  # fmt: skip
    np.testing.assert_allclose(np.abs(q[..., 0]), 1.0, atol=1e-15)  # q and -q in turn are no turning


def test_a_single_frame_and_a_jitted_clip():
    x = clip(frames=1)[0]
    np.testing.assert_array_equal(resample(x, 30, 200), x)
    q, root = (jnp.asarray(a, jnp.float32) for a in clip())
    a, b = jax.jit(lambda q, root: resample((q, root), 30, 20))(q, root)
    for got, expected in zip((a, b), resample((np.asarray(q), np.asarray(root)), 30, 20), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert expected.dtype == np.float32


@pytest.mark.parametrize("rates, message", [
    ((0, 30), "fps_from is 0: frames per second, 30 would do"), ((30, -1), "fps_to is -1"),
    ((30, np.nan), "fps_to is nan"), ((np.inf, 30), "fps_from is inf"),
])  # fmt: skip
def test_rates_that_are_none_are_refused(rates, message):
    with pytest.raises(UserError, match=message):
        resample(np.zeros((4, 2, 3)), *rates)


def test_motions_that_are_none_are_refused():
    with pytest.raises(UserError, match="the motion has no frames: one or more would do"):
        resample(np.zeros((0, 2, 3)), 30, 20)
    with pytest.raises(UserError, match="rotations of 5 frames and root of 4: as many would do"):
        resample((np.zeros((5, 2, 4)), np.zeros((4, 3))), 30, 20)

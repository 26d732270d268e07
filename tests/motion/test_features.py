import jax
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion.features import RATE, motion_features

X = np.random.default_rng(0).standard_normal((2, 12, 5)).astype(np.float32)
FIRST = (-0.8755473, 0.5978055, -2.1675293)  # so that two machines agree


def cosines(x):
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return np.einsum("blc,bmc->blm", x, x)


def kinematics(x, time):
    out = []
    for i in range(x.shape[1] // time):
        group = range(time * i, time * i + time)
        pose = np.mean([x[:, t] for t in group], axis=0)
        step = np.mean([x[:, t] - x[:, max(t - 1, 0)] for t in group], axis=0)
        out.append(np.concatenate([pose, RATE * step], axis=-1))
    return np.stack(out, axis=1)


@pytest.mark.parametrize("width", [10, 16, 256])
@pytest.mark.parametrize("time", [1, 4])
def test_features_lie_to_each_other_as_the_kinematics_do(width, time):
    f = motion_features(X, time, width)
    assert f.shape == (2, 12 // time, width) and f.dtype == np.float32
    np.testing.assert_allclose(cosines(np.asarray(f)), cosines(kinematics(X, time)), atol=1e-5)


def test_few_features_keep_angles_nearly():
    x = np.random.default_rng(1).standard_normal((1, 40, 100)).astype(np.float32)
    difference = cosines(np.asarray(motion_features(x, 4, 100))) - cosines(kinematics(x, 4))
    assert 0 < np.abs(difference).max() < 0.35 and difference.std() < 0.12


def test_no_feature_sees_a_later_group():
    changed = X.copy()
    changed[:, 8] += 1.0
    a, b = motion_features(X, 4), motion_features(changed, 4)
    np.testing.assert_array_equal(a[:, :2], b[:, :2])
    assert np.abs(a - b)[:, 2].max() > 0.01


def test_features_are_the_same_in_every_run_and_under_jit():
    f = motion_features(X, 4, 16)
    np.testing.assert_allclose(jax.jit(motion_features, static_argnums=(1, 2))(X, 4, 16), f, atol=1e-5)
    np.testing.assert_allclose(f[0, 0, :3], FIRST, rtol=1e-4)


def test_frames_must_be_whole_groups():
    with pytest.raises(UserError, match="12 frames are no whole number of groups of 5: 10 would do"):
        motion_features(X, 5)

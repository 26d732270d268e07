import numpy as np
import pytest

from causal_diffusion.evaluation import motion_error
from causal_diffusion.motion import joints


def clip(frames=6, count=4, seed=0):
    rng = np.random.default_rng(seed)
    return joints.encode(rng.standard_normal((frames, count, 3)), rng.standard_normal((frames, 2)).cumsum(axis=0))


def test_distances_of_a_known_error():
    """One joint of four is 3, 4, 12 mm off, so 13 / 4 on average."""
    a = np.random.default_rng(0).standard_normal((2, 5, 4, 3))
    b = a.copy()
    b[1, 2, 3] += [0.003, 0.004, 0.012]
    expected = np.zeros((2, 5))
    expected[1, 2] = 13 / 4
    np.testing.assert_allclose(motion_error.distance(a, b), expected, atol=1e-9)


def test_an_error_of_the_path_stays_and_is_no_local_one():
    x = clip()
    y = x.copy()
    y[2, :2] += [0.03, -0.04]  # metres per frame, once
    error = motion_error.joint_error(y, x)
    np.testing.assert_array_equal(error.local, 0.0)
    np.testing.assert_allclose(error.world, [0, 0, 50, 50, 50, 50], atol=1e-9)
    y[3, joints.ROOT :] += 0.01  # every joint by 1 cm along each axis
    np.testing.assert_allclose(motion_error.joint_error(y, x).local, [0, 0, 0, 10 * 3**0.5, 0, 0], atol=1e-9)
    assert str(motion_error.joint_error(y, x)) == "2.9 mm local, 33.5 mm world"


def test_means_are_over_frames_of_clips_of_any_length():
    a, b = clip(6), clip(2, seed=1)
    pairs = [(a + np.linspace(0, 0.1, 6)[:, None], a), (b + 0.3, b)]
    curves = [motion_error.joint_error(*pair) for pair in pairs]
    mean, by_frame = motion_error.mean_joint_error(pairs), motion_error.joint_error_by_frame(pairs)
    for name in ("local", "world"):
        first, second = (getattr(curve, name) for curve in curves)
        np.testing.assert_allclose(getattr(mean, name), (first.sum() + second.sum()) / 8)
        np.testing.assert_allclose(getattr(by_frame, name), [*(first[:2] + second) / 2, *first[2:]])
        assert first.sum() != second.sum()


def test_other_numbers_are_told_by_their_own_decode():
    """Of two joints in one number: a body of that height, and the same one step along."""

    def decode(x):
        local = np.zeros((len(x), 2, 3))
        local[:, 1, 1] = x[:, 0]
        return local, local + np.arange(len(x))[:, None, None] * x[-1, 0]

    a, b = np.full((3, 1), 1.0), np.array([[1.0], [1.5], [1.2]])
    error = motion_error.joint_error(b, a, decode)
    np.testing.assert_allclose(error.local, [0, 250, 100])
    (own, world), (other, elsewhere) = decode(b), decode(a)
    np.testing.assert_allclose(error.world, motion_error.distance(world, elsewhere))
    np.testing.assert_allclose(error.local, motion_error.distance(own, other))
    mean = motion_error.mean_joint_error([(b, a), (a, a)], decode)
    assert mean.local == pytest.approx(350 / 6) and mean.world == pytest.approx(error.world.sum() / 6)


@pytest.mark.parametrize("time", [1, 3])
def test_pca_is_that_of_the_singular_values(time):
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal((n, 4)) @ rng.standard_normal((4, 4)) + 3.0 for n in (9, 2, 30)]
    runs = np.stack([c[i : i + time].ravel() for c in clips for i in range(len(c) - time + 1)])
    pca = motion_error.GroupPCA.fit(iter(clips), time, 2)
    np.testing.assert_allclose(pca.mean, runs.mean(axis=0))
    _, _, vectors = np.linalg.svd(runs - runs.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(vectors[:2] @ pca.basis), np.eye(2), atol=1e-8)
    x = rng.standard_normal((5, 3 * time, 4))
    latents = pca.encode(x)
    assert latents.shape == (5, 3, 2) and pca.reconstruct(x).shape == x.shape
    groups = x.reshape(5, 3, -1) - pca.mean
    np.testing.assert_allclose(pca.reconstruct(x).reshape(5, 3, -1), groups @ vectors[:2].T @ vectors[:2] + pca.mean)


def test_pca_of_all_components_loses_nothing_and_of_more_loses_less():
    clips = [clip(20), clip(30, seed=1)]
    errors = [motion_error.mean_joint_error((motion_error.GroupPCA.fit(clips, 2, k).reconstruct(c), c) for c in clips)
              for k in (1, 4, 12, 28)]  # fmt: skip
    assert errors[0].local > errors[1].local > errors[2].local > 1.0
    assert errors[3].local < 1e-6 and errors[3].world < 1e-6


@pytest.mark.parametrize("call, words", [
    (lambda x: motion_error.joint_error(x, x[:3]), "two motions must have one shape"),
    (lambda x: motion_error.distance(x, x), r"\[..., frames, joints, 3\]"),
    (lambda x: motion_error.mean_joint_error([]), "no clip to measure"),
    (lambda x: motion_error.joint_error_by_frame([]), "no clip to measure"),
    (lambda x: motion_error.joint_error(x[:, :13], x[:, :13]), "a frame has 13 numbers"),
    (lambda x: motion_error.GroupPCA.fit([x], 7, 2), "no clip has 7 frames"),
    (lambda x: motion_error.GroupPCA.fit([x], 2, 29), "it has 1 to 28 components, not 29"),
    (lambda x: motion_error.GroupPCA.fit([x], 4, 2).encode(x), r"a clip \(6, 14\) is no whole number of groups of 4"),
    (lambda x: motion_error.GroupPCA.fit([x], 2, 2).encode(x[:, :5]), "of 2 frames of 14 numbers"),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(clip())

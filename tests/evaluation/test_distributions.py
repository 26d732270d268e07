import numpy as np
import pytest

from causal_diffusion.evaluation import distributions


def samples_with(mean, root, count, seed):
    """Exactly this mean, and exactly root' root as unbiased covariance."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    q = np.linalg.qr(x)[0] * np.sqrt(count - 1)
    return mean + q @ root


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.standard_normal(5), rng.standard_normal(5)
    std_a, std_b = rng.uniform(0.5, 2, 5), rng.uniform(0.5, 2, 5)
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    a = samples_with(mean_a, np.diag(std_a) @ turn, 40, 1)
    b = samples_with(mean_b, np.diag(std_b) @ turn, 60, 2)
    # Covariances that commute: |m|^2 + sum (s_a - s_b)^2.
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert distributions.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    cov_a, cov_b = (turn.T @ np.diag(std**2) @ turn for std in (std_a, std_b))
    assert distributions.frechet_between_gaussians(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count_a, count_b, features", [(50, 30, 6), (7, 9, 20), (30, 5, 8)])
def test_frechet_distance_agrees_with_the_covariance_form(count_a, count_b, features):
    """Also with fewer samples than features, where both covariances are singular."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((count_a, features)) @ rng.standard_normal((features, features))
    b = rng.standard_normal((count_b, features)) + 0.5
    value = distributions.frechet_distance(a, b)
    slow = distributions.frechet_between_gaussians(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert value == pytest.approx(slow, rel=1e-6)
    assert value == pytest.approx(distributions.frechet_distance(b, a), rel=1e-12)
    assert 0 <= distributions.frechet_distance(a, a) < 1e-9 * np.trace(np.cov(a.T))
    assert distributions.frechet_distance(a, a + 2) == pytest.approx(4 * features, rel=1e-9)


def normal(count, features=4, seed=0):
    return np.random.default_rng(seed).standard_normal((count, features))


def test_kernel_distance_by_hand():
    """Every pair of equation (3) written out."""
    a, b = normal(5, 3), normal(4, 3, seed=1) + 0.5

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within_a = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    within_b = np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([k(x, y) for x in a for y in b])
    assert distributions.kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_kernel_distance_of_equal_distributions_scatters_around_zero():
    equal = [distributions.kernel_distance(normal(20, seed=2 * i), normal(30, seed=2 * i + 1)) for i in range(400)]
    error = np.std(equal) / np.sqrt(len(equal))
    assert abs(np.mean(equal)) < 4 * error and min(equal) < 0 < max(equal)
    shifted = [distributions.kernel_distance(normal(20, seed=i), normal(30, seed=1000 + i) + 0.5) for i in range(50)]
    assert np.mean(shifted) > 50 * error


def test_diversity_and_multimodality_of_points_at_known_distances():
    """All clips of a caption at one place, captions at the corners of a simplex of side sqrt 2."""
    corners = np.eye(8)
    drawn = [distributions.diversity(corners, pairs=8, seed=seed) for seed in range(300)]
    assert np.mean(drawn) == pytest.approx(2**0.5 * 7 / 8, rel=0.02)  # one pair in eight is of one clip
    assert distributions.diversity(corners, 8, 5) == distributions.diversity(corners, 8, 5)
    assert distributions.multimodality(np.repeat(corners[:, None], 5, axis=1), pairs=5) == 0.0
    spread = np.broadcast_to(corners, (3, 8, 8)) + 10.0 * np.arange(3)[:, None, None]
    drawn = [distributions.multimodality(spread, pairs=8, seed=seed) for seed in range(300)]
    assert np.mean(drawn) == pytest.approx(2**0.5 * 7 / 8, rel=0.02)


@pytest.mark.parametrize("group", [None, 1, 2])
@pytest.mark.parametrize("count", [7, 60])
def test_gaussian_fit_has_the_mean_and_covariance_of_the_clips(group, count):
    """Also where there are fewer clips than numbers in one."""
    clips = normal(count, 12).reshape(count, 4, 3) @ normal(3, 3, seed=1) + np.arange(4.0)[:, None]
    drawn = distributions.gaussian_fit(clips, 20_000, seed=2, group=group)
    assert drawn.shape == (20_000, 4, 3)
    own, got = (x.reshape(len(x) * 4 // (group or 4), -1) for x in (clips, drawn))
    np.testing.assert_allclose(got.mean(0), own.mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(got.T), np.cov(own.T), atol=0.06 * np.abs(np.cov(own.T)).max())
    if group == 1:  # frames know nothing of one another
        across = np.cov(drawn.reshape(20_000, -1).T)[:3, 3:6]
        assert np.abs(across).max() < 0.05 * np.abs(np.cov(got.T)).max()


def test_a_score_between_floor_and_ceiling():
    train, test = normal(50), normal(20, seed=1)
    floor = distributions.fid_floor(train, test, seed=3)
    chosen = np.random.default_rng(3).choice(50, 20, replace=False)
    assert floor == distributions.frechet_distance(train[chosen], test) > 0
    assert distributions.fid_progress(9.0, 1.0, 9.0) == 0.0
    assert distributions.fid_progress(1.0, 1.0, 9.0) == 1.0
    assert distributions.fid_progress(2.6, 1.0, 9.0) == pytest.approx(0.8)


@pytest.mark.parametrize("call, words", [
    (lambda x: distributions.frechet_distance(x, x[:, :1]), "features"),
    (lambda x: distributions.frechet_distance(x[:1], x), "at least 2"),
    (lambda x: distributions.frechet_distance(x * np.nan, x), "not finite"),
    (lambda x: distributions.frechet_between_gaussians(np.ones(2), np.eye(2), np.ones(3), np.eye(3)), "one F"),
    (lambda x: distributions.kernel_distance(x, x[:, :1]), "feats_b 1"),
    (lambda x: distributions.diversity(x), "pairs is 300 and there are 6 clips: pairs=6 would do"),
    (lambda x: distributions.multimodality(x), r"\[captions, clips, F\]"),
    (lambda x: distributions.multimodality(x[None]), "pairs is 10 and there are 6 clips a caption"),
    (lambda x: distributions.gaussian_fit(x, 3), r"clips must be \[N, T, C\]"),
    (lambda x: distributions.gaussian_fit(x.reshape(2, 3, 4), 3, group=2), "group is 2 and a clip has 3 frames"),
    (lambda x: distributions.fid_floor(x[:3], x), "3 training clips for 6 test clips"),
    (lambda x: distributions.fid_progress(1.0, 3.0, 2.0), "floor is 3 and ceiling 2"),
])  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(normal(6))

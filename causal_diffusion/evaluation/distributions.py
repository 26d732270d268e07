"""How far one set of feature vectors is from another, whatever the network that made them.

* `frechet_distance`, FID's: each set is summed up as a Gaussian N(m, S) (Heusel et al., "GANs trained by a two
  time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017):

      d^2 = |m_a - m_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)                                        (1)

  With X_a [N_a, F] the centred features, S_a = X_a' X_a / (N_a - 1), and the eigenvalues of S_a S_b are the squared
  singular values of X_a X_b' over (N_a - 1)(N_b - 1). So the last trace is a sum of singular values:

      tr (S_a S_b)^(1/2) = |X_a X_b'|_* / sqrt((N_a - 1)(N_b - 1))                                        (2)

  which needs no square root of a matrix, cannot turn complex, and keeps full precision when N < F. X may be replaced by
  the R of its QR factorisation (the singular values stay), so the cost is that of the smaller of N and F.

* `kernel_distance`, KID's: the unbiased squared maximum mean discrepancy under k(x, y) = (x y / F + 1)^3 (Binkowski et
  al., "Demystifying MMD GANs", ICLR 2018, section 4), which expects 0 of equal distributions whatever the counts:

      sum_(i != j) k(a_i, a_j) / (N (N - 1)) + sum_(i != j) k(b_i, b_j) / (M (M - 1)) - 2 mean k(a_i, b_j)    (3)

* `diversity` and `multimodality` are mean distances inside one set (Guo et al., "Generating diverse and natural 3D
  human motions from text", CVPR 2022).

An FID by itself says little: it depends on the network and on the number of samples. Two baselines give it a scale.
The *floor* is what real clips score, those of training against those of the test (`fid_floor`); the *ceiling* is what
clips drawn from a Gaussian fitted to the training clips score (`gaussian_fit`), which have the right mean and
covariance and nothing else of a motion. `fid_progress` says how far from the one to the other a model has come. All
three from equally many samples.

Everything is computed on the host in numpy, in float64.
"""

import numpy as np

DEGREE = 3  # of KID's polynomial


def frechet_distance(feats_a, feats_b) -> float:
    """Squared Frechet distance (1) between Gaussians fitted to features [N, F] and [M, F]; never below 0.

    Covariances are the unbiased ones. With few samples the estimate is biased upwards, and differently for
    different N: compare only numbers made from equally many samples.
    """
    a, b = _two_sets(feats_a, feats_b)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    factor_a, factor_b = _factor(a - mean_a), _factor(b - mean_b)
    cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    distance = np.sum(np.square(mean_a - mean_b)) + np.sum(factor_a**2) + np.sum(factor_b**2) - 2.0 * cross
    return float(max(distance, 0.0))


def frechet_between_gaussians(mean_a, cov_a, mean_b, cov_b) -> float:
    """Squared Frechet distance (1) between N(mean_a, cov_a) and N(mean_b, cov_b): means [F], covs [F, F].

    For statistics computed elsewhere. tr (S_a S_b)^(1/2) is taken through the eigenvalues of the symmetric
    S_a^(1/2) S_b S_a^(1/2), so no imaginary part can arise.
    """
    mean_a, mean_b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    cov_a, cov_b = np.asarray(cov_a, np.float64), np.asarray(cov_b, np.float64)
    if mean_a.ndim != 1 or mean_b.shape != mean_a.shape or {cov_a.shape, cov_b.shape} != {mean_a.shape * 2}:
        raise ValueError("means must be [F] and covariances [F, F] with one F; got "
                         f"{mean_a.shape}, {cov_a.shape}, {mean_b.shape}, {cov_b.shape}")  # fmt: skip
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root_a @ cov_b @ root_a), 0.0)).sum()
    distance = np.sum(np.square(mean_a - mean_b)) + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    return float(max(distance, 0.0))


def kernel_distance(feats_a, feats_b) -> float:
    """KID, equation (3), of features [N, F] and [M, F]. Of equal distributions it scatters around 0, on both sides."""
    a, b = _two_sets(feats_a, feats_b)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1.0) ** DEGREE

    def within(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


def diversity(features, pairs: int = 300, seed: int = 0) -> float:
    """Mean distance of random pairs of features [N, F].

    The two sides of the pairs are drawn apart, each without repetition, as the published code does; a pair may be of
    one clip.
    """
    x = _features(features, "features")
    if not 1 <= pairs <= len(x):
        raise ValueError(f"pairs is {pairs} and there are {len(x)} clips: pairs={len(x)} would do")
    return float(_distances_of_pairs(x, pairs, seed).mean())


def multimodality(features, pairs: int = 10, seed: int = 0) -> float:
    """Mean distance of random pairs of clips of one and the same caption: features [captions, clips, F].

    Published: 100 captions, 30 clips each, 10 pairs of each. The pairs are the same ones for all captions.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 3 or 0 in x.shape or not np.isfinite(x).all():
        raise ValueError(f"features must be finite numbers [captions, clips, F]; got {x.shape}")
    if not 1 <= pairs <= x.shape[1]:
        raise ValueError(f"pairs is {pairs} and there are {x.shape[1]} clips a caption: pairs={x.shape[1]} would do")
    return float(_distances_of_pairs(x.swapaxes(0, 1), pairs, seed).mean())


def gaussian_fit(clips, count: int, seed: int = 0, group: int | None = None) -> np.ndarray:
    """Clips drawn from a Gaussian fitted to clips [N, T, C] -> [count, T, C], the ceiling of an FID.

    `group`: frames that are drawn together, which must divide T. None: whole clips, so that mean and covariance of
    everything with everything are those of the clips. 1: frames by themselves, with one Gaussian for all of them.
    A draw is the mean plus a combination of the centred groups with weights N(0, 1/(n - 1)), which is exactly that
    Gaussian, and needs no covariance matrix.
    """
    x = np.asarray(clips, np.float64)
    if x.ndim != 3 or len(x) < 2 or 0 in x.shape:
        raise ValueError(f"clips must be [N, T, C] with at least 2 of them; got {x.shape}")
    clips_, frames, channels = x.shape
    group = frames if group is None else group
    if group < 1 or frames % group:
        raise ValueError(f"group is {group} and a clip has {frames} frames: group={frames} would do")
    groups = x.reshape(clips_ * (frames // group), group * channels)
    mean = groups.mean(axis=0)
    factor = _factor(groups - mean)  # its rows, weighed by N(0, 1), have the same covariance
    draws = np.random.default_rng(seed).standard_normal((count * (frames // group), len(factor)))
    return (mean + draws @ factor).reshape(count, frames, channels)


def fid_floor(train, test, seed: int = 0) -> float:
    """FID of real clips: as many features of training clips [N, F] as there are of test clips [M, F], drawn at random.

    M is at most N. Equal counts, because the bias of an FID depends on them.
    """
    train, test = _two_sets(train, test)
    if len(train) < len(test):
        raise ValueError(f"there are {len(train)} training clips for {len(test)} test clips: {len(train)} or fewer "
                         "test clips would do")  # fmt: skip
    chosen = np.random.default_rng(seed).choice(len(train), len(test), replace=False)
    return frechet_distance(train[chosen], test)


def fid_progress(fid: float, floor: float, ceiling: float) -> float:
    """How far from the ceiling to the floor: 0 at the ceiling, 1 at the floor, above 1 below it."""
    if not floor < ceiling:
        raise ValueError(f"floor is {floor:g} and ceiling {ceiling:g}: a floor lies below its ceiling")
    return float((ceiling - fid) / (ceiling - floor))


def _distances_of_pairs(x, pairs, seed):
    rng = np.random.default_rng(seed)
    first, second = (rng.choice(len(x), pairs, replace=False) for _ in range(2))
    return np.linalg.norm(x[first] - x[second], axis=-1)


def _two_sets(feats_a, feats_b):
    a, b = _features(feats_a, "feats_a"), _features(feats_b, "feats_b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"feats_a has {a.shape[1]} features per sample, feats_b {b.shape[1]}")
    return a, b


def _features(features, name):
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
        raise ValueError(f"{name} must be [N, F] with at least 2 samples; got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"{name} holds values that are not finite")
    return features


def _factor(centred_NF):
    """R [min(N, F), F] with R' R = the unbiased covariance."""
    scaled = centred_NF / np.sqrt(len(centred_NF) - 1)
    return scaled if scaled.shape[0] <= scaled.shape[1] else np.linalg.qr(scaled, mode="r")

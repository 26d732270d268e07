"""FoPP: its counts against exact integers, its two laws against their closed forms, and the published marginals."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.fopp import anchored, forward, log_counts
from tests.compiling import AS_SHIPPED

K, F, CLIPS = 1000, 16, 4000
MEANS = (100, 172, 235, 291, 342, 387, 430, 472, 514, 558, 601, 647, 697, 753, 817, 893)  # of 4000 published draws


def draw(sampler, levels, blocks, clips):
    keys = jax.random.split(jax.random.key(1), clips)
    t = np.asarray(jax.jit(jax.vmap(lambda key: sampler(key, levels, blocks)), compiler_options=AS_SHIPPED)(keys))
    assert t.shape == (clips, blocks) and t.dtype == np.int32
    assert 0 <= t.min() and t.max() < levels and (np.diff(t, axis=1) >= 0).all()
    return t


@pytest.fixture(scope="module")
def clips():
    return {anchored: draw(anchored, K, F, CLIPS), forward: draw(forward, K, F, CLIPS // 4)}


def prefixes(levels, blocks):
    """e of equation (1) from its recursion, exact integers [levels][blocks]."""
    e = [[1] * blocks for _ in range(levels)]
    for t, f in itertools.product(range(1, levels), range(1, blocks)):
        e[t][f] = e[t - 1][f] + e[t][f - 1]
    return e


@settings(max_examples=30, deadline=None)
@given(levels=st.integers(1, 40), blocks=st.integers(1, 12))
def test_counts_are_those_of_the_recursion(levels, blocks):
    log_e, log_s = log_counts(levels, blocks)
    e = np.array([[math.log(n) for n in row] for row in prefixes(levels, blocks)]).T
    np.testing.assert_allclose(log_e, e, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log_s, e[::-1, ::-1], rtol=1e-6, atol=1e-6)  # the same count seen from the other end


@pytest.mark.parametrize(("levels", "blocks"), [(5, 4), (7, 1), (1, 6), (1000, 16), (1000, 64)])
def test_counts_are_binomial_and_fit_float32(levels, blocks):
    log_e, log_s = log_counts(levels, blocks)
    assert log_e.dtype == log_s.dtype == np.float32 and np.isfinite(log_e).all() and np.isfinite(log_s).all()
    for t, f in itertools.product({0, levels // 3, levels - 1}, {0, blocks // 2, blocks - 1}):
        A, B = levels - 1 - t, blocks - 1 - f
        assert log_e[f, t] == pytest.approx(math.log(math.comb(t + f, f)), rel=1e-6, abs=1e-6)
        assert log_s[f, t] == pytest.approx(math.log(math.comb(A + B, B)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("sampler", [anchored, forward])
def test_every_sequence_is_as_likely_as_the_law_says(sampler):
    """Equations (5) and (6) on all 35 sequences of four blocks with four levels (chi-squared)."""
    levels, blocks, clips = 4, 4, 20_000
    e, cells = prefixes(levels, blocks), {}
    for t in itertools.combinations_with_replacement(range(levels), blocks):
        through = [e[t[c]][c] * e[levels - 1 - t[c]][blocks - 1 - c] for c in range(blocks)]
        cells[t] = sum(1 / n for n in through) / (blocks * levels) if sampler is anchored else 1 / 35
    assert len(cells) == 35 and sum(cells.values()) == pytest.approx(1)
    sequences, counts = np.unique(draw(sampler, levels, blocks, clips), axis=0, return_counts=True)
    seen = dict(zip(map(tuple, sequences.tolist()), counts, strict=True))

    def distance(law):
        return sum((seen.get(t, 0) - clips * p) ** 2 / (clips * p) for t, p in law.items())

    assert distance(cells) < 65.2  # 34 degrees of freedom: chance exceeds it once in a thousand samples
    if sampler is anchored:
        assert distance(dict.fromkeys(cells, 1 / 35)) > 1000  # and the other law is another law


def exact_marginals():
    """P(t_f) of the anchored law, float64 [F, K], and its mean P(t_f = t_{f+1}), by carrying each anchor's law on."""
    t, to_next = np.arange(K), []
    # to_next[f] is P(t_{f+1} = column | t_f = row), equation (3); backward steps are its mirror image.
    for f in range(1, F):
        log_s = np.array([math.lgamma(K - a + F - 1 - f) - math.lgamma(K - a) for a in t])
        s = np.where(t[None] >= t[:, None], np.exp(log_s - log_s.max()), 0.0)
        to_next.append(s / s.sum(axis=1, keepdims=True))
    to_past = [step[::-1, ::-1] for step in to_next[::-1]]  # to_past[f]: from block f + 1 to block f
    total, ties = np.zeros((F, K)), 0.0
    for c in range(F):
        law = {c: np.full(K, 1 / K)}
        for f in range(c + 1, F):
            ties += law[f - 1] @ np.diag(to_next[f - 1])
            law[f] = law[f - 1] @ to_next[f - 1]
        for f in range(c - 1, -1, -1):
            ties += law[f + 1] @ np.diag(to_past[f])
            law[f] = law[f + 1] @ to_past[f]
        total += np.stack([law[f] for f in range(F)])
    return total / F, ties / (F * (F - 1))


@pytest.mark.full
def test_anchored_draws_have_the_published_marginals(clips):
    marginal, ties = exact_marginals()
    mean = marginal @ np.arange(K)
    error = np.sqrt((marginal @ np.arange(K) ** 2 - mean**2) / CLIPS)
    t = clips[anchored]
    np.testing.assert_array_less(np.abs(t.mean(axis=0) - mean), 4 * error)
    np.testing.assert_array_less(np.abs(MEANS - mean), 4 * error + 0.5)  # published rounded
    np.testing.assert_array_less(np.abs(t.mean(axis=0) - MEANS), 4 * math.sqrt(2) * error + 0.5)
    assert ties == pytest.approx(0.047, abs=0.001)
    assert (np.diff(t, axis=1) == 0).mean() == pytest.approx(ties, abs=4 * math.sqrt(ties / t.size))
    gap = np.abs(np.sort(t, axis=0)[:, :, None] <= np.arange(0, K, 50)).mean(axis=0) - marginal.cumsum(1)[:, ::50]
    assert np.abs(gap).max() < 2.2 / math.sqrt(CLIPS)  # Kolmogorov-Smirnov, 16 blocks at once
    assert (t < 50).mean() == pytest.approx(0.102, abs=0.01) and (t > 950).mean() == pytest.approx(0.094, abs=0.01)


@pytest.mark.full
def test_forward_draws_stay_near_their_means(clips):
    t, f = clips[forward], np.arange(F)
    mean = (f + 1) * (K + F) / (F + 1) - (f + 1)
    assert (mean[0].round(), mean[-1].round()) == (59, 940)
    np.testing.assert_array_less(np.abs(t.mean(axis=0) - mean), 4 * t.std(axis=0) / math.sqrt(len(t)))
    assert 53 < t.std(axis=0).min() and t.std(axis=0).max() < 125  # published: 55 to 121
    assert clips[anchored].std(axis=0).min() > 1.25 * t.std(axis=0).max()


@pytest.mark.parametrize("sampler", [anchored, forward])
def test_long_clips_stay_finite_and_reach_both_ends(sampler):
    t = draw(sampler, K, 64, 64)
    assert t[:, 0].min() < 50 and t[:, -1].max() > K - 50 and len(np.unique(t)) > 0.8 * K


@pytest.mark.parametrize("sampler", [anchored, forward])
def test_one_block_is_uniform(sampler):
    counts = np.bincount(draw(sampler, 5, 1, 5000)[:, 0], minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # chi-squared with 4 degrees of freedom, one in a thousand

"""Levels: marginals, sharing and independence, and the range of the context's noise."""

import math

import jax
import numpy as np
import pytest

from causal_diffusion.diffusion.levels import DENSITIES, KINDS, Levels

CLIPS, BLOCKS = 20_000, 3


def draw(method, blocks=BLOCKS, clips=CLIPS):
    keys = jax.random.split(jax.random.key(0), clips)
    return np.asarray(jax.jit(jax.vmap(lambda key: method(key, blocks)))(keys))


def uniform(t):
    return t


def logit_normal(mean, std):
    def cdf(t):
        z = (np.log(t) - np.log1p(-t) - mean) / std
        return 0.5 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in z]))

    return cdf


def distance(sample, cdf):
    """Largest gap between the sample's distribution and ``cdf`` (Kolmogorov-Smirnov)."""
    t = np.sort(sample.astype(np.float64))
    theirs, step = cdf(t), np.arange(len(t) + 1) / len(t)
    return max(np.max(step[1:] - theirs), np.max(theirs - step[:-1]))


LIMIT = 1.95 / math.sqrt(CLIPS)  # the gap that chance exceeds once in a thousand samples
EXPECTED = [
    (Levels(density="uniform"), uniform),
    (Levels(density="logit_normal"), logit_normal(0.0, 1.0)),
    (Levels(density="logit_normal", mean=-0.8, std=1.7), logit_normal(-0.8, 1.7)),
]


def test_every_density_is_tested():
    assert {levels.density for levels, _ in EXPECTED} == set(DENSITIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("levels", "cdf"), EXPECTED, ids=["uniform", "logit_normal", "shifted"])
def test_every_block_has_the_density_as_its_marginal(kind, levels, cdf):
    sample = draw(Levels(kind, levels.density, levels.mean, levels.std).sample)
    assert sample.shape == (CLIPS, BLOCKS) and sample.min() >= 0 and sample.max() <= 1
    for block in range(BLOCKS):
        assert distance(sample[:, block], cdf) < LIMIT
        wrong = logit_normal(0.1, 1.0) if cdf is uniform else uniform
        assert distance(sample[:, block], wrong) > LIMIT


def test_independent_blocks_know_nothing_of_each_other():
    sample = draw(Levels("independent").sample)
    np.testing.assert_allclose(np.corrcoef(sample.T), np.eye(BLOCKS), atol=4 / math.sqrt(CLIPS))
    low = sample < 0.3
    assert abs(low.all(axis=1).mean() - 0.3**BLOCKS) < 0.006  # as many as if each were drawn alone


def test_shared_blocks_are_equal():
    sample = draw(Levels("shared", "logit_normal").sample)
    np.testing.assert_array_equal(sample, np.repeat(sample[:, :1], BLOCKS, axis=1))
    assert len(np.unique(sample[:, 0])) > CLIPS * 0.99  # and differ from clip to clip


def test_context_is_noised_up_to_its_limit():
    sample = draw(Levels(context=0.3).sample_context)
    assert sample.shape == (CLIPS, BLOCKS) and 0 <= sample.min() and sample.max() < 0.3
    for block in range(BLOCKS):
        assert distance(sample[:, block] / 0.3, uniform) < LIMIT
    np.testing.assert_allclose(np.corrcoef(sample.T), np.eye(BLOCKS), atol=4 / math.sqrt(CLIPS))
    assert not draw(Levels(context=0.0).sample_context, clips=4).any()


def test_the_network_is_told_the_context_level_or_zero():
    t = np.array([0.0, 0.1, 0.3], np.float32)
    np.testing.assert_array_equal(Levels(context=0.3).context_label(t), t)
    np.testing.assert_array_equal(Levels(context=0.3, label_context=False).context_label(t), np.zeros(3))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(kind="sorted"), "levels.kind is 'sorted'; it is one of independent, shared"),
        (dict(density="beta"), "levels.density is 'beta'; it is one of uniform, logit_normal"),
        (dict(context=1.5), "levels.context is 1.5; a level lies in [0, 1]"),
        (dict(std=0.0), "levels.std is 0.0; it is positive"),
    ],
)
def test_unknown_choices_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        Levels(**wrong)
    assert str(refusal.value) == named

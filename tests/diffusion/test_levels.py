"""Levels: marginals in closed form, what blocks share, which are context and scored, and what context looks like."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.levels import CHOICES, DENSITIES, EDM_SIGMAS, KINDS, MONOTONE, Levels
from causal_diffusion.diffusion.process import Process

CLIPS, BLOCKS = 10_000, 4
LIMIT = 2.23 / math.sqrt(CLIPS)  # Kolmogorov-Smirnov: chance exceeds it once in ten thousand samples
CHANCE = 4 * math.sqrt(0.25 / CLIPS)  # four standard errors of a share


def keys(clips):
    return jax.random.split(jax.random.key(0), clips)


@functools.cache
def draw(levels, blocks=BLOCKS):
    # Not compiled as a whole: most time would go into compilers, while single operations are shared by all kinds.
    drawn = jax.tree.map(np.asarray, jax.vmap(lambda key: levels.sample(key, blocks))(keys(CLIPS)))
    assert [(x.shape, x.dtype) for x in drawn] == [((CLIPS, blocks), d) for d in (np.float32, bool, bool)]
    assert drawn.t.min() >= 0 and drawn.t.max() <= 1 and drawn.scored.any(axis=1).all()
    assert not (drawn.context & drawn.scored).any()
    assert (drawn.t[~drawn.context & ~drawn.scored] == 1).all()  # what is unavailable is pure noise
    assert levels.has_context == drawn.context.any()
    return drawn


def uniform(t):
    return t


def normal(z):
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])


def logit_normal(mean, std):
    return lambda t: normal((np.log(t) - np.log1p(-t) - mean) / std)


def edm(mean, std):
    return lambda t: normal((np.log(np.tan(np.pi * t / 2)) - mean) / std)


def distance(sample, cdf):
    """Largest gap between the sample's distribution and ``cdf`` (Kolmogorov-Smirnov)."""
    t = np.sort(sample.astype(np.float64))
    theirs, step = cdf(t), np.arange(len(t) + 1) / len(t)
    return max(np.max(step[1:] - theirs), np.max(theirs - step[:-1]))


EXPECTED = [
    (Levels(), uniform),
    (Levels("shared"), uniform),
    (Levels("uniform_future", known=2), uniform),
    (Levels(density="logit_normal", mean=-0.8, std=1.7), logit_normal(-0.8, 1.7)),
    (Levels("shared", "logit_normal"), logit_normal(0.0, 1.0)),
    (Levels(density="logit_normal", shift=3.0), logit_normal(math.log(3), 1.0)),  # a shift of the logits by ln m
    (Levels(shift=5.0), lambda t: t / (5.0 - 4.0 * t)),  # the inverse of equation (1)
    (Levels(density="edm_log_normal", mean=math.log(2) - 0.4, std=1.2), edm(math.log(2) - 0.4, 1.2)),  # DIAMOND
]


def test_every_choice_is_known():
    assert {levels.density for levels, _ in EXPECTED} == set(DENSITIES)
    assert set(CHOICES) <= {field.name for field in dataclasses.fields(Levels)}


@pytest.mark.parametrize(("levels", "cdf"), EXPECTED)
def test_every_block_has_the_density_as_its_marginal(levels, cdf):
    drawn = draw(levels)
    assert drawn.scored.all()
    for block in range(BLOCKS):
        assert distance(drawn.t[:, block], cdf) < LIMIT
        wrong = logit_normal(0.1, 1.0) if cdf is uniform else uniform
        assert distance(drawn.t[:, block], wrong) > LIMIT


def test_independent_blocks_know_nothing_of_each_other():
    t = draw(Levels()).t
    np.testing.assert_allclose(np.corrcoef(t.T), np.eye(BLOCKS), atol=4 / math.sqrt(CLIPS))
    assert abs((t < 0.5).all(axis=1).mean() - 0.5**BLOCKS) < CHANCE  # as many as if each were drawn alone


def test_shared_blocks_are_equal():
    t = draw(Levels("shared")).t
    np.testing.assert_array_equal(t, np.repeat(t[:, :1], BLOCKS, axis=1))
    assert len(np.unique(t[:, 0])) > CLIPS * 0.99  # and differ from clip to clip


def test_a_uniform_future_shares_one_level_behind_independent_blocks():
    t = draw(Levels("uniform_future", known=2)).t
    np.testing.assert_array_equal(t[:, 2], t[:, 3])
    np.testing.assert_allclose(np.corrcoef(t[:, :3].T), np.eye(3), atol=4 / math.sqrt(CLIPS))


def test_sorted_blocks_are_order_statistics():
    t = draw(Levels("sorted")).t
    b = np.arange(BLOCKS)
    mean = (b + 1) / (BLOCKS + 1)  # of Beta(b + 1, n - b)
    variance = mean * (1 - mean) / (BLOCKS + 2)
    np.testing.assert_allclose(t.mean(axis=0), mean, atol=4 * math.sqrt(variance.max() / CLIPS))
    np.testing.assert_allclose(t.var(axis=0), variance, rtol=0.06)
    assert distance(t[:, 0], lambda x: 1 - (1 - x) ** BLOCKS) < LIMIT
    assert distance(t[:, -1], lambda x: x**BLOCKS) < LIMIT
    assert distance(t.reshape(-1), uniform) < LIMIT  # together they are what they were


GRIDS = {kind: Levels(kind, grid=49) for kind in ("fopp", "fopp_forward")}


def test_fopp_levels_are_the_steps_of_a_grid():
    for levels in GRIDS.values():
        t = draw(levels).t
        np.testing.assert_array_equal(t, (np.round(t * 49) / 49).astype(np.float32))
        assert t.min() == np.float32(1 / 49) and t.max() == 1 and len(np.unique(t)) == 49
    # A level moved by the shift is put back on the grid: step i of 49 goes to the one that holds its middle.
    moved = draw(Levels("fopp_forward", grid=49, shift=3.0)).t
    middle = np.round(t * 49) - 0.5
    np.testing.assert_array_equal(np.round(moved * 49), np.ceil(49 * 3 * middle / (49 + 2 * middle)))
    t = np.asarray(jax.vmap(lambda key: Levels("fopp").sample(key, BLOCKS).t)(keys(500)))  # without a grid: 1000 steps
    np.testing.assert_array_equal(t, (np.round(t * 1000) / 1000).astype(np.float32))
    assert 0 < t.min() < 0.01 and t.max() > 0.99 and len(np.unique(t)) > 500


@pytest.mark.parametrize("steps", [7, 1000])
def test_a_grid_holds_every_step_alike(steps):
    t = draw(Levels(grid=steps)).t.reshape(-1)
    i = np.round(t * steps) - 1
    np.testing.assert_array_equal(t, ((i + 1) / steps).astype(np.float32))
    assert i.min() == 0 and i.max() == steps - 1
    assert abs(i.mean() - (steps - 1) / 2) < 4 * steps / math.sqrt(12 * t.size)
    assert distance((i + 0.5) / steps, uniform) < 0.6 / steps + LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_monotone_kinds_never_fall(kind):
    falls = np.diff(draw(GRIDS.get(kind, Levels(kind))).t, axis=1) < 0
    assert Levels(kind).monotone == (not falls.any()) == (kind in MONOTONE)


@pytest.mark.parametrize(("clean", "blocks"), [(0.1, 4), (0.5, 4), (0.7, 7), (1.0, 4)])
def test_clean_blocks_come_as_often_as_documented(clean, blocks):
    drawn = draw(Levels(clean=clean), blocks)
    np.testing.assert_allclose(drawn.context.mean(axis=0), clean - clean**blocks / blocks, atol=CHANCE)
    np.testing.assert_array_equal(drawn.scored, ~drawn.context)
    assert (drawn.t[drawn.context] == 0).all() and distance(drawn.t[drawn.scored], uniform) < LIMIT
    if clean < 1:  # independent from block to block, but for the one that is always left
        one = blocks * clean * (1 - clean) ** (blocks - 1)
        assert abs((drawn.context.sum(axis=1) == 1).mean() - one) < CHANCE


def test_one_block_is_never_replaced():
    drawn = jax.jit(jax.vmap(lambda key: Levels(clean=1.0).sample(key, 1)))(keys(64))
    assert not drawn.context.any() and drawn.scored.all()


def test_compiled_draws_are_the_same():
    levels = Levels("staircase", shift=3.0, grid=49, context=0.1)
    compiled = jax.jit(jax.vmap(lambda key: levels.sample(key, BLOCKS)))(keys(CLIPS))
    for ours, theirs in zip(draw(levels), compiled, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_clean_composes_with_monotone_kinds_and_noised_context():
    drawn = draw(Levels("sorted", clean=0.3, context=0.2))
    noisy = np.where(drawn.context, np.nan, drawn.t)
    for a in range(BLOCKS):
        for b in range(a + 1, BLOCKS):
            assert not (noisy[:, a] > noisy[:, b]).any()  # the blocks that stay noisy stay sorted
    assert distance(drawn.t[drawn.context] / 0.2, uniform) < LIMIT


@pytest.mark.parametrize(
    ("levels", "blocks", "lengths"),
    [
        (Levels("prefix"), 4, (1, 2, 3)),
        (Levels("prefix", known=1, prefix_stride=2, chunk=2), 7, (1, 3, 5)),  # Ca2-VDM: 1 + 8 i frames, chunk 8, of 33
        (Levels("prefix", known=0, prefix_stride=3, chunk=2), 7, (0, 3)),  # 6 would leave room for one block
    ],
)
def test_prefixes_have_every_length_alike(levels, blocks, lengths):
    drawn = draw(dataclasses.replace(levels, context=0.1, context_draw="fixed"), blocks)
    length = drawn.context.sum(axis=1)
    assert set(length.tolist()) == set(lengths)
    for P in lengths:
        assert abs((length == P).mean() - 1 / len(lengths)) < CHANCE
    place = np.arange(blocks) - length[:, None]
    np.testing.assert_array_equal(drawn.context, place < 0)
    np.testing.assert_array_equal(drawn.scored, (place >= 0) & (place < levels.chunk))
    assert (drawn.t[drawn.context] == np.float32(0.1)).all()
    t = drawn.t[drawn.scored].reshape(CLIPS, levels.chunk)
    np.testing.assert_array_equal(t, np.repeat(t[:, :1], levels.chunk, axis=1))
    assert distance(t[:, 0], uniform) < LIMIT


@pytest.mark.parametrize(("window", "blocks", "shift"), [(3, 7, 1.0), (6, 4, 1.0), (1, 4, 1.0), (3, 7, 4.0)])
def test_a_staircase_rises_through_one_phase(window, blocks, shift):
    drawn = draw(Levels("staircase", in_flight=window, shift=shift), blocks)
    t = drawn.t / (shift - (shift - 1) * drawn.t)  # before equation (1)
    b, places = np.arange(blocks), blocks + window - 1
    np.testing.assert_allclose(drawn.context.mean(axis=0), (blocks - 1 - b) / places, atol=CHANCE)
    np.testing.assert_allclose(drawn.scored.mean(axis=0), window / places, atol=CHANCE)
    assert (drawn.t[drawn.context] == 0).all() and (np.diff(drawn.t, axis=1) >= 0).all()
    for block in range(blocks):  # in flight, every block meets every level alike
        assert distance(t[:, block][drawn.scored[:, block]], uniform) < LIMIT * math.sqrt(places / window)
    steps, both = np.diff(t, axis=1), drawn.scored[:, 1:] & drawn.scored[:, :-1]
    np.testing.assert_allclose(steps[both], 1 / window, atol=1e-6)  # neighbours are one stage apart
    whole = drawn.scored.sum(axis=1) == window
    assert abs(whole.mean() - max(blocks - window + 1, 0) / places) < CHANCE
    if whole.any():  # its oldest block is in the last stage
        oldest = np.where(drawn.scored, t, 1.0)[whole].min(axis=1)
        assert distance(oldest * window, uniform) < LIMIT / math.sqrt(whole.mean())


def test_context_is_noised_up_to_its_limit():
    def sample(levels):
        return np.asarray(jax.vmap(lambda key: levels.sample_context(key, BLOCKS))(keys(CLIPS)))

    t = sample(Levels(context=0.3))
    assert t.shape == (CLIPS, BLOCKS) and t.dtype == np.float32 and 0 <= t.min() and t.max() < 0.3
    for block in range(BLOCKS):
        assert distance(t[:, block] / 0.3, uniform) < LIMIT
    np.testing.assert_allclose(np.corrcoef(t.T), np.eye(BLOCKS), atol=4 / math.sqrt(CLIPS))
    assert (sample(Levels(context=0.3, context_draw="fixed")) == np.float32(0.3)).all()
    assert not sample(Levels(context=0.0)).any()


FIXED = dict(context_draw="fixed")
CONVENTIONS = {  # system: (settings, level, data from x0 = 2 and eps = 3, told)
    "gamengen": (dict(context=0.7), None, lambda t: 2 * (1 - t) + 3 * t, lambda t: t),
    "history_guidance": (dict(context=0.8, **FIXED), 0.8, lambda t: 0.4 + 3 * 0.8, lambda t: 0.8),
    "ca2_vdm": (
        dict(context=0.101, context_label="fixed", **FIXED), 0.101, lambda t: 2 * 0.899 + 3 * 0.101, lambda t: 0.0,
    ),
    "ca2_vdm_sampling": (
        dict(context=0.051, context_label="fixed", **FIXED), 0.051, lambda t: 2 * 0.949 + 3 * 0.051, lambda t: 0.0,
    ),
    "diffusion_forcing": (
        dict(context=0.015, context_data="scaled", **FIXED), 0.015, lambda t: 2 * 0.985, lambda t: 0.015,
    ),
    "oasis": (dict(context=0.015, context_data="clean", **FIXED), 0.015, lambda t: 2.0, lambda t: 0.015),
    "oasis_by_mark": (
        dict(context_data="clean", context_label="fixed", context_label_at=0.015), 0.0, lambda t: 2.0, lambda t: 0.015,
    ),
    "far": (
        dict(context_data="clean", context_label="fixed", context_label_at=-0.001), 0.0, lambda t: 2.0,
        lambda t: -0.001,
    ),
    "acdit": (dict(context_data="clean", context_label="fixed"), 0.0, lambda t: 2.0, lambda t: 0.0),
}


@pytest.mark.parametrize("system", CONVENTIONS)
def test_level_data_and_label_of_context_are_separate(system):
    """Six conventions are published; each is a row of the table in the module's docstring."""
    given, level, data, told = CONVENTIONS[system]
    levels = Levels(clean=0.5, **given)
    drawn = draw(levels)
    t = drawn.t[drawn.context][None, :100]
    if level is None:
        assert 0 < t.min() and t.max() < 0.7 and len(np.unique(t)) == t.size
    else:
        np.testing.assert_array_equal(t, np.float32(level))
    x0, eps = jnp.full((*t.shape, 1), 2.0), jnp.full((*t.shape, 1), 3.0)
    shown = Process(path="linear").show(x0, eps, jnp.asarray(t), levels.context_data)[..., 0]
    np.testing.assert_allclose(shown, np.broadcast_to(data(t), t.shape), rtol=1e-6)
    labels = levels.context_told(jnp.asarray(t))
    assert labels.dtype == jnp.float32
    np.testing.assert_allclose(labels, np.broadcast_to(told(t), t.shape), rtol=1e-6)


def test_edm_levels_are_clipped():
    t = draw(Levels(density="edm_log_normal", std=8.0)).t
    ends = [2 / math.pi * math.atan(sigma) for sigma in EDM_SIGMAS]
    np.testing.assert_allclose([t.min(), t.max()], ends, rtol=1e-5)


def test_properties_the_recipe_reads():
    assert not Levels("shared").shows_clean_past and Levels("shared", clean=0.1).shows_clean_past
    assert all(Levels(kind).shows_clean_past for kind in KINDS if kind != "shared")
    assert {kind for kind in KINDS if Levels(kind).has_context} == {"prefix", "staircase"}
    assert Levels(clean=0.1).has_context and not Levels(context=0.1).has_context


WRONG = [
    (dict(kind="beta"), ["levels.kind is 'beta'; it is one of independent, shared, sorted, fopp"]),
    (dict(density="beta"), ["levels.density is 'beta'; it is one of uniform, logit_normal, edm_log_normal"]),
    (dict(context_draw="beta"), ["levels.context_draw is 'beta'; it is one of uniform, fixed"]),
    (dict(context_data="beta"), ["levels.context_data is 'beta'; it is one of noised, scaled, clean"]),
    (dict(context_label="beta"), ["levels.context_label is 'beta'; it is one of level, fixed"]),
    (dict(context=1.5), ["levels.context is 1.5; it lies in [0, 1]"]),
    (dict(context_label_at=-2.0), ["levels.context_label_at is -2.0; it lies in [-1, 1]"]),
    (dict(clean=-0.1), ["levels.clean is -0.1; it lies in [0, 1]"]),
    (dict(std=0.0), ["levels.std is 0.0; it lies in (0, 100]"]),
    (dict(shift=-1.0), ["levels.shift is -1.0; it is positive"]),
    (dict(grid=-1), ["levels.grid is -1; it is at least 0"]),
    (dict(in_flight=0), ["levels.in_flight is 0; it is at least 1"]),
]
CLASHES = [  # settings, the two keys that clash, and a value that would do
    (dict(kind="fopp", density="logit_normal"), ("kind", "density"), dict(density="uniform")),
    (dict(kind="staircase", density="edm_log_normal"), ("kind", "density"), dict(density="uniform")),
    (dict(kind="prefix", clean=0.1), ("kind", "clean"), dict(clean=0.0)),
    (dict(kind="staircase", clean=0.1), ("kind", "clean"), dict(clean=0.0)),
    (dict(kind="uniform_future", known=0), ("kind", "known"), dict(known=1)),
    (dict(density="edm_log_normal", shift=3.0), ("density", "shift"), dict(shift=1.0)),
    (dict(context_label_at=0.015), ("context_label", "context_label_at"), dict(context_label="fixed")),
    (
        dict(context=0.1, context_data="clean", context_label="fixed"), ("context", "context_data"), dict(context=0.0),
    ),
]
CROWDED = [  # settings that four blocks cannot have
    (dict(kind="uniform_future", known=4), ("kind", "known"), dict(known=3)),
    (dict(kind="prefix", chunk=4), ("known", "chunk"), dict(chunk=3)),
    (dict(kind="prefix", known=5, chunk=2), ("known", "chunk"), dict(known=2)),
]


@pytest.mark.parametrize(("wrong", "named"), WRONG)
def test_wrong_values_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        Levels(**wrong)
    assert str(refusal.value).startswith(named[0])


@pytest.mark.parametrize(("wrong", "keys", "instead"), CLASHES + CROWDED)
def test_a_clash_names_both_keys_and_a_value_that_would_do(wrong, keys, instead):
    with pytest.raises(ValueError) as refusal:
        Levels(**wrong).check(4)
    message = str(refusal.value)
    (key, value), = instead.items()
    for name in keys:
        assert f"levels.{name} is {getattr(Levels(), name) if name not in wrong else wrong[name]!r}" in message
    assert message.endswith(f"levels.{key} = {value!r} would do") and "\n" not in message
    Levels(**wrong | instead).check(4)  # and it does


def test_a_clip_too_short_for_its_kind_is_refused_when_drawn():
    with pytest.raises(ValueError, match="levels.known = 0 with levels.chunk = 1 would do"):
        Levels("prefix", known=1, chunk=2).sample(jax.random.key(0), 1)
    with pytest.raises(ValueError, match="levels.kind = 'shared' would do"):
        Levels("uniform_future").sample(jax.random.key(0), 1)

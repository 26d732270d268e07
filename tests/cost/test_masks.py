"""Expected masks: what the objective's own draws show on average."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import load_config
from causal_diffusion.cost.masks import cases, or_itself, training_masks, unmoved
from causal_diffusion.diffusion.levels import Levels
from causal_diffusion.layout import Layout
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import _masks

systems = importlib.import_module("tests.streaming.conftest")
DRAWS = 3000
SYSTEMS = {
    "magi1": lambda: build(load_config("magi1:tiny")),
    "rolling_forcing": lambda: build(load_config("rolling_forcing:tiny")),
    "ca2_vdm": lambda: build(load_config("ca2_vdm:tiny")),
    "ranges": lambda: build(systems.make_config(**systems.SYSTEMS["ranges"])),  # levels in no order: sampled
}


@pytest.mark.parametrize("name", ["magi1", *(pytest.param(n, marks=pytest.mark.full) for n in SYSTEMS if n != "magi1")])
def test_probabilities_are_those_of_the_draws(name):
    recipe = SYSTEMS[name]()
    layout, levels = recipe.layout, recipe.levels
    n, frame = layout.block_count(recipe.frames), layout.noisy_frames(recipe.frames)[1]

    @jax.jit
    def draw(keys):
        drawn = jax.vmap(levels.sample, (0, None))(keys, n)
        t, context, scored = (jnp.tile(a[:, layout.block_of(frame)], layout.copies) for a in drawn)
        t = jnp.where(context & (frame < layout.sinks - layout.pad), 0.0, t)
        return _masks(recipe, context, scored, t)

    mask, prefix = draw(jax.random.split(jax.random.key(1), DRAWS))
    ours, ours_prefix = training_masks(recipe)
    assert np.abs(ours - np.asarray(mask, np.float64).mean(axis=0)).max() < 5 * 0.5 / DRAWS**0.5 + 0.02
    assert (prefix is None) == (ours_prefix is None)
    if prefix is not None:
        theirs = or_itself(np.asarray(prefix)).mean(axis=0)
        assert np.abs(ours_prefix - theirs).max() < 5 * 0.5 / DRAWS**0.5


def test_a_static_mask_is_taken_as_it_is():
    recipe = build(load_config("quickstart:tiny"))
    mask, prefix = training_masks(recipe)
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(recipe.frames))
    assert prefix is None


def test_a_staircase_of_two_blocks_by_hand():
    """W = 2, two blocks: three places; cut at 0.25, which only the front block's level u / 2 falls below, u < 1/2."""
    layout = Layout("block_causal", ranges=(2, 1), range_levels=(0.25,))
    drawn = cases(Levels("staircase", in_flight=2), layout, 2)
    seen = {}
    for weight, stage, context in zip(drawn.weight, drawn.stage.tolist(), drawn.context.tolist(), strict=True):
        seen[tuple(stage), tuple(context)] = seen.get((tuple(stage), tuple(context)), 0.0) + weight
    no, first = (False, False), (True, False)
    # The window begins before the clip (block 0 is its second), at block 0, or at block 1 behind a clean block 0.
    expected = {((0, 0), no): 1 / 3 + 1 / 6, ((1, 0), no): 1 / 6, ((1, 0), first): 1 / 6, ((1, 1), first): 1 / 6}
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("levels", [Levels(), Levels(shift=9.0), Levels(shift=0.5, grid=10), Levels(grid=1000)])
def test_levels_are_moved_back(levels):
    drawn = np.linspace(0.0005, 0.9995, 1999)
    moved = np.asarray(levels._move(jnp.asarray(drawn, jnp.float32)))
    for cut in (0.05, 0.3, 0.71, 0.98):
        assert np.mean((moved <= np.float32(cut)) == (drawn <= unmoved(levels, cut))) > 0.999


def test_a_row_without_an_entry_sees_itself():
    seen = np.array([[True, False, False], [False, False, False]])
    assert or_itself(seen).tolist() == [[True, False, False], [False, False, True]]

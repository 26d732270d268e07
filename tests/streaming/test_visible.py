"""Masks that are worked out before anything runs are those that a stream would trace, wherever the cursor stands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion import cache as caching
from causal_diffusion.compatibility import check
from causal_diffusion.layout import CLEAN, NOISY, REFERENCE, Ids, concatenate
from causal_diffusion.recipe import build
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.visible import Known, alike, full_from, seen, steady

# system -> whether the mask (of the blocks in flight, of a block that is committed) is known once the ring is full
SETTLED = {
    "teacher": (True, True),
    "causal": (True, True),
    "partial": (True, True),
    "prefix": (True, True),
    "one_past": (True, True),
    "slot": (True, True),
    "adjacent": (True, True),
    "ahead": (True, True),
    "knot": (True, True),
    "int8": (True, True),
    "pyramid": (False, True),  # the second block in flight does not see the oldest frame
    "rolling": (True, True),  # a ring of one block has one place for a cursor
    "fractional": (False, False),  # one branch sees no past: a mask for all of them there is not
    "three_way": (False, False),
    "ranges": (False, False),
    "deep": (False, False),
    "bidirectional": (None, True),
    "window": (False, False),
    "two_level": (False, False),
}


@pytest.fixture
def rollout(systems, config):
    return lambda name: Rollout(build(config(**systems[name])).streaming())


def parts_of(rollout):
    return [rollout._known()], [Known(CLEAN, np.arange(rollout.block))]


@pytest.mark.parametrize("name", SETTLED)
def test_what_is_settled_and_what_is_not(rollout, name):
    rollout = rollout(name)
    flight, commit = parts_of(rollout)
    found = (
        steady(rollout.recipe, flight, rollout.branches),
        steady(rollout.recipe, commit, rollout._committing(), rollout.recipe.cache.commit_sinks),
    )
    for mask, settled in zip(found, SETTLED[name], strict=True):
        assert settled is None or (mask is not None) == settled
    assert rollout.settles == (True in SETTLED[name])
    if name in ("teacher", "causal", "knot", "adjacent"):  # every frame that is kept is seen, and the block itself
        assert found[0].full
    if name == "bidirectional":  # a committed block sees no sinks
        assert not found[1].array[:, : rollout.recipe.layout.sinks].any() and found[1].array[:, -4:].all()


@pytest.mark.parametrize("name", [name for name, settled in SETTLED.items() if True in settled and name != "ahead"])
def test_a_settled_mask_is_the_one_of_every_later_block(rollout, name):
    """Against slots that are really written, block after block, through the ring three times."""
    rollout = rollout(name)
    recipe, b = rollout.recipe, rollout.block
    layout, pad = recipe.layout, recipe.layout.pad
    slots = caching.empty(1, window=recipe.slots, sinks=layout.sinks, block=b, pad=pad, kept=recipe.kept)
    commit, (flight, committed) = jax.jit(caching.commit), parts_of(rollout)
    differ, first = set(), full_from(recipe)
    for start in range(-pad, first + 3 * recipe.slots + 1, b):
        whole = bool((np.asarray(slots.frame)[0, recipe.kept + layout.sinks :] != caching.EMPTY).all())
        whole &= start - recipe.slots >= 0
        assert whole == (start >= first)  # that is when a ring is full
        keys = Ids.of(CLEAN, np.asarray(slots.frame)[0])
        for known, branches, sinks in ((flight, rollout.branches, True), (committed, rollout._committing(), None)):
            sinks = recipe.cache.commit_sinks if sinks is None else sinks
            ids = concatenate(*(Ids.of(k.role, start + k.offset, 0, 0, k.lead) for k in known))
            mask = steady(recipe, known, branches, sinks)
            if not whole or mask is None or layout.kind == "bidirectional_window" and known is flight:
                continue
            for one in seen(recipe, ids, concatenate(keys, ids), branches, sinks):
                np.testing.assert_array_equal(one, mask.array)
            differ.add(int(slots.cursor))
        slots = commit(slots, jnp.arange(start, start + b, dtype=jnp.int32)[None])
    assert differ == set(range(0, recipe.slots, b))  # every place of the cursor was met


def test_a_reference_is_always_seen(rollout):
    rollout = rollout("ahead")
    recipe, mask = rollout.recipe, steady(rollout.recipe, parts_of(rollout)[0], rollout.branches)
    role = np.array([REFERENCE] + [CLEAN] * recipe.slots)
    keys = Ids.of(role, np.array([0, *range(40, 40 + recipe.slots)]))
    own = Ids.of(NOISY, np.array([40 + recipe.slots]))
    for one in seen(recipe, own, concatenate(keys, own), rollout.branches):
        np.testing.assert_array_equal(one, mask.array)


def test_the_window_of_a_config_is_its_ring(systems, config):
    """What `full_from` counts: the ring of slots, and behind it the sinks."""
    resolved = check(config(**systems["teacher"]))
    assert resolved.slots == resolved.layout.window == 4
    assert full_from(build(config(**systems["teacher"]))) == 4 + 2
    assert full_from(build(config(**systems["prefix"]))) == 1 + 2 * 3  # a ring of 6 behind a frame that stands alone


@pytest.mark.parametrize("name", ["teacher", "adjacent", "causal", "knot", "pyramid", "deep", "ranges", "two_level"])
def test_rows_are_alike_where_a_block_sees_as_one(rollout, name):
    """Of a single block, with its knot; then every row that a filling ring shows is the first one."""
    rollout = rollout(name)
    flight, commit = parts_of(rollout)
    one = name in ("teacher", "adjacent", "causal", "knot")
    assert alike(rollout.recipe, flight, rollout.branches) == one
    assert alike(rollout.recipe, commit, rollout._committing()) == (one or name == "pyramid")
    if not one or name == "knot":
        return
    layout, frames = rollout.recipe.layout, rollout.recipe.slots
    for end in range(0, 2 * frames, layout.block):
        held = np.concatenate([np.arange(max(0, end - frames), end), [caching.EMPTY]])
        own = Ids.of(NOISY, end + np.arange(layout.block), 0, 0)
        for mask in seen(rollout.recipe, own, concatenate(Ids.of(CLEAN, held), own), rollout.branches):
            assert (mask == mask[:1]).all() and mask.any()

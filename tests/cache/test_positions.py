"""Where kept frames stand: against lists of integers, and as the module draws them."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion import cache
from causal_diffusion.cache import CacheConfig, compaction

module = importlib.import_module("causal_diffusion.cache.positions")  # the package has a function of that name
placed = jax.jit(cache.positions, static_argnums=0, static_argnames=("clip", "reach"))


def slots_at(start, *, window, sinks, block, kept=0, pad=0, filled=True):
    """The slots of one sample that has committed every frame before ``start``."""
    slots = cache.empty(1, window=window, sinks=sinks, block=block, pad=pad, kept=kept)
    for first in range(-pad, start, block):
        slots = cache.commit(slots, jnp.arange(first, first + block, dtype=jnp.int32)[None])
    return slots


def by_frame(slots, past):
    """{frame: position} of what the slots hold, and the reference's."""
    held = {int(f): int(p) for f, p in zip(slots.frame[0, slots.kept :], past[0, slots.kept :], strict=True) if f >= 0}
    return held, [int(p) for p in past[0, : slots.kept]]


def as_drawn(name):
    row = re.search(rf"^ +{name} +((?:\d+ *)+)", module.__doc__, re.M)
    return [int(n) for n in row[1].split()]


@pytest.mark.parametrize("kind, overlap", [("absolute", 0), ("slot", 0), ("adjacent", 0), ("adjacent", 1)])
def test_positions_are_as_drawn(kind, overlap):
    config = CacheConfig(positions=kind, sink_overlap=overlap)
    slots = slots_at(9, window=3, sinks=2, block=1)
    past, own = placed(config, slots, jnp.array([9]), jnp.array([[9]]))
    held, _ = by_frame(slots, past)
    assert [*held] == as_drawn("frames")[:2] + sorted([*held][2:]) and sorted(held) == as_drawn("frames")[:-1]
    drawn = as_drawn("overlap 1" if overlap else kind)
    assert [held[f] for f in sorted(held)] + [int(own[0, 0])] == drawn


@pytest.mark.parametrize("window, sinks, block, pad", [(3, 1, 1, 0), (4, 2, 2, 0), (6, 3, 3, 2), (4, 0, 2, 0)])
def test_positions_follow_the_rule_from_the_first_frame_on(window, sinks, block, pad):
    """A stream three windows long, against plain integers."""
    for start in range(-pad, 3 * (window + sinks), block):
        slots, own = slots_at(start, window=window, sinks=sinks, block=block, pad=pad), np.arange(start, start + block)
        frames = range(max(start, 0))
        first = [f for f in frames if f < sinks - pad]
        ring = [f for f in frames if f >= sinks - pad and f >= start - window]
        low, end = (ring[0] if ring else max(start, 0)), (first[-1] + 1 if first else 0)
        shift = low - end
        expected = {
            "absolute": {f: f for f in first + ring},
            "slot": {f: f for f in first} | {f: f - shift for f in ring},
            "adjacent": {f: f + shift for f in first} | {f: f for f in ring},
        }
        for kind, where in expected.items():
            past, place = placed(CacheConfig(positions=kind), slots, jnp.array([start]), jnp.asarray(own)[None])
            assert by_frame(slots, past)[0] == where
            np.testing.assert_array_equal(place[0], own - shift if kind == "slot" else own)
            if shift == 0:
                assert where == expected["absolute"]
            elif kind != "absolute":  # nothing stands between them, as if nothing had been forgotten
                taken = sorted(where.values()) + [int(place[0, 0])]
                assert taken == list(range(taken[0], taken[0] + len(taken)))


def test_the_reference_is_always_ahead_of_the_stream():
    """The rule of the paper, chunk by chunk: if the frames to come pass it, it moves on by one step."""
    config = CacheConfig(positions="ahead", ahead=8, ahead_step=4)
    n = 8
    for start in range(0, 60, 3):
        n += 4 * (start + 3 + 1 > n)
        slots = slots_at(start, window=6, sinks=0, block=3, kept=1)
        past, _ = placed(config, slots, jnp.array([start]), jnp.arange(start, start + 3)[None], clip=12, reach=4)
        held, reference = by_frame(slots, past)
        assert reference == [n] and n >= start + 4 and all(f == p for f, p in held.items())
        past, _ = placed(CacheConfig(), slots, jnp.array([start]), jnp.arange(start, start + 3)[None], clip=12)
        assert by_frame(slots, past)[1] == [11]  # the end of a training clip


def test_compressed_tokens_stand_between_sinks_and_window():
    config = CacheConfig(positions="adjacent", budget=6, recent=2)
    slots = slots_at(12, window=6, sinks=2, block=2, kept=2)
    before, _ = placed(config, slots, jnp.array([12]), jnp.array([[12, 13]]))
    assert by_frame(slots, before)[0] == {0: 4, 1: 5} | {f: f for f in range(6, 12)}
    plan = compaction.plan_compaction(slots, before, 2)
    slots = compaction.compacted(slots, plan)
    past, own = placed(config, slots, jnp.array([12]), jnp.array([[12, 13]]))
    held, top = by_frame(slots, past)
    assert top == [8, 9] and held == {0: 6, 1: 7, 10: 10, 11: 11} and own.tolist() == [[12, 13]]

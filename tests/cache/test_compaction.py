"""Participative compression: which tokens stay, against plain loops, for samples that are full and others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion import cache
from causal_diffusion.cache import compaction

B, N, H, K = 2, 3, 2, 4
WINDOW, SINKS, BLOCK, KEPT, RECENT = 6, 2, 2, 2, 2


def turn(x, position):
    """A stand-in for rotation: anything that depends on the position."""
    return x * (1.0 + 0.1 * position[..., None, None, None])


def stream(committed, int8=False):
    """Slots and (k, v, q) after so many frames of each sample (they end together)."""
    slots = cache.empty(B, window=WINDOW, sinks=SINKS, block=BLOCK, kept=KEPT)
    shapes = [(N, H, K), (N, H, K), (1, H, K)]
    dtype = "int8" if int8 else "float32"
    past = tuple(cache.store(jnp.zeros((B, KEPT + SINKS + WINDOW, *shape)), dtype) for shape in shapes)
    rng = np.random.default_rng(0)
    for turn_of in range(0, max(committed), BLOCK):
        first = np.array([turn_of - (max(committed) - n) for n in committed])
        frame = jnp.where((first < 0)[:, None], cache.EMPTY, first[:, None] + np.arange(BLOCK)).astype(jnp.int32)
        new = tuple(cache.store(jnp.asarray(rng.normal(size=(B, BLOCK, *s)), jnp.float32), dtype) for s in shapes)
        write = lambda a, b, frame=frame, slots=slots: cache.write(a, b, slots, frame)  # noqa: E731
        past = jax.tree.map(write, past, new)
        slots = cache.commit(slots, frame)
    return slots, past


@pytest.mark.parametrize("int8", [False, True])
def test_the_tokens_that_are_looked_at_most_stay(int8):
    slots, past = stream((14, 6), int8)
    position = jnp.where(slots.frame >= 0, slots.frame, 0)
    plan = compaction.plan_compaction(slots, position, RECENT)
    assert plan.full.tolist() == [True, False]
    queries = jnp.asarray(np.random.default_rng(1).normal(size=(B, H, K)), jnp.float32)
    k, v, q = compaction.compact(past, queries, plan, turn)
    old = [np.asarray(cache.load(a, jnp.float32)) for a in past]
    new = [np.asarray(cache.load(a, jnp.float32)) for a in (k, v, q)]
    for before, after in zip(old, new, strict=True):  # a sample that is not full is left alone, and so are all queries
        np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(old[2], new[2])

    frames = np.asarray(slots.frame[0])
    at = {int(f): slot for slot, f in enumerate(frames) if f >= 0 and slot >= KEPT}
    candidates = [f for f in sorted(at) if SINKS <= f < 14 - RECENT]
    total = np.asarray(queries[0], np.float64)
    for f in (12, 13):
        total = total + old[2][0, at[f], 0] * (1 + 0.1 * f)
    score = {(f, n): float(np.sum(total * old[0][0, at[f], n] * (1 + 0.1 * f))) for f in candidates for n in range(N)}
    best = sorted(sorted(score, key=score.get)[-KEPT * N :])  # in order of time
    for i, (f, n) in enumerate(best):
        for before, after in zip(old[:2], new[:2], strict=True):
            np.testing.assert_array_equal(after[0, i // N, i % N], before[0, at[f], n])

    after = compaction.compacted(slots, plan)
    assert after.frame[0, :KEPT].tolist() == [0, 0] and sorted(f for f in after.frame[0, KEPT:].tolist() if f >= 0) == [
        0, 1, 12, 13]  # fmt: skip
    np.testing.assert_array_equal(after.frame[1], slots.frame[1])


def test_kept_tokens_compete_again():
    """Once all that competes is as good as nothing, what was kept before stays: the tokens are those of before."""
    slots, past = stream((14, 14))
    position = jnp.where(slots.frame >= 0, slots.frame, 0)
    plan = compaction.plan_compaction(slots, position, RECENT)
    ones = jnp.ones((B, H, K)) * 100.0
    past = compaction.compact(past, ones, plan, lambda x, p: x)
    slots = compaction.compacted(slots, plan)
    kept = np.asarray(past[0][:, :KEPT])
    past = (past[0].at[:, KEPT + SINKS :].set(-50.0), *past[1:])
    for first in (14, 16):  # nobody looks at what comes now
        frame = jnp.broadcast_to(jnp.arange(first, first + BLOCK, dtype=jnp.int32), (B, BLOCK))
        new = [-jnp.ones((B, BLOCK, n, H, K)) * 50.0 for n in (N, N, 1)]
        new[2] = new[2] * 0.0
        past = tuple(cache.write(a, b, slots, frame) for a, b in zip(past, new, strict=True))
        slots = cache.commit(slots, frame)
    plan = compaction.plan_compaction(slots, jnp.zeros_like(slots.frame), RECENT)
    assert plan.full.all() and len(plan.candidates) == KEPT + WINDOW - RECENT
    again = compaction.compact(past, ones, plan, lambda x, p: x)
    np.testing.assert_array_equal(again[0][:, :KEPT], kept)

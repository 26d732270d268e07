"""Participative compression: of a full window the tokens that recent queries look at most are kept (Deep Forcing, Yi et
al. 2025, arXiv 2512.05081).

With C = budget - sinks - recent frames of N tokens each, drawn for 1 sink, C = 2, 1 recent frame and a ring of 4::

               top     sink  ring
    frames     .  .    0     3  4  5  6      full: compressed before frame 7 is denoised
    compete                  ^  ^  ^         those older than the recent one
    then       x  x    0     .  .  .  6      2 N tokens of frames 3 4 5, whichever they are
    later      x  x    0     7  8  9  6      full again
    compete    ^  ^          ^  ^     ^      the recent one is 9 now

Per layer, over heads h, candidate tokens j and recent queries r (those of the noisy block, and of the recent clean
frames), all turned to where they stand,

    score_j = sum_h (sum_r q_rh) . k_jh                                                                      (1)

so that of a frame's queries their sum is all that must be kept. The best C N stay, in their order of time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion.cache.slots import EMPTY, Slots
from causal_diffusion.cache.storage import load

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compaction:
    """Which slots compete, and where everything stands meanwhile.

    candidates: int32 [M], slots in order of time; valid: bool [B, M].
    recent: int32 [R], slots whose queries count.
    position: int32 [B, W], of all slots before they are compacted.
    full: bool [B], the samples that are compacted.
    kept: static, C.
    """

    candidates: Array
    valid: Array
    recent: Array
    position: Array
    full: Array
    kept: int = dataclasses.field(metadata={"static": True})


def plan_compaction(slots: Slots, position: Array, recent: int) -> Compaction:
    """The compaction that is due before the next block, see the drawing; ``position`` from ``cache.positions``."""
    ring = slots.kept + slots.sinks
    order = ring + (slots.cursor + jnp.arange(slots.window, dtype=jnp.int32)) % slots.window  # oldest first when full
    older = order[: slots.window - recent]
    candidates = jnp.concatenate([jnp.arange(slots.kept, dtype=jnp.int32), older])
    return Compaction(
        candidates=candidates,
        valid=slots.frame[:, candidates] >= 0,
        recent=order[slots.window - recent :],
        position=position,
        full=jnp.all(slots.frame[:, ring:] != EMPTY, axis=1),
        kept=slots.kept,
    )


def compacted(slots: Slots, plan: Compaction) -> Slots:
    """The slots afterwards: those of the kept tokens are taken (their frame reads 0), their ring slots are empty."""
    frame = slots.frame.at[:, plan.candidates].set(EMPTY).at[:, : plan.kept].set(0)
    return dataclasses.replace(slots, frame=jnp.where(plan.full[:, None], frame, slots.frame))


def compact(past: tuple, queries: Array, plan: Compaction, turn: Callable[[Array, Array], Array]) -> tuple:
    """Compacts what one layer keeps.

    Args:
        past: (k, v, q): raw keys and values [B', W, N, H, K], arrays or Int8, B' being B or a multiple of it; q
            [B', W, 1, H, K], the summed raw queries of each frame.
        queries: [B', H, K], those of the noisy block, turned and summed.
        plan: of the slots.
        turn: (raw [B', S, N, H, K], position int32 [B', S]) -> turned along time.

    Returns:
        (k, v, q) with the kept tokens in the first C slots; q is as it was.
    """
    k, _, q = past
    repeats = k.shape[0] // plan.full.shape[0]
    valid, position, full = (jnp.repeat(a, repeats, axis=0) for a in (plan.valid, plan.position, plan.full))

    def at(a, slots):
        return jax.tree.map(lambda leaf: leaf[:, slots], a)

    total = queries.astype(jnp.float32)
    if plan.recent.shape[0]:
        recent = turn(load(at(q, plan.recent), jnp.float32), position[:, plan.recent])
        total = total + jnp.sum(recent, axis=(1, 2))
    keys = turn(load(at(k, plan.candidates), jnp.float32), position[:, plan.candidates])
    B, M, N = keys.shape[:3]
    score = jnp.einsum("BHK,BMNHK->BMN", total, keys)
    score = jnp.where(valid[:, :, None], score, -jnp.inf).reshape(B, M * N)
    chosen = jnp.sort(jax.lax.top_k(score, plan.kept * N)[1], axis=-1)

    def keep(leaf):
        tokens = leaf[:, plan.candidates].reshape(B, M * N, *leaf.shape[3:])
        tokens = jnp.take_along_axis(tokens, chosen.reshape(B, -1, *(1,) * (tokens.ndim - 2)), axis=1)
        new = leaf.at[:, : plan.kept].set(tokens.reshape(B, plan.kept, N, *leaf.shape[3:]))
        return jnp.where(full.reshape(-1, *(1,) * (leaf.ndim - 1)), new, leaf)

    return (*jax.tree.map(keep, past[:2]), q)

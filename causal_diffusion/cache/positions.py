"""Where in time kept frames appear to stand.

A stream forgets: between its sinks and its window a gap opens that grows for ever, to distances that no training clip
has. Rotary positions see differences alone, so frames may be moved when they are read. The block at frames s .. s+b-1
reads sinks 0 .. e-1 and a ring that holds lo .. s-1; ``shift`` = lo - e frames between them are forgotten. With
2 sinks, a ring of 3, block 1, at s = 9::

                    sinks     ring       own
    frames          0  1      6  7  8    9

    absolute        0  1      6  7  8    9        where they were
    slot            0  1      2  3  4    5        all close up: nothing is ever beyond the training clip
                                                  (LongLive's endless variant, arXiv 2509.22622)
    adjacent        4  5      6  7  8    9        the sinks follow the window (Rolling Forcing, arXiv 2509.25161;
                                                  Deep Forcing's deep sink, arXiv 2512.05081)
      overlap 1     5  6      6  7  8    9        the last sink stands on the first frame of the window, as Deep
                                                  Forcing's formula literally says: shift + 1
    ahead                                         as absolute. The reference frame runs ahead: it stands at the smallest
                                                  n0 + j step >= s + reach, reach being all frames that are denoised
                                                  together, knot included (Knot Forcing, arXiv 2512.21734)

As differences ``slot`` and ``adjacent`` are the same. While nothing is forgotten shift = 0, and they are ``absolute``.
Tokens that compression kept, C frames of them, stand between sinks and ring: at lo - C .. lo - 1, behind the sinks
(adjacent), which end at lo - C.

A reference frame that does not run ahead stands where training has it, at the last frame of a clip.
"""

from typing import Any

import jax.numpy as jnp

from causal_diffusion.cache.config import CacheConfig
from causal_diffusion.cache.slots import Slots

Array = Any


def positions(config: CacheConfig, slots: Slots, start: Array, frame: Array, *, clip: int = 0, reach: int = 0):
    """Positions of the slots and of own frames.

    Args:
        start: int32 [B], first frame of the oldest block that is not committed.
        frame: int32 [B, T], own frames.
        clip: frames of a training clip: a reference frame stands at its end.
        reach: frames from ``start`` on that a reference frame must be ahead of.

    Returns:
        (past int32 [B, W], own int32 [B, T]). Those of slots that hold nothing mean nothing.
    """
    kept, sinks = slots.kept, slots.sinks
    end = jnp.clip(start, 0, max(0, sinks - slots.pad))
    ring = slots.frame[:, kept + sinks :]
    low = jnp.where(ring >= 0, ring, start[:, None])
    low = jnp.maximum(jnp.minimum(jnp.min(low, axis=1), start), 0)
    past = slots.frame
    if config.budget:  # the first slots hold the tokens that compression kept
        order = jnp.arange(kept, dtype=jnp.int32) - kept
        past = past.at[:, :kept].set(low[:, None] + order)
        low = low - kept * (slots.frame[:, 0] >= 0)
    elif kept:
        place = jnp.broadcast_to(jnp.int32(max(clip - 1, 0)), start.shape)
        if config.positions == "ahead":
            short = jnp.maximum(start + reach - config.ahead, 0)
            place = config.ahead + config.ahead_step * -(-short // config.ahead_step)
        past = past.at[:, :kept].set(place[:, None])
    shift = low - end
    if config.positions == "slot":
        late = past.at[:, kept + sinks :].add(-shift[:, None])
        return late, frame - shift[:, None]
    if config.positions == "adjacent":
        by = jnp.where(shift > 0, shift + config.sink_overlap, 0)
        return past.at[:, kept : kept + sinks].add(by[:, None]), frame
    return past, frame

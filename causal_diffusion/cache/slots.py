"""Slots: which frames are remembered.

A cache has ``kept + sinks + window`` slots, one frame each. Slots of the first group are filled by other means than
commits (a reference frame, or tokens that compression kept); the ``sinks`` keep the first frames of the sequence for
ever; the rest is a ring. For block 1, sinks 1, window 3, after frames 0..5 were committed::

        slot      0 | 1 2 3
        frame     0 | 3 4 5        cursor -> slot 1, the oldest, is written next
                sink   ring

Nothing is ever shifted. The order of slots does not matter to attention: each slot's frame index and the layout's
predicate say what is visible, and ``positions`` where it stands. The cursor is shared by the batch; frame indices are
per sample, so that samples start, reset and stop alone.

The latents of the slots are kept beside them by the same ``write`` (a latent ring, for re-encoding the past under
a new condition, and for systems whose past cannot be cached: there it is run through the network every time). In a
stream the leading axis of keys and values is batch x guidance branches, branches innermost.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

EMPTY = -(1 << 30)  # frame index of a slot that holds nothing

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which frame each slot holds.

    frame: int32 [B, W]; EMPTY marks an empty slot, other negative ones pad a short first block.
    cursor: int32 [], the ring slot that is written next, counted from the first ring slot.
    kept, sinks, block, pad: static sizes in frames; the first block of a sequence starts at frame -pad.
    """

    frame: Array
    cursor: Array
    sinks: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    pad: int = dataclasses.field(default=0, metadata={"static": True})
    kept: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def window(self) -> int:
        """Ring slots."""
        return self.frame.shape[1] - self.kept - self.sinks


def empty(batch: int, *, window: int, sinks: int, block: int, cursor=0, pad: int = 0, kept: int = 0) -> Slots:
    """Slots without a frame. ``cursor`` may be a traced value, a multiple of ``block``."""
    return Slots(
        frame=jnp.full((batch, kept + sinks + window), EMPTY, jnp.int32),
        cursor=jnp.asarray(cursor, jnp.int32),
        sinks=sinks,
        block=block,
        pad=pad,
        kept=kept,
    )


def write(buffer: Array, new: Array, slots: Slots, frame: Array, axis: int = 1) -> Array:
    """Writes a block at the cursor, and at its sink slots while the sequence is that young.

    Args:
        buffer: [B', W, ...] where B' is B or a multiple of it (branches innermost).
        new: [B', block, ...], likewise.
        slots: the slots *before* this commit.
        frame: int32 [B, block], the frames being committed; EMPTY for samples that commit nothing.
        axis: that of the slots, where it is not 1.

    Returns:
        The buffer after the commit.
    """
    chex.assert_shape(new, (*buffer.shape[:axis], slots.block, *buffer.shape[axis + 1 :]))
    new, fixed = new.astype(buffer.dtype), slots.kept + slots.sinks
    buffer = jax.lax.dynamic_update_slice_in_dim(buffer, new, fixed + slots.cursor, axis)
    first = jnp.repeat(frame[:, 0] + slots.pad, buffer.shape[0] // frame.shape[0])
    first = first.reshape(-1, *(1,) * (buffer.ndim - 1))
    for sink in range(0, slots.sinks, slots.block):
        here = (*[slice(None)] * axis, slice(slots.kept + sink, slots.kept + sink + slots.block))
        buffer = buffer.at[here].set(jnp.where(first == sink, new, buffer[here]))
    return buffer


def commit(slots: Slots, frame: Array) -> Slots:
    """The slots after a block was written; ``frame`` as in ``write``."""
    written = write(slots.frame, frame, slots, frame)
    # A sink frame passes through the ring as well; there it is marked empty, so that nobody sees it twice.
    fixed = slots.kept + slots.sinks
    ring = written[:, fixed:]
    ring = jnp.where(ring < slots.sinks - slots.pad, EMPTY, ring)
    return dataclasses.replace(
        slots,
        frame=jnp.concatenate([written[:, :fixed], ring], axis=1),
        cursor=(slots.cursor + slots.block) % slots.window,
    )

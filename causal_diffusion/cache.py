"""What is remembered: keys and values of committed frames, in slots that never move.

A cache has ``sinks + window`` slots, one frame each. The first ``sinks`` slots keep the first frames of the
sequence for ever; the rest is a ring. For block 1, sinks 1, window 3, after frames 0..5 were committed::

        slot      0 | 1 2 3
        frame     0 | 3 4 5        cursor -> slot 1, the oldest, is written next
                sink   ring

Slots never move in time, so keys are stored rotated and nothing is ever shifted. The order of slots does not
matter to attention: each slot's frame index and the layout's predicate say what is visible. The cursor is shared
by the batch; frame indices are per sample, so that samples start, reset and stop alone.

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


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What is kept of the past, and how a finished block is shown from then on.

    The fields named commit_* are the sampling side of ``levels.context`` and its companions, and mean the same.
    """

    kind: str = "kv"  # keys and values, or 'none': the past frames are run through the network every time
    commit_level: float = 0.0  # noise level in [0, 1] at which a finished block is shown
    commit_data: str = "noised"  # what that level does to it: 'noised', 'scaled' (no noise) or 'clean' (nothing)
    commit_label: str = "level"  # the level that the network is told: 'level' or 'fixed'
    commit_label_at: float = 0.0  # with 'fixed': the number that is told
    dtype: str = "compute"  # storage of keys and values: 'compute' (the model's), 'float32' or 'bfloat16'

    def __post_init__(self):
        choices = {
            "kind": ("kv", "none"),
            "commit_data": ("noised", "scaled", "clean"),
            "commit_label": ("level", "fixed"),
            "dtype": ("compute", "float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"cache.{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}")
        if not 0.0 <= self.commit_level <= 1.0:
            raise ValueError(f"cache.commit_level is {self.commit_level}; a level lies in [0, 1]")
        if not -1.0 <= self.commit_label_at <= 1.0:
            raise ValueError(f"cache.commit_label_at is {self.commit_label_at}; it lies in [-1, 1]")
        if self.commit_level and self.commit_data == "clean" and self.commit_label == "fixed":
            raise ValueError(
                f"cache.commit_level is {self.commit_level} and cache.commit_data is 'clean': with a fixed "
                "cache.commit_label nobody would meet that level; cache.commit_level = 0.0 would do"
            )
        if self.commit_label == "level" and self.commit_label_at:
            raise ValueError(
                f"cache.commit_label_at is {self.commit_label_at} and cache.commit_label is 'level': nobody would be "
                "told; cache.commit_label = 'fixed' would do"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Which frame each slot holds.

    frame: int32 [B, W]; EMPTY marks an empty slot, other negative ones pad a short first block.
    cursor: int32 [], the ring slot that is written next, counted from the first ring slot.
    sinks, block, pad: static sizes in frames; the first block of a sequence starts at frame -pad.
    """

    frame: Array
    cursor: Array
    sinks: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    pad: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def window(self) -> int:
        """Ring slots."""
        return self.frame.shape[1] - self.sinks


def empty(batch: int, *, window: int, sinks: int, block: int, cursor=0, pad: int = 0) -> Slots:
    """Slots without a frame. ``cursor`` may be a traced value, a multiple of ``block``."""
    return Slots(
        frame=jnp.full((batch, sinks + window), EMPTY, jnp.int32),
        cursor=jnp.asarray(cursor, jnp.int32),
        sinks=sinks,
        block=block,
        pad=pad,
    )


def write(buffer: Array, new: Array, slots: Slots, frame: Array) -> Array:
    """Writes a block at the cursor, and at its sink slots while the sequence is that young.

    Args:
        buffer: [B', W, ...] where B' is B or a multiple of it (branches innermost).
        new: [B', block, ...].
        slots: the slots *before* this commit.
        frame: int32 [B, block], the frames being committed; EMPTY for samples that commit nothing.

    Returns:
        The buffer after the commit.
    """
    chex.assert_shape(new, (buffer.shape[0], slots.block, *buffer.shape[2:]))
    new = new.astype(buffer.dtype)
    start = (0, slots.sinks + slots.cursor) + (0,) * (buffer.ndim - 2)
    buffer = jax.lax.dynamic_update_slice(buffer, new, start)
    first = jnp.repeat(frame[:, 0] + slots.pad, buffer.shape[0] // frame.shape[0])
    first = first.reshape(-1, *(1,) * (buffer.ndim - 1))
    for sink in range(0, slots.sinks, slots.block):
        kept = buffer[:, sink : sink + slots.block]
        buffer = buffer.at[:, sink : sink + slots.block].set(jnp.where(first == sink, new, kept))
    return buffer


def commit(slots: Slots, frame: Array) -> Slots:
    """The slots after a block was written; ``frame`` as in ``write``."""
    written = write(slots.frame, frame, slots, frame)
    # A sink frame passes through the ring as well; there it is marked empty, so that nobody sees it twice.
    ring = written[:, slots.sinks :]
    ring = jnp.where(ring < slots.sinks - slots.pad, EMPTY, ring)
    return dataclasses.replace(
        slots,
        frame=jnp.concatenate([written[:, : slots.sinks], ring], axis=1),
        cursor=(slots.cursor + slots.block) % slots.window,
    )

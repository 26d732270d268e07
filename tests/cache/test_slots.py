"""The ring cache against a Python list, where it writes, and what it costs."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion import cache
from causal_diffusion.cache import CacheConfig
from causal_diffusion.cache import slots as slots_module

BATCH, BRANCHES = 3, 2


@jax.jit
def commit(slots, buffer, value, frame):
    """One commit of a block that holds ``value`` [B] in every frame, plus its offset in the block."""
    new = value[:, None] + jnp.arange(slots.block) / 100
    new = jnp.repeat(new, BRANCHES, axis=0)[..., None] * jnp.ones(2)
    return cache.commit(slots, frame), cache.write(buffer, new, slots, frame)


@jax.jit
def forget(slots, sample):
    """The slots with one sample's frames gone, as a reset leaves them."""
    gone = (jnp.arange(BATCH) == sample)[:, None]
    return jax.tree.map(lambda a: jnp.where(gone, cache.EMPTY, a) if a.ndim else a, slots)


class ListCache:
    """What one sample remembers, as a Python list of the last ``window`` frames and a dict of sinks."""

    def __init__(self, window, sinks, block, pad):
        self.sinks, self.block = sinks - pad, block
        self.ring = collections.deque([None] * window, maxlen=window)
        self.first = {}

    def commit(self, frame, value):
        """``frame`` of a block's first frame, None where nothing is committed; the ring turns all the same."""
        for i in range(self.block):
            here = None if frame is None else (frame + i, round(value + i / 100, 2))
            if here and here[0] < self.sinks:
                self.first[here[0]] = here
                here = None
            self.ring.append(here)

    def reset(self):
        self.first = {}
        self.ring = collections.deque([None] * len(self.ring), maxlen=len(self.ring))

    def content(self):
        return sorted(held for held in [*self.first.values(), *filter(None, self.ring)] if held[0] >= 0)


def content(slots, buffer, sample):
    """(frame, value) of every slot that holds something, as each branch of a sample remembers it."""
    frame = np.asarray(slots.frame[sample])
    branches = np.asarray(buffer).reshape(BATCH, BRANCHES, -1, 2)[sample]
    np.testing.assert_array_equal(branches[0], branches[1])
    held = [(int(f), round(float(v), 2)) for f, v in zip(frame, branches[0, :, 0], strict=True) if f >= 0]
    return sorted(held)


@pytest.mark.parametrize(
    ("block", "window", "sinks", "pad"),
    [(1, 3, 0, 0), (1, 3, 1, 0), (2, 4, 2, 0), (2, 2, 4, 1), (3, 9, 3, 0), (3, 6, 0, 2)],
    ids=str,
)
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_the_ring_equals_a_list_of_the_last_frames(block, window, sinks, pad, data):
    """Commits, resets of single samples and samples that sit out, in any order, from any cursor.

    Sequences begin ``pad`` frames before frame 0 where the first block is short; those frames count as held by nobody.
    """
    cursor = block * data.draw(st.integers(0, window // block - 1))
    slots = cache.empty(BATCH, window=window, sinks=sinks, block=block, cursor=cursor, pad=pad)
    buffer = jnp.zeros((BATCH * BRANCHES, window + sinks, 2))
    oracle = [ListCache(window, sinks, block, pad) for _ in range(BATCH)]
    frame = np.full(BATCH, -pad)
    for _ in range(data.draw(st.integers(1, 3 * (window + sinks) // block + 2))):
        reset = data.draw(st.sampled_from([None, None, None, None, 0, 1, 2]))
        if reset is not None:
            slots = forget(slots, reset)
            oracle[reset].reset()
            frame[reset] = -pad
        takes_part = np.array(data.draw(st.tuples(*[st.sampled_from([True, True, True, False])] * BATCH)))
        value = np.array([data.draw(st.integers(1, 1000)) for _ in range(BATCH)], np.float32)
        frames = np.where(takes_part[:, None], frame[:, None] + np.arange(block), cache.EMPTY)
        slots, buffer = commit(slots, buffer, value, jnp.asarray(frames, jnp.int32))
        for sample in range(BATCH):
            oracle[sample].commit(int(frame[sample]) if takes_part[sample] else None, float(value[sample]))
            assert content(slots, buffer, sample) == oracle[sample].content()
        frame += np.where(takes_part, block, 0)


def test_slots_are_as_drawn():
    drawn = re.search(r"frame +((?:\d+ )+)\| ((?:\d+ ?)+) +cursor -> slot (\d+)", slots_module.__doc__)
    sinks, ring, cursor = drawn[1].split(), drawn[2].split(), int(drawn[3])
    slots = cache.empty(1, window=3, sinks=1, block=1)
    for frame in range(6):
        slots = cache.commit(slots, jnp.full((1, 1), frame, jnp.int32))
    assert [int(f) for f in sinks + ring] == slots.frame[0].tolist()
    assert slots.sinks + int(slots.cursor) == cursor
    assert int(slots.frame[0, cursor]) == 3  # the oldest is written next


def test_a_commit_writes_its_own_slots_and_nothing_else():
    rng = np.random.default_rng(0)
    slots = cache.empty(2, window=6, sinks=4, block=2, cursor=2)
    buffer = jnp.asarray(rng.normal(size=(4, 10, 3)).astype(np.float32))
    new = jnp.asarray(rng.normal(size=(4, 2, 3)).astype(np.float32))
    frame = jnp.asarray([[2, 3], [8, 9]], jnp.int32)  # the first sample is among its sinks, the second is not
    after = np.asarray(cache.write(buffer, new, slots, frame))
    expected = np.asarray(buffer).copy()
    expected[:, 6:8] = new  # 4 sinks, then the cursor at 2
    expected[:2, 2:4] = new[:2]
    np.testing.assert_array_equal(after, expected)
    frames = cache.commit(slots, frame)
    E = cache.EMPTY
    assert frames.frame.tolist() == [[E, E, 2, 3] + [E] * 6, [E] * 6 + [8, 9, E, E]]
    assert int(frames.cursor) == 4 and frames.window == 6


def test_the_cursor_goes_round_and_the_shape_stays():
    slots = cache.empty(1, window=4, sinks=2, block=2)
    cursors = []
    for block in range(7):
        slots = jax.jit(cache.commit)(slots, jnp.asarray([[2 * block, 2 * block + 1]], jnp.int32))
        cursors.append(int(slots.cursor))
        assert slots.frame.shape == (1, 6) and slots.frame.dtype == slots.cursor.dtype == jnp.int32
    assert cursors == [2, 0, 2, 0, 2, 0, 2]


def test_values_are_stored_in_the_dtype_of_the_buffer():
    slots = cache.empty(1, window=2, sinks=1, block=1)
    value = jnp.full((1, 1, 1), 1 + 2**-12)
    written = cache.write(jnp.zeros((1, 3, 1), jnp.bfloat16), value, slots, jnp.zeros((1, 1), jnp.int32))
    assert written.dtype == jnp.bfloat16 and written[0, :2, 0].tolist() == [1.0, 1.0]


def test_a_donated_buffer_is_written_in_place():
    slots = cache.empty(1, window=64, sinks=4, block=1)
    buffer = jnp.zeros((1, 68, 256))
    frame = jnp.zeros((1, 1), jnp.int32)
    write = jax.jit(cache.write, donate_argnums=0).lower(buffer, buffer[:, :1], slots, frame).compile()
    memory = write.memory_analysis()
    assert memory.alias_size_in_bytes >= buffer.nbytes and memory.temp_size_in_bytes < buffer.nbytes // 4


def test_a_short_first_block_is_padded_and_kept_as_a_sink():
    slots = cache.empty(1, window=6, sinks=3, block=3, pad=2)
    for first in (-2, 1, 4):
        slots = cache.commit(slots, jnp.asarray([[first, first + 1, first + 2]], jnp.int32))
    assert slots.frame.tolist() == [[-2, -1, 0, 4, 5, 6, 1, 2, 3]] and int(slots.cursor) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        dict(kind="ring"), dict(commit_level=-0.1), dict(commit_level=1.5), dict(commit_data="dimmed"),
        dict(commit_label="told"), dict(commit_label_at=1.5), dict(dtype="float16"),
    ],
)  # fmt: skip
def test_config_refuses_what_makes_no_sense(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^cache\.{name} is [^\n]+$"):
        CacheConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "would_do"),
    [
        (dict(commit_label_at=0.5), dict(commit_label="fixed")),
        (dict(commit_level=0.5, commit_data="clean", commit_label="fixed"), dict(commit_level=0.0)),
    ],
)
def test_config_names_what_clashes_and_a_value_that_would_do(wrong, would_do):
    ((name, value),) = would_do.items()
    with pytest.raises(ValueError, match=rf"^cache\.\w+ is [^\n]+; cache.{name} = {value!r} would do$"):
        CacheConfig(**wrong)
    CacheConfig(**wrong | would_do)


@pytest.mark.parametrize("axis", [2, 3])
def test_slots_may_lie_along_any_axis(axis):
    """A block of a ring with sinks, of which one sample is young enough to write them."""
    slots = cache.empty(2, window=4, sinks=2, block=2)
    frame = jnp.array([[0, 1], [6, 7]], jnp.int32)
    buffer, new = (jax.random.normal(jax.random.key(n), (4, n, 3, 5)) for n in (6, 2))
    along = (jnp.moveaxis(x, 1, axis) for x in (buffer, new))
    written = cache.write(*along, slots, frame, axis)
    np.testing.assert_array_equal(jnp.moveaxis(written, axis, 1), cache.write(buffer, new, slots, frame))

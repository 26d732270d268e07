"""Who sees whom: the drawings, an oracle that asks frame by frame, and masks that other masks explain."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.layout import CLAUSES, CLEAN, COARSE, CONTEXT, NOISY, REFERENCE, Ids, Layout, clauses, concatenate

CAUSAL = ("block_causal", "frame_causal")
BY_ROLE = ("prefix", "partial_prefix", "bidirectional_window")


def drawings():
    """The masks drawn in the module docstring, {first word of the text before: (row names, bool [rows, columns])}."""
    found, group, title, fresh = {}, [], "", True
    for line in [*clauses.__doc__.splitlines(), ""]:
        row = re.match(r"\s+(\w+) +([#.](?: +[#.])*)", line)
        if row:
            group.append((row[1], [mark == "#" for mark in row[2] if mark in "#."]))
            continue
        if group:
            assert title not in found
            found[title] = ([name for name, _ in group], np.array([marks for _, marks in group]))
            group = []
        if fresh and line and line[0] != " ":  # a paragraph begins
            title = re.match(r"\w+", line)[0]
        fresh = not line
    return found


def start_of(layout, block):
    return 0 if block == 0 else (layout.first or layout.block) + (block - 1) * layout.block


def block_of(layout, frame, lead=0):
    """Counted by hand: a first block, then equal ones; those before it may be led to."""
    first = layout.first or layout.block
    return (0 if frame < first else 1 + (frame - first) // layout.block) - lead


def sees(layout, q, k, keys):
    """The rules of the docstring for one query and one key (role, frame, copy, stage, lead) among all keys."""
    (q_role, q_frame, q_copy, stage, q_lead), (k_role, k_frame, k_copy, _, k_lead) = q, k
    if k_frame < 0:
        return False
    if CONTEXT in (q_role, k_role) or REFERENCE in (q_role, k_role):
        if q_role == REFERENCE:
            return k_role == REFERENCE and q_frame == k_frame
        return k_role == CONTEXT if q_role == CONTEXT else True
    q_block, k_block = block_of(layout, q_frame, q_lead), block_of(layout, k_frame, k_lead)
    start = start_of(layout, q_block)
    if layout.kind == "block_causal":
        allowed = k_block <= q_block
    elif layout.kind == "frame_causal":
        allowed = k_frame <= q_frame
    elif layout.kind == "full":
        allowed = True
    elif q_role == NOISY:
        own = k_role == NOISY and (k_block == q_block or layout.kind == "bidirectional_window")
        if layout.kind == "teacher_forcing":
            own = own and k_copy == q_copy
        allowed = own or (k_role == CLEAN and k_block < q_block)
        if layout.kind == "bidirectional_window":
            flying = [block_of(layout, key[1]) for key in keys if key[0] == NOISY and key[1] >= 0]
            start = min([start, *(start_of(layout, block) for block in flying)])
    elif k_role == CLEAN:
        rule = {"partial_prefix": k_frame <= q_frame, "prefix": True}
        allowed = rule.get(layout.kind, k_block <= q_block)
    else:
        allowed = False
    if k_role == COARSE:
        if not layout.coarse or (q_role != COARSE and not layout.window):
            return allowed
        blocks = [block_of(layout, layout.coarse), 0 if q_role == COARSE else layout.window // layout.block]
        return allowed and k_block >= q_block - sum(blocks)
    if k_block * layout.block < layout.sinks:
        return allowed
    if layout.window and k_frame < start - layout.window:
        return False
    return allowed and not (layout.ranges and q_block - k_block >= layout.ranges[stage])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_masks_of_blocks_are_as_drawn(block):
    drawn, each_frame = drawings(), np.ones((block, block), bool)
    assert drawn["teacher_forcing"][0] == ["c0", "c1", "c2", "n0", "n1", "n2", "n3"]
    for kind in ("block_causal", "teacher_forcing", "full"):
        layout, blocks = Layout(kind, block=block), drawn[kind][1]
        np.testing.assert_array_equal(layout.training_mask(4 * block), np.kron(blocks, each_frame), err_msg=kind)
        np.testing.assert_array_equal(layout.block_table(4 * block), blocks, err_msg=kind)
    rows, narrow = drawn["window"]
    layout = Layout("block_causal", block=block, window=2 * block, sinks=block)
    assert rows == ["3", "4", "5"]
    np.testing.assert_array_equal(layout.training_mask(6 * block)[3 * block :], np.kron(narrow, each_frame))

    names, window = drawn["bidirectional_window"]
    assert names == ["c0", "c1", "c2", "c3", "n4", "n5"]
    ids = Ids.of(np.repeat([CLEAN, NOISY], [4 * block, 2 * block]), np.arange(6 * block))
    seen = Layout("bidirectional_window", block=block, window=2 * block).visible(ids, ids)
    np.testing.assert_array_equal(seen, np.kron(window, each_frame))
    names, history = drawn["coarse"]
    assert names == ["h0", "h1", "h2", "h3", "n4", "n5"]
    ids = ids._replace(role=np.repeat([COARSE, NOISY], [4 * block, 2 * block]))
    seen = Layout("block_causal", block=block, window=block, coarse=2 * block).visible(ids, ids)
    np.testing.assert_array_equal(seen, np.kron(history, each_frame))


def test_masks_of_frames_are_as_drawn():
    """Causal inside blocks behind a short first one; prefixes; knots; streams beside the fine ones; ranges."""
    drawn = drawings()
    assert len(drawn) == 12
    rows, causal = drawn["frame_causal"]
    assert rows == list("01234")
    np.testing.assert_array_equal(Layout("frame_causal", block=3, first=1).training_mask(5), causal)
    ids = Ids.of(np.array([CLEAN] * 3 + [NOISY] * 2), np.arange(5))
    for kind in ("partial_prefix", "prefix"):
        names, mask = drawn[kind]
        assert names == ["c0", "c1", "c2", "n3", "n4"]
        # Blocks of 2 behind one of 1: frames 0 | 1 2 | 3 4.
        np.testing.assert_array_equal(Layout(kind, block=2, first=1).visible(ids, ids), mask, err_msg=kind)

    names, knotted = drawn["knot"]
    layout, letter = Layout("teacher_forcing", block=2, knot=1), {(CLEAN, 0): "c", (NOISY, 0): "n", (NOISY, 1): "k"}
    ids = concatenate(*layout.training_ids(6).values())
    each = zip(ids.role, ids.lead, ids.frame, strict=True)
    assert names == [f"{letter[int(role), int(lead)]}{frame}" for role, lead, frame in each]
    np.testing.assert_array_equal(layout.training_mask(6), knotted)

    others, mixed = drawn["Other"]
    assert others == ["x", "r", "h0", "h1", "n2", "n3"]
    ids = Ids.of(np.array([CONTEXT, REFERENCE, COARSE, COARSE, NOISY, NOISY]), np.array([0, 0, 0, 1, 2, 3]))
    for layout in (*map(Layout, CAUSAL), Layout("block_causal", window=1)):
        np.testing.assert_array_equal(layout.visible(ids, ids), mixed)
    stages, ranged = drawn["ranges"]
    assert stages == ["noisy", "half"]
    layout = Layout("block_causal", ranges=(4, 2), range_levels=(0.5,))
    asked = Ids.of(NOISY, np.array([3, 3]), 0, layout.stages(np.array([0.9, 0.5])))
    np.testing.assert_array_equal(layout.visible(asked, Ids.of(NOISY, np.arange(4))), ranged)


@st.composite
def layouts(draw):
    """A layout of any kind, and the roles that it knows."""
    kind, first = draw(st.sampled_from(sorted(CLAUSES))), draw(st.integers(0, 4))
    block = draw(st.integers(max(1, first), 4))
    ranges = tuple(draw(st.lists(st.integers(1, 5), max_size=3))) if kind != "bidirectional_window" else ()
    coarse = draw(st.integers(0, 3)) * block if kind in CAUSAL else 0
    layout = Layout(
        kind,
        block=block,
        first=first,
        window=block * draw(st.integers(0, 4)),
        sinks=block * draw(st.integers(0, 3)),
        copies=draw(st.integers(1, 3)) if kind == "teacher_forcing" else 1,
        coarse=coarse + first % block if coarse else 0,
        knot=draw(st.integers(0, block - 1)) if kind == "teacher_forcing" else 0,
        ranges=ranges,
        range_levels=tuple(1 - i / 4 for i in range(1, len(ranges))),
    )
    return layout, ((NOISY, CLEAN, COARSE) if kind in CAUSAL else (CLEAN, NOISY))


@given(data=st.data())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_visible_equals_asking_frame_by_frame(data):
    layout, roles = data.draw(layouts())
    stages = st.integers(0, max(0, len(layout.ranges) - 1))

    def ids(first):
        role = st.sampled_from([*roles, CONTEXT, REFERENCE])
        plain = st.tuples(role, st.integers(first, 24), st.integers(0, layout.copies - 1), stages, st.just(0))
        if not layout.knot:
            return plain
        begin = st.integers(1, 5).map(lambda block: start_of(layout, block))  # a knot is the head of a later block
        knot = st.tuples(st.just(NOISY), st.builds(int.__add__, begin, st.integers(0, layout.knot - 1)),
                         st.integers(0, layout.copies - 1), stages, st.just(1))  # fmt: skip
        return plain | knot

    queries = data.draw(st.lists(ids(0), min_size=1, max_size=6))
    keys = data.draw(st.lists(ids(-2), min_size=1, max_size=8))
    q, k = (Ids(*np.array(rows).T) for rows in (queries, keys))
    expected = [[sees(layout, one, other, keys) for other in keys] for one in queries]
    np.testing.assert_array_equal(layout.visible(q, k), expected)


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_query_sees_something(data):
    """Itself at least, be it a padding frame or an empty slot: a softmax over nothing would be NaN."""
    layout, roles = data.draw(layouts())
    ids = st.tuples(st.sampled_from([*roles, REFERENCE, CONTEXT]), st.integers(-6, 24))
    own = [*data.draw(st.lists(ids, min_size=1, max_size=8)), (CLEAN, -(1 << 30)), (NOISY, -1)]
    own = Ids.of(*np.array(own).T)
    seen = layout.visible(own, own)
    assert seen[np.eye(len(seen), dtype=bool)].all()
    hidden = own.frame < 0
    np.testing.assert_array_equal(seen[:, hidden], own.frame[:, None] == own.frame[None, hidden])
    for blocks in (2, 5):
        frames = blocks * layout.block - layout.pad
        if layout.coarse < frames:
            assert layout.training_mask(frames).any(axis=1).all()


@pytest.mark.parametrize("kind", sorted(CLAUSES))
def test_traced_ids_give_the_mask_that_numpy_gives(kind):
    ranges = {} if kind == "bidirectional_window" else dict(ranges=(4, 2), range_levels=(0.5,))
    knot = dict(knot=1) if kind == "teacher_forcing" else {}
    coarse = dict(coarse=3) if kind in CAUSAL else {}
    layout = Layout(kind, block=2, first=1, window=4, sinks=2, **ranges, **knot, **coarse)
    rng = np.random.default_rng(0)

    def draw(first, count):
        shape = (3, count)
        frame, role = rng.integers(first, 20, shape), rng.integers(0, 2, shape)
        role = np.where(rng.uniform(size=shape) < 0.3, COARSE, role) if coarse else role
        lead = rng.integers(0, 2, shape) if knot else 0
        stage = layout.stages(rng.uniform(size=shape)).astype(np.int32)
        return Ids(role, frame, rng.integers(0, 2, shape), stage, lead)

    q, k = draw(0, 5), draw(-1, 9)
    by_numpy = layout.visible(q, k)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.shape == (3, 5, 9) and by_numpy.any() and not by_numpy.all()

    @jax.jit
    def traced(q, k):
        return layout.visible(q, k), layout.prefix_visible(q, k, 3)

    for one, other in zip(traced(q, k), (by_numpy, layout.prefix_visible(q, k, 3)), strict=True):
        np.testing.assert_array_equal(one, other)
    for i in range(3):  # per sample as one by one
        alone = layout.visible(*(Ids(*(a if np.ndim(a) == 0 else a[i] for a in x)) for x in (q, k)))
        np.testing.assert_array_equal(by_numpy[i], alone)
    assert layout.visible(q, Ids(*(np.zeros((3, 0), int),) * 5)).shape == (3, 5, 0)


def test_a_window_as_long_as_the_clip_hides_nothing():
    for kind in CLAUSES:
        wide = Layout(kind, block=3, window=9).training_mask(12)
        np.testing.assert_array_equal(wide, Layout(kind, block=3).training_mask(12))
        narrow = Layout(kind, block=3, window=6).training_mask(12)
        # With roles, noisy frames alone see their own block, or all others, however narrow the window is.
        assert (wide & ~narrow).any() != (kind in BY_ROLE) and not (narrow & ~wide).any()


def test_tokens_see_what_their_frames_see():
    """Joint attention all tokens of a visible frame, factorised attention one cell of it, or the own frame alone."""
    several = Layout("teacher_forcing", block=2, first=1, copies=2, knot=1, reference=1)
    for layout in (several, Layout("frame_causal", window=1)):
        frames, N = 5, 3
        mask = layout.training_mask(frames)
        masks = {axis: layout.token_mask(frames, N, axis) for axis in ("joint", "time", "space")}
        assert {m.shape for m in masks.values()} == {(N * len(mask),) * 2}
        i, a = np.divmod(np.arange(N * len(mask)), N)
        np.testing.assert_array_equal(masks["joint"], mask[i][:, i])
        np.testing.assert_array_equal(masks["time"], mask[i][:, i] & (a[:, None] == a))
        np.testing.assert_array_equal(masks["space"], i[:, None] == i)


@given(first=st.integers(0, 4), block=st.integers(1, 4), frames=st.integers(1, 5), data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_prefix_is_the_last_clean_frames_before_the_block(first, block, frames, data):
    layout = Layout("frame_causal", block=block, first=min(first, block))
    row = st.tuples(st.sampled_from([NOISY, CLEAN]), st.integers(-2, 12))
    queries, keys = (data.draw(st.lists(row, min_size=1, max_size=6)) for _ in range(2))
    queries = [(role, max(0, frame)) for role, frame in queries]
    expected = []
    for role, frame in queries:
        start = start_of(layout, block_of(layout, frame))
        before = range(max(0, start - frames), start)
        expected.append([role == NOISY and k_role == CLEAN and k in before for k_role, k in keys])
    q, k = (Ids.of(*np.array(rows).T) for rows in (queries, keys))
    np.testing.assert_array_equal(layout.prefix_visible(q, k, frames), expected)


def test_what_cannot_be_cached_is_known():
    """A block that is changed by a later one: where a mask shows a clean block one behind it."""
    for kind in CLAUSES:
        ids = Ids.of(CLEAN, np.arange(4))
        later = np.triu(np.ones((4, 4), bool), 1)
        assert Layout(kind).cacheable == (not (Layout(kind).visible(ids, ids) & later).any()), kind

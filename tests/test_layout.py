"""The layout: its drawings, an oracle that asks frame by frame, and how many blocks are alive."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion import layout as module
from causal_diffusion.layout import CLAUSES, CLEAN, COARSE, CONTEXT, NOISY, REFERENCE, Ids, Layout, concatenate

CAUSAL = ("block_causal", "frame_causal")
BY_ROLE = ("prefix", "partial_prefix")


def drawings():
    """The masks drawn in the module docstring, in order: (row names, bool [rows, columns])."""
    found, group = [], []
    for line in [*module.__doc__.splitlines(), ""]:
        row = re.match(r"\s+(\w+) +([#.](?: +[#.])*)", line)
        if row:
            group.append((row[1], [mark == "#" for mark in row[2] if mark in "#."]))
        elif group:
            found.append(([name for name, _ in group], np.array([marks for _, marks in group])))
            group = []
    return found


def block_of(layout, frame):
    """Counted by hand: a first block, then equal ones."""
    first = layout.first or layout.block
    return 0 if frame < first else 1 + (frame - first) // layout.block


def start_of(layout, block):
    return 0 if block == 0 else (layout.first or layout.block) + (block - 1) * layout.block


def sees(layout, q, k):
    """The rules of the docstring for one query and one key (role, frame, copy, stage), nothing shared with it."""
    (q_role, q_frame, q_copy, stage), (k_role, k_frame, k_copy, _) = q, k
    if k_frame < 0:
        return False
    if CONTEXT in (q_role, k_role) or REFERENCE in (q_role, k_role):
        if q_role == REFERENCE:
            return k_role == REFERENCE and q_frame == k_frame
        return k_role == CONTEXT if q_role == CONTEXT else True
    q_block, k_block = block_of(layout, q_frame), block_of(layout, k_frame)
    if layout.kind == "block_causal":
        allowed = k_block <= q_block
    elif layout.kind == "frame_causal":
        allowed = k_frame <= q_frame
    elif layout.kind == "full":
        allowed = True
    elif q_role == NOISY:
        own = k_role == NOISY and k_block == q_block
        if layout.kind == "teacher_forcing":
            own = own and k_copy == q_copy
        allowed = own or (k_role == CLEAN and k_block < q_block)
    elif k_role == CLEAN:
        rule = {"teacher_forcing": k_block <= q_block, "partial_prefix": k_frame <= q_frame, "prefix": True}
        allowed = rule[layout.kind]
    else:
        allowed = False
    if k_role == COARSE or k_block * layout.block < layout.sinks:
        return allowed
    if layout.window and k_frame < start_of(layout, q_block) - layout.window:
        return False
    return allowed and not (layout.ranges and q_block - k_block >= layout.ranges[stage])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_masks_of_blocks_are_as_drawn(block):
    (_, causal), (names, teacher), (rows, narrow), (_, full) = drawings()[:4]
    each_frame = np.ones((block, block), bool)
    assert names == ["c0", "c1", "c2", "n0", "n1", "n2", "n3"] and rows == ["3", "4", "5"]
    drawn = {"block_causal": causal, "teacher_forcing": teacher, "full": full}
    for kind, blocks in drawn.items():
        layout = Layout(kind, block=block)
        np.testing.assert_array_equal(layout.training_mask(4 * block), np.kron(blocks, each_frame), err_msg=kind)
        np.testing.assert_array_equal(layout.block_table(4 * block), blocks, err_msg=kind)
    layout = Layout("block_causal", block=block, window=2 * block, sinks=block)
    np.testing.assert_array_equal(layout.training_mask(6 * block)[3 * block :], np.kron(narrow, each_frame))


def test_masks_of_frames_are_as_drawn():
    """Causal inside blocks behind a short first one; a prefix that is causal, and one that sees all of itself."""
    drawn = drawings()[4:]
    (rows, causal), (names, partial), (_, whole), (others, mixed), (stages, ranged) = drawn
    assert rows == list("01234") and names == ["c0", "c1", "c2", "n3", "n4"]
    layout = Layout("frame_causal", block=3, first=1)
    np.testing.assert_array_equal(layout.training_mask(5)[:, :5], causal)
    ids = Ids.of(np.array([CLEAN] * 3 + [NOISY] * 2), np.arange(5))
    for kind, mask in (("partial_prefix", partial), ("prefix", whole)):
        # Blocks of 2 behind one of 1: frames 0 | 1 2 | 3 4.
        np.testing.assert_array_equal(Layout(kind, block=2, first=1).visible(ids, ids), mask, err_msg=kind)

    assert others == ["x", "r", "h0", "h1", "n2", "n3"]
    ids = Ids.of(np.array([CONTEXT, REFERENCE, COARSE, COARSE, NOISY, NOISY]), np.array([0, 0, 0, 1, 2, 3]))
    for kind in CAUSAL:
        np.testing.assert_array_equal(Layout(kind).visible(ids, ids), mixed, err_msg=kind)
    np.testing.assert_array_equal(Layout("block_causal", window=1, sinks=0).visible(ids, ids), mixed)
    assert stages == ["noisy", "half"]
    layout = Layout("block_causal", ranges=(4, 2), range_levels=(0.5,))
    asked = Ids.of(NOISY, np.array([3, 3]), 0, layout.stages(np.array([0.9, 0.5])))
    np.testing.assert_array_equal(layout.visible(asked, Ids.of(NOISY, np.arange(4))), ranged)


def test_teacher_forcing_is_narrowed_as_block_causal_is():
    """Window and sinks are clauses of their own: they hide the same keys from both roles of teacher forcing."""
    causal = Layout("block_causal", block=2, window=4, sinks=2).block_table(14)
    teacher = Layout("teacher_forcing", block=2, window=4, sinks=2).block_table(14)
    itself = np.eye(7, dtype=bool)
    np.testing.assert_array_equal(teacher[:6, :6], causal[:6, :6])
    np.testing.assert_array_equal(teacher[6:, :6], (causal & ~itself)[:, :6])
    np.testing.assert_array_equal(teacher[6:, 6:], itself)
    assert not teacher[:6, 6:].any()


@given(
    blocks=st.integers(1, 9), block=st.integers(1, 4), window=st.integers(0, 6), sinks=st.integers(0, 4),
    copies=st.integers(1, 3), short=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_live_blocks_have_closed_forms(blocks, block, window, sinks, copies, short):
    N, first = blocks, max(0, block - short) % block
    frames = blocks * block - (block - first if first else 0)
    whole = Layout("teacher_forcing", block=block, first=first)
    noisy, clean = (Ids.of(role, np.arange(frames)) for role in (NOISY, CLEAN))
    both = concatenate(clean, noisy)
    ends = np.append(np.diff(whole.block_of(np.arange(frames))) > 0, True)  # one frame of each block
    ends = np.concatenate([ends, ends])
    full = whole.visible(both, both)[ends][:, ends]
    assert full.shape == (2 * N, 2 * N) and full.sum() == N * N + N
    # Without the last clean block, which nobody reads, its row of N is gone: N^2. Each further copy has the noisy
    # rows once more, N(N+1)/2 of them.
    table = whole.block_table(frames)
    assert table.shape == (2 * N - 1, 2 * N - 1) and table.sum() == N * N
    several = Layout("teacher_forcing", block=block, first=first, copies=copies).block_table(frames)
    assert several.shape == ((copies + 1) * N - 1,) * 2
    assert several.sum() == N * (N - 1) // 2 + copies * N * (N + 1) // 2
    for kind, count in (("block_causal", N * (N + 1) // 2), ("full", N * N)):
        assert Layout(kind, block=block, first=first).block_table(frames).sum() == count
    assert Layout("frame_causal", block=block, first=first).training_mask(frames).sum() == frames * (frames + 1) // 2

    # A window of w blocks and s sinks leave block q the last min(q, w) before it and min(s, q - w) sinks.
    sizes = dict(block=block, first=first, window=window * block, sinks=sinks * block)
    w = window or N
    # A short first block counts as a whole one.
    past = [min(q, w) + min(sinks, max(0, q - w)) for q in range(N)]
    np.testing.assert_array_equal(Layout("block_causal", **sizes).block_table(frames).sum(axis=1), np.array(past) + 1)
    dropped = Layout("teacher_forcing", **sizes, copies=copies).block_table(frames)
    # Noisy rows of each copy, and clean rows but the last: past and itself.
    assert dropped.sum() == copies * (sum(past) + N) + sum(past[:-1]) + N - 1


def test_a_prefix_has_closed_forms():
    """One noisy block of n frames behind P clean ones: P(P+1)/2 or P^2, and n (P + n)."""
    for blocks, block in ((1, 2), (3, 1), (2, 3)):
        P, n = blocks * block, block
        ids = Ids.of(np.repeat([CLEAN, NOISY], [P, n]), np.arange(P + n))
        for kind, prefix in (("partial_prefix", P * (P + 1) // 2), ("prefix", P * P)):
            assert Layout(kind, block=block).visible(ids, ids).sum() == prefix + n * (P + n)


@st.composite
def layouts(draw):
    """A layout of any kind, and the roles that it knows."""
    kind, block = draw(st.sampled_from(sorted(CLAUSES))), draw(st.integers(1, 4))
    ranges = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    layout = Layout(
        kind,
        block=block,
        first=draw(st.integers(0, block)),
        window=block * draw(st.integers(0, 4)),
        sinks=block * draw(st.integers(0, 3)),
        copies=draw(st.integers(1, 3)) if kind == "teacher_forcing" else 1,
        ranges=ranges,
        range_levels=tuple(1 - i / 4 for i in range(1, len(ranges))),
    )
    own = {"teacher_forcing": (CLEAN, NOISY), "prefix": (CLEAN, NOISY), "partial_prefix": (CLEAN, NOISY)}
    return layout, own.get(kind, (NOISY, CLEAN, COARSE) if kind in CAUSAL else (NOISY, CLEAN))


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_visible_equals_asking_frame_by_frame(data):
    layout, roles = data.draw(layouts())
    stages = st.integers(0, max(0, len(layout.ranges) - 1))

    def ids(first):
        role = st.sampled_from([*roles, CONTEXT, REFERENCE])
        return st.tuples(role, st.integers(first, 24), st.integers(0, layout.copies - 1), stages)

    queries = data.draw(st.lists(ids(0), min_size=1, max_size=6))
    keys = data.draw(st.lists(ids(-2), min_size=1, max_size=8))
    q, k = (Ids(*np.array(rows).T) for rows in (queries, keys))
    expected = [[sees(layout, one, other) for other in keys] for one in queries]
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
    for frames in (2 * layout.block - layout.pad, 5 * layout.block - layout.pad):
        assert layout.training_mask(frames).any(axis=1).all()


@pytest.mark.parametrize("kind", sorted(CLAUSES))
def test_traced_ids_give_the_mask_that_numpy_gives(kind):
    layout = Layout(kind, block=2, first=1, window=4, sinks=2, ranges=(4, 2), range_levels=(0.5,))
    rng = np.random.default_rng(0)

    def draw(first, count):
        shape = (3, count)
        frame = rng.integers(first, 20, shape)
        return Ids(rng.integers(0, 2, shape), frame, rng.integers(0, 2, shape), layout.stages(rng.uniform(size=shape)))

    q, k = draw(0, 5), draw(-1, 9)
    by_numpy = layout.visible(q, k)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.shape == (3, 5, 9) and by_numpy.any() and not by_numpy.all()

    @jax.jit
    def traced(q, k):
        return layout.visible(q, k), layout.prefix_visible(q, k, 3)

    for one, other in zip(traced(q, k), (by_numpy, layout.prefix_visible(q, k, 3)), strict=True):
        np.testing.assert_array_equal(one, other)
    for i in range(3):  # per sample as one by one
        alone = layout.visible(*(Ids(*(a[i] for a in x)) for x in (q, k)))
        np.testing.assert_array_equal(by_numpy[i], alone)


def test_a_window_as_long_as_the_clip_hides_nothing():
    for kind in CLAUSES:
        wide = Layout(kind, block=3, window=9).training_mask(12)
        np.testing.assert_array_equal(wide, Layout(kind, block=3).training_mask(12))
        narrow = Layout(kind, block=3, window=6).training_mask(12)
        # With roles, a clip of noisy frames alone sees nothing but its own blocks.
        assert (wide & ~narrow).any() != (kind in BY_ROLE) and not (narrow & ~wide).any()


def test_training_drops_only_what_nobody_reads():
    layout, frames = Layout("teacher_forcing", block=2), 8
    clean, noisy = (Ids.of(role, np.arange(frames)) for role in (CLEAN, NOISY))
    every = concatenate(clean, noisy)
    mask = layout.visible(every, every)
    last = np.isin(np.arange(16), [6, 7])
    assert not mask[~last][:, last].any()
    np.testing.assert_array_equal(layout.training_mask(frames), mask[~last][:, ~last])


def test_copies_are_strangers_that_share_the_clean_past():
    one, three = (Layout("teacher_forcing", block=2, first=1, window=2, copies=c).training_mask(7) for c in (1, 3))
    clean, noisy = 5, 7
    copy = np.kron(np.eye(3, dtype=bool), one[clean:, clean:])
    np.testing.assert_array_equal(three[:clean, :clean], one[:clean, :clean])
    np.testing.assert_array_equal(three[clean:, :clean], np.tile(one[clean:, :clean], (3, 1)))
    np.testing.assert_array_equal(three[clean:, clean:], copy)
    assert three.shape == (clean + 3 * noisy,) * 2 and not three[:clean, clean:].any()


def test_coarse_history_is_a_stream_of_the_first_frames():
    layout = Layout("block_causal", block=2, first=1, window=2, coarse=3, ranges=(2, 1), range_levels=(0.5,))
    ids = layout.training_ids(9)
    assert list(ids) == ["coarse", "noisy"]
    np.testing.assert_array_equal(ids["coarse"].frame, [0, 1, 2])
    np.testing.assert_array_equal(ids["noisy"].frame, np.arange(3, 9))
    mask = layout.training_mask(9)
    assert mask[3:, :3].all() and not mask[:3, 3:].any()  # neither window nor range hides history
    fine = Layout("block_causal", block=2, first=1, window=2, ranges=(2, 1), range_levels=(0.5,)).training_mask(9)
    np.testing.assert_array_equal(mask[3:, 3:], fine[3:, 3:])


def test_tokens_see_what_their_frames_see():
    """Joint attention all tokens of a visible frame, factorised attention one cell of it, or the own frame alone."""
    for layout in (Layout("teacher_forcing", block=2, first=1, copies=2), Layout("frame_causal", window=1)):
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


@given(block=st.integers(1, 5), first=st.integers(0, 5), count=st.integers(1, 6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_blocks_behind_a_short_first_one(block, first, count):
    layout = Layout("block_causal", block=block, first=min(first, block))
    frames = count * block - layout.pad
    each = [block_of(layout, frame) for frame in range(frames)]
    np.testing.assert_array_equal(layout.block_of(np.arange(frames)), each)
    assert layout.block_count(frames) == count and each.count(0) == (layout.first or block)
    assert layout.block_of(-layout.pad) == 0  # the frames that stand before frame 0 pad the first block
    values = np.arange(2 * count).reshape(2, count)
    np.testing.assert_array_equal(layout.by_frame(values, frames), values[:, each])
    for start in {start_of(layout, b) for b in range(count)}:
        rest = values[:, : count - each[start]]
        by_hand = rest[:, np.array(each[start:]) - each[start]]
        np.testing.assert_array_equal(layout.by_frame(rest, frames, start), by_hand)


def test_stages_are_parted_by_falling_levels():
    layout = Layout(ranges=(5, 4, 3, 2, 1), range_levels=(0.75, 0.5, 0.25, 0.0))  # MAGI-1: clean blocks see themselves
    np.testing.assert_array_equal(layout.stages(np.array([1.0, 0.76, 0.75, 0.5, 0.3, 0.25, 0.1, 0.0])),
                                  [0, 0, 1, 2, 2, 3, 3, 4])
    assert not Layout().stages(np.ones(3)).any()


@pytest.mark.parametrize(
    ("wrong", "neighbours"),
    [
        (dict(block=4, window=6), ("layout.window = 4", "layout.window = 8")),
        (dict(block=3, window=2), ("layout.window = 0", "layout.window = 3")),
        (dict(block=4, sinks=9), ("layout.sinks = 8", "layout.sinks = 12")),
        (dict(block=2, sinks=-1), ("layout.sinks = 0", "layout.sinks = 2")),
        (dict(block=3, sinks=3, gap=7), ("layout.gap = 6", "layout.gap = 9")),
    ],
)
def test_refused_lengths_name_their_neighbours(wrong, neighbours):
    with pytest.raises(ValueError, match=r"^layout\.\w+ is -?\d+ and layout\.block is \d+: [^\n]+$") as refusal:
        Layout(**wrong)
    said = str(refusal.value).replace(" or ", f" or {neighbours[0].split()[0]} = ")
    for neighbour in neighbours:
        assert neighbour in said
        name, value = neighbour.split(" = ")
        Layout(**wrong | {name.removeprefix("layout."): int(value)})


def test_unknown_kinds_and_empty_blocks_are_refused():
    with pytest.raises(ValueError, match="layout.kind is 'causal'; it is one of frame_causal, block_causal, full, "):
        Layout("causal")
    with pytest.raises(ValueError, match="layout.block is 0"):
        Layout(block=0)


def test_a_gap_moves_everything_but_the_sinks_into_the_future():
    layout = Layout("teacher_forcing", block=2, window=4, sinks=2, gap=6)
    frame, gap = np.array([[0, 1, 2, 3, 4, 5]] * 3), np.array([0, 2, 6])
    moved = layout.positions(frame, gap)
    np.testing.assert_array_equal(moved, [[0, 1, 2, 3, 4, 5], [0, 1, 4, 5, 6, 7], [0, 1, 8, 9, 10, 11]])
    np.testing.assert_array_equal(jax.jit(layout.positions)(frame, gap), moved)
    for i in range(3):  # who sees whom does not change
        ids = Ids.of(NOISY, moved[i])
        unmoved = Layout("block_causal", block=2, window=4, sinks=2).training_mask(6)
        np.testing.assert_array_equal(Layout("block_causal", block=2, window=4, sinks=2).visible(ids, ids), unmoved)
    with pytest.raises(ValueError, match="layout.gap is 2 and layout.sinks is 0: nothing can be moved, layout.gap = 0"):
        Layout(block=2, gap=2)
    with pytest.raises(ValueError, match="layout.gap is 3 and layout.block is 2.* layout.gap = 2 or 4 would do"):
        Layout(block=2, sinks=2, gap=3)


@pytest.mark.parametrize(
    ("wrong", "keys", "would_do"),
    [
        (dict(block=2, first=3), ("first", "block"), dict(first=2)),
        (dict(block=2, first=-1), ("first", "block"), dict(first=2)),
        (dict(kind="block_causal", copies=2), ("copies", "kind"), dict(copies=1)),
        (dict(copies=0), ("copies", "kind"), dict(copies=1)),
        (dict(coarse=2), ("coarse", "kind"), dict(coarse=0)),
        (dict(kind="block_causal", block=2, coarse=3), ("coarse", "block"), dict(coarse=0)),
        (dict(kind="block_causal", block=3, first=1, coarse=3), ("coarse", "block"), dict(coarse=0)),
        (dict(ranges=(4, 2)), ("ranges", "range_levels"), dict(range_levels=(0.5,))),
        (dict(ranges=(4, 2, 1), range_levels=(0.3, 0.6)), ("ranges", "range_levels"),
         dict(range_levels=(0.667, 0.333))),
        (dict(range_levels=(0.5,)), ("ranges", "range_levels"), dict(range_levels=())),
    ],
)  # fmt: skip
def test_what_clashes_names_both_keys_and_a_value_that_would_do(wrong, keys, would_do):
    with pytest.raises(ValueError, match=r"^layout\.[^\n]+ would do$") as refusal:
        Layout(**wrong)
    ((name, value),) = would_do.items()
    assert f"layout.{name} = {value}" in str(refusal.value) and all(f"layout.{key} is" in str(refusal.value)
                                                                    for key in keys)
    Layout(**wrong | would_do)
    with pytest.raises(ValueError, match="layout.ranges is .0, 1.; a block sees at least itself"):
        Layout(ranges=(0, 1), range_levels=(0.5,))


def test_what_cannot_be_cached_is_known():
    """A block that is changed by a later one: where a mask shows a clean block one behind it."""
    for kind in CLAUSES:
        ids = Ids.of(CLEAN, np.arange(4))
        later = np.triu(np.ones((4, 4), bool), 1)
        assert Layout(kind).cacheable == (not (Layout(kind).visible(ids, ids) & later).any()), kind

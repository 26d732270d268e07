"""Blocks, the streams of a training clip, how many entries of its mask are alive, and what is refused."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.layout import CLEAN, NOISY, REFERENCE, Ids, Layout, concatenate


def start_of(layout, block):
    return 0 if block == 0 else (layout.first or layout.block) + (block - 1) * layout.block


def block_of(layout, frame):
    """Counted by hand: a first block, then equal ones."""
    first = layout.first or layout.block
    return 0 if frame < first else 1 + (frame - first) // layout.block


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


@given(
    blocks=st.integers(1, 6), block=st.integers(2, 4), short=st.integers(0, 3), knot=st.integers(1, 3),
    copies=st.integers(1, 2), window=st.integers(0, 3), reference=st.integers(0, 1),
)  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_knots_and_a_reference_have_closed_forms(blocks, block, short, knot, copies, window, reference):
    """Knots are rows like those of their block, and columns of it alone; a reference one row, one column."""
    k, first = min(knot, block - 1), max(0, block - short) % block
    sizes = dict(block=block, first=first, window=window * block, copies=copies)
    plain = Layout("teacher_forcing", **sizes)
    frames = blocks * block - plain.pad
    layout = Layout("teacher_forcing", **sizes, knot=k, reference=reference)
    mask, before = layout.training_mask(frames), plain.training_mask(frames)
    ids = concatenate(*layout.training_ids(frames).values())
    T = len(before)
    assert len(mask) == T + copies * k * (blocks - 1) + reference
    # Without the rows and columns of what is new, nothing is.
    old = (ids.lead == 0) & (ids.role != REFERENCE)
    np.testing.assert_array_equal(mask[old][:, old], before)
    size = [start_of(plain, b + 1) - start_of(plain, b) for b in range(blocks)]
    past = [sum(size[max(0, b - (window or b)) : b]) for b in range(blocks)]
    # Each block but the last: k rows that see past, block and knot; and its own rows see k columns.
    new = sum(k * (past[b] + size[b] + k) + size[b] * k for b in range(blocks - 1))
    seen_by_all = reference * (T + copies * k * (blocks - 1) + 1)
    assert mask.sum() == before.sum() + copies * new + seen_by_all
    # A table of blocks counts a knot to its block.
    table, of_blocks = layout.block_table(frames), plain.block_table(frames)
    assert len(table) == len(of_blocks) + reference
    np.testing.assert_array_equal(table[: len(of_blocks), : len(of_blocks)], of_blocks)


@given(
    count=st.integers(2, 6), block=st.integers(2, 4), short=st.integers(0, 3), knot=st.integers(1, 3),
    copies=st.integers(1, 2),
)  # fmt: skip
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_knot_belongs_to_the_block_it_is_denoised_with(count, block, short, knot, copies):
    """Counted by hand; nobody else sees it, above all not the block that owns its index, whose frames it is."""
    k = min(knot, block - 1)
    layout = Layout("teacher_forcing", block=block, first=max(0, block - short) % block, copies=copies, knot=k)
    frames = count * block - layout.pad
    rows = []
    for b in range(count):
        start, stop = start_of(layout, b), start_of(layout, b + 1)
        rows += [(f, f, b) for f in range(start, stop)]
        rows += [(f, stop - 1, b) for f in range(stop, stop + k) if b < count - 1]
    frame, own, belongs = np.array(rows).T
    for one, other in zip(layout.noisy_frames(frames), (frame, own), strict=True):
        np.testing.assert_array_equal(one, other)
    ids = layout.training_ids(frames)["noisy"]
    np.testing.assert_array_equal(ids.frame, np.tile(frame, copies))
    np.testing.assert_array_equal(ids.lead, np.tile(frame != own, copies))
    np.testing.assert_array_equal(layout.block_of(ids.frame, ids.lead), np.tile(belongs, copies))
    np.testing.assert_array_equal(layout.block_start(ids.frame, ids.lead),
                                  np.tile(belongs, copies) * block - layout.pad)
    mask, clean = layout.training_mask(frames), frames - block
    assert not mask[:clean, clean:].any()
    belongs, copy = np.tile(belongs, copies), np.repeat(np.arange(copies), len(own))
    same = (belongs[:, None] == belongs) & (copy[:, None] == copy)
    np.testing.assert_array_equal(mask[clean:, clean:], same)
    # Nor does a block with a knot see clean frames that the knot shows: only those behind itself.
    of_clean = [block_of(layout, f) for f in range(clean)]
    np.testing.assert_array_equal(mask[clean:, :clean], np.array(of_clean) < belongs[:, None])


@pytest.mark.parametrize("kind", ["teacher_forcing", "block_causal", "frame_causal", "bidirectional_window", "full"])
def test_a_reference_is_seen_by_all_and_sees_itself_alone(kind):
    layout = Layout(kind, block=2, window=2, reference=1)
    ids, mask = layout.training_ids(8), layout.training_mask(8)
    assert list(ids)[-1] == "reference" and ids["reference"].frame.tolist() == [7]
    assert list(ids) == sorted(ids)
    assert mask[:, -1].all() and mask[-1].sum() == 1
    np.testing.assert_array_equal(mask[:-1, :-1], Layout(kind, block=2, window=2).training_mask(8))


@given(flying=st.integers(1, 3), behind=st.integers(0, 5), block=st.integers(1, 3), window=st.integers(0, 6),
       sinks=st.integers(0, 2))  # fmt: skip
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_bidirectional_window_has_closed_forms(flying, behind, block, window, sinks):
    """Blocks in flight see min(behind, window) clean blocks, the sinks behind these, and each other."""
    layout = Layout("bidirectional_window", block=block, window=window * block, sinks=sinks * block)
    roles = np.repeat([CLEAN, NOISY], [behind * block, flying * block])
    ids = Ids.of(roles, np.arange(len(roles)))
    mask, w = layout.visible(ids, ids), window or behind

    def past(b):
        return min(b, w) + min(sinks, max(0, b - w))

    blocks = [past(b) + 1 for b in range(behind)] + [past(behind) + flying] * flying
    np.testing.assert_array_equal(mask.sum(axis=1), np.repeat(blocks, block) * block)
    # A frame that is absent changes nothing for the others, which do not see it.
    gone = Ids(*(np.append(part, extra) for part, extra in zip(ids, (NOISY, -1 - len(roles), 0, 0, 0), strict=True)))
    wider = layout.visible(gone, gone)
    np.testing.assert_array_equal(wider[:-1, :-1], mask)
    assert not wider[:-1, -1].any() and wider[-1, -1]


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
    assert mask[:7, :3][3:].all() and not mask[:3, 3:].any()  # neither window nor range hides history
    assert mask[7:, 1:3].all() and not mask[7:, 0].any()  # its own reach does: two blocks before the window of one
    fine = Layout("block_causal", block=2, first=1, window=2, ranges=(2, 1), range_levels=(0.5,)).training_mask(9)
    np.testing.assert_array_equal(mask[3:, 3:], fine[3:, 3:])


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
        (dict(block=2, sinks=1), ("layout.sinks = 0", "layout.sinks = 2")),
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
    with pytest.raises(ValueError, match="layout.reference is 2; it lies in .0, 1., try layout.reference = 1"):
        Layout(reference=2)


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
    short = Layout("teacher_forcing", block=2, first=1, window=4, sinks=2, gap=6)  # frame 0 alone is a sink
    np.testing.assert_array_equal(short.positions(frame[:1], gap[2:]), [[0, 7, 8, 9, 10, 11]])
    with pytest.raises(ValueError, match="layout.gap is 2 and layout.sinks is 0: nothing can be moved, layout.gap = 0"):
        Layout(block=2, gap=2)
    with pytest.raises(ValueError, match="layout.gap is 3 and layout.block is 2.* layout.gap = 2 or 4 would do"):
        Layout(block=2, sinks=2, gap=3)


@pytest.mark.parametrize(
    ("wrong", "keys", "would_do"),
    [
        (dict(block=2, first=3), ("first", "block"), dict(first=2)),
        (dict(kind="block_causal", copies=2), ("copies", "kind"), dict(copies=1)),
        (dict(coarse=2), ("coarse", "kind"), dict(coarse=0)),
        (dict(kind="block_causal", block=2, coarse=3), ("coarse", "block"), dict(coarse=0)),
        (dict(kind="block_causal", block=3, first=1, coarse=3), ("coarse", "block"), dict(coarse=0)),
        (dict(ranges=(4, 2)), ("ranges", "range_levels"), dict(range_levels=(0.5,))),
        (dict(ranges=(4, 2, 1), range_levels=(0.3, 0.6)), ("ranges", "range_levels"),
         dict(range_levels=(0.667, 0.333))),
        (dict(range_levels=(0.5,)), ("ranges", "range_levels"), dict(range_levels=())),
        (dict(kind="bidirectional_window", ranges=(3,)), ("ranges", "kind"), dict(ranges=())),
        (dict(block=3, knot=3), ("knot", "block"), dict(knot=2)),
        (dict(block=1, knot=2), ("knot", "block"), dict(knot=0)),
        (dict(kind="block_causal", block=3, knot=1), ("knot", "kind"), dict(knot=0)),
        (dict(kind="bidirectional_window", block=3, knot=1), ("knot", "kind"), dict(knot=0)),
    ],
)  # fmt: skip
def test_what_clashes_names_both_keys_and_a_value_that_would_do(wrong, keys, would_do):
    with pytest.raises(ValueError, match=r"^layout\.[^\n]+ would do$") as refusal:
        Layout(**wrong)
    ((name, value),) = would_do.items()
    assert f"layout.{name} = {value}" in str(refusal.value) and all(f"layout.{key} is" in str(refusal.value)
                                                                    for key in keys)
    Layout(**wrong | would_do)
    with pytest.raises(ValueError, match="layout.ranges is .0, 1.: each is at least 1, try layout.ranges = .1, 1."):
        Layout(ranges=(0, 1), range_levels=(0.5,))

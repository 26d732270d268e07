"""The layout: its drawings, an oracle that asks frame by frame, and how many blocks are alive."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion import layout as module
from causal_diffusion.layout import CLAUSES, CLEAN, NOISY, Ids, Layout, concatenate


def drawings():
    """The masks drawn in the module docstring, in order: (row names, bool [rows, columns])."""
    found, group = [], []
    for line in [*module.__doc__.splitlines(), ""]:
        row = re.match(r"\s+([cn]?\d) +([#.](?: +[#.])*)", line)
        if row:
            group.append((row[1], [mark == "#" for mark in row[2] if mark in "#."]))
        elif group:
            found.append(([name for name, _ in group], np.array([marks for _, marks in group])))
            group = []
    return found


def sees(layout, q_role, q_frame, k_role, k_frame):
    """The rules of the docstring for one query frame and one key frame, with nothing shared with the library."""
    if k_frame < 0:
        return False
    q_block, k_block = q_frame // layout.block, k_frame // layout.block
    if layout.kind == "frame_causal":
        allowed = k_block <= q_block
    elif q_role == CLEAN:
        allowed = k_role == CLEAN and k_block <= q_block
    else:
        allowed = (k_role == CLEAN and k_block < q_block) or (k_role == NOISY and k_block == q_block)
    before = q_block * layout.block - k_frame  # how many frames before the query's block the key stands
    return allowed and (not layout.window or before <= layout.window or k_frame < layout.sinks)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_masks_are_as_drawn(block):
    (_, causal), (names, teacher), (rows, narrow) = drawings()
    each_frame = np.ones((block, block), bool)
    assert names == ["c0", "c1", "c2", "n0", "n1", "n2", "n3"] and rows == ["3", "4", "5"]
    drawn = {"frame_causal": causal, "teacher_forcing": teacher}
    for kind, blocks in drawn.items():
        layout = Layout(kind, block=block)
        np.testing.assert_array_equal(layout.training_mask(4 * block), np.kron(blocks, each_frame), err_msg=kind)
        np.testing.assert_array_equal(layout.block_table(4 * block), blocks, err_msg=kind)
    layout = Layout("frame_causal", block=block, window=2 * block, sinks=block)
    np.testing.assert_array_equal(layout.training_mask(6 * block)[3 * block :], np.kron(narrow, each_frame))


def test_teacher_forcing_is_narrowed_as_frame_causal_is():
    """Window and sinks are clauses of their own: they hide the same keys from both roles of teacher forcing."""
    causal = Layout("frame_causal", block=2, window=4, sinks=2).block_table(14)
    teacher = Layout("teacher_forcing", block=2, window=4, sinks=2).block_table(14)
    itself = np.eye(7, dtype=bool)
    np.testing.assert_array_equal(teacher[:6, :6], causal[:6, :6])
    np.testing.assert_array_equal(teacher[6:, :6], (causal & ~itself)[:, :6])
    np.testing.assert_array_equal(teacher[6:, 6:], itself)
    assert not teacher[:6, 6:].any()


@given(blocks=st.integers(1, 9), block=st.integers(1, 4), window=st.integers(0, 6), sinks=st.integers(0, 4))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_live_blocks_have_closed_forms(blocks, block, window, sinks):
    N, frames = blocks, blocks * block
    whole = Layout("teacher_forcing", block=block)
    noisy, clean = (Ids.of(role, np.arange(frames)) for role in (NOISY, CLEAN))
    both = concatenate(clean, noisy)
    full = whole.visible(both, both)[::block, ::block]
    assert full.shape == (2 * N, 2 * N) and full.sum() == N * N + N
    table = whole.block_table(frames)
    assert table.shape == (2 * N - 1, 2 * N - 1) and table.sum() == N * N  # without the last clean block
    assert Layout("frame_causal", block=block).block_table(frames).sum() == N * (N + 1) // 2

    # A window of w blocks and s sinks leave block q the last min(q, w) before it and min(s, q - w) sinks.
    narrow = Layout("frame_causal", block=block, window=window * block, sinks=sinks * block)
    w = window or N
    past = [min(q, w) + min(sinks, max(0, q - w)) for q in range(N)]
    np.testing.assert_array_equal(narrow.block_table(frames).sum(axis=1), np.array(past) + 1)
    dropped = Layout("teacher_forcing", block=block, window=window * block, sinks=sinks * block)
    # clean rows but the last: past and itself; noisy rows: past and itself
    assert dropped.block_table(frames).sum() == sum(past) + N + sum(past[:-1]) + N - 1


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_visible_equals_asking_frame_by_frame(data):
    block = data.draw(st.integers(1, 4))
    layout = Layout(
        data.draw(st.sampled_from(sorted(CLAUSES))),
        block=block,
        window=block * data.draw(st.integers(0, 4)),
        sinks=block * data.draw(st.integers(0, 3)),
    )
    ids = st.tuples(st.sampled_from([NOISY, CLEAN]), st.integers(-1, 24))
    queries = data.draw(st.lists(ids.filter(lambda i: i[1] >= 0), min_size=1, max_size=6))
    keys = data.draw(st.lists(ids, min_size=1, max_size=8))
    q, k = (Ids(*np.array(rows).T) for rows in (queries, keys))
    expected = [[sees(layout, *one, *other) for other in keys] for one in queries]
    np.testing.assert_array_equal(layout.visible(q, k), expected)


@pytest.mark.parametrize("kind", sorted(CLAUSES))
def test_traced_ids_give_the_mask_that_numpy_gives(kind):
    layout = Layout(kind, block=2, window=4, sinks=2)
    rng = np.random.default_rng(0)
    q = Ids(rng.integers(0, 2, (3, 5)), rng.integers(0, 20, (3, 5)))
    k = Ids(rng.integers(0, 2, (3, 9)), rng.integers(-1, 20, (3, 9)))
    by_numpy = layout.visible(q, k)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.shape == (3, 5, 9) and by_numpy.any() and not by_numpy.all()
    np.testing.assert_array_equal(jax.jit(layout.visible)(q, k), by_numpy)
    for i in range(3):  # per sample as one by one
        alone = layout.visible(*(Ids(x.role[i], x.frame[i]) for x in (q, k)))
        np.testing.assert_array_equal(by_numpy[i], alone)


def test_a_window_as_long_as_the_clip_hides_nothing():
    for kind in CLAUSES:
        wide = Layout(kind, block=3, window=9).training_mask(12)
        np.testing.assert_array_equal(wide, Layout(kind, block=3).training_mask(12))
        assert (wide & ~Layout(kind, block=3, window=6).training_mask(12)).any()


def test_training_drops_only_what_nobody_reads():
    layout, frames = Layout("teacher_forcing", block=2), 8
    clean, noisy = (Ids.of(role, np.arange(frames)) for role in (CLEAN, NOISY))
    every = concatenate(clean, noisy)
    mask = layout.visible(every, every)
    last = np.isin(np.arange(16), [6, 7])
    assert not mask[~last][:, last].any()
    np.testing.assert_array_equal(layout.training_mask(frames), mask[~last][:, ~last])


@pytest.mark.parametrize(
    ("wrong", "neighbours"),
    [
        (dict(block=4, window=6), ("layout.window = 4", "layout.window = 8")),
        (dict(block=3, window=2), ("layout.window = 0", "layout.window = 3")),
        (dict(block=4, sinks=9), ("layout.sinks = 8", "layout.sinks = 12")),
        (dict(block=2, sinks=-1), ("layout.sinks = 0", "layout.sinks = 2")),
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
    with pytest.raises(ValueError, match="layout.kind is 'causal'; it is one of frame_causal, teacher_forcing"):
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
        unmoved = Layout("frame_causal", block=2, window=4, sinks=2).training_mask(6)
        np.testing.assert_array_equal(Layout("frame_causal", block=2, window=4, sinks=2).visible(ids, ids), unmoved)
    with pytest.raises(ValueError, match="layout.gap is 2 and layout.sinks is 0: nothing can be moved, layout.gap = 0"):
        Layout(block=2, gap=2)
    with pytest.raises(ValueError, match="layout.gap is 3 and layout.block is 2.* layout.gap = 2 or 4 would do"):
        Layout(block=2, sinks=2, gap=3)

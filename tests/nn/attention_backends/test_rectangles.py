"""The plan of a mask: every visible pair once, and no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.layout import Layout, StaticMask
from causal_diffusion.nn.attention_backends.rectangles import LEAST_ROWS, Rectangle, plan


def drawn(mask, sizes, tokens):
    """How often a plan computes each pair, what its own masks hide left out, and its runs."""
    mask = StaticMask(mask)
    rectangles, runs = plan(mask, sizes, tokens)
    count, starts = np.zeros(mask.shape, int), np.cumsum((0, *sizes))
    queries = []
    for part in rectangles:
        rows = np.concatenate([np.arange(*r) for r in part.rows])
        keys = starts[part.part] + np.arange(*part.keys)
        assert len(rows) % part.squares == 0 and len(keys) % part.squares == 0
        for some, seen in zip(np.split(rows, part.squares), np.split(keys, part.squares), strict=True):
            count[np.ix_(some, seen)] += True if part.mask is None else part.mask.array
        queries.append(rows)
    for run in runs:
        for number, at in run.at:
            np.testing.assert_array_equal(queries[number][at : at + run.end - run.start], np.arange(run.start, run.end))
    return count, runs


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 7),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from([1, LEAST_ROWS // 2, LEAST_ROWS // 3, LEAST_ROWS]),
    st.integers(0, 2**32 - 1),
)
def test_every_visible_pair_is_computed_once_and_no_other(rows, sizes, tokens, seed):
    mask = np.random.default_rng(seed).random((rows, sum(sizes))) < 0.5
    mask[:, 0] |= ~mask.any(axis=1)
    count, runs = drawn(mask, tuple(sizes), tokens)
    np.testing.assert_array_equal(count, mask)
    assert [run.start for run in runs] == [0, *(run.end for run in runs[:-1])] and runs[-1].end == rows


LAYOUTS = [
    Layout("block_causal", block=3),
    Layout("block_causal", block=1, window=2, sinks=1),
    Layout("frame_causal", block=2, first=1),
    Layout("teacher_forcing", block=2),
    Layout("teacher_forcing", block=1, window=3, sinks=1, copies=2),
    Layout("teacher_forcing", block=3, knot=1),
    Layout("teacher_forcing", block=2, reference=1),
    Layout("full"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.kind}-{a.block}-{a.window}-{a.copies}-{a.knot}")
def test_the_mask_of_a_layout_is_covered(layout):
    frames = 6 * layout.block - layout.pad
    mask = layout.training_mask(frames)
    for tokens in (1, LEAST_ROWS):
        np.testing.assert_array_equal(drawn(mask, (len(mask),), tokens)[0], mask)
    exact = plan(StaticMask(mask), (len(mask),), LEAST_ROWS)
    assert exact.pairs == mask.sum() and all(part.mask is None for part in exact.rectangles)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_teacher_forcing_takes_as_many_rectangles_as_blocks(n):
    """The closed forms: n^2 blocks of pairs, 2n - 1 runs, and the noisy blocks' own squares in one product."""
    mask = StaticMask(Layout("teacher_forcing", block=2).training_mask(2 * n))
    rectangles, runs = plan(mask, (len(mask.array),), LEAST_ROWS // 2)
    assert sum(part.pairs for part in rectangles) == 4 * n**2
    assert len(rectangles) == n and len(runs) == 2 * n - 1
    assert [part.squares for part in rectangles if part.squares > 1] == [n]


def test_a_full_mask_is_one_rectangle_of_each_array():
    rectangles, runs = plan(StaticMask(np.ones((3, 7))), (5, 2), 1)
    assert rectangles == (Rectangle(((0, 3),), 0, (0, 5)), Rectangle(((0, 3),), 1, (0, 2)))
    assert [(run.start, run.end) for run in runs] == [(0, 3)]


def test_a_query_that_sees_nothing_is_refused():
    with pytest.raises(ValueError, match="query frame 1 sees no key"):
        plan(StaticMask([[True], [False]]), (1,), 1)


def test_frames_of_few_tokens_are_taken_together():
    """As drawn: what both of a pair see is a rectangle, what one of them sees is one with a mask."""
    mask = StaticMask(Layout("block_causal", block=1).training_mask(4))
    rectangles, runs = plan(mask, (4,), LEAST_ROWS // 2)
    assert [(run.start, run.end) for run in runs] == [(0, 2), (2, 4)]
    assert {part.keys: part.mask for part in rectangles} == {
        (0, 1): None, (1, 2): StaticMask([[False], [True]]), (0, 3): None, (3, 4): StaticMask([[False], [True]]),
    }  # fmt: skip

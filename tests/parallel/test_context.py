"""Frames in another order: everyone is there, everyone has as much to do, and everything is put back."""

import itertools

import jax
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.parallel import activations
from causal_diffusion.parallel.context import balanced
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.training.objectives.diffusion import frame_order

CASES = list(itertools.product((2, 4, 8), (8, 12, 16, 17), (1, 2, 3)))


def random_case(shards, blocks, block):
    rng = np.random.default_rng(blocks)
    group = np.repeat(np.arange(blocks), block)
    return rng.integers(1, 50, len(group)), group


@pytest.mark.parametrize(("shards", "blocks", "block"), CASES)
def test_every_frame_is_there_once_and_comes_back(shards, blocks, block):
    work, group = random_case(shards, blocks, block)
    order = balanced(work, group, shards)
    T = blocks * block
    assert len(order.frames) % (shards * block) == 0 and len(order.frames) - T < shards * block
    np.testing.assert_array_equal(np.sort(order.frames[order.real]), np.arange(T))
    x = np.arange(2 * T * 3).reshape(2, T, 3)
    np.testing.assert_array_equal(order.restore(order.take(x)), x)
    # A block stays together.
    rows = order.frames.reshape(-1, block)
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(block))
    assert not np.any(rows[:, 0] % block)


@pytest.mark.parametrize(("shards", "blocks"), [(2, 8), (4, 8), (4, 16), (8, 16)])
def test_work_of_a_causal_clip_is_equal(shards, blocks):
    work = np.repeat(np.arange(1, blocks + 1), 2)
    order = balanced(work, np.repeat(np.arange(blocks), 2), shards)
    each = work[order.frames].reshape(shards, -1).sum(axis=1)
    assert set(each) == {work.sum() / shards}
    assert max(work.reshape(shards, -1).sum(axis=1)) > 1.2 * each[0]  # cut into equal pieces it would not be


def test_the_example_of_the_docstring():
    order = balanced(np.arange(1, 9), np.arange(8), 4)
    np.testing.assert_array_equal(order.frames.reshape(4, 2), [[0, 7], [1, 6], [2, 5], [3, 4]])


def test_masks_move_with_their_frames():
    """Whoever sees whom, sees him elsewhere; columns of the past stay, and what fills up is seen by nobody."""
    rng = np.random.default_rng(0)
    mask = rng.random((2, 5, 9)) < 0.5
    order = balanced(np.array([1, 5, 2, 4, 3]), np.arange(5), 2)
    moved = order.mask(mask)
    assert moved.shape == (2, 6, 10)
    np.testing.assert_array_equal(moved[:, order.back][:, :, :4], mask[:, :, :4])
    np.testing.assert_array_equal(moved[:, order.back][..., 4 + order.back], mask[..., 4:])
    assert not moved[..., 4:][..., ~order.real].any()


def test_what_holds_for_all_frames_stays():
    order = balanced(np.arange(4), np.arange(4), 2)
    assert order.take(np.zeros((3, 1, 2))).shape == (3, 1, 2) and order.take(None) is None


@pytest.mark.parametrize("layout", [
    Layout(kind="teacher_forcing", block=2), Layout(kind="teacher_forcing", block=3, first=1, copies=2),
    Layout(kind="teacher_forcing", block=2, knot=1), Layout(kind="block_causal", block=1, coarse=3),
    Layout(kind="teacher_forcing", block=1, reference=1),
], ids=str)
def test_every_layout_can_be_shared(layout):
    frames = 13 if layout.first else 12
    order = frame_order(layout, frames, 4)
    mask = layout.training_mask(frames)[layout.coarse :]
    assert len(order.back) == len(mask) and len(order.frames) % 4 == 0
    work = np.where(order.real, mask.sum(axis=1)[order.frames], 0).reshape(4, -1).sum(axis=1)
    # Never worse than by the heaviest unit that is dealt out, and better than cut into equal pieces.
    pieces = [piece.sum() for piece in np.array_split(mask.sum(axis=1), 4)]
    assert work.max() - work.min() <= max(pieces) - min(pieces)


def test_parts_of_a_shape_are_those_that_constrain_makes():
    """One axis or two of a mesh, and none where they do not divide."""
    for sizes, wanted in (((2, 1, 2, 2), 2 * 4), ((1, 2, 1, 1), 2), ((8, 1, 1, 1), 8), ((1, 1, 4, 2), 1 * 8)):
        with jax.set_mesh(make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])):
            assert activations.parts((8, 8), "batch", "all heads") == wanted
            assert activations.parts((1, 8), "batch", None) == 1
    assert activations.parts((8, 8), "batch", "all heads") == 1

"""What the numbers of a frame mean: undone exactly, whole or piece by piece, in every representation."""

import json

import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion.body import REPRESENTATIONS, Body, statistics
from causal_diffusion.motion.skeleton import of
from tests.motion_data import NAMED, PARENTS

KINDS = list(REPRESENTATIONS)


def positions(frames=13, seed=0):
    """A body that wanders and turns, in metres."""
    rng = np.random.default_rng(seed)
    rest = np.array([[0.1 * (i % 5) - 0.2, 0.05 * i, 0.02 * (i % 3)] for i in range(21)])
    moved = rest + 0.02 * rng.standard_normal((frames, 21, 3)).cumsum(axis=0)
    moved[..., ::2] += 0.05 * rng.standard_normal((frames, 1, 2)).cumsum(axis=0)
    return moved - [moved[0, 0, 0], 0, moved[0, 0, 2]]  # begins over the origin


def body_of(kind, numbers):
    mean, std = statistics([numbers], kind, 21)
    return Body(kind, tuple(NAMED), tuple(PARENTS), 20.0, tuple(map(float, mean)), tuple(map(float, std)))


@pytest.fixture(params=KINDS)
def made(request):
    """(body, frames [T, C], the positions that they tell [T, J, 3])."""
    way, x = REPRESENTATIONS[request.param], positions()
    numbers = way.encode(x, of(NAMED, PARENTS)).astype(np.float32)
    assert numbers.shape == (13 - way.lost, way.width(21))
    body = body_of(request.param, numbers)
    return body, body.normalise(numbers), x[: len(numbers)]


def turned(x):
    """Ground distances between all joints of all frames: what a heading at the start cannot change."""
    flat = x[..., ::2].reshape(-1, 2)
    return np.linalg.norm(flat[:, None] - flat, axis=-1)


def test_frames_are_undone(made):
    body, frames, x = made
    got, _ = body.positions(frames)
    np.testing.assert_allclose(got[..., 1], x[..., 1], atol=1e-5)
    np.testing.assert_allclose(turned(got), turned(x), atol=2e-5)
    if body.representation == "joints":
        np.testing.assert_allclose(got, x, atol=1e-5)
    np.testing.assert_allclose(body.normalise(body.denormalise(frames)), frames, atol=1e-5)


@pytest.mark.parametrize("cuts", [(1,), (4, 5), (3, 6, 9, 12)])
def test_pieces_are_the_whole(made, cuts):
    body, frames, _ = made
    whole, end = body.positions(frames)
    at, parts = None, []
    for piece in np.split(frames, cuts):
        if len(piece):
            joints, at = body.positions(piece, at)
            parts.append(joints)
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([np.ravel(a) for a in at]),
                               np.concatenate([np.ravel(a) for a in end]), atol=1e-5)  # fmt: skip


def test_batches_are_their_rows(made):
    body, frames, _ = made
    both = np.stack([frames, frames[::-1]])
    got, _ = body.positions(both)
    for row, clip in zip(got, both, strict=True):
        np.testing.assert_allclose(row, body.positions(clip)[0], atol=1e-6)


def test_local_joints_neither_go_nor_turn(made):
    """The hips stay over the origin, heights stay, and so do distances inside a frame."""
    body, frames, x = made
    local = body.local(frames)
    assert local.shape == x.shape
    np.testing.assert_allclose(local[:, 0, ::2], 0.0, atol=1e-6)
    np.testing.assert_allclose(local[..., 1], x[..., 1], atol=1e-5)
    for a, b in zip(local, x, strict=True):
        np.testing.assert_allclose(turned(a), turned(b), atol=1e-5)
    longer = np.array(frames)
    moving = slice(0, 2) if body.representation == "joints" else slice(0, 3)
    longer[:, moving] += 5.0
    np.testing.assert_allclose(body.local(longer), local, atol=1e-5)


def test_numbers_of_a_kind_share_a_deviation(made):
    body, frames, _ = made
    np.testing.assert_allclose(frames.mean(axis=0), 0.0, atol=1e-4)
    for kind in REPRESENTATIONS[body.representation].groups(21).values():
        assert len(set(body.std[kind])) == 1
        np.testing.assert_allclose(frames[:, kind].std(axis=0).mean(), 1.0, rtol=1e-3)


def test_a_body_goes_into_the_meta_of_a_checkpoint_and_comes_back(made):
    body, frames, _ = made
    again = Body.of_meta(json.loads(json.dumps(body.to_meta())))
    assert again == body and hash(again) == hash(body)
    assert Body.of_meta(None) is None and Body.of_meta({}) is None
    assert body.joints == 21 and body.skeleton.names == tuple(NAMED)
    with pytest.raises(UserError, match=rf"has {len(body.mean)} numbers, and these have 5"):
        body.positions(frames[:, :5])


def test_what_does_not_move_is_not_scaled():
    numbers = np.zeros((6, 64), np.float32)
    numbers[:, 4:] = np.random.default_rng(0).standard_normal((6, 60))
    _, std = statistics([numbers], "essential", 21)
    np.testing.assert_array_equal(std[:4], 1.0)
    assert (std[4:] != 1.0).all()

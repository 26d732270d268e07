import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import joints


def motion(*lead, frames=7, count=4, seed=0):
    """Positions and a path on a grid of 1/64 m, so that sums and differences are exact in float32."""
    rng = np.random.default_rng(seed)
    positions = rng.integers(-64, 64, (*lead, frames, count, 3)) / 64
    positions[..., 0, ::2] = 0.0  # the hips are above their ground point
    path = rng.integers(-640, 640, (*lead, frames, 2)) / 64
    return positions.astype(np.float32), path.astype(np.float32)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_decoding_is_the_exact_inverse_up_to_where_the_clip_starts(lead, kind):
    positions, root = (kind(a) for a in motion(*lead))
    x = joints.encode(positions, root)
    assert x.shape == (*lead, 7, joints.width(4)) and x.dtype == np.float32
    assert isinstance(x, jax.Array) == (kind is jnp.asarray)
    back, path = joints.decode(x)
    np.testing.assert_array_equal(back, positions)
    np.testing.assert_array_equal(path, root - root[..., :1, :])
    np.testing.assert_array_equal(joints.decode(x, before=root[..., 0, :])[1], root)
    np.testing.assert_array_equal(joints.encode(*joints.decode(x)), x)
    assert type(back) is type(path) is type(x)


def test_the_numbers_of_a_frame_by_hand():
    positions = np.arange(12.0).reshape(2, 2, 3)
    root = np.array([[10.0, 20.0], [13.0, 16.0]])
    np.testing.assert_array_equal(
        joints.encode(positions, root), [[0, 0, 0, 1, 2, 3, 4, 5], [3, -4, 6, 7, 8, 9, 10, 11]]
    )
    parts = joints.groups(2)
    assert parts == {"root velocity": slice(0, 2), "joint positions": slice(2, 8)} and joints.width(21) == 65
    np.testing.assert_array_equal(joints.world(positions, root)[1], [[19, 7, 24], [22, 10, 27]])


@pytest.mark.parametrize("cuts", [(1,), (3, 4), (2, 6)])
def test_pieces_equal_the_whole(cuts):
    positions, root = motion(2)
    whole, pieces, path, before, at = joints.encode(positions, root), [], [], None, None
    for p, r in zip(np.split(positions, cuts, axis=1), np.split(root, cuts, axis=1), strict=True):
        piece = joints.encode(p, r, before)
        before = r[:, -1]
        pieces.append(piece)
        path.append(joints.decode(piece, at)[1])
        at = path[-1][:, -1]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    np.testing.assert_array_equal(np.concatenate(path, axis=1), joints.decode(whole)[1])


def test_a_frame_depends_on_no_later_one():
    positions, root = motion()
    x = joints.encode(positions, root)
    positions[4:] += 1.0
    root[4:] += 2.0
    changed = joints.encode(positions, root)
    np.testing.assert_array_equal(changed[:4], x[:4])
    assert (changed[4] != x[4]).any()


def test_decoding_is_differentiable():
    """A step of the hips moves every later frame."""
    x = jnp.asarray(joints.encode(*motion()))
    gradient = jax.grad(lambda x: joints.world(*joints.decode(x))[-1].sum())(x)
    np.testing.assert_array_equal(gradient[:, :2], np.full((7, 2), 4.0))
    np.testing.assert_array_equal(gradient[-1, 2:], np.ones(12))
    assert not gradient[:-1, 2:].any()


def test_bad_shapes_are_named():
    positions, root = motion()
    for p, r in ((positions, root[:-1]), (positions[..., :2], root), (positions[0], root[0]), (positions, root[:, :1])):
        with pytest.raises(UserError, match=r"are no motion: \[..., frames, joints, 3\]"):
            joints.encode(p, r)
    for numbers in (64, 2, 1):
        with pytest.raises(UserError, match=f"a frame has {numbers} numbers: .* 65 of 21 joints would do"):
            joints.decode(np.zeros((3, numbers)))

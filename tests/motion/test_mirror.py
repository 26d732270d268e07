import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion.mirror import mirror_caption, mirror_positions, mirror_vector
from causal_diffusion.motion.skeleton import HUMANML3D


def test_positions_change_sides():
    positions = np.random.default_rng(0).standard_normal((2, 5, 22, 3)).astype(np.float32)
    mirrored = mirror_positions(positions, HUMANML3D)
    np.testing.assert_array_equal(mirrored[..., 21, :], positions[..., 20, :] * np.float32([-1, 1, 1]))
    np.testing.assert_array_equal(mirrored[..., 0, 0], -positions[..., 0, 0])
    np.testing.assert_array_equal(mirror_positions(mirrored, HUMANML3D), positions)
    also = mirror_positions(jnp.asarray(positions), HUMANML3D)
    assert isinstance(also, jax.Array) and mirrored.dtype == also.dtype == np.float32
    np.testing.assert_array_equal(also, mirrored)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"positions \(5, 21, 3\) are not of 22 joints"):
        mirror_positions(np.zeros((5, 21, 3)), HUMANML3D)
    with pytest.raises(UserError, match="22 joints have no 251 numbers per frame: 263 or 67 would do"):
        mirror_vector(np.zeros((5, 251)), HUMANML3D)


@pytest.mark.parametrize("text, mirrored", [
    ("a person raises the left hand, then the right one.", "a person raises the right hand, then the left one."),
    ("Left, RIGHT and left-handed; rightwards, leftmost", "Right, LEFT and right-handed; leftwards, rightmost"),
    ("turns clockwise on his lefthand side", "turns counterclockwise on his righthand side"),
    ("Counterclockwise circle", "Clockwise circle"),
    ("CLOCKWISE and counter-clockwise", "COUNTERCLOCKWISE and clockwise"),
    ("walks anti-clockwise", "walks clockwise"),
    ("upright and brightly, a copyright, a leftover", "upright and brightly, a copyright, a leftover"),
    ("left/ADJ right/NOUN", "right/ADJ left/NOUN"),
    ("", ""),
])  # fmt: skip
def test_captions(text, mirrored):
    assert mirror_caption(text) == mirrored
    if "-clock" not in text:
        assert mirror_caption(mirrored) == text

"""The entrance of frames: pixels are mapped, floats in range are kept, and all else is refused in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from causal_diffusion.errors import UserError
from causal_diffusion.frames import OVERSHOOT, ROUNDING, are_pictures, as_floats, check_values, take_frames

PIXELS = npst.arrays(np.uint8, (2, 3, 2, 1))
FLOATS = npst.arrays(np.float32, (2, 3, 2, 1), elements=st.floats(-1.0, 1.0, width=32))


@settings(deadline=None, max_examples=40)
@given(pixels=PIXELS)
def test_pixels_are_mapped_to_the_range_of_the_data(pixels):
    taken = take_frames("x", pixels, (3, 2, 1), pictures=True)
    assert taken.dtype == np.float32 and abs(taken).max() <= 1.0
    np.testing.assert_array_equal(np.rint((taken + 1.0) * 127.5), pixels)
    np.testing.assert_array_equal(take_frames("x", taken, pictures=True, tolerance=ROUNDING), taken)


def test_pixels_on_a_device_are_mapped_alike():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(as_floats(jnp.asarray(pixels)), as_floats(pixels), atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(frames=FLOATS, dtype=st.sampled_from([np.float64, np.float32, np.float16, jnp.bfloat16]))
def test_floats_in_range_are_kept(frames, dtype):
    frames = frames.astype(dtype)
    taken = take_frames("x", frames, pictures=True, tolerance=ROUNDING)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, frames.astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(frames=FLOATS, at=st.integers(0, 11), wild=st.sampled_from([2.0, -1.5, 127.0, 255.0, 1e30, -1e300]))
def test_pictures_out_of_range_are_refused_and_other_data_are_not(frames, at, wild):
    frames = frames.astype(np.float64)
    frames.flat[at] = wild
    with pytest.raises(UserError, match=r"^x has (values from|a value that is not finite)") as error:
        take_frames("x", frames, pictures=True)
    assert "\n" not in str(error.value)
    if abs(wild) < 1e38:
        take_frames("x", frames, pictures=False)


@settings(deadline=None, max_examples=40)
@given(frames=FLOATS, at=st.integers(0, 11), bad=st.sampled_from([np.nan, np.inf, -np.inf]), pictures=st.booleans())
def test_values_that_are_not_finite_are_refused_with_their_place(frames, at, bad, pictures):
    frames.flat[at] = bad
    place = [int(i) for i in np.unravel_index(at, frames.shape)]
    with pytest.raises(UserError) as error:
        take_frames("x", frames, pictures=pictures)
    assert str(error.value) == f"x has a value that is not finite, at {place}"


def test_tolerances():
    for tolerance in (ROUNDING, OVERSHOOT):
        check_values("x", np.full((2, 2), 1.0 + 0.99 * tolerance), pictures=True, tolerance=tolerance)
        with pytest.raises(UserError, match="floats of pictures lie in"):
            check_values("x", np.full((2, 2), -1.0 - 1.01 * tolerance), pictures=True, tolerance=tolerance)


def test_unknown_values_may_be_nan_where_that_is_said():
    frames = np.full((2, 2, 2, 1), np.nan, np.float32)
    assert np.isnan(take_frames("x", frames, pictures=True, unknown=True)).all()
    frames[0] = 0.5
    np.testing.assert_array_equal(take_frames("x", frames, pictures=True, unknown=True), frames)
    frames[1, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"not finite, at \[1, 0, 0, 0\]; unknown values are NaN"):
        take_frames("x", frames, pictures=True, unknown=True)
    frames[1, 0, 0] = 200.0
    with pytest.raises(UserError, match="values from 0.5 to 200"):
        take_frames("x", frames, pictures=True, unknown=True)


@pytest.mark.parametrize(("frames", "said"), [
    (np.zeros((2, 4, 4, 1), np.int64), r"x is int64\[2, 4, 4, 1\]; it is float in \[-1, 1\], or uint8 pixels"),
    (np.zeros((2, 4, 4, 1), bool), r"x is bool\[2, 4, 4, 1\]; it is float"),
    (np.zeros((2, 4, 4, 1), complex), r"x is complex128\[2, 4, 4, 1\]; it is float"),
    ([[1.0], [1.0, 2.0]], "it is an array of numbers"),
    ("frames", "x is 'frames'; it is an array of numbers"),
    (np.array([None, 1.0]), "it is an array of numbers"),
    (np.zeros((2, 4, 5, 1)), r"x is float64\[2, 4, 5, 1\]; its last axes are \[4, 4, 1\]"),
    (np.zeros((1,)), r"x is float64\[1\]; its last axes are \[4, 4, 1\]"),
])  # fmt: skip
def test_what_are_no_frames_is_refused_in_one_line(frames, said):
    with pytest.raises(UserError, match=said) as error:
        take_frames("x", frames, (4, 4, 1), pictures=True)
    assert "\n" not in str(error.value)


def test_no_frames_are_frames():
    assert take_frames("x", np.zeros((0, 4, 4, 1)), (4, 4, 1), pictures=True).shape == (0, 4, 4, 1)
    assert are_pictures((8, 8, 3)) and are_pictures((2, 8, 8, 1))
    assert not are_pictures((8, 8, 16)) and not are_pictures((3,))

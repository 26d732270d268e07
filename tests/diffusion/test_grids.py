"""The times of levels: shifted, respaced, EDM's, and the published lists of few-step students."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.schedule import Schedule, nearest, warp

quick = settings(max_examples=80, deadline=None, derandomize=True)


@given(steps=st.integers(1, 20), shift=st.floats(0.2, 8.0), t_max=st.floats(0.1, 1.0))
@quick
def test_times_follow_the_shift(steps, shift, t_max):
    times = Schedule(steps, shift=shift, t_max=t_max).times()
    assert times.dtype == np.float32 and times.shape == (steps + 1,) and times[0] == 0
    np.testing.assert_allclose(times[-1], t_max, rtol=1e-6)
    assert (np.diff(times) > 0).all()
    # The shift multiplies the odds of u by m, whatever m is.
    u = np.arange(1, steps) / steps
    t = times[1:-1].astype(np.float64) / t_max
    np.testing.assert_allclose(t / (1 - t), shift * u / (1 - u), rtol=2e-4)


def test_without_a_shift_times_are_even():
    np.testing.assert_array_equal(Schedule(4).times(), np.array([0, 0.25, 0.5, 0.75, 1], np.float32))
    np.testing.assert_array_equal(Schedule(2, t_max=0.5).times(), np.array([0, 0.25, 0.5], np.float32))


@given(steps=st.integers(1, 50), K=st.sampled_from([50, 1000, 1024]), t_max=st.sampled_from([1.0, 0.5]))
@quick
def test_the_discrete_grid_is_that_of_ddim(steps, K, t_max):
    """Level j has index trunc(-1 + j K' / S), -1 is clean, and index i stands at (i + 1) / K."""
    if steps > t_max * K:
        return
    times = Schedule(steps, grid="discrete", grid_steps=K, t_max=t_max).times()
    index = np.round(times.astype(np.float64) * K) - 1
    np.testing.assert_allclose(times, (index + 1) / K, rtol=1e-6)
    exact = [-1 + (j * int(t_max * K)) // steps for j in range(steps + 1)]  # what is truncated is no less than -1
    np.testing.assert_array_equal(index, exact)


def test_the_discrete_grid_of_diffusion_forcing():
    """100 of 1000 indices: linspace(-1, 999, 101) in whole numbers."""
    index = np.round(Schedule(100, grid="discrete").times() * 1000) - 1
    np.testing.assert_array_equal(index, np.arange(-1, 1000, 10))


@given(steps=st.integers(2, 40), rho=st.floats(1.0, 10.0), low=st.floats(1e-3, 0.1), high=st.floats(1.0, 200.0))
@quick
def test_the_edm_grid_is_even_in_the_root_of_sigma(steps, rho, low, high):
    times = Schedule(steps, grid="edm", rho=rho, sigma_min=low, sigma_max=high).times()
    assert times[0] == 0 and (np.diff(times) > 0).all() and times[-1] < 1
    root = np.tan(np.pi / 2 * times[1:].astype(np.float64)) ** (1 / rho)
    np.testing.assert_allclose(root, np.linspace(low ** (1 / rho), high ** (1 / rho), steps), rtol=5e-4)


def test_one_edm_step_starts_at_the_largest_noise():
    time = float(Schedule(1, grid="edm").times()[1])
    np.testing.assert_allclose(np.tan(np.pi / 2 * time), 80, rtol=1e-3)


def test_the_published_warped_lists():
    np.testing.assert_allclose(warp((1000, 750, 500, 250), 5.0), [1, 15 / 16, 5 / 6, 5 / 8], rtol=1e-12)
    five = warp((1000, 800, 600, 400, 200, 0), 5.0)
    np.testing.assert_allclose(np.multiply(five, 1000), [1000, 952.38, 882.35, 769.23, 555.56], atol=5e-3)
    plain = nearest((1000, 757, 522, 0), 8.0)
    np.testing.assert_allclose(np.multiply(plain, 1000), [1000, 756.76, 521.74], atol=5e-3)
    assert nearest(np.multiply(five, 1000), 5.0) == pytest.approx(five)  # warped times are entries of the table


def test_a_student_steps_at_the_times_of_its_list():
    schedule = Schedule(4, step_times=warp((1000, 750, 500, 250), 5.0))
    np.testing.assert_allclose(schedule.times(), [0, 0.625, 5 / 6, 0.9375, 1], rtol=1e-6)
    np.testing.assert_array_equal(schedule.matrix(2), Schedule(4).matrix(2))


def test_the_first_block_has_times_of_its_own():
    schedule = Schedule(4, first_steps=8, shift=3.0)
    np.testing.assert_array_equal(schedule.times(first=True), Schedule(8, shift=3.0).times())
    np.testing.assert_array_equal(schedule.times(), Schedule(4, shift=3.0).times())
    np.testing.assert_array_equal(Schedule(4).times(first=True), Schedule(4).times())

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.render.projection import Camera, blank, checker, draw_tube, fitted, view_axes

angles = st.floats(-3, 3), st.floats(-0.3, 1.4)


@given(*angles)
def test_the_axes_are_right_handed_and_look_at_what_is_in_front(azimuth, elevation):
    axes = view_axes(azimuth, elevation)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(axes[0], axes[1]), -axes[2], atol=1e-12)
    camera = Camera((1.0, 2.0, 3.0), azimuth, elevation, 200, 100)
    pixel, depth = camera.project(np.array(camera.eye) + 4 * axes[2])
    np.testing.assert_allclose([*pixel, depth], [100, 50, 4], atol=1e-9)
    assert np.isnan(camera.project(np.array(camera.eye) - axes[2])[1])


def test_which_side_is_which():
    """From +z, looking towards -z: x to the right and y up."""
    camera = Camera((0.0, 1.0, 5.0), 0.0, 0.0, 200, 100)
    (right, _), (_, up) = (camera.project(np.array(p))[0] for p in ((1.0, 1.0, 0.0), (0.0, 2.0, 0.0)))
    assert right > 100 and up < 50
    from_the_left = Camera((5.0, 1.0, 0.0), np.pi / 2, 0.0, 200, 100)
    assert from_the_left.project(np.array([0.0, 1.0, 1.0]))[0][0] < 100


@settings(deadline=None)
@given(*angles, st.integers(0, 2**31))
def test_a_fitted_camera_sees_every_point_and_is_as_near_as_it_can_be(azimuth, elevation, seed):
    points = np.random.default_rng(seed).normal(size=(12, 3)) * [3, 1, 2]
    camera = fitted(points, azimuth, elevation, 320, 200, margins=(10, 20, 30, 40))
    (pixels, depth), slack = camera.project(points), 1e-6
    assert np.isfinite(depth).all()
    left, right = pixels[:, 0].min() - 10, 320 - 30 - pixels[:, 0].max()
    top, bottom = pixels[:, 1].min() - 20, 200 - 40 - pixels[:, 1].max()
    assert min(left, right, top, bottom) > -slack
    if depth.min() > 0.5:  # not held back by a point that would be behind it
        assert max(left, right) < slack or max(top, bottom) < slack


def test_the_floor_is_the_inverse_of_projecting_it():
    camera = Camera((0.4, 1.5, 3.0), 0.7, 0.1, 24, 20)
    xz, depth = camera.floor()
    seen = np.isfinite(depth)
    assert seen[-1].all() and not seen[0].any()
    points = np.stack([xz[..., 0], np.zeros_like(depth), xz[..., 1]], axis=-1)[seen]
    pixels, _ = camera.project(points)
    v, u = np.mgrid[:20, :24] + 0.5
    np.testing.assert_allclose(pixels, np.stack([u[seen], v[seen]], axis=-1), atol=1e-6)


def test_a_nearer_ball_hides_one_behind_it():
    camera = Camera((0.0, 0.0, 4.0), 0.0, 0.0, 60, 60)
    for order in (1, -1):
        canvas = blank(camera)
        for z, colour in [(0.0, (255, 0, 0)), (1.0, (0, 255, 0))][::order]:
            draw_tube(canvas, camera, np.array([[0.0, 0, z]] * 2), [0.3, 0.3], colour)
        assert canvas.colour[30, 30, 1] > 60 > canvas.colour[30, 30, 0] - 75
        assert canvas.colour[30, 30, 1] > canvas.colour[30, 30, 0]
    assert canvas.depth[30, 30] == pytest.approx(4 - 1 - 0.3, abs=0.02)
    assert np.isinf(canvas.depth[0, 0])


def test_a_tube_is_as_thick_as_it_should_be():
    camera = Camera((0.0, 0.0, 5.0), 0.0, 0.0, 101, 101)
    canvas = blank(camera)
    draw_tube(canvas, camera, np.array([[-0.5, 0, 0], [0.5, 0, 0]]), [0.1, 0.1], (200, 200, 200))
    drawn = np.isfinite(canvas.depth)
    metre = camera.focal / 5
    assert drawn[:, 50].sum() == pytest.approx(0.2 * metre, abs=1.1)
    assert drawn[50].sum() == pytest.approx(1.2 * metre, abs=1.1)  # with its round ends


def test_what_is_out_of_sight_changes_nothing():
    camera = Camera((0.0, 0.0, 5.0), 0.0, 0.0, 40, 40)
    canvas = blank(camera)
    for at in ((0, 0, 6), (90, 0, 0), (0, -90, 0)):
        draw_tube(canvas, camera, np.array([at] * 2, float), [0.2, 0.2], (200, 200, 200))
    assert np.isinf(canvas.depth).all()


def test_the_checker_alternates_near_and_is_even_far_away():
    z, x = np.mgrid[:40, :40] / 40 * 4 + 0.0125
    light, lines = checker(np.stack([x, z], axis=-1))
    squares = light[5::10, 5::10]
    expected = (np.add.outer(np.arange(4), np.arange(4)) + 1) % 2
    np.testing.assert_allclose(squares, expected, atol=1e-5)
    assert lines[5::10, 5::10].max() == 0 < lines[10, 5]
    far, _ = checker(np.stack([x, z], axis=-1) * 400)
    assert np.abs(far - 0.5).max() < 0.05

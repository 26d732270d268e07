"""Equations (1) to (5) of the process, each against a direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion.process import PATHS, SPACES, Process

rng = np.random.default_rng(0)
SHAPE = (2, 3, 4, 5)  # [B, T, ...]
X0, EPS, ERROR = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(3))
LEVELS = st.lists(st.floats(0.0625, 0.9375, width=32), min_size=6, max_size=6).map(
    lambda t: np.array(t, np.float32).reshape(2, 3)
)
quick = settings(max_examples=15, deadline=None, derandomize=True)


def apart(t):
    return t[..., None, None]


@given(t=LEVELS)
@quick
def test_the_linear_path_has_closed_forms(t):
    process = Process(path="linear", predict="velocity")
    np.testing.assert_allclose(process.corrupt(X0, EPS, t), (1 - apart(t)) * X0 + apart(t) * EPS, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(process.target(X0, EPS, t), EPS - X0)


def test_the_ends_of_a_path_are_data_and_noise():
    for path in PATHS:
        process = Process(path=path)
        np.testing.assert_array_equal(process.corrupt(X0, EPS, np.zeros((2, 3))), X0)
        np.testing.assert_array_equal(process.corrupt(X0, EPS, np.ones((2, 3))), EPS)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_knows_its_derivatives(path):
    t = jnp.linspace(0, 1, 33)
    values, slopes = jax.jvp(lambda t: PATHS[path](t)[:2], (t,), (jnp.ones_like(t),))
    a, s, da, ds = PATHS[path](t)
    np.testing.assert_allclose(slopes, (da, ds), rtol=1e-6)
    np.testing.assert_array_equal(values, (a, s))
    assert float(jnp.min(a * ds - s * da)) > 0.1  # D, so that (3) can be solved everywhere


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", SPACES)
@given(t=LEVELS)
@quick
def test_every_prediction_stands_for_the_same_data_and_noise(path, predict, t):
    process = Process(path=path, predict=predict)
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
    close = dict(rtol=0, atol=2e-4)  # 1/16 from the ends of the path, where (4) divides by little
    np.testing.assert_allclose(process.to_x0(out, x, t), X0, **close)
    np.testing.assert_allclose(process.to_noise(out, x, t), EPS, **close)
    velocity = Process(path=path, predict="velocity").target(X0, EPS, t)
    np.testing.assert_allclose(process.to_velocity(out, x, t), velocity, **close)


@pytest.mark.parametrize("predict", SPACES)
def test_frames_keep_to_themselves(predict):
    """Another level in one frame changes that frame alone, bit for bit."""
    process, t = Process(predict=predict), np.full((2, 3), 0.5, np.float32)
    other = t.copy()
    other[:, 1] = 0.25
    x = process.corrupt(X0, EPS, t)
    for convert in (process.to_x0, process.to_noise, process.to_velocity):
        one, two = (np.asarray(convert(X0, x, level)) for level in (t, other))
        np.testing.assert_array_equal(one[:, ::2], two[:, ::2])
    assert not np.array_equal(process.corrupt(X0, EPS, other)[:, 1], x[:, 1])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", SPACES)
@pytest.mark.parametrize("loss", SPACES)
@given(t=LEVELS)
@quick
def test_the_weight_is_the_error_measured_in_the_other_space(path, predict, loss, t):
    """Equation (5): an error made in what is predicted, carried over and measured where the loss looks."""
    process = Process(path=path, predict=predict, loss=loss, floor=0.01)
    convert = {"x0": process.to_x0, "noise": process.to_noise, "velocity": process.to_velocity}[loss]
    x, out = process.corrupt(X0, EPS, t), process.target(X0, EPS, t)
    moved = np.asarray(convert(out + ERROR, x, t) - convert(out, x, t))
    direct = np.mean(moved**2, axis=(2, 3))
    np.testing.assert_allclose(process.loss_weight(t) * np.mean(ERROR**2, axis=(2, 3)), direct, rtol=2e-3)


def test_a_loss_in_its_own_space_weighs_nothing_more():
    t = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    for predict in SPACES:
        np.testing.assert_array_equal(Process(predict=predict).loss_weight(t), np.ones((2, 3)))
        np.testing.assert_array_equal(Process(predict=predict, loss=predict).loss_weight(t), np.ones((2, 3)))


def test_the_floor_bounds_the_weight():
    t = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 1.0], np.float32)
    weight = Process(predict="x0", loss="velocity", floor=0.2).loss_weight(t)
    np.testing.assert_allclose(weight, 1 / np.maximum(t, 0.2) ** 2, rtol=1e-6)  # D = 1, c_x0 = t
    weight = Process(predict="noise", loss="velocity", floor=0.2).loss_weight(t)
    np.testing.assert_allclose(weight, 1 / np.maximum(1 - t, 0.2) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(path="cubic"), "process.path is 'cubic'; it is one of 'linear'"),
        (dict(predict="x"), "process.predict is 'x'; it is one of 'velocity', 'x0', 'noise'"),
        (dict(loss="eps"), "process.loss is 'eps'; it is one of '', 'velocity', 'x0', 'noise'"),
        (dict(weight="snr"), "process.weight is 'snr'; it is one of 'none'"),
        (dict(floor=0.0), "process.floor is 0.0; it lies in (0, 1]"),
    ],
)
def test_unknown_choices_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        Process(**wrong)
    assert str(refusal.value) == named

"""Positions: rotary ones against complex numbers, relative positions alone matter, and closed forms of the others."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from causal_diffusion.cache import lay, unlay
from causal_diffusion.nn.rope import (
    additive_table,
    axis_widths,
    rotary_table,
    rotate,
    sinusoid,
    space_table,
    time_table,
    turn,
)

GRIDS = [(), (3,), (2, 3)]  # one, two and three axes with time
rng = np.random.default_rng(0)


def frequencies(width, theta):
    return theta ** (-np.arange(0, width, 2) / width)


def positions(frame, grid):
    """(time, *space) of every token of every frame, [B, T, N, axes]."""
    cells = np.array(list(itertools.product(*map(range, grid)))).reshape(int(np.prod(grid)), len(grid))
    shape = (*frame.shape, len(cells))
    time = np.broadcast_to(frame[..., None, None], (*shape, 1))
    return np.concatenate([time, np.broadcast_to(cells, (*shape, len(grid)))], axis=-1)


def test_every_channel_belongs_to_one_axis():
    for width, axes in itertools.product(range(2, 130, 2), (1, 2, 3)):
        shares = axis_widths(width, axes)
        assert len(shares) == axes and sum(shares) == width and all(share % 2 == 0 for share in shares)
        assert shares[0] >= max(shares[1:], default=0)


def test_wan_splits_its_heads_in_44_42_42():
    assert axis_widths(128, 3) == (44, 42, 42)
    assert axis_widths(128, 1) == (128,)
    with pytest.raises(ValueError, match="even width, not 7"):
        axis_widths(7, 2)


def test_heads_are_split_in_given_shares():
    assert axis_widths(64, 3, (2, 3, 3)) == (16, 24, 24)  # ACDiT, FAR
    assert axis_widths(64, 2, (1, 1)) == (32, 32)
    for width, split in ((64, (1, 1, 1)), (20, (2, 1, 1)), (64, (0, 1, 1)), (10, (1, 1))):
        with pytest.raises(ValueError, match=r"the shares \(.*\) of \d+ channels are not whole even numbers"):
            axis_widths(width, len(split), split)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rotation_is_a_product_of_complex_numbers(grid):
    frame, theta = np.array([[0, 1, 5], [7, 8, 300]]), 100.0
    tokens = int(np.prod(grid))
    x = rng.normal(size=(2, 3, tokens, 2, 12)).astype(np.float32)
    turned = np.asarray(rotate(jnp.asarray(x), rotary_table(jnp.asarray(frame), grid, 12, theta)))
    place = positions(frame, grid)
    angle = np.concatenate(
        [place[..., i, None] * frequencies(w, theta) for i, w in enumerate(axis_widths(12, 1 + len(grid)))], axis=-1
    )
    expected = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, :, :, None]
    np.testing.assert_allclose(turned[..., 0::2] + 1j * turned[..., 1::2], expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("grid", "width", "split"), [((), 12, ()), ((4,), 12, ()), ((3, 4), 12, ()), ((3, 4), 32, (2, 3, 3))], ids=str
)
def test_scores_depend_on_relative_positions_alone(grid, width, split):
    """The same query and key at every place: their product is a function of the differences, along every axis."""
    frame = np.array([[0, 1, 2, 3]])
    tokens, axes = int(np.prod(grid)), 1 + len(grid)
    q, k = (np.broadcast_to(v, (1, 4, tokens, 1, width)).astype(np.float32) for v in rng.normal(size=(2, width)))

    def scores(shift):
        table = rotary_table(jnp.asarray(frame + shift), grid, width, 30.0, split)
        a, b = (np.asarray(rotate(jnp.asarray(v), table)).reshape(-1, width) for v in (q, k))
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), np.linalg.norm(q[0, 0, 0, 0]), rtol=1e-5)
        return a @ b.T

    score = scores(0)
    np.testing.assert_allclose(scores(500), score, atol=3e-4)  # in time also by moving the whole clip
    place = positions(frame, grid).reshape(-1, axes)
    by_difference = {}
    for i, j in itertools.product(range(len(place)), repeat=2):
        by_difference.setdefault(tuple(place[i] - place[j]), []).append(score[i, j])
    assert max(np.ptp(values) for values in by_difference.values()) < 2e-5
    for axis in range(axes):  # and along each axis they do depend on it
        along = [values[0] for d, values in by_difference.items() if not any(np.delete(d, axis))]
        assert len(along) > 2 and np.ptp(along) > 0.1


@pytest.mark.parametrize("tokens", [1, 6])
def test_keys_that_lie_heads_first_are_turned_alike(tokens):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6, 3, 8)), jnp.float32)
    table = [jnp.asarray(np.random.default_rng(i).normal(size=(2, 5, tokens, 4)), jnp.float32) for i in range(2)]
    np.testing.assert_array_equal(unlay(rotate(lay(x), table)), rotate(x, table))


def test_rotation_keeps_the_dtype():
    x = jnp.ones((1, 2, 1, 1, 4), jnp.bfloat16)
    assert rotate(x, rotary_table(jnp.arange(2)[None], (), 4)).dtype == jnp.bfloat16


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_additive_positions_are_sines_and_cosines(grid):
    frame, theta = np.array([[0, 2], [3, 40]]), 50.0
    table = np.asarray(additive_table(jnp.asarray(frame), grid, 12, theta))
    place = positions(frame, grid)
    angle = np.concatenate(
        [place[..., i, None] * frequencies(w, theta) for i, w in enumerate(axis_widths(12, 1 + len(grid)))], axis=-1
    )
    assert table.shape == (2, 2, int(np.prod(grid)), 12)
    np.testing.assert_allclose(table, np.concatenate([np.sin(angle), np.cos(angle)], axis=-1), atol=1e-5)
    assert len(np.unique(table.reshape(-1, 12).round(4), axis=0)) == 4 * int(np.prod(grid))  # every place its own


def test_the_time_sinusoid_has_its_cosines_first():
    t = np.array([0.0, 0.3, 1.0, 1000.0])
    angle = t[:, None] * 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)
    np.testing.assert_allclose(sinusoid(t, 8), expected, atol=1e-4)


def test_coarse_tokens_stand_at_the_corners_of_their_patches():
    frame = jnp.array([[0, 3]])
    for table in (rotary_table, additive_table):
        coarse, fine = (np.asarray(table(frame, grid, 12, stride=n)) for grid, n in (((2, 3), 2), ((4, 6), 1)))
        fine = fine.reshape(*fine.shape[:-2], 4, 6, -1)[..., ::2, ::2, :]
        np.testing.assert_array_equal(coarse.reshape(fine.shape), fine)


def test_in_space_the_whole_head_turns_and_the_frame_does_not_matter():
    table = space_table((2, 3), 8, 50.0)
    rows, columns = np.divmod(np.arange(6), 3)
    angle = np.concatenate([place[:, None] * frequencies(4, 50.0) for place in (rows, columns)], axis=-1)
    for part, expected in zip(table, (np.cos(angle), np.sin(angle)), strict=True):
        assert part.shape == (1, 1, 6, 4)
        np.testing.assert_allclose(part[0, 0], expected, atol=1e-6)


int32s = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=50, deadline=None)
@given(int32s, st.sampled_from([30.0, 10000.0, 1e6]))
def test_angles_of_any_frame_are_those_of_exact_arithmetic(frame, theta):
    """Equations (1) to (3) with Python's integers, the cosine in float64."""
    steps = [round(float(2**32 * f / (2 * np.pi))) for f in frequencies(16, theta)]
    angle = np.array([frame * n % 2**32 for n in steps]) * (2 * np.pi / 2**32)
    cos, sin = time_table(np.array([[frame]], np.int32), 16, theta)
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0, 0], np.sin(angle), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(int32s, st.integers(-500, 500))
@example(2**30, 300)
@example(10**9, -1)
def test_differences_of_positions_keep_their_angle_however_late_it_is(frame, difference):
    """Equation (4) against the frequencies themselves. The later position may wrap beyond int32."""
    later = (frame + difference + 2**31) % 2**32 - 2**31
    cos, sin = (np.asarray(part, np.float64) for part in time_table(np.array([[frame, later]], np.int32), 16))
    angle = difference * frequencies(16, 10000.0)
    bound = 1.2e-6 + 7.4e-10 * abs(difference) + 2.5e-7  # the last for the cosines themselves
    between = (cos[0, 1] + 1j * sin[0, 1]) / (cos[0, 0] + 1j * sin[0, 0])
    np.testing.assert_allclose(between[0], np.exp(1j * angle), atol=bound, rtol=0)


def test_scores_after_decades_are_those_of_the_first_frame():
    q, k = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 64)).astype(np.float32))

    def score(frame, distance):
        at = np.array([[frame + distance, frame]], np.int32)
        a, b = np.asarray(turn(jnp.stack([q, k])[None, :, None, None], at), np.float64)[0, :, 0, 0]
        np.testing.assert_allclose([a @ a, b @ b], 1.0, atol=1e-6)
        return a @ b

    for distance in (0, 1, 21, 300):
        early, late = score(0, distance), score(10**9, distance)
        assert abs(early - late) < 1e-6
        pairs = (q[0::2] + 1j * q[1::2]) * (k[0::2] - 1j * k[1::2])
        exact = np.sum(pairs * np.exp(1j * distance * frequencies(64, 10000.0))).real
        assert abs(early - exact) < 1e-6
    assert abs(score(0, 0) - score(0, 1)) > 1e-3


def test_whole_positions_turn_as_their_product_with_the_frequency_does():
    """While they are few: products in float32, which positions of a floating type still take."""
    frame = np.arange(16, dtype=np.int32)[None]
    tables = (rotary_table(at, (2, 3), 12) for at in (frame, frame.astype(np.float32)))
    for whole, product in zip(*tables, strict=True):
        np.testing.assert_allclose(whole, product, atol=2e-6)
    half, whole = (time_table(np.array([[at]]), 8)[1] for at in (0.5, 1))
    np.testing.assert_allclose(half[0, 0, 0], np.sin(0.5 * frequencies(8, 10000.0)), atol=1e-6)
    assert np.abs(half - whole).max() > 0.1


@pytest.mark.parametrize(("grid", "split"), [((), ()), ((2, 3), (1, 1, 2))], ids=str)
def test_turning_is_what_a_rotation_lacks_that_was_made_at_time_0(grid, split):
    frame = np.array([[0, 7, -3], [10**9, 2**30, 12]], np.int32)
    tokens, axes = int(np.prod(grid)), 1 + len(grid)
    x = jnp.asarray(rng.normal(size=(2, 3, tokens, 2, 24)), jnp.float32)
    there = rotate(x, rotary_table(frame, grid, 24, 50.0, split))
    raw = rotate(x, rotary_table(np.zeros((1, 1), np.int32), grid, 24, 50.0, split))
    turned = turn(raw, frame, 50.0, axes, split)
    np.testing.assert_allclose(turned, there, atol=1e-6 * np.abs(x).max())
    share = axis_widths(24, axes, split)[0]
    np.testing.assert_array_equal(turned[..., share:], raw[..., share:])  # space keeps its bits
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    each = np.broadcast_to(frame[..., None], (2, 3, tokens)) + 5 * np.arange(tokens, dtype=np.int32)
    by_token = turn(raw, each, 50.0, axes, split)
    for n in {0, tokens - 1}:
        alone = turn(raw[:, :, n : n + 1], each[:, :, n], 50.0, axes, split)
        np.testing.assert_array_equal(by_token[:, :, n : n + 1], alone)
    assert rotate(x, None) is x

"""The schedule law, its usual cases in closed form, and the view that a stream has of it."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion import schedule as module
from causal_diffusion.diffusion.schedule import OFFSETS, Schedule, law

quick = settings(max_examples=80, deadline=None, derandomize=True)


def stride_of(schedule):
    """Rows between neighbouring blocks, as the docstring's table gives them."""
    return {
        "full": 0.0,
        "pyramid": schedule.stride,
        "rolling": schedule.steps / schedule.in_flight,
        "autoregressive": schedule.steps,
    }[schedule.offset]


@st.composite
def schedules(draw, whole=False):
    """Any schedule; with ``whole`` only those that a stream can run."""
    steps = draw(st.integers(1, 9))
    offset = draw(st.sampled_from(sorted(set(OFFSETS) - {"full"} if whole else OFFSETS)))
    if whole:
        stride = draw(st.integers(1, steps))
        in_flight = draw(st.sampled_from([w for w in range(1, steps + 1) if steps % w == 0]))
    else:
        stride = draw(st.floats(0.25, steps))
        in_flight = draw(st.integers(1, steps))
    return Schedule(steps=steps, offset=offset, stride=float(stride), in_flight=in_flight)


def test_every_offset_is_tested():
    assert set(OFFSETS) == {"full", "pyramid", "rolling", "autoregressive"}


def test_matrices_are_as_drawn():
    rows = re.findall(r"^ +(\d \d \d|\.\.\.) {10,}(\d \d \d)", module.__doc__, re.M)
    assert len(rows) == 7 and rows[-1][0] == "..."  # the autoregressive one goes on
    one, two = ([row.split() for row in column] for column in zip(*rows, strict=True))
    np.testing.assert_array_equal(Schedule(4, "autoregressive").matrix(3)[:6], np.array(one[:6], int))
    np.testing.assert_array_equal(Schedule(4, "pyramid", stride=2.0).matrix(3)[:7], np.array(two, int))


@given(schedule=schedules(), blocks=st.integers(1, 7))
@quick
def test_noise_leaves_step_by_step_and_never_returns(schedule, blocks):
    matrix = schedule.matrix(blocks)
    assert (matrix[0] == schedule.steps).all() and not matrix[-1].any()
    change = np.diff(matrix, axis=0)
    assert set(np.unique(change)) <= {-1, 0} and (change.min(axis=1) == -1).all()
    assert (np.diff(matrix, axis=1) >= 0).all()  # an earlier block is never noisier than a later one
    assert (change.sum(axis=0) == -schedule.steps).all()  # every block takes every step once


@given(schedule=schedules(), blocks=st.integers(1, 7))
@quick
def test_every_entry_follows_the_law(schedule, blocks):
    S, u = schedule.steps, stride_of(schedule)
    matrix = schedule.matrix(blocks)
    expected = [
        [min(max(S + int(np.floor(b * u)) - r, 0), S) for b in range(blocks)] for r in range(len(matrix))
    ]
    np.testing.assert_array_equal(matrix, expected)
    transitions = {
        "full": S,
        "pyramid": S + int(np.floor((blocks - 1) * u)),
        "rolling": S + int(np.floor((blocks - 1) * u)),
        "autoregressive": S * blocks,
    }
    assert len(matrix) - 1 == transitions[schedule.offset]


def test_the_usual_schedules_coincide_where_they_should():
    S, blocks = 6, 5
    autoregressive = Schedule(S, "autoregressive").matrix(blocks)
    np.testing.assert_array_equal(Schedule(S, "pyramid", stride=float(S)).matrix(blocks), autoregressive)
    np.testing.assert_array_equal(Schedule(S, "rolling", in_flight=1).matrix(blocks), autoregressive)
    pyramid = Schedule(S, "pyramid", stride=2.0).matrix(blocks)
    np.testing.assert_array_equal(Schedule(S, "rolling", in_flight=3).matrix(blocks), pyramid)
    assert len(pyramid) - 1 == S + (blocks - 1) * 2


def test_steps_may_differ_by_block():
    matrix = law([4, 2, 2], [0, 4, 6])
    np.testing.assert_array_equal(matrix[:, 0], [4, 3, 2, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(matrix[:, 1], [2, 2, 2, 2, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal(matrix[:, 2], [2, 2, 2, 2, 2, 2, 2, 1, 0])


@given(data=st.data(), blocks=st.integers(1, 5))
@quick
def test_the_law_in_full_generality(data, blocks):
    """Steps per block, warm starts and pinned entries together, entry by entry."""
    steps = np.array(data.draw(st.lists(st.integers(1, 6), min_size=blocks, max_size=blocks)))
    offsets = np.array(data.draw(st.lists(st.integers(0, 8), min_size=blocks, max_size=blocks)))
    start = np.array([data.draw(st.integers(0, int(s))) for s in steps])
    pinned = data.draw(st.dictionaries(st.integers(0, blocks - 1), st.integers(0, 3), max_size=blocks))
    matrix = law(steps, offsets, start=start, pinned=pinned)
    free = [b for b in range(blocks) if b not in pinned]
    whole = [
        [pinned.get(b, min(max(steps[b] + offsets[b] - row, 0), start[b])) for b in range(blocks)]
        for row in range(max([steps[b] + offsets[b] for b in free], default=0) + 1)
    ]
    while len(whole) > 1 and whole[1] == whole[0]:  # rows that repeat the start are dropped
        whole.pop(0)
    np.testing.assert_array_equal(matrix, whole)
    assert not matrix[-1, free].any() and (matrix[0, free] == start[free]).all()
    assert (np.diff(matrix, axis=0) <= 0).all()


def test_given_frames_stay_clean_and_the_rest_waits_its_turn():
    matrix = law(3, [0, 0, 3], pinned={0: 0})
    np.testing.assert_array_equal(matrix.T, [[0] * 7, [3, 2, 1, 0, 0, 0, 0], [3, 3, 3, 3, 2, 1, 0]])
    warm = law(4, [0, 4], start=2)
    np.testing.assert_array_equal(warm.T, [[2, 1, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 1, 0]])
    np.testing.assert_array_equal(law(2, [0], pinned={0: 1}), [[1]])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(steps=0, offsets=[0]),
        dict(steps=2, offsets=[-1]),
        dict(steps=2, offsets=[0], start=3),
        dict(steps=2, offsets=[0], start=-1),
    ],
)
def test_the_law_refuses_what_is_no_schedule(wrong):
    with pytest.raises(ValueError):
        law(**wrong)


@given(schedule=schedules(whole=True), emitted=st.integers(1, 6))
@quick
def test_a_stream_runs_the_matrix(schedule, emitted):
    """Ramp, then step after step: every row that a stream runs is the matrix's row of the blocks in flight, and the
    matrix moves no other block meanwhile."""
    view, S = schedule.view(), schedule.steps
    F, stride = view.in_flight, int(stride_of(schedule))
    assert view.ramp.shape == (S - stride + 1, F) and view.step.shape == (stride + 1, F)
    blocks = emitted + F - 1
    matrix = schedule.matrix(blocks)
    np.testing.assert_array_equal(matrix[: S - stride + 1, :F], view.ramp)
    for block in range(emitted):
        rows = matrix[S - stride + block * stride : S + block * stride + 1]
        np.testing.assert_array_equal(rows[:, block : block + F], view.step)
        assert not rows[:, :block].any() and (rows[:, block + F :] == S).all()
        assert rows[-1, block] == 0 < rows[-2, block]  # it is emitted the moment it is clean
    assert F == -(-S // stride)  # as few in flight as can be: the next to enter has not begun
    assert (rows[0, block : block + F] > 0).all()


def test_look_ahead_counts_the_blocks_that_an_entering_condition_comes_too_late_for():
    assert Schedule(4, "autoregressive").view().look_ahead == 0
    assert Schedule(4, "pyramid", stride=2.0).view().look_ahead == 1
    assert Schedule(6, "rolling", in_flight=3).view().look_ahead == 2
    assert Schedule(5, "pyramid", stride=1.0).view().look_ahead == 4


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(4, "full"),
        Schedule(4, "pyramid", stride=1.5),
        Schedule(4, "pyramid", stride=0.5),
        Schedule(5, "rolling", in_flight=2),
    ],
    ids=["full", "pyramid", "slow pyramid", "rolling"],
)
def test_no_stream_can_run_a_broken_stride(schedule):
    with pytest.raises(ValueError, match="schedule.offset is '[a-z]+'"):
        schedule.view()


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


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(offset="cosine"), "schedule.offset is 'cosine'; it is one of full, pyramid, rolling, autoregressive"),
        (dict(steps=0), "schedule.steps is 0; at least 1 step is needed"),
        (dict(t_max=0.0), "schedule.t_max is 0.0; it lies in (0, 1]"),
        (dict(t_max=1.1), "schedule.t_max is 1.1; it lies in (0, 1]"),
        (dict(shift=0.0), "schedule.shift is 0.0; it is positive, 1 leaves the steps uniform"),
    ],
)
def test_values_out_of_range_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        Schedule(**wrong)
    assert str(refusal.value) == named


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("stride", [0.0, -1.0, 9.0])
def test_a_pyramid_names_a_stride_that_would_do(steps, stride):
    with pytest.raises(ValueError, match=rf"stride is {stride} and schedule.steps is {steps}") as refusal:
        Schedule(steps, "pyramid", stride=stride)
    proposed = re.search(r"(\d+) would do", str(refusal.value))
    Schedule(steps, "pyramid", stride=float(proposed[1])).view()


@pytest.mark.parametrize("in_flight", [0, 5])
def test_a_rolling_window_holds_at_most_as_many_blocks_as_steps(in_flight):
    with pytest.raises(ValueError, match=f"schedule.in_flight is {in_flight} and schedule.steps is 4"):
        Schedule(4, "rolling", in_flight=in_flight)

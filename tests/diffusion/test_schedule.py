"""The schedule law, its usual cases in closed form, and what is refused. Views: test_view.py, times: test_grids.py."""

import ast
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion import schedule as module
from causal_diffusion.diffusion.schedule import CHUNKED, GRIDS, OFFSETS, SLIDING, Schedule, law

quick = settings(max_examples=80, deadline=None, derandomize=True)
DRAWN = {
    "pyramid": dict(stride=2.0),
    "trapezoid": dict(stride=2.0),
    "refine": dict(back=2, repeats=1),
    "real_time": dict(in_flight=3, guess=2),
}


def offset_of(schedule, blocks):
    """How far each block lags, as the docstring's table gives it. In whole numbers where a float might round."""
    S, u, W = schedule.steps, schedule.stride, schedule.in_flight
    b = range(blocks)
    return {
        "full": [0 for _ in b],
        "pyramid": [int(np.floor(i * u)) for i in b],
        "rolling": [i * S // W for i in b],
        "autoregressive": [i * S for i in b],
        "trapezoid": [int(np.floor(min(i, blocks - 1 - i) * u)) for i in b],
        "interleaved": [i % 2 * S for i in b],
        "refine": [0 for _ in b],
        "real_time": [0 for _ in b],
    }[schedule.offset]


@st.composite
def schedules(draw, offsets=tuple(OFFSETS)):
    """Any schedule of those offsets."""
    steps = draw(st.integers(1, 9))
    offset = draw(st.sampled_from(sorted(offsets)))
    more = dict(stride=draw(st.floats(0.25, steps)), in_flight=draw(st.integers(1, steps)))
    if offset == "refine":
        more |= dict(back=draw(st.integers(1, steps)), repeats=draw(st.integers(1, 3)))
    if offset == "real_time":
        more |= dict(guess=draw(st.integers(1, steps)))
    if offset == "autoregressive":
        more |= dict(first_steps=draw(st.sampled_from([0, 0, 2, steps, 11])))
    return Schedule(steps=steps, offset=offset, **more)


LAWFUL = sorted(set(OFFSETS) - {"refine", "real_time"})


def test_every_offset_has_a_kind_of_window():
    assert sorted(OFFSETS) == sorted([*SLIDING, *CHUNKED, "real_time"])


def drawings():
    """Name -> matrix of every column of the docstring's drawing."""
    lines = module.__doc__.split("real_time::\n\n")[1].split("\n\n")[0].splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", lines[0])]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        column = [line[start:end].strip() for line in lines]
        yield column[0], np.array([row.split() for row in column[1:] if row], int)


def test_matrices_are_as_drawn():
    drawn = dict(drawings())
    assert set(drawn) == set(OFFSETS) - {"rolling"}
    for offset, matrix in drawn.items():
        np.testing.assert_array_equal(Schedule(3, offset, **DRAWN.get(offset, {})).matrix(4), matrix, err_msg=offset)


@given(schedule=schedules(LAWFUL), blocks=st.integers(1, 7))
@quick
def test_noise_leaves_step_by_step_and_never_returns(schedule, blocks):
    matrix = schedule.matrix(blocks)
    steps = np.full(blocks, schedule.steps)
    steps[0] = schedule.first_steps or schedule.steps
    assert (matrix[0] == steps).all() and not matrix[-1].any()
    change = np.diff(matrix, axis=0)
    assert set(np.unique(change)) <= {-1, 0} and (change.min(axis=1) == -1).all()
    assert (change.sum(axis=0) == -steps).all()  # every block takes every step once
    if schedule.offset in SLIDING and not schedule.first_steps:
        assert (np.diff(matrix, axis=1) >= 0).all()  # an earlier block is never noisier than a later one


@given(schedule=schedules(LAWFUL), blocks=st.integers(1, 7))
@quick
def test_every_entry_follows_the_law(schedule, blocks):
    S, first = schedule.steps, schedule.first_steps or schedule.steps
    matrix, offset = schedule.matrix(blocks), offset_of(schedule, blocks)
    if schedule.first_steps:
        offset = [b and first + (b - 1) * S for b in range(blocks)]
    expected = [
        [min(max((S if b else first) + offset[b] - r, 0), S if b else first) for b in range(blocks)]
        for r in range(len(matrix))
    ]
    np.testing.assert_array_equal(matrix, expected)
    moves = {
        "full": S,
        "pyramid": S + int(np.floor((blocks - 1) * schedule.stride)),
        "rolling": S + (blocks - 1) * S // schedule.in_flight,
        "autoregressive": first + S * (blocks - 1),
        "trapezoid": S + int(np.floor((blocks - 1) // 2 * schedule.stride)),
        "interleaved": S * min(blocks, 2),
    }
    assert len(matrix) - 1 == moves[schedule.offset]


@given(schedule=schedules(["refine"]), blocks=st.integers(1, 4))
@quick
def test_refining_comes_down_again_and_again(schedule, blocks):
    S, back, repeats = schedule.steps, schedule.back, schedule.repeats
    matrix = schedule.matrix(blocks)
    assert (matrix == matrix[:, :1]).all()
    assert list(matrix[:, 0]) == [*range(S, -1, -1), *([*range(back, -1, -1)] * repeats)]


@given(schedule=schedules(["real_time"]), blocks=st.integers(1, 8))
@quick
def test_real_time_iteration_starts_over_from_its_guess(schedule, blocks):
    S, F, guess = schedule.steps, schedule.in_flight, schedule.guess
    expected = [[*[level] * min(F, blocks), *[S] * (blocks - F)] for level in range(S, -1, -1)]
    for leave in range(1, blocks - F + 1):
        expected += [[*[0] * leave, *[level] * F, *[S] * (blocks - F - leave)] for level in range(guess, -1, -1)]
    moves = [row for row, last in zip(expected, [None, *expected], strict=False) if row != last]  # relabelling may not
    np.testing.assert_array_equal(schedule.matrix(blocks), moves)


@given(frames=st.integers(1, 12), S=st.integers(1, 20), u=st.floats(0.2, 1.0))
@quick
def test_trapezoids_are_mirrors_and_leave_no_frame_out(frames, S, u):
    """In released code the last half is indexed from -0, so that an even number of frames leaves one clean."""
    matrix = Schedule(S, "trapezoid", stride=u * S).matrix(frames)
    np.testing.assert_array_equal(matrix, matrix[:, ::-1])
    assert (matrix[0] == S).all()
    half = (frames + 1) // 2
    np.testing.assert_array_equal(matrix[:, :half], Schedule(S, "pyramid", stride=u * S).matrix(half))


def test_the_usual_schedules_coincide_where_they_should():
    S, blocks = 6, 5
    autoregressive = Schedule(S, "autoregressive").matrix(blocks)
    np.testing.assert_array_equal(Schedule(S, "pyramid", stride=float(S)).matrix(blocks), autoregressive)
    np.testing.assert_array_equal(Schedule(S, "rolling", in_flight=1).matrix(blocks), autoregressive)
    np.testing.assert_array_equal(Schedule(S, first_steps=S).matrix(blocks), autoregressive)
    pyramid = Schedule(S, "pyramid", stride=2.0).matrix(blocks)
    np.testing.assert_array_equal(Schedule(S, "rolling", in_flight=3).matrix(blocks), pyramid)
    assert len(pyramid) - 1 == S + (blocks - 1) * 2
    full = Schedule(S, "full").matrix(blocks)
    np.testing.assert_array_equal(Schedule(S, "real_time", in_flight=blocks, guess=1).matrix(blocks), full)
    np.testing.assert_array_equal(Schedule(S, "refine", back=1, repeats=1).matrix(blocks)[: S + 1], full)


def lagging(blocks, last, lag, done):
    """The recurrence of AR-Diffusion's AD scheduler and of SkyReels-V2: steps done, row by row until all are at
    ``last``. A block takes one more step if it is the first or the one before was at ``done`` in the row before, else
    it is ``lag`` behind the one before. (arXiv 2503.07418, algorithm 2; arXiv 2504.13074.)"""
    rows = [[0] * blocks]
    while min(rows[-1]) < last:
        row = []
        for b in range(blocks):
            ready = b == 0 or rows[-1][b - 1] >= done
            row.append(min(max(rows[-1][b] + 1 if ready else row[b - 1] - lag, 0), last))
        rows.append(row)
    return np.array(rows)


@given(blocks=st.integers(1, 8), S=st.integers(1, 12), lag=st.integers(0, 15))
@quick
def test_asynchronous_diffusion_is_the_pyramid(blocks, S, lag):
    """AR-Diffusion stops at S; no lag is full-sequence diffusion, and a lag beyond S waits for the one before."""
    schedule = Schedule(S, "pyramid", stride=float(min(lag, S))) if lag else Schedule(S, "full")
    np.testing.assert_array_equal(S - lagging(blocks, S, lag, S), schedule.matrix(blocks))


@given(blocks=st.integers(1, 8), N=st.integers(1, 12), data=st.data())
@quick
def test_skyreels_steps_are_the_pyramid(blocks, N, data):
    """N timesteps between the start and 0 make N + 1 moves; a block is ready once the one before needs one more."""
    lag = data.draw(st.integers(0, N))
    schedule = Schedule(N + 1, "pyramid", stride=float(lag)) if lag else Schedule(N + 1, "full")
    np.testing.assert_array_equal(N + 1 - lagging(blocks, N + 1, lag, N), schedule.matrix(blocks))


def unfinished(schedule, window, blocks):
    """Slides a window of ``window`` blocks over the matrix as AR-Diffusion does, and denoises what is in it: how many
    blocks stay noisy."""
    matrix = schedule.matrix(blocks)
    level, end = matrix[0].copy(), window
    for before, after in zip(matrix[:-1], matrix[1:], strict=True):
        while end < blocks and after[end] < before[end]:
            end += 1
        level[end - window : end] = after[end - window : end]
    return int(np.sum(level > 0))


@given(schedule=schedules(SLIDING))
@quick
def test_a_window_of_the_needed_size_finishes_every_block(schedule):
    if schedule.first_steps:
        return
    F = schedule.window_needed()
    blocks = 2 * F + 3
    assert unfinished(schedule, F, blocks) == 0
    if F > 1:
        assert unfinished(schedule, F - 1, blocks) > 0


@pytest.mark.parametrize(("F", "S", "s"), [(16, 50, 3), (16, 50, 4), (16, 50, 5), (7, 10, 1), (7, 10, 2), (5, 6, 1)])
def test_the_window_rule_of_whole_strides(F, S, s):
    schedule = Schedule(S, "pyramid", stride=float(s))
    assert (schedule.window_needed() <= F) == (F * s >= S) == (unfinished(schedule, F, 3 * F) == 0)


def test_windows_that_do_not_slide_hold_what_they_emit():
    assert Schedule(4, "full", chunk=3).window_needed() == 3
    assert Schedule(4, "real_time", in_flight=5, guess=1).window_needed() == 5
    assert Schedule(4).window_needed() == 1


def test_steps_may_differ_by_block():
    matrix = law([4, 2, 2], [0, 4, 6])
    np.testing.assert_array_equal(matrix[:, 0], [4, 3, 2, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(matrix[:, 1], [2, 2, 2, 2, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal(matrix[:, 2], [2, 2, 2, 2, 2, 2, 2, 1, 0])
    np.testing.assert_array_equal(Schedule(2, first_steps=4).matrix(3), matrix)


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(offset="cosine"), f"schedule.offset is 'cosine'; it is one of {', '.join(OFFSETS)}"),
        (dict(grid="cosine"), f"schedule.grid is 'cosine'; it is one of {', '.join(GRIDS)}"),
        (dict(steps=0), "schedule.steps is 0; it is at least 1, try schedule.steps = 1"),
        (dict(chunk=0), "schedule.chunk is 0; it is at least 1, try schedule.chunk = 1"),
        (dict(t_max=0.0), "schedule.t_max is 0.0; it lies in (0, 1], try schedule.t_max = 1.0"),
        (dict(t_max=1.1), "schedule.t_max is 1.1; it lies in (0, 1], try schedule.t_max = 1.0"),
        (dict(shift=0.0), "schedule.shift is 0.0; it is positive, try schedule.shift = 1.0"),
        (dict(first_steps=-1), "schedule.first_steps is -1; it is at least 0, try schedule.first_steps = 0"),
        (dict(in_flight=0), "schedule.in_flight is 0; it is at least 1, try schedule.in_flight = 1"),
        (
            dict(step_times=(1.0, 0.5, 0.5), steps=3),
            "schedule.step_times is (1.0, 0.5, 0.5); it falls from at most 1 and ends above 0",
        ),
    ],
)
def test_values_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError) as refusal:
        Schedule(**wrong)
    assert str(refusal.value) == said


CLASHES = {
    "a chunk of a sliding window": (dict(chunk=2), ["chunk", "offset"]),
    "going back elsewhere": (dict(offset="full", back=1), ["back", "offset"]),
    "repeats elsewhere": (dict(offset="full", repeats=1), ["repeats", "offset"]),
    "a guess elsewhere": (dict(offset="rolling", guess=1), ["guess", "offset"]),
    "a first block among others": (dict(offset="rolling", first_steps=4), ["first_steps", "offset"]),
    "a shifted table": (dict(grid="discrete", shift=3.0), ["shift", "grid"]),
    "a shifted edm grid": (dict(grid="edm", shift=3.0), ["shift", "grid"]),
    "an edm grid cut off": (dict(grid="edm", t_max=0.9), ["t_max", "grid"]),
    "more steps than indices": (dict(grid="discrete", steps=30, grid_steps=20), ["steps", "grid_steps"]),
    "more first steps than indices": (dict(grid="discrete", first_steps=30, grid_steps=20), ["first_steps"]),
    "a list of another length": (dict(steps=3, step_times=(1.0, 0.5)), ["steps", "step_times"]),
    "a list on a grid": (dict(steps=2, step_times=(1.0, 0.5), grid="discrete"), ["grid", "step_times"]),
    "a list shifted again": (dict(steps=2, step_times=(1.0, 0.5), shift=5.0), ["shift", "step_times"]),
    "a list cut off": (dict(steps=2, step_times=(1.0, 0.5), t_max=0.9), ["t_max", "step_times"]),
    "a list and a first block": (dict(steps=2, step_times=(1.0, 0.5), first_steps=3), ["first_steps", "step_times"]),
    "nothing to refine": (dict(offset="refine", back=2), ["back", "repeats", "steps"]),
    "refining from beyond noise": (dict(offset="refine", back=20, repeats=1), ["back", "steps"]),
    "a guess beyond noise": (dict(offset="real_time", guess=20), ["guess", "steps"]),
    "no guess": (dict(offset="real_time"), ["guess", "steps"]),
    "a steep trapezoid": (dict(offset="trapezoid", stride=11.0), ["stride", "steps"]),
    "too many in flight": (dict(offset="rolling", in_flight=11), ["in_flight", "steps"]),
}


@pytest.mark.parametrize("name", CLASHES)
def test_clashes_name_both_keys_and_values_that_would_do(name):
    wrong, keys = CLASHES[name]
    with pytest.raises(ValueError) as refusal:
        Schedule(**wrong)
    message = str(refusal.value)
    assert "\n" not in message and all(f"schedule.{key} is" in message or key in message for key in keys)
    proposed = dict(re.findall(r"schedule\.(\w+) = ('\w+'|[\d.]+)", message))
    if proposed:
        Schedule(**wrong | {key: ast.literal_eval(value) for key, value in proposed.items()})
    else:
        assert "would do" in message or "blocks are in flight" in message


def test_an_edm_grid_needs_a_range():
    with pytest.raises(ValueError, match="schedule.sigma_min is 90.0 and schedule.sigma_max is 80.0: "):
        Schedule(grid="edm", sigma_min=90.0)


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("stride", [0.0, 9.0])
def test_a_pyramid_names_a_stride_that_would_do(steps, stride):
    with pytest.raises(ValueError, match=rf"stride is {stride} and schedule.steps is {steps}") as refusal:
        Schedule(steps, "pyramid", stride=stride)
    proposed = re.search(r"(\d+) would do", str(refusal.value))
    Schedule(steps, "pyramid", stride=float(proposed[1])).view()

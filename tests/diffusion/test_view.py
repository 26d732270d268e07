"""What a stream runs of a schedule, and what a solver does where levels rise."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.diffusion import view as module
from causal_diffusion.diffusion.schedule import CHUNKED, OFFSETS, SLIDING, Schedule
from causal_diffusion.diffusion.view import View, transitions

quick = settings(max_examples=80, deadline=None, derandomize=True)


@st.composite
def schedules(draw, offsets=tuple(OFFSETS)):
    """Any schedule that a stream can run."""
    steps = draw(st.integers(1, 9))
    offset = draw(st.sampled_from(sorted(offsets)))
    more = dict(
        stride=float(draw(st.integers(1, steps))),
        in_flight=draw(st.sampled_from([w for w in range(1, steps + 1) if steps % w == 0])),
    )
    if offset == "refine":
        more |= dict(back=draw(st.integers(1, steps)), repeats=draw(st.integers(1, 3)))
    if offset == "real_time":
        more |= dict(guess=draw(st.integers(1, steps)))
    if offset == "autoregressive":
        more |= dict(first_steps=draw(st.sampled_from([0, 0, 2, steps, 11])))
    if offset in CHUNKED:
        more |= dict(chunk=draw(st.integers(2, 6)))
    return Schedule(steps=steps, offset=offset, **more)


def test_views_are_as_drawn():
    lines = module.__doc__.split("::\n\n")[1].split("\n\n")[0].splitlines()
    starts = [lines[0].index(title) for title in ("sliding", "chunk", "real time")]
    views = {
        "sliding, u = 2": Schedule(4, "pyramid", stride=2.0).view(),
        "chunk of 3, full": Schedule(4, "full", chunk=3).view(),
        "real time, F = 3, guess = 2": Schedule(4, "real_time", in_flight=3, guess=2).view(),
    }
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        title, *cells = (line[start:end].strip() for line in lines)
        drawn, rows, view = {"ramp": [], "step": []}, None, views[title]
        for cell in filter(None, cells):
            rows = drawn.get(cell[:4], rows) if drawn["ramp"] else drawn["ramp"]
            rows.append([int(digit) for digit in re.findall(r"\d", cell)])
        np.testing.assert_array_equal(view.ramp, drawn["ramp"])
        np.testing.assert_array_equal(view.step, drawn["step"])
        assert len(re.findall(r"\d", re.search(r"\((.*)\)", cell)[1])) == view.emit  # of the last row


@given(schedule=schedules(SLIDING), emitted=st.integers(1, 6))
@quick
def test_a_stream_runs_the_matrix(schedule, emitted):
    """Ramp, then step after step: every row that a stream runs is the matrix's row of the blocks in flight, and the
    matrix moves no other block meanwhile."""
    view, S = schedule.view(), schedule.steps
    F, stride = view.in_flight, len(view.step) - 1
    assert view.emit == 1 and not view.repeat
    assert stride == int({"pyramid": schedule.stride, "rolling": S / schedule.in_flight}.get(schedule.offset, S))
    assert view.ramp.shape == (S - stride + 1, F)
    blocks, begun = emitted + F - 1, 0
    np.testing.assert_array_equal(view.matrix(blocks), schedule.matrix(blocks))
    matrix = schedule.matrix(blocks)
    if view.first is not None:
        np.testing.assert_array_equal(view.first[:, 0], np.arange(schedule.first_steps, -1, -1))
        np.testing.assert_array_equal(matrix[: len(view.first), :1], view.first)
        matrix, begun = matrix[len(view.first) - 1 :, 1:], 1
    np.testing.assert_array_equal(matrix[: S - stride + 1, :F], view.ramp if begun < blocks else view.ramp[:, :0])
    for block in range(emitted - begun):
        rows = matrix[S - stride + block * stride : S + block * stride + 1]
        np.testing.assert_array_equal(rows[:, block : block + F], view.step)
        assert not rows[:, :block].any() and (rows[:, block + F :] == S).all()
        assert rows[-1, block] == 0 < rows[-2, block]  # it is emitted the moment it is clean
        assert (rows[0, block : block + F] > 0).all()
    assert F == -(-S // stride) == schedule.window_needed()  # as few in flight as can be


@given(schedule=schedules(CHUNKED), chunks=st.integers(1, 3))
@quick
def test_a_stream_of_chunks_runs_them_one_after_the_other(schedule, chunks):
    view, n = schedule.view(), schedule.chunk
    alone = schedule.matrix(n)
    assert view.emit == view.in_flight == n and view.look_ahead == 0 and len(view.ramp) == 1 and not view.repeat
    np.testing.assert_array_equal(view.step, alone)
    matrix = view.matrix(chunks * n)
    assert len(matrix) == chunks * (len(alone) - 1) + 1
    for chunk in range(chunks):
        rows = matrix[chunk * (len(alone) - 1) : (chunk + 1) * (len(alone) - 1) + 1]
        np.testing.assert_array_equal(rows[:, chunk * n : (chunk + 1) * n], alone)
        assert not rows[:, : chunk * n].any() and (rows[:, (chunk + 1) * n :] == schedule.steps).all()


@given(schedule=schedules(["real_time"]))
@quick
def test_a_real_time_stream_keeps_its_window_at_one_level(schedule):
    view, S, F, guess = schedule.view(), schedule.steps, schedule.in_flight, schedule.guess
    assert view.repeat and view.emit == 1 and view.in_flight == F and view.look_ahead == F - 1
    np.testing.assert_array_equal(view.ramp, np.repeat(np.arange(S, guess - 1, -1)[:, None], F, axis=1))
    np.testing.assert_array_equal(view.step, np.repeat(np.arange(guess, -1, -1)[:, None], F, axis=1))


def test_look_ahead_counts_the_blocks_that_an_entering_condition_comes_too_late_for():
    assert Schedule(4, "autoregressive").view().look_ahead == 0
    assert Schedule(4, "pyramid", stride=2.0).view().look_ahead == 1
    assert Schedule(6, "rolling", in_flight=3).view().look_ahead == 2
    assert Schedule(5, "pyramid", stride=1.0).view().look_ahead == 4


@pytest.mark.parametrize("schedule, frames", [
    (Schedule(4, "autoregressive"), (0, 0, 0)),
    (Schedule(4, "full", chunk=3), (0, 0, 0)),
    (Schedule(6, "rolling", in_flight=3), (6, 6, 6)),
    (Schedule(5, "pyramid", stride=3.0), (3, 3, 3)),
    (Schedule(4, "real_time", in_flight=3, guess=2), (6, 6, 6)),
])  # fmt: skip
def test_look_ahead_is_told_in_frames(schedule, frames):
    """Of blocks of three: what is under way when a block enters, and what of it has lost noise."""
    view, (action, prompt, begun) = schedule.view(), frames
    assert view.frames_ahead(3) == frames
    assert view.frames_ahead(3, knot=1) == (action, prompt + 1, begun + 1)  # half of it is made under the old prompt


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(4, "full"),
        Schedule(4, "trapezoid", stride=2.0),
        Schedule(4, "interleaved"),
        Schedule(4, "pyramid", stride=1.5),
        Schedule(4, "pyramid", stride=0.5),
        Schedule(5, "rolling", in_flight=2),
    ],
    ids=lambda schedule: f"{schedule.offset} {schedule.stride}",
)
def test_no_stream_can_run_a_broken_stride_or_half_a_clip(schedule):
    with pytest.raises(ValueError, match="schedule.offset is '[a-z]+'.* a stream .*[0-9'] would do$") as refusal:
        schedule.view()
    key, value = re.search(r"schedule\.(\w+) = (\d+) would do$", str(refusal.value)).groups()
    changed = {"steps": schedule.steps, "chunk": 1, "stride": schedule.stride} | {key: int(value)}
    Schedule(offset=schedule.offset, in_flight=schedule.in_flight, **changed).view()


# Moves of a solver.


@given(schedule=schedules(), blocks=st.integers(1, 6))
@quick
def test_where_nothing_rises_moves_are_the_rows(schedule, blocks):
    if schedule.offset in ("refine", "real_time"):
        return
    levels = schedule.matrix(blocks)
    before, start, end = transitions(levels)
    for ours, theirs in zip((before, start, end), (levels[:-1], levels[:-1], levels[1:]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_refining_is_noised_in_the_move_that_follows():
    before, start, end = transitions(Schedule(3, "refine", back=2, repeats=2).matrix(1))
    np.testing.assert_array_equal(before[:, 0], [3, 2, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(start[:, 0], [3, 2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(end[:, 0], [2, 1, 0, 1, 0, 1, 0])


@given(levels=st.integers(1, 4).flatmap(lambda F: st.lists(st.lists(st.integers(0, 3), min_size=F, max_size=F),
                                                           min_size=1, max_size=9)))  # fmt: skip
@quick
def test_moves_chain_and_lose_nothing(levels):
    """Whatever the matrix: each move begins where the last ended, first up, then down, and all falls are taken."""
    levels = np.array(levels)
    before, start, end = transitions(levels)
    assert before.shape == start.shape == end.shape and before.shape[1] == levels.shape[1]
    assert (before <= start).all() and (end <= start).all()
    np.testing.assert_array_equal(np.concatenate([levels[:1], end])[:-1], before)
    np.testing.assert_array_equal(end[-1] if len(end) else levels[0], levels[-1])
    assert np.any(end < start, axis=1)[:-1].all()  # every move but perhaps the last calls the network
    fallen = np.sum(np.maximum(-np.diff(levels, axis=0), 0), axis=0)
    np.testing.assert_array_equal(np.sum(start - end, axis=0), fallen)


def test_a_view_is_a_tuple_with_defaults():
    rows = np.array([[1], [0]])
    assert View(rows[:1], rows) == (View(rows[:1], rows).ramp, rows, 1, False, None)

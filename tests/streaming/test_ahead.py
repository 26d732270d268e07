"""A stream that is one block ahead, the order in which blocks are begun and fetched, and where the time goes."""

import time

import numpy as np
import pytest

from causal_diffusion.streaming.output import Output
from causal_diffusion.streaming.session import Session
from causal_diffusion.streaming.watch import PHASES, Watch

BATCH = 2


@pytest.fixture
def start(pipeline, inputs):
    """name -> (pipeline, arguments of stream)."""

    def start(name):
        pipe = pipeline(name)
        return pipe, inputs(pipe, BATCH, context=pipe.recipe.layout.whole(2 * pipe.rollout.block), frames=8)

    return start


def equal(one, two):
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["pyramid", *(pytest.param(n, marks=pytest.mark.full) for n in ("teacher", "prefix"))])
def test_a_stream_that_is_ahead_is_the_same_stream(start, name, tmp_path):
    pipe, given = start(name)
    b = pipe.rollout.block
    plain, ahead = pipe.stream(seed=1, **given), pipe.stream(seed=1, ahead=True, **given)
    clip = plain.take(9)
    equal(ahead.frame, [2 * b - pipe.recipe.layout.pad] * BATCH)
    parts = [next(ahead), next(ahead), ahead.take(4)]
    equal(np.concatenate(parts, axis=1), clip[:, : 6 * b])
    equal(ahead.frame, plain.frame - 3 * b)
    mark, twin = ahead.mark(), ahead.fork()
    equal(twin.take(2), clip[:, 6 * b : 8 * b])
    ahead.save(tmp_path / "stream")
    resumed = pipe.resume(tmp_path / "stream")
    assert resumed.ahead and twin.ahead
    equal(resumed.take(3), clip[:, 6 * b :])
    equal(ahead.take(3), clip[:, 6 * b :])
    ahead.rewind(mark)
    ahead.ahead = False  # the block that was begun comes first, and no other is begun
    equal(ahead.take(1), clip[:, 6 * b : 7 * b])
    equal(ahead.frame, ahead._mark.state.frame)
    equal(ahead.take(2), clip[:, 7 * b :])
    plain.rewind(mark)  # a mark is whole, whoever goes on from it
    equal(plain.take(3), clip[:, 6 * b :])


@pytest.mark.full
def test_a_short_first_block_is_trimmed_once(pipeline, inputs):
    pipe = pipeline("prefix")
    given = inputs(pipe, BATCH, context=0, frames=9)
    ahead = pipe.stream(seed=1, ahead=True, **given)
    assert ahead.void == 2
    parts = [next(ahead) for _ in range(3)]
    assert [part.shape[1] for part in parts] == [1, 3, 3] and ahead.void == 0 and ahead.frame.tolist() == [7, 7]
    equal(np.concatenate(parts, axis=1), pipe.generate(seed=1, frames=7, **given))


def test_what_steers_shows_one_block_later(start):
    """A label, an action, and a sample that starts again: the block that was begun is what it was."""
    pipe, given = start("teacher")
    b = pipe.rollout.block
    del given["cond"]["action"]
    plain, ahead = pipe.stream(seed=1, **given), pipe.stream(seed=1, ahead=True, **given)
    undisturbed = plain.fork().take(4)
    equal(next(ahead), next(plain))
    equal(ahead.take(1), plain.take(1))
    for stream in (plain, ahead):
        stream.update({"label": 2})
    changed = plain.take(2)
    seen = ahead.take(2)
    equal(seen[:, :b], undisturbed[:, 2 * b : 3 * b])
    assert np.abs(changed[:, :b] - seen[:, :b]).max() > 1e-3  # at once without, ...
    assert np.abs(seen[:, b:] - undisturbed[:, 3 * b :]).max() > 1e-3  # ... one block later with it


def test_the_next_blocks_are_begun_before_the_last_ones_are_fetched(start, monkeypatch):
    """Of a stream that is ahead, and of many blocks at once."""
    pipe, given = start("causal")
    events, begin, fetch = [], Session._step, Output.fetched

    def begun(self, *given):
        mark = begin(self, *given)
        events.append(("begin", mark.ahead[-1].steps))
        return mark

    def fetched(self, watch):
        if self.frames is None:  # else it is in the host's memory
            events.append(("fetch", self.steps))
        return fetch(self, watch)

    monkeypatch.setattr(Session, "_step", begun)
    monkeypatch.setattr(Output, "fetched", fetched)
    stream = pipe.stream(seed=1, ahead=True, **given)
    next(stream), next(stream)
    one = [("begin", 1), ("fetch", 1)]
    assert events == [("begin", 1), *one, *one]
    events.clear()
    pipe.stream(seed=1, **given).take(8)  # two given frames of three: one step fills the ring; capacity is three
    assert events == [("begin", 1), ("begin", 3), ("fetch", 1), ("begin", 3), ("fetch", 3), ("begin", 1),
                      ("fetch", 3), ("fetch", 1)]  # fmt: skip


def test_phases_add_up_to_the_time_of_a_stream(start):
    pipe, given = start("teacher")
    begun = time.perf_counter()
    stream = pipe.stream(seed=1, **given)
    frames = np.concatenate([stream.take(2), next(stream)], axis=1)
    passed, watch = time.perf_counter() - begun, stream.watch
    assert set(watch.seconds) == set(PHASES) and min(watch.seconds.values()) >= 0.0
    assert 0.0 < sum(watch.seconds.values()) <= passed
    assert watch.blocks == 3 and watch.frames == frames.shape[1] and 0.0 < watch.first <= passed
    assert watch.seconds["steps"] > 0.0 and watch.seconds["decoding"] == 0.0  # no decoder
    assert watch.per_block()["steps"] == pytest.approx(1e3 * watch.seconds["steps"] / 3)
    assert all(name in str(watch) for name in PHASES)
    assert stream.fork().watch.blocks == 0


def test_a_phase_is_the_time_inside():
    watch = Watch()
    assert watch.first is None and np.isnan(watch.per_block()["steps"])
    for _ in range(2):
        with watch.phase("steps"):
            time.sleep(0.01)
    with pytest.raises(KeyError), watch.phase("steps"):
        raise KeyError
    assert 0.02 <= watch.seconds["steps"] < 1.0
    assert sum(watch.seconds.values()) == watch.seconds["steps"]

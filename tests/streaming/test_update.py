"""Steering a stream, and starting single samples again."""

import jax
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.streaming.state import as_made

BATCH = 2
BOTH = pytest.mark.parametrize("name", ["teacher", "pyramid"])


@pytest.fixture
def start(pipeline, inputs):
    """name -> (pipeline, arguments of stream): two samples, two blocks of context, actions for eight frames."""

    def start(name):
        pipe = pipeline(name)
        return pipe, inputs(pipe, BATCH, context=2 * pipe.rollout.block, frames=8)

    return start


def close(one, two):
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())


def apart(one, two):
    """Whether each sample differs visibly."""
    return np.abs(one - two).max(axis=tuple(range(1, one.ndim))) > 1e-3 * np.abs(two).max()


@pytest.mark.parametrize("name", ["teacher", pytest.param("pyramid", marks=pytest.mark.full)])
def test_a_new_condition_steers_the_blocks_that_enter(start, name):
    """Blocks in flight keep theirs; with when='in_flight' they change at once. Samples keep to themselves."""
    pipe, given = start(name)
    b, waiting = pipe.rollout.block, pipe.rollout.in_flight - 1
    stream = pipe.stream(seed=1, **given)
    stream.take(2)
    mark, plain = stream.mark(), stream.take(4)
    stream.rewind(mark)
    stream.update({"label": [2, 1]})  # the second sample keeps its class
    entering = stream.take(4)
    early, first = slice(waiting * b), slice(waiting * b, (waiting + 1) * b)
    np.testing.assert_allclose(entering[:, early], plain[:, early], atol=1e-5 * np.abs(plain).max())
    assert apart(entering[:, first], plain[:, first]).tolist() == [True, False]
    np.testing.assert_array_equal(entering[1], plain[1])
    stream.rewind(mark)
    stream.update({"label": [2, 1]}, when="in_flight")
    at_once = stream.take(4)
    assert apart(at_once[:, :b], plain[:, :b]).tolist() == [True, False]
    if not waiting:
        np.testing.assert_array_equal(at_once, entering)


@BOTH
def test_what_an_update_leaves_out_stays(start, name):
    pipe, given = start(name)
    stream = pipe.stream(seed=1, **given)
    mark, plain = stream.mark(), stream.take(3)
    text = {key: given["cond"][key] for key in ("text", "text_mask")}
    for same in ({}, {"label": given["cond"]["label"]}, text):
        stream.rewind(mark)
        stream.update(same, when="in_flight")
        np.testing.assert_array_equal(stream.take(3), plain)
    stream.rewind(mark)
    stream.update(text | {"text": -text["text"]}, when="in_flight")
    assert apart(stream.take(3), plain).all()


@pytest.mark.parametrize("name", ["teacher", *(pytest.param(n, marks=pytest.mark.full) for n in ("fused", "deep"))])
def test_recaching_is_a_fresh_stream_while_all_is_remembered(start, name):
    """The whole history, sinks and window, under the new condition: as if it had been given with it."""
    pipe, given = start(name)
    other = given | {"cond": given["cond"] | {"label": [1, 2]}}
    fresh = pipe.stream(seed=1, **other).take(3)
    stream = pipe.stream(seed=1, **given)
    mark = stream.mark()
    stream.update({"label": [1, 2]}, recache=True)
    close(stream.take(3), fresh)
    stream.rewind(mark)
    stream.update({"label": [1, 2]})
    assert apart(stream.take(3), fresh).all()  # without it, the past is remembered under the old condition


@pytest.mark.full
def test_recaching_may_spare_the_sinks(config, systems, random_params, inputs):
    """LongLive's way: their keys and values stay as they are, all others are encoded anew."""
    changed = systems["deep"] | {"cache.budget": 0, "cache.recent": 0, "cache.recache_sinks": False}
    config = config(**changed)
    pipe = Pipeline(config, random_params(build(config)))
    given = inputs(pipe, BATCH, context=2, frames=8)
    stream = pipe.stream(seed=1, **given)
    stream.take(5)
    before, ahead = stream.mark().state, stream.fork().take(2)
    stream.update({}, recache=True)
    again = stream.mark().state
    sinks = pipe.recipe.layout.sinks
    held = np.asarray(again.slots.frame)
    np.testing.assert_array_equal(held, before.slots.frame)
    assert int(again.slots.cursor) == int(before.slots.cursor)
    before, again = as_made(before), as_made(again)
    for one, two in zip(jax.tree.leaves(before.caches), jax.tree.leaves(again.caches), strict=True):
        np.testing.assert_array_equal(one[:, :sinks], two[:, :sinks])
    late = [np.abs(a[:, sinks:] - b[:, sinks:]).max() for a, b in zip(
        jax.tree.leaves(before.caches[1]), jax.tree.leaves(again.caches[1]), strict=True)]  # fmt: skip
    assert max(late) > 1e-4  # what the window has forgotten is not encoded into it any more
    assert np.abs(stream.take(2) - ahead).max() > 1e-5


def test_recaching_needs_the_frames(config, systems, random_params, inputs, pipeline):
    """A stream may spare them, and then goes on with the same bits."""
    changed = config(**systems["causal"] | {"cache.latents": False})
    pipe = Pipeline(changed, random_params(build(changed)))
    given = inputs(pipe, BATCH, context=2, frames=8)
    stream = pipe.stream(seed=1, **given)
    assert not stream.mark().state.memory
    np.testing.assert_array_equal(stream.fork().take(4), pipeline("causal").stream(seed=1, **given).take(4))
    with pytest.raises(UserError, match="cache.latents is False: .*; cache.latents = True would do"):
        stream.update({}, recache=True)
    far = pipeline("two_level").stream(seed=1, cond={"label": 1})
    with pytest.raises(UserError, match="recache is True and cache.kind is 'two_level': .*; cache.kind = 'kv' would"):
        far.update({}, recache=True)


@BOTH
@pytest.mark.parametrize("emitted", [1, 5, 6])
def test_recaching_keeps_every_slot_in_its_place(start, name, emitted):
    """Whatever the phase of the ring: frames, latents, actions and cursor stay; keys and values are new."""
    pipe, given = start(name)
    stream = pipe.stream(seed=1, **given)
    stream.take(emitted)
    before = stream.mark().state
    stream.update({"label": 2}, recache=True)
    after = stream.mark().state
    for name in ("slots", "memory", "x", "frame", "action", "condition"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    for old, new in zip(as_made(before).caches, as_made(after).caches, strict=True):
        assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(old, new, strict=True))


@BOTH
@pytest.mark.parametrize("emitted", [1, 2, 5])
def test_a_sample_that_is_reset_starts_as_it_would_alone(start, name, emitted):
    """At any phase of the ring and with sinks: the others keep their bits, and it repeats its own beginning."""
    pipe, given = start(name)
    del given["cond"]["action"]  # or the queue would have moved on
    stream = pipe.stream(seed=1, **given)
    beginning = pipe.generate(seed=1, frames=4 * pipe.rollout.block, **given)
    stream.take(emitted)
    undisturbed = stream.fork().take(4)
    acted = given["cond"]["context_action"][1]
    stream.reset(1, context=given["context"][1], context_action=acted)
    assert stream.frame.tolist() == [(2 + emitted) * pipe.rollout.block, 2 * pipe.rollout.block]
    again = stream.take(4)
    np.testing.assert_array_equal(again[0], undisturbed[0])
    close(again[1], beginning[1])
    assert apart(again, undisturbed).tolist() == [False, True]


def test_a_reset_with_other_context_is_a_stream_from_that_context(start):
    pipe, given = start("teacher")
    stream = pipe.stream(seed=1, **given)
    stream.take(4)  # past the queue, so that both hold the same action
    other = given | {"context": -given["context"]}
    del other["cond"]["action"]
    expected = pipe.stream(seed=1, **other)
    held = stream.mark().held
    stream.reset(0, context=other["context"][0], context_action=given["cond"]["context_action"][0])
    close(stream.take(3)[0], expected.take(3, action=held)[0])


def test_a_reset_without_context_begins_from_nothing(pipeline):
    pipe = pipeline("causal")
    beginning = pipe.generate(seed=1, frames=4, batch=BATCH)
    stream = pipe.stream(seed=1, batch=BATCH)
    stream.take(5)
    undisturbed = stream.fork().take(4)
    stream.reset(0)
    assert stream.frame.tolist() == [0, 5]
    again = stream.take(4)
    close(again[0], beginning[0])
    np.testing.assert_array_equal(again[1], undisturbed[1])

"""Streams that are pulled towards known values, or down a loss of the user's own."""

import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

PLAIN = {
    "layout.kind": "block_causal", "layout.block": 2, "layout.window": 4, "model.depth": 1,
    "process.predict": "x0", "schedule.steps": 4, "schedule.t_max": 0.95,
}  # fmt: skip
ROLLING = PLAIN | {"schedule.offset": "rolling", "schedule.in_flight": 2, "cache.commit": "fused"}
OBSERVED = {"guidance.observe": "square", "guidance.observe_scale": 4.0}
FRAMES = 8
SCHEDULES = pytest.mark.parametrize("name", ["plain", pytest.param("rolling", marks=pytest.mark.full)])


@pytest.fixture(scope="module")
def pipelines(config, random_params):
    """(observing, the same without): one block at a time, and two in flight with fused commits."""
    def pair(system):
        params = random_params(build(config(**system)), scale=0.15)
        return Pipeline(config(**system, **OBSERVED), params), Pipeline(config(**system), params)

    return {"plain": pair(PLAIN), "rolling": pair(ROLLING)}


def some_known(shape, frames):
    """Values of a few frames, all others unknown."""
    values = np.full((FRAMES, *shape), np.nan, np.float32)
    for frame in frames:
        values[frame] = np.random.default_rng(frame).uniform(-1, 1, shape)
    return values


@SCHEDULES
def test_known_values_pull_the_frames_they_belong_to(pipelines, name):
    """Nothing known changes nothing; what is known of a frame is met better, and nothing changes before it enters."""
    observing, without = pipelines[name]
    shape, inputs = observing.recipe.frame_shape, dict(seed=1, frames=FRAMES, batch=2)
    free = without.generate(**inputs)
    np.testing.assert_allclose(observing.generate(**inputs, cond={"observed": some_known(shape, ())}), free, atol=1e-5)
    np.testing.assert_allclose(observing.generate(**inputs), free, atol=1e-5)
    known = some_known(shape, (5,))
    pulled = observing.generate(**inputs, cond={"observed": known})
    before = np.abs(free[:, 5] - known[5]).mean(axis=(1, 2, 3))
    assert (np.abs(pulled[:, 5] - known[5]).mean(axis=(1, 2, 3)) < 0.7 * before).all()
    begins = 4 - observing.rollout.look_ahead.begun  # frame 5 is in the block of frames 4 and 5
    np.testing.assert_allclose(pulled[:, :begins], free[:, :begins], atol=1e-5)
    assert np.abs(pulled[:, 4:] - free[:, 4:]).max() > 1e-2


@pytest.mark.full
@SCHEDULES
def test_known_values_come_in_as_the_stream_goes(pipelines, name, tmp_path):
    """All at once, in a queue of one's own, or after a pause that was saved: the same bits."""
    observing, _ = pipelines[name]
    known = some_known(observing.recipe.frame_shape, (1, 6, 7))
    whole = observing.generate(seed=2, frames=FRAMES, cond={"observed": known})
    stream = observing.stream(seed=2, cond={"observed": known})
    first = next(stream)
    stream.save(tmp_path / "stream")
    np.testing.assert_array_equal(np.concatenate([first, stream.take(3)], axis=1), whole)
    resumed = observing.resume(tmp_path / "stream")
    np.testing.assert_array_equal(resumed.take(3), whole[:, 2:])
    entered = 2 + observing.rollout.waiting  # frames that have taken their values
    stream = observing.stream(seed=2, cond={"observed": known[:entered]})
    next(stream)
    stream.update({"observed": known[entered:]})
    np.testing.assert_array_equal(stream.take(3), whole[:, 2:])


@pytest.mark.full
def test_a_loss_of_ones_own_is_the_same_thing(pipelines):
    """The square of known values written by hand, for frames by their index; scale 0 changes nothing."""
    observing, without = pipelines["plain"]
    known = some_known(observing.recipe.frame_shape, (2, 3))
    target, given = jnp.asarray(np.nan_to_num(known)), jnp.asarray(np.isfinite(known))

    def loss(x0, frame):
        here = jnp.clip(frame, 0, FRAMES - 1)
        return jnp.sum(jnp.where(given[here], (x0 - target[here]) ** 2, 0.0), axis=(1, 2, 3, 4))

    inputs = dict(seed=3, frames=FRAMES, batch=2)
    expected = observing.generate(**inputs, cond={"observed": known})
    np.testing.assert_allclose(without.steered(loss, 4.0).generate(**inputs), expected, atol=1e-5)
    np.testing.assert_array_equal(without.steered(loss, 0.0).generate(**inputs), without.generate(**inputs))


def test_what_is_known_of_one_sample_is_unknown_to_the_others(pipelines):
    observing, without = pipelines["plain"]
    known = np.full((2, FRAMES, *observing.recipe.frame_shape), np.nan, np.float32)
    known[0] = some_known(observing.recipe.frame_shape, (0, 4))
    pulled = observing.generate(seed=4, frames=FRAMES, batch=2, cond={"observed": known})
    free = without.generate(seed=4, frames=FRAMES, batch=2)
    np.testing.assert_allclose(pulled[1], free[1], atol=1e-5)
    assert np.abs(pulled[0] - free[0]).max() > 1e-2


def test_known_values_of_the_wrong_kind_are_refused(pipelines):
    observing, without = pipelines["plain"]
    shape = observing.recipe.frame_shape
    for pipe, values, said in [
        (without, np.zeros((2, *shape)), "guidance.observe = 'square' would"),
        (observing, np.zeros((2, 3, 3, 1)), "it is \\[1, frames, 4, 4, 1\\]"),
        (observing, np.full((2, *shape), np.inf), "unknown values are NaN"),
        (observing, "many", "an array of numbers"),
    ]:
        with pytest.raises(UserError, match=said):
            pipe.stream(cond={"observed": values})


@SCHEDULES
def test_a_sample_that_begins_again_is_drawn_to_its_own_values(pipelines, name):
    """Those of its former self are known no more; the other sample's stay where they are."""
    observing, without = pipelines[name]
    known = np.full((2, FRAMES, *observing.recipe.frame_shape), np.nan, np.float32)
    known[:] = some_known(observing.recipe.frame_shape, range(FRAMES))
    stream = observing.stream(seed=5, batch=2, cond={"observed": known})
    undisturbed = stream.fork().take(4)
    stream.take(1)
    stream.reset(1)
    again = stream.take(3)
    np.testing.assert_array_equal(again[0], undisturbed[0, 2:])
    free = without.generate(seed=5, frames=6, batch=2)
    np.testing.assert_allclose(again[1], free[1], atol=1e-5)
    stream = observing.stream(seed=5, batch=2, cond={"observed": known})
    stream.take(1)
    stream.reset(1, observed=known[1])
    np.testing.assert_allclose(stream.take(3)[1], undisturbed[1, :6], atol=1e-5)


@pytest.mark.full
def test_a_sample_may_begin_again_with_another_reference(pipeline, inputs):
    """By itself it keeps its own."""
    pipe = pipeline("ahead")
    given = inputs(pipe, 2, context=2, frames=4)
    given["cond"].pop("reference")
    begins = pipe.generate(seed=1, frames=4, **given)
    other = given | {"context": given["context"][::-1]}
    stream = pipe.stream(seed=1, **other)
    stream.take(2)
    stream.reset(1, given["context"][1], reference=given["context"][1, 0])
    np.testing.assert_allclose(stream.take(4)[1], begins[1], atol=1e-5)
    stream.reset(1, given["context"][1])
    np.testing.assert_allclose(stream.take(4)[1], begins[1], atol=1e-5)
    stream.reset(1, given["context"][1], reference=-given["context"][1, 0])
    assert np.abs(stream.take(4)[1] - begins[1]).max() > 1e-3

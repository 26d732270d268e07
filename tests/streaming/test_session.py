"""The session: one stream, however it is asked for; marks, forks, actions, and no recompilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causal_diffusion.streaming.inputs import take_actions
from causal_diffusion.streaming.state import Action, sample_keys

BATCH = 2
BOTH = pytest.mark.parametrize("name", ["teacher", "pyramid"])
ONE_FIRST = pytest.mark.parametrize("name", ["teacher", pytest.param("pyramid", marks=pytest.mark.full)])


@pytest.fixture
def start(pipeline, inputs):
    """name -> (pipeline, arguments of stream): two samples, two blocks of context, actions for eight frames."""

    def start(name):
        pipe = pipeline(name)
        return pipe, inputs(pipe, BATCH, context=2 * pipe.rollout.block, frames=8)

    return start


def close(one, two):
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())


@BOTH
def test_generate_and_stream_give_the_same_bits(start, name):
    """By next, by take, in any mixture, across the capacity of the compiled scan."""
    pipe, given = start(name)
    b, capacity = pipe.rollout.block, pipe.config.stream.capacity
    blocks = 2 * capacity + 1
    clip = pipe.generate(seed=1, frames=blocks * b, **given)
    assert clip.shape == (BATCH, blocks * b, 4, 4, 1) and clip.dtype == np.float32
    stream = pipe.stream(seed=1, **given)
    one_by_one = [stream.next() if i % 2 else next(stream) for i in range(blocks)]
    assert all(block.shape == (BATCH, b, 4, 4, 1) for block in one_by_one)
    np.testing.assert_array_equal(np.concatenate(one_by_one, axis=1), clip)
    assert stream.frame.tolist() == [(2 + blocks) * b] * BATCH and stream.batch == BATCH
    mixed = pipe.stream(seed=1, **given)
    parts = [mixed.take(capacity + 1), next(mixed), mixed.take(blocks - capacity - 2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip)
    for frames in (1, b * capacity - 1 or 1, blocks * b - 1):  # rounded up to blocks, then trimmed
        np.testing.assert_array_equal(pipe.generate(seed=1, frames=frames, **given), clip[:, :frames])
    other = pipe.generate(seed=2, frames=b, **given)
    assert np.abs(other - clip[:, :b]).max() > 1e-3


@pytest.mark.parametrize("name", ["causal", pytest.param("pyramid", marks=pytest.mark.full)])
def test_the_scan_is_a_loop_of_steps(start, name):
    """``advance`` against ``step`` called from Python, which donates nothing and gives the same twice."""
    pipe, given = start(name)
    action = None
    if name == "pyramid":
        held = given["cond"]["action"] = given["cond"]["action"][:, :1]  # and held from then on
        action = Action(jnp.asarray(held), jnp.ones(held.shape[:2], bool))
    stream = pipe.stream(seed=1, **given)
    state, encoded = stream.mark().state, stream.mark().encoded
    step = jax.jit(pipe.rollout.step)
    blocks = []
    for _ in range(5):
        before = state
        state, block = step(pipe.params, state, encoded, action)
        blocks.append(block)
    _, again = step(pipe.params, before, encoded, action)
    np.testing.assert_array_equal(again, block)
    looped, scanned = np.concatenate(blocks, axis=1), stream.take(5)
    np.testing.assert_allclose(looped, scanned, atol=1e-6 * np.abs(scanned).max())
    assert step._cache_size() == 1


@ONE_FIRST
def test_nothing_recompiles_during_a_stream(start, executables, name, tmp_path):
    """Rollouts of every length, and everything that a session can do, go through one executable of each program."""
    pipe, given = start(name)
    before = executables(pipe)
    stream = pipe.stream(seed=0, **given)
    stream.take(3 * pipe.config.stream.capacity + 1)
    now = executables(pipe)
    assert all(now[name] - before[name] <= 1 for name in now)
    for blocks in (1, 2, pipe.config.stream.capacity, 3 * pipe.config.stream.capacity + 1):
        stream.take(blocks)
        pipe.generate(seed=blocks, frames=blocks * pipe.rollout.block, **given)
    mark, twin = stream.mark(), stream.fork()
    stream.update({"label": 1})
    next(stream)
    stream.update({"label": [0, 2]}, when="in_flight", recache=True)
    next(stream)
    stream.next(action=np.ones(2))
    stream.reset(1, context=given["context"][1], context_action=given["cond"]["context_action"][1])
    next(stream)
    stream.rewind(mark)
    next(stream)
    next(twin)
    twin.save(tmp_path / "stream")
    next(pipe.resume(tmp_path / "stream"))
    assert executables(pipe) == now


@ONE_FIRST
def test_the_state_is_updated_in_place(start, name):
    """The session donates its buffers: the old ones are gone, and no second copy of the caches is made."""
    pipe, given = start(name)
    stream = pipe.stream(seed=0, **given)
    old = stream._mark.state
    next(stream)
    assert len(jax.tree.leaves(old.caches)) == 2 * pipe.recipe.model.config.depth  # keys and values
    assert all(a.is_deleted() for a in jax.tree.leaves(old.caches))


@BOTH
def test_marks_and_forks_are_exact(start, name):
    pipe, given = start(name)
    stream = pipe.stream(seed=3, **given)
    stream.take(2)
    mark, twin = stream.mark(), stream.fork()
    ahead = stream.take(4)
    np.testing.assert_array_equal(twin.take(4), ahead)
    for _ in range(2):  # a mark is good more than once
        stream.rewind(mark)
        np.testing.assert_array_equal(stream.take(4), ahead)
    stream.rewind(mark)
    stream.update({"label": 2}, when="in_flight")  # what one does the other does not see
    assert np.abs(stream.take(4) - ahead).max() > 1e-3
    twin.rewind(mark)
    np.testing.assert_array_equal(twin.take(4), ahead)


def test_noise_depends_on_seed_and_index_alone(pipeline):
    """The first of two samples is the sample that is streamed alone."""
    pipe = pipeline("causal")
    both = pipe.generate(seed=4, frames=5, batch=2)
    close(pipe.generate(seed=4, frames=5, batch=1)[0], both[0])
    assert np.abs(both[0] - both[1]).max() > 1e-2
    keys = jax.random.key_data(sample_keys(4, 3))
    np.testing.assert_array_equal(jax.random.key_data(sample_keys(4, 1)), keys[:1])
    assert len(np.unique(np.concatenate([keys, jax.random.key_data(sample_keys(5, 3))]), axis=0)) == 6


@BOTH
def test_finish_drains_the_blocks_in_flight(start, name):
    pipe, given = start(name)
    waiting = pipe.rollout.in_flight - 1
    assert waiting == {"teacher": 0, "pyramid": 1}[name]
    clip = pipe.generate(seed=1, frames=(3 + waiting) * pipe.rollout.block, **given)
    stream = pipe.stream(seed=1, **given)
    parts = [stream.take(3), stream.finish()]
    assert parts[1].shape == (BATCH, waiting * pipe.rollout.block, 4, 4, 1)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip)


@BOTH
def test_actions_may_be_queued_or_given_block_by_block(start, name):
    """A queue of actions is the same as handing them over one block at a time as blocks enter."""
    pipe, given = start(name)
    b, early = pipe.rollout.block, (pipe.rollout.in_flight - 1) * pipe.rollout.block
    action = given["cond"].pop("action")[:, : early + 3 * b]
    queued = pipe.stream(seed=1, **given | {"cond": given["cond"] | {"action": action}})
    ramp = {"action": action[:, :early]} if early else {}
    by_hand = pipe.stream(seed=1, **given | {"cond": given["cond"] | ramp})
    whole = queued.take(3)
    parts = [by_hand.next(action=action[:, early + i * b : early + (i + 1) * b]) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(by_hand.take(2), queued.take(2))  # both hold the last one now


@given(queued=st.integers(0, 7), held=st.booleans(), turns=st.lists(st.integers(1, 4), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_queue_runs_out_frame_by_frame(queued, held, turns):
    """However the frames are asked for: the queue in order, then its last action, or the one held before, or none."""
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(BATCH, queued + held, 3)).astype(np.float32)  # the first one is already held
    past = actions[:, :1] if held else None
    queue = actions[:, held:] if queued else None
    last = actions[:, -1:] if queued + held else np.zeros((BATCH, 1, 3), np.float32)
    expected = np.concatenate([actions[:, held:], np.repeat(last, sum(turns), axis=1)], axis=1)[:, : sum(turns)]
    known = np.arange(sum(turns)) < (sum(turns) if queued + held else 0)
    parts = []
    for frames in turns:
        value, given, queue, past = take_actions(queue, past, frames, BATCH, 3)
        parts.append((value, given))
    values, givens = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(givens, np.broadcast_to(known, givens.shape))


@BOTH
def test_the_last_action_is_held(start, name):
    """A short action is held for the frames that follow; a new one takes its place, and all of it matters."""
    pipe, given = start(name)
    del given["cond"]["action"]
    stream = pipe.stream(seed=1, **given)
    mark = stream.mark()
    held = [stream.next(action=[1.0, -1.0]), next(stream), stream.take(2)]
    stream.rewind(mark)
    frames = 4 * pipe.rollout.block
    spelled = stream.take(4, action=np.tile([1.0, -1.0], (frames, 1)))
    np.testing.assert_array_equal(np.concatenate(held, axis=1), spelled)
    stream.rewind(mark)
    changed = [stream.next(action=[1.0, -1.0]), stream.next(action=[-2.0, 0.5]), stream.take(2)]
    changed = np.concatenate(changed, axis=1)
    since = (pipe.rollout.in_flight) * pipe.rollout.block  # the second action steers the block that entered with it
    close(changed[:, :since], spelled[:, :since])
    assert np.abs(changed - spelled)[:, since : since + pipe.rollout.block].max() > 1e-3
    stream.rewind(mark)
    unknown = stream.take(4)
    assert np.abs(unknown - spelled).max() > 1e-3


def test_a_queue_is_replaced_by_an_update_and_by_an_action(start):
    pipe, given = start("teacher")
    action = given["cond"].pop("action")[:, :6]
    stream = pipe.stream(seed=1, **given | {"cond": given["cond"] | {"action": -action}})
    mark = stream.mark()
    expected = pipe.stream(seed=1, **given | {"cond": given["cond"] | {"action": action}}).take(3)
    stream.update({"action": action})
    np.testing.assert_array_equal(stream.take(3), expected)
    stream.rewind(mark)
    np.testing.assert_array_equal(stream.take(3, action=action), expected)


def test_streams_may_begin_from_nothing(pipeline):
    pipe = pipeline("causal")
    clip = pipe.generate(seed=0, frames=4, batch=BATCH)
    assert clip.shape == (BATCH, 4, 4, 4, 1) and np.isfinite(clip).all()
    stream = iter(pipe.stream(seed=0, batch=BATCH))
    np.testing.assert_array_equal(np.concatenate([next(stream) for _ in range(4)], axis=1), clip)
    state = jax.tree.map(jnp.shape, stream.mark().state)
    assert state.action is None and state.condition.vector is None

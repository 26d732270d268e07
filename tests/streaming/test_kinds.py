"""What holds for streams of every kind: chunks, recomputed pasts, multistep solvers, short and special first blocks."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.process import Process
from causal_diffusion.diffusion.solvers import Solver
from causal_diffusion.errors import UserError
from causal_diffusion.nn.transformer import EncodedCondition
from causal_diffusion.recipe import build
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.session import Session
from causal_diffusion.streaming.state import as_made, sample_keys

BATCH = 2
full = pytest.mark.full


@pytest.fixture
def start(pipeline, inputs):
    """name -> (pipeline, arguments of stream): two samples, two blocks of context, actions for eight frames."""

    def start(name):
        pipe = pipeline(name)
        layout = pipe.recipe.layout
        return pipe, inputs(pipe, BATCH, context=2 * layout.block - layout.pad, frames=8)

    return start


def close(one, two):
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max())


def apart(one, two):
    """Whether each sample differs visibly."""
    return np.abs(one - two).max(axis=tuple(range(1, one.ndim))) > 1e-3 * np.abs(two).max()


@pytest.mark.parametrize(
    "name", ["chunk", "real_time", *(pytest.param(n, marks=full) for n in (
        "registers", "refine", "prefix", "fused_rolling", "deep", "two_level", "knot", "ahead"))]
)  # fmt: skip
def test_however_it_is_asked_for_it_is_one_program_and_the_same_bits(start, executables, name, tmp_path):
    pipe, given = start(name)
    before = executables(pipe)
    emit, capacity = pipe.rollout.emit, pipe.config.stream.capacity
    steps = 2 * capacity + 1
    clip = pipe.generate(seed=1, frames=steps * emit, **given)
    now = executables(pipe)
    assert all(now[name] - before[name] <= 1 for name in now)
    stream = pipe.stream(seed=1, **given)
    one_by_one = [next(stream) for _ in range(steps)]
    assert all(block.shape == (BATCH, emit, *pipe.recipe.frame_shape) for block in one_by_one)
    np.testing.assert_array_equal(np.concatenate(one_by_one, axis=1), clip)
    mixed = pipe.stream(seed=1, **given)
    parts = [mixed.take(capacity + 1), next(mixed), mixed.take(steps - capacity - 2)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip)
    for frames in (1, emit * capacity - 1, steps * emit - 1):  # rounded up to what is emitted together, then trimmed
        np.testing.assert_array_equal(pipe.generate(seed=1, frames=frames, **given), clip[:, :frames])
    parts = [(drained := pipe.stream(seed=1, **given)).take(2), drained.finish()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip[:, : 2 * emit + pipe.rollout.waiting])
    mark = mixed.mark()
    mixed.reset(1, given["context"][1], given["cond"].get("context_action", [None] * BATCH)[1])
    mixed.update({}, when="in_flight", recache=pipe.recipe.cache.kind != "two_level")
    next(mixed)
    mixed.rewind(mark)
    mixed.save(tmp_path / "stream")
    np.testing.assert_array_equal(pipe.resume(tmp_path / "stream").take(2), mixed.fork().take(2))
    assert executables(pipe) == now


@pytest.mark.parametrize(
    "name", ["chunk", "real_time", "deep", *(pytest.param(n, marks=full) for n in (
        "registers", "ranges", "fused_rolling", "refine", "prefix", "window", "fused", "two_level", "knot", "ahead",
        "bidirectional", "slot"))]
)  # fmt: skip
def test_a_sample_that_is_reset_starts_as_it_would_alone(start, name):
    """The other one keeps its bits, and this one repeats its own beginning, wherever the ring stands."""
    pipe, given = start(name)
    given["cond"].pop("action", None)  # or the queue would have moved on
    stream, emit = pipe.stream(seed=1, **given), pipe.rollout.emit
    beginning = pipe.generate(seed=1, frames=4 * emit, **given)
    stream.take(3)
    undisturbed = stream.fork().take(4)
    stream.reset(1, given["context"][1], given["cond"].get("context_action", [None] * BATCH)[1])
    assert (stream.frame[0] - stream.frame[1]) == 3 * emit
    again = stream.take(4)
    np.testing.assert_array_equal(again[0], undisturbed[0])
    close(again[1], beginning[1])
    assert apart(again, undisturbed).tolist() == [False, True]


@full
@pytest.mark.parametrize("name", ["two_level", "deep", "fused", "slot"])
@pytest.mark.parametrize("context", [0, 5, 8])
def test_a_sample_may_begin_again_from_more_than_it_remembers(pipeline, inputs, name, context):
    """Wherever the rings of the others stand, of fine and of coarse history."""
    pipe = pipeline(name)
    b = pipe.recipe.layout.block
    given = inputs(pipe, BATCH, context=context * b, frames=8)
    for key in ("action", "context_action"):
        given["cond"].pop(key, None)
    beginning = pipe.generate(seed=1, frames=5 * b, **given)
    for blocks in (1, 4):
        stream = pipe.stream(seed=1, **given)
        stream.take(blocks)
        stream.reset(1, given["context"][1] if context else None)
        close(stream.take(5)[1], beginning[1])


@pytest.mark.parametrize(
    "name", ["chunk", "registers", "real_time", *(pytest.param(n, marks=full) for n in (
        "ranges", "refine", "prefix", "trapezoid"))]
)  # fmt: skip
def test_finished_blocks_never_change(start, name):
    """What a stream remembers of a frame is what it emitted, and stays so, bit by bit, with its keys and values."""
    pipe, given = start(name)
    stream, clip = pipe.stream(seed=1, **given), given["context"]
    remembered = {}
    for _ in range(6):
        clip = np.concatenate([clip, next(stream)], axis=1)
        state = stream.mark().state
        caches = [np.asarray(a).reshape(BATCH, -1, *a.shape[1:]) for a in jax.tree.leaves(as_made(state).caches)]
        for sample, frames in enumerate(np.asarray(state.slots.frame)):
            for slot, frame in enumerate(frames):
                if frame >= 0:
                    np.testing.assert_array_equal(state.memory["latents"][sample, slot], clip[sample, frame])
                    kept = remembered.setdefault((sample, frame), [a[sample, :, slot] for a in caches])
                    jax.tree.map(np.testing.assert_array_equal, kept, [a[sample, :, slot] for a in caches])
    assert len(remembered) > 2 * pipe.recipe.slots  # some were forgotten meanwhile


@pytest.mark.parametrize(
    "name", ["chunk", "registers", "real_time", "ranges", pytest.param("refine", marks=full),
             pytest.param("prefix", marks=full), pytest.param("unmodulated", marks=full)]
)  # fmt: skip
def test_samples_keep_to_themselves(start, name):
    """No block of one sample depends on the context of another."""
    pipe, given = start(name)
    frames = 4 * pipe.rollout.emit
    clip = pipe.generate(seed=1, frames=frames, **given)
    context = np.stack([given["context"][0], -given["context"][1]])
    other = pipe.generate(seed=1, frames=frames, **given | {"context": context})
    np.testing.assert_array_equal(other[0], clip[0])
    assert apart(other, clip).tolist() == [False, True]


@pytest.mark.parametrize("name", ["ranges", pytest.param("unmodulated", marks=full)])
def test_what_a_multistep_solver_remembers_is_saved(start, name, tmp_path):
    pipe, given = start(name)
    stream = pipe.stream(seed=1, **given)
    stream.take(3)
    stream.save(tmp_path / "stream")
    resumed = pipe.resume(tmp_path / "stream")
    history, state = stream.mark().state.history, resumed.mark().state
    jax.tree.map(np.testing.assert_array_equal, state.history, history)
    ahead = stream.take(4)
    np.testing.assert_array_equal(resumed.take(4), ahead)
    if pipe.rollout.waiting:  # it matters: blocks in flight are in mid-step
        assert np.asarray(history.count).max() == 2
        blank = dataclasses.replace(state, history=pipe.recipe.solver.init(state.x))
        assert apart(_session(pipe, stream, blank).take(1), ahead[:, : pipe.rollout.emit]).all()


def _session(pipe, stream, state):
    """A session like ``stream``, in another state."""
    return Session(pipe, stream.mark()._replace(state=jax.tree.map(jnp.copy, state)), stream.seed)


def test_a_short_first_block_is_trimmed(pipeline, inputs):
    """Blocks of three behind one of a single frame: what pads it is neither shown nor seen, and takes no action."""
    pipe = pipeline("prefix")
    given = inputs(pipe, BATCH, context=0, frames=9)
    clip = pipe.generate(seed=1, frames=10, **given)
    assert clip.shape[1] == 10
    stream = pipe.stream(seed=1, **given)
    assert stream.frame.tolist() == [0, 0] and stream.void == 2
    parts = [next(stream) for _ in range(4)]
    assert [part.shape[1] for part in parts] == [1, 3, 3, 3] and stream.frame.tolist() == [10, 10]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip)
    np.testing.assert_array_equal(pipe.stream(seed=1, **given).take(2), clip[:, :4])
    for frames in (1, 2, 5):
        np.testing.assert_array_equal(pipe.generate(seed=1, frames=frames, **given), clip[:, :frames])
    action = given["cond"].pop("action")
    by_hand = pipe.stream(seed=1, **given)
    with pytest.raises(UserError, match="action has 2 frames; the frames that enter now are 1"):
        by_hand.next(action=action[:, :2])
    parts = [by_hand.next(action=action[:, a:b]) for a, b in ((0, 1), (1, 4), (4, 7))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), clip[:, :7])


def test_the_padding_of_a_short_first_block_does_not_matter(start):
    """Not even where it is remembered: one sample's is spoiled, in every buffer, and nothing changes."""
    pipe, given = start("prefix")
    stream = pipe.stream(seed=1, **given)
    state = stream.mark().state
    void = (np.asarray(state.slots.frame) < 0) & (np.asarray(state.slots.frame) >= -2)
    assert void.sum(axis=1).tolist() == [2, 2]
    void[1] = False

    def spoil(a):
        return jnp.where(void.reshape(*void.shape, *(1,) * (a.ndim - 2)), 7, a).astype(a.dtype)

    caches, memory = jax.tree.map(spoil, as_made(state).caches), {k: spoil(a) for k, a in state.memory.items()}
    spoiled = pipe.rollout.laid(dataclasses.replace(state, caches=caches, memory=memory))
    np.testing.assert_array_equal(_session(pipe, stream, spoiled).take(3), stream.take(3))
    with pytest.raises(UserError, match="a single sample cannot start with a short block beside others"):
        stream.reset(0)


@pytest.mark.full
def test_more_steps_for_a_first_block_touch_no_other(start):
    """Only the samples that begin take them, in the step in which they begin."""
    pipe, given = start("first")
    stream = pipe.stream(seed=1, **given)
    state, begins = stream.mark().state, stream.fork().take(3)
    goes_on = dataclasses.replace(state, start=state.start - jnp.array([1, 0]))  # the first sample began before
    blocks = _session(pipe, stream, goes_on).take(3)
    assert apart(blocks[:, :1], begins[:, :1]).tolist() == [True, False]
    np.testing.assert_array_equal(blocks[1], begins[1])
    stream.take(3)
    undisturbed = stream.fork().take(3)
    stream.reset(1, given["context"][1])
    again = stream.take(3)
    np.testing.assert_array_equal(again[0], undisturbed[0])
    close(again[1], begins[1])


@pytest.mark.parametrize(
    "name", ["uneven", "refine", "real_time", *(pytest.param(n, marks=full) for n in ("rolling", "interleaved"))]
)
def test_no_two_draws_are_the_same(config, systems, name, monkeypatch):
    """Of all noise that the steps and rises of a stream put into its frames, no two are the same."""
    drawn = collections.Counter()

    def note(now, then, noise):
        for frame in np.asarray(noise)[np.asarray(now != then)]:
            drawn[frame.tobytes()] += 1

    def step(history, process, predict, x, t, s, noise):
        jax.debug.callback(note, t, s, noise)
        return history, x

    def renoise(process, x, t, s, noise):
        jax.debug.callback(note, t, s, noise)
        return x

    monkeypatch.setattr(Process, "renoise", renoise)
    # The network is never asked, so the system may as well be a plain one but for its schedule.
    schedule = {key: value for key, value in systems[name].items() if key.startswith("schedule.")}
    recipe = build(config(**schedule, **{"layout.kind": "block_causal", "cache.kind": "none"})).streaming()
    rollout = Rollout(recipe._replace(solver=Solver(lambda x: (), step, stochastic=True)))
    state = jax.jit(rollout.init_state)(None, sample_keys(0, 1), EncodedCondition())
    step = jax.jit(rollout.step)
    for _ in range(5):
        state, _ = step(None, state, EncodedCondition())
    jax.effects_barrier()
    assert drawn and set(drawn.values()) == {1}


def test_noisy_copies_are_a_matter_of_training(config, systems):
    """With one copy per clean pass or with two, the stream is one program."""
    texts = []
    for copies in (1, 2):
        rollout = Rollout(build(config(**systems["unmodulated"] | {"layout.copies": copies})).streaming())
        assert rollout.recipe.layout.copies == copies
        params = jax.eval_shape(rollout.recipe.init_params, jax.random.key(0))
        _, condition, _ = rollout.recipe.example()
        encoded = jax.eval_shape(rollout.encode_condition, params, condition)
        state = jax.eval_shape(rollout.init_state, params, jax.eval_shape(lambda: sample_keys(0, 1)), encoded)
        texts.append(jax.jit(rollout.step).lower(params, state, encoded).as_text())
    assert texts[0] == texts[1]

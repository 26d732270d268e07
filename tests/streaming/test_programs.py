"""Two programs make the blocks of a stream: which makes which, when they are compiled, and what they do not copy."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from causal_diffusion.recipe import build
from causal_diffusion.streaming.entering import take_entering_actions
from causal_diffusion.streaming.pipeline import Pipeline
from tests.compiling import AS_SHIPPED

BATCH = 2
full = pytest.mark.full


def full_ring(pipe, state):
    """Whether every slot of every sample's ring holds a frame that is seen."""
    fixed = pipe.recipe.kept + pipe.recipe.layout.sinks
    return bool((np.asarray(state.slots.frame)[:, fixed:] >= 0).all())


@pytest.mark.parametrize("name", ["teacher", *(pytest.param(n, marks=full) for n in (
    "causal", "prefix", "fused", "adjacent", "rolling", "interleaved"))])  # fmt: skip
def test_the_full_program_begins_with_the_first_full_ring(pipeline, inputs, name):
    """Also after a context, and of a batch in which one sample began again: it waits for that one."""
    pipe = pipeline(name)
    programs, b = pipe.programs, pipe.rollout.block
    assert programs.full is not programs.filling
    given = inputs(pipe, BATCH, context=pipe.recipe.layout.whole(2 * b), frames=8)
    stream = pipe.stream(seed=1, **given)
    made = []
    for block in range(12):
        if block == 8:
            acted = given["cond"].get("context_action")
            stream.reset(1, given["context"][1], None if acted is None else acted[1])
        made.append(programs.choose(stream._mark.frame, 1)[0] is programs.full)
        assert made[-1] == full_ring(pipe, stream._mark.state)
        np.testing.assert_array_equal(stream._mark.frame, stream._mark.state.frame)
        stream.take(1)
    filled = name == "rolling"  # its ring has one block, which the context fills
    assert made[0] is filled and made[7] is True and made[8] is filled and made[11] is True


def test_a_program_makes_as_many_steps_as_are_its_own(pipeline):
    """Whatever is asked for at once is cut where the ring becomes full."""
    programs = pipeline("causal").programs  # a ring of 3, one frame a block
    frame = np.array([5, 1])
    assert programs.filling_blocks(frame) == 2
    assert programs.choose(frame, 1) == (programs.filling, 1)
    assert programs.choose(frame, 7) == (programs.filling, 2)
    assert programs.choose(frame + 2, 7) == (programs.full, 7)
    fused = pipeline("fused").programs  # blocks of 2, a ring of 4, sinks of 2, and a block that waits
    assert fused.filling_blocks(np.array([0])) == (4 + 2 + 2) / 2


@pytest.mark.parametrize("name", ["teacher", *(pytest.param(n, marks=full) for n in (
    "adjacent", "fused", "prefix", "knot", "one_past", "slot", "ahead", "int8", "bidirectional", "rolling",
    "axial"))])  # fmt: skip
def test_both_programs_make_the_same_block(pipeline, inputs, name):
    """Of a full ring: what the mask does not say any more, it said of everything."""
    pipe = pipeline(name)
    b = pipe.rollout.block
    given = inputs(pipe, BATCH, context=pipe.recipe.layout.whole(5 * b), frames=8)
    stream = pipe.stream(seed=1, **given)
    stream.take(3)
    mark = stream.mark()
    assert pipe.programs.choose(mark.frame, 1)[0] is pipe.programs.full is not pipe.programs.filling
    actions, observed = take_entering_actions(pipe, mark, 1)[1], None
    outs = [
        program(pipe.params, jax.tree.map(lambda a: a.copy(), mark.state), mark.encoded, actions, observed, 1)
        for program in (pipe.programs.filling, pipe.programs.full)
    ]
    for one, two in zip(*map(jax.tree.leaves, outs), strict=True):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            continue
        one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
        np.testing.assert_allclose(one, two, atol=1e-5 * max(1.0, np.abs(two).max()))


def test_where_nothing_settles_there_is_one_program(pipeline):
    for name in ("window", "two_level", "deep", "ranges"):
        assert pipeline(name).programs.full is pipeline(name).programs.filling


def test_what_is_needed_is_compiled_before_the_first_block_and_nothing_twice(systems, config, random_params):
    """A context that fills the ring needs no filling program; clips need what they need; later streams nothing."""
    recipe = build(config(**systems["causal"]))
    pipe = Pipeline(recipe.config, random_params(recipe))
    compiled = []

    def listen(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration" and ("filling" in fun_name or "full" in fun_name):
            compiled.append(fun_name.removeprefix("jit(").removesuffix(")"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pipe.generate(frames=3)
        assert compiled == ["filling"]
        stream = pipe.stream(context=np.zeros((3, *recipe.frame_shape)))
        next(stream)
        assert sorted(compiled) == ["filling", "full"]
        pipe.stream().take(7)
        pipe.generate(frames=9)
        assert sorted(compiled) == ["filling", "full"]
        begun = pipe.stream(batch=2)
        next(begun)
        assert sorted(compiled) == ["filling", "filling", "full", "full"]
        begun.take(8)
        assert len(compiled) == 4
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def copies(program, *args):
    """How often the optimised program copies a layer's keys or values, or lays them in another order."""
    text = program.lower(*args).compile(compiler_options=AS_SHIPPED).as_text()
    shape = args[1].caches[0][0].array.shape
    assert f"f32[{','.join(map(str, shape))}]" in text
    B, H, W, N, K = shape
    orders = [sorted(order) for order in ((B, H, W, N, K), (B, H, W * N, K), (H, W * N, K))]
    moved = re.findall(r"f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    return sum(sorted(map(int, each.split(","))) in orders for each in moved)


@pytest.mark.full
@pytest.mark.parametrize("changes", [
    {}, {"cache.commit": "fused"}, {"layout.sinks": 2, "cache.positions": "slot"},
])  # fmt: skip
def test_slots_are_never_copied(config, random_params, changes):
    """Written in place in a loop of steps in which a loop of rows reads them; neither by layer, row nor step."""
    plain = {"layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 6, "process.predict": "x0",
             "schedule.steps": 3, "model.depth": 2}  # fmt: skip
    recipe = build(config(**plain | changes))
    pipe = Pipeline(recipe.config, random_params(recipe))
    state = pipe._begin(0, 1, None, None)._mark
    for program in {pipe.programs.filling, pipe.programs.full}:
        assert copies(program, pipe.params, state.state, state.encoded, None, None, 1) == 0


def test_keys_are_turned_once_per_block(pipeline, monkeypatch):
    """Not in the rows: there they come turned, and the block is committed with the same ones."""
    pipe = pipeline("slot")
    rollout, read = dataclasses.replace(pipe.rollout, full=True), []
    apply = type(rollout.recipe.model).apply

    def watched(self, *args, **kwargs):
        read.append("past_frame" in kwargs)
        return apply(self, *args, **kwargs)

    mark = pipe._begin(0, 1, None, None)._mark
    monkeypatch.setattr(type(rollout.recipe.model), "apply", watched)
    jax.eval_shape(rollout.step, pipe.params, mark.state, mark.encoded)
    assert read == [False, False]  # the body of the rows, and the commit
    turned = jax.jit(rollout.turned)(mark.state)
    assert [len(layer) for layer in turned] == [2] and turned[0][0].array.ndim == 5

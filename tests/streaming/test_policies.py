"""Approximate systems: every cache policy against a replay with lists, and what policies have in common."""

import jax
import numpy as np
import pytest

from causal_diffusion.config import override
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

BATCH = 2
full = pytest.mark.full
POLICIES = [  # (system, blocks of context): at least once with and once without
    ("adjacent", 0), ("deep", 2), ("two_level", 0), ("knot", 2),
    *(
        pytest.param(name, context, marks=full)
        for name, context in (
            ("slot", 0), ("slot", 2), ("adjacent", 6), ("ahead", 4), ("deep", 0), ("deep", 9), ("fused", 0),
            ("fused_rolling", 0), ("fused_rolling", 2), ("two_level", 7), ("bidirectional", 2), ("bidirectional", 5),
            ("knot", 0), ("commit_drop", 0), ("commit_drop", 3), ("ahead", 0), ("fused", 2), ("bidirectional", 0),
        )
    ),
]  # fmt: skip

EXACT = ("fused", "fused_rolling", "two_level", "knot", "commit_drop")  # nothing moves, and nothing is lost

GUIDED = {
    "data.classes": 3, "model.classes": 3, "data.action_dim": 2, "model.action": 2,
    "guidance.kind": "cfg", "guidance.scale": 1.5,
}  # fmt: skip
VARIANTS = {  # what meets what: (system, changes, blocks of context)
    "knot and reference, with actions": (
        "knot",
        GUIDED | {"layout.reference": 1, "cache.positions": "ahead", "cache.ahead": 5, "cache.ahead_step": 4},
        2,
    ),
    "knot and moved sinks, two evaluations a step": (
        "knot",
        {"layout.sinks": 2, "cache.positions": "slot", "solver.kind": "heun", "solver.eta": 0.0},
        0,
    ),
    "a reference and three blocks in flight": ("ranges", {"layout.reference": 1}, 2),
    "a waiting block that nobody sees, several steps remembered": (
        "bidirectional",
        GUIDED
        | {"solver.kind": "unipc", "schedule.offset": "pyramid", "schedule.stride": 4.0, "schedule.in_flight": 1}
        | {"levels.in_flight": 2},
        2,
    ),
    "a fused commit and blocks that see each other": (
        "bidirectional",
        {"cache.commit": "fused", "cache.positions": "absolute", "cache.sink_overlap": 0, "cache.commit_sinks": True},
        0,
    ),
    "compression that leaves no frame alone": ("deep", {"cache.budget": 4, "cache.recent": 0}, 2),
    "compression with two blocks in flight": (
        "deep",
        {"layout.kind": "block_causal", "schedule.offset": "rolling", "schedule.in_flight": 2},
        0,
    ),
    "compression of blocks that are shown with noise": (
        "deep",
        {"layout.block": 2, "cache.recent": 2, "cache.budget": 6, "cache.sink_overlap": 1, "cache.commit_sinks": False}
        | {"levels.context": 0.3, "cache.commit_level": 0.2},
        3,
    ),
    "compression where branches see the same past": ("deep", {"model.modulate_clean": False}, 0),
    "two levels, blocks of two, with actions": (
        "two_level",
        GUIDED | {"layout.block": 2, "layout.window": 4, "layout.coarse": 4, "cache.commit_level": 0.0},
        3,
    ),
}


def length(pipe):
    """Frames of three times all that is remembered, and two blocks."""
    layout, cache = pipe.recipe.layout, pipe.recipe.cache
    past = layout.window + (layout.coarse if cache.kind == "two_level" else layout.sinks)
    return 3 * past + 2 * layout.block


def compare(streamed, expected, tolerance=1e-5):
    """Frame by frame, against the largest value; neither stream dies or explodes."""
    assert streamed.shape == expected.shape
    largest = np.abs(expected).max(axis=(0, 2, 3, 4))
    assert (largest > 0.1).all() and (largest < 100).all(), largest
    error = np.abs(streamed - expected).max(axis=(0, 2, 3, 4)) / largest.max()
    assert error.max() < tolerance, error


@pytest.fixture
def changed(pipeline):
    """(name, **changes) -> Pipeline of a system with some keys changed, and its parameters."""

    def changed(name, **changes):
        pipe = pipeline(name)
        return Pipeline(override(pipe.config, changes), pipe.params)

    return changed


@pytest.fixture
def run(inputs):
    """(pipe, frames, context in frames) -> a stream of that many frames, or what else ``of`` makes of the inputs."""

    def run(pipe, frames, context=0, seed=5, of=None):
        given = inputs(pipe, batch=BATCH, context=context, frames=frames)
        return of(pipe, seed, frames=frames, **given).run() if of else pipe.generate(seed=seed, frames=frames, **given)

    return run


@pytest.mark.parametrize("name, blocks", POLICIES)
def test_streams_equal_the_replay_with_lists(pipeline, replay, run, name, blocks):
    """More than three windows long, from given frames or from none."""
    pipe = pipeline(name)
    context = blocks * pipe.rollout.block
    assert pipe.recipe.kind == ("exact" if name in EXACT else "approximate")
    compare(run(pipe, length(pipe), context), run(pipe, length(pipe), context, of=replay))


@full
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_the_replay(config, random_params, replay, run, systems, name):
    system, changes, blocks = VARIANTS[name]
    given = config(**systems[system] | changes)
    pipe = Pipeline(given, random_params(build(given)))
    context = blocks * pipe.rollout.block
    compare(run(pipe, length(pipe), context), run(pipe, length(pipe), context, of=replay))


@full
@pytest.mark.parametrize("name", ["three_way", "first", "ranges"])
def test_the_replay_is_the_oracle_where_nothing_is_approximate(pipeline, replay, oracle, run, name):
    pipe = pipeline(name)
    context, frames = 2 * pipe.rollout.block, length(pipe)
    compare(run(pipe, frames, context, of=replay), run(pipe, frames, context, of=oracle))


@pytest.mark.full
def test_positions_part_when_something_is_forgotten_and_slot_and_adjacent_never(pipeline, changed, run):
    """While all is remembered they are one; differences of places are all that counts; raw keys are keys."""
    pipe = pipeline("slot")
    layout, frames = pipe.recipe.layout, length(pipe)
    absolute = changed("slot", **{"cache.positions": "absolute", "cache.keys": "rotated"})
    raw = changed("slot", **{"cache.positions": "absolute", "cache.keys": "raw"})
    clips = [run(p, frames) for p in (pipe, pipeline("adjacent"), raw, absolute)]
    whole = layout.sinks + layout.window + layout.block
    for clip in clips[:3]:
        compare(clip[:, :whole], clips[3][:, :whole])
    compare(clips[1], clips[0])
    compare(clips[2], clips[3])
    assert np.abs(clips[0] - clips[3])[:, whole:].max() > 1e-3


@full
def test_a_fused_commit_is_a_separate_one(pipeline, changed, run):
    separate = changed("fused", **{"cache.commit": "separate"})
    frames = length(separate)
    compare(run(pipeline("fused"), frames), run(separate, frames))


@full
def test_compression_that_drops_nothing_changes_nothing(pipeline, changed, run):
    """Room for every token of the window: a wider window without compression, until it is full for the second time."""
    layout, cache = pipeline("deep").recipe.layout, pipeline("deep").recipe.cache
    everything = changed("deep", **{"cache.budget": layout.sinks + layout.window})
    wide = changed("deep", **{"cache.budget": 0, "cache.recent": 0, "layout.window": 2 * layout.window})
    clips = [run(pipe, length(wide)) for pipe in (everything, wide)]
    again = layout.sinks + 2 * layout.window - cache.recent
    compare(clips[0][:, :again], clips[1][:, :again])
    assert np.abs(clips[0] - clips[1])[:, again : again + layout.block].max() > 1e-3


@full
def test_one_block_in_flight_is_autoregressive(pipeline, changed, run):
    """Then the window is the block, and who is in it sees the clean past and the block."""
    rolling = changed("bidirectional", **{"schedule.in_flight": 1, "levels.in_flight": 1})
    single = {"schedule.offset": "autoregressive", "schedule.in_flight": 1, "layout.kind": "block_causal"}
    single = changed("bidirectional", **single, **{"levels.kind": "independent", "levels.in_flight": 1})
    frames = length(rolling)
    compare(run(rolling, frames), run(single, frames))


EIGHT = [  # with seeds for which no number comes near to where it would be rounded to the other side
    ({}, 12),
    pytest.param({"cache.positions": "slot"}, 18, marks=full),
    pytest.param({"cache.positions": "adjacent", "cache.budget": 4, "cache.recent": 1}, 20, marks=full),
]


@pytest.mark.parametrize("changes, seed", EIGHT, ids=["stay", "move", "compressed"])
def test_eight_bits_equal_the_replay(pipeline, changed, replay, run, changes, seed):
    """Stored where they stand, raw, and moved by compression. The replay rounds, too."""
    pipe, rounding = changed("int8", **changes) if changes else pipeline("int8"), []

    def of(*args, **given):
        rounding.append(replay(*args, **given))
        return rounding[0]

    expected = run(pipe, length(pipe), seed=seed, of=of)
    assert rounding[0].margin > 5e-4
    compare(run(pipe, length(pipe), seed=seed), expected)


def test_eight_bits_against_floats(pipeline, changed, inputs):
    """A quarter of the bytes, and a scale per token and head; the error is of the size of 1 in 254."""
    clips, sizes = [], []
    for pipe in (pipeline("int8"), changed("int8", **{"cache.dtype": "compute"})):
        stream = pipe.stream(seed=5, **inputs(pipe, batch=BATCH, context=0, frames=0))
        clips.append(stream.take(length(pipe)))
        sizes.append(sum(a.nbytes for a in jax.tree.leaves(stream.mark().state.caches)))
    K = pipe.recipe.model.config.width // pipe.recipe.model.config.heads
    assert sizes[0] / sizes[1] == (K + 4) / (4 * K)
    error = np.abs(clips[0] - clips[1]).max() / np.abs(clips[1]).max()
    assert 1e-4 < error < 1e-2

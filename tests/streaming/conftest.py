"""Tiny systems of every kind with random parameters, and the inputs that they take."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import Config, override
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline
from tests.compiling import kept

BASE = {
    "data.source": "video_folder", "data.height": 4, "data.width": 4, "data.channels": 1, "data.frames": 12,
    "model.width": 16, "model.depth": 1, "model.heads": 2, "model.mlp": 24, "model.patch": (1, 2, 2),
    "stream.capacity": 3, "evaluate.clips": 0,
}  # fmt: skip
CONDITIONS = {
    "data.classes": 3, "data.action_dim": 2, "model.classes": 3, "model.action": 2, "model.text": 5,
    "guidance.kind": "cfg", "guidance.scale": 1.5,
}  # fmt: skip
CLASSES = {"data.classes": 3, "model.classes": 3, "guidance.kind": "cfg", "guidance.scale": 1.5}
MOVING = CLASSES | {
    "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.sinks": 2,
    "process.predict": "x0", "solver.kind": "x0_noise", "schedule.steps": 2,
}  # fmt: skip
SYSTEMS = {
    # One block in flight, everything at once: sinks, guidance, every condition, a noised past, two layers.
    "teacher": CONDITIONS | {
        "model.depth": 2, "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.sinks": 2,
        "process.predict": "x0", "schedule.steps": 3, "schedule.shift": 2.0,
        "levels.context": 0.3, "cache.commit_level": 0.1,
    },
    # Two blocks in flight, of one frame each.
    "pyramid": CONDITIONS | {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3, "layout.sinks": 1,
        "process.predict": "velocity", "schedule.steps": 4, "schedule.offset": "pyramid", "schedule.stride": 2.0,
        "guidance.drop": ("label", "text", "action"),
    },
    # Three blocks of two frames in flight, a window shorter than they are, no condition.
    "rolling": {
        "layout.kind": "block_causal", "layout.block": 2, "layout.window": 2,
        "process.predict": "noise", "schedule.steps": 6, "schedule.offset": "rolling", "schedule.in_flight": 3,
        "schedule.t_max": 0.9, "cache.commit_level": 0.2,
    },
    # Steps that the stride does not divide: a block waits in flight for its first one. Each has noise of its own.
    "uneven": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 2, "model.qk_norm": "head",
        "process.predict": "x0", "schedule.steps": 5, "schedule.offset": "pyramid", "schedule.stride": 3.0,
        "solver.kind": "ddpm",
    },
    # One clean block after the other in one stream, no condition: the plainest of all.
    "causal": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3,
        "model.modulation": "table", "model.head": "table", "model.positions": "additive", "model.period": 12,
        "process.predict": "x0", "schedule.steps": 2,
    },
    # No cache: the past is recomputed, dimmed and labelled so. Diffusion Forcing's way.
    "window": CONDITIONS | {
        "layout.kind": "block_causal", "layout.block": 1, "data.frames": 6,
        "process.path": "vp_sigmoid", "process.predict": "v", "process.labels": "published",
        "schedule.steps": 3, "solver.kind": "ddim", "solver.eta": 0.5,
        "cache.kind": "none", "cache.commit_level": 0.2, "cache.commit_data": "scaled",
    },
    # Nothing is causal: two blocks are denoised together beside four that are clean, and told to be a little noisy.
    "chunk": {
        "layout.kind": "full", "layout.block": 2, "process.path": "logsnr_cosine", "process.predict": "v",
        "schedule.steps": 3, "schedule.offset": "full", "schedule.chunk": 2, "solver.kind": "heun",
        "cache.kind": "none", "cache.commit_level": 0.3, "cache.commit_data": "clean",
    },
    # Three blocks that become clean from both ends to the middle, on EDM's path and grid.
    "trapezoid": {
        "layout.kind": "full", "layout.block": 1, "data.frames": 7, "process.path": "edm", "process.predict": "v",
        "schedule.steps": 4, "schedule.offset": "trapezoid", "schedule.stride": 2.0, "schedule.chunk": 3,
        "schedule.grid": "edm", "schedule.sigma_max": 10.0, "cache.kind": "none", "cache.commit_level": 0.1,
    },
    # Every second block first, then those between; each kept as keys and values once its chunk is clean.
    "interleaved": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 4, "layout.sinks": 2,
        "process.path": "trigflow", "process.predict": "velocity", "solver.kind": "x0_noise",
        "schedule.steps": 2, "schedule.offset": "interleaved", "schedule.chunk": 4, "cache.commit_level": 0.1,
    },
    # Ca2-VDM: causal by frame behind a short first block, attention in space, to the prefix and along time.
    "prefix": {
        "model.depth": 2,
        "layout.kind": "frame_causal", "layout.block": 3, "layout.first": 1, "layout.window": 6, "data.frames": 10,
        "model.attention": "factorised", "model.prefix": 2, "model.mask_channel": True, "data.action_dim": 2,
        "model.positions": "additive", "model.period": 10, "model.action": 2, "process.path": "vp_linear",
        "process.predict": "x0", "process.variance": "learned", "process.labels": "published", "process.clip": 2.0,
        "levels.kind": "prefix", "levels.context": 0.3, "levels.context_label": "fixed",
        "levels.context_label_at": -0.1, "schedule.steps": 3, "schedule.grid": "discrete",
        "solver.kind": "ddpm", "cache.commit_level": 0.2, "cache.commit_label": "fixed", "cache.commit_label_at": -0.1,
    },
    # A prefix that is causal by frame before a block that is not, with sinks; a student of two steps.
    "partial": {
        "layout.kind": "partial_prefix", "layout.block": 2, "layout.window": 4, "layout.sinks": 2,
        "process.predict": "x0", "levels.kind": "prefix", "schedule.steps": 2, "solver.kind": "x0_noise",
    },
    # Space and time with MLPs of their own, time in every other layer only: one layer has nothing to cache.
    "axial": CONDITIONS | {
        "model.depth": 2,
        "layout.kind": "block_causal", "layout.block": 2, "layout.window": 4, "model.attention": "factorised",
        "model.axial_mlp": True, "model.time_every": 2, "process.predict": "x0", "solver.kind": "dpmpp_2m",
        "schedule.steps": 4,
    },
    # AR-Diffusion: registers carry the class, two blocks are in flight, the past is recomputed.
    "registers": CLASSES | {
        "model.depth": 2, "layout.kind": "block_causal", "layout.block": 1, "data.frames": 6, "model.registers": 2,
        "model.label_tokens": True, "data.action_dim": 2, "model.action": 2,
        "process.path": "vp_scaled_linear", "process.predict": "x0",
        "schedule.steps": 4, "schedule.offset": "pyramid", "schedule.stride": 2.0,
        "solver.kind": "ddim", "solver.eta": 1.0,
        "cache.kind": "none", "cache.commit_level": 0.2, "cache.commit_data": "scaled",
    },
    # ACDiT: clean frames are not modulated; a multistep solver; several noisy copies in training.
    "unmodulated": CLASSES | {
        "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.copies": 2,
        "model.modulate_clean": False, "process.path": "vp_linear", "process.predict": "v",
        "process.labels": "published", "schedule.steps": 4, "schedule.grid": "discrete", "solver.kind": "dpmpp_2m",
    },
    # MAGI-1 and SkyReels-V2: the noisier a block the farther it sees; UniPC with three blocks in flight.
    "ranges": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 4, "layout.ranges": (4, 2),
        "layout.range_levels": (0.5,), "process.predict": "velocity", "solver.kind": "unipc",
        "schedule.steps": 6, "schedule.offset": "rolling", "schedule.in_flight": 3,
    },
    # Two blocks together, noised again twice on the way.
    "refine": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3,
        "process.predict": "x0", "solver.kind": "ddim", "solver.eta": 0.5, "schedule.steps": 3,
        "schedule.offset": "refine", "schedule.back": 2, "schedule.repeats": 2, "schedule.chunk": 2,
    },
    # A whole window is clean at every emission, moves up, and is taken for noisier than it is.
    "real_time": {
        "layout.kind": "full", "layout.block": 1, "data.frames": 6, "process.path": "vp_linear",
        "process.predict": "x0", "process.steps": 100, "process.betas": (1e-4, 0.1), "solver.kind": "ddpm",
        "schedule.steps": 4, "schedule.offset": "real_time", "schedule.in_flight": 3, "schedule.guess": 2,
        "cache.kind": "none",
    },
    # Fractional history guidance between two levels, from a cache: one branch sees a noised past, one none.
    "fractional": {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3, "process.predict": "x0",
        "schedule.steps": 3, "guidance.kind": "history_fractional", "guidance.scale": 1.7, "guidance.level": 0.4,
        "guidance.interval": (0.2, 0.9), "cache.commit_level": 0.1,
    },
    # MAGI-1's three ways, with two blocks in flight that a branch without a past does not see in each other.
    "three_way": CONDITIONS | {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3, "process.predict": "velocity",
        "schedule.steps": 4, "schedule.offset": "rolling", "schedule.in_flight": 2, "guidance.kind": "three_way",
        "guidance.scale": 3.0, "guidance.history_scale": 1.5, "guidance.interval": (0.4, 1.0),
    },
    # Temporal history guidance without a cache: what a branch does not see is noise to it.
    "temporal": {
        "layout.kind": "full", "layout.block": 1, "data.frames": 6, "process.predict": "x0", "schedule.steps": 3,
        "schedule.offset": "full", "schedule.chunk": 2, "cache.kind": "none", "guidance.kind": "history_temporal",
        "guidance.lengths": (1, 3), "guidance.scales": (0.5, 0.8),
    },
    # One cache for both branches: the past knows neither level nor class.
    "one_past": {
        "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "model.modulate_clean": False,
        "data.classes": 3, "model.classes": 3, "guidance.kind": "cfg", "guidance.scale": 2.0,
        "process.predict": "x0", "schedule.steps": 3, "data.action_dim": 2, "model.action": 2,
    },
    # The first block of a stream takes more steps.
    "first": {
        "layout.kind": "teacher_forcing", "layout.block": 1, "layout.window": 3,
        "process.predict": "x0", "schedule.steps": 2, "schedule.first_steps": 4, "solver.kind": "ddpm",
    },
    # MotionStreamer: a query in the place of every noisy token, and a network of its own that denoises it.
    "per_token": CONDITIONS | {
        "layout.kind": "teacher_forcing", "layout.block": 1, "layout.window": 3,
        "model.head": "diffusion", "model.head_width": 12, "model.head_depth": 2, "process.path": "vp_cosine",
        "process.predict": "v", "schedule.steps": 3,
    },
    # Policies: what follows is approximate, and `replay.py` says what it should be.
    # LongLive, endless: all that is kept closes up.
    "slot": MOVING | {"cache.positions": "slot"},
    # The same with sinks that follow the window.
    "adjacent": MOVING | {"cache.positions": "adjacent"},
    # Knot Forcing's reference frame, which is always ahead of the stream.
    "ahead": CLASSES | {
        "layout.kind": "teacher_forcing", "layout.block": 1, "layout.window": 3, "layout.reference": 1,
        "process.predict": "x0", "schedule.steps": 2, "cache.positions": "ahead", "cache.ahead": 4,
        "cache.ahead_step": 3,
    },
    # Deep Forcing: of a full window the tokens of two frames are kept, and the last frame.
    "deep": CLASSES | {
        "model.depth": 2, "layout.kind": "teacher_forcing", "layout.block": 1, "layout.window": 4, "layout.sinks": 2,
        "process.predict": "x0", "solver.kind": "x0_noise", "schedule.steps": 2,
        "cache.positions": "adjacent", "cache.budget": 5, "cache.recent": 1,
    },
    # A finished block is committed by the first pass of the next one.
    "fused": CONDITIONS | {
        "model.depth": 2, "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.sinks": 2,
        "process.predict": "x0", "schedule.steps": 2, "levels.context": 0.3,
        "cache.commit": "fused", "cache.commit_level": 0.1,
    },
    # MAGI-1: fused with two blocks in flight, the past without text and the same for all branches.
    "fused_rolling": CONDITIONS | {
        "model.depth": 2,
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3, "layout.ranges": (4, 3, 1),
        "layout.range_levels": (0.6, 0.1), "process.predict": "velocity", "guidance.kind": "three_way",
        "guidance.scale": 3.0, "guidance.history_scale": 1.5, "guidance.interval": (0.4, 1.0), "schedule.steps": 4,
        "schedule.offset": "rolling", "schedule.in_flight": 2,
        "cache.commit": "fused", "cache.commit_drop": ("label", "text"),
    },
    # FAR's long history: two fine frames, computed once per block, and three in coarse tokens.
    "two_level": CLASSES | {
        "model.depth": 2,
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 2, "layout.coarse": 3, "model.coarse": 2,
        "process.predict": "x0", "schedule.steps": 2, "cache.kind": "two_level", "cache.commit_level": 0.1,
    },
    # Rolling Forcing: three blocks in flight see each other; one that is committed does not see the sinks.
    "bidirectional": {
        "model.depth": 2,
        "layout.kind": "bidirectional_window", "layout.block": 2, "layout.window": 2, "layout.sinks": 2,
        "levels.kind": "staircase", "levels.in_flight": 3, "process.predict": "x0", "solver.kind": "x0_noise",
        "schedule.steps": 6, "schedule.offset": "rolling", "schedule.in_flight": 3,
        "cache.positions": "adjacent", "cache.sink_overlap": 1, "cache.commit_sinks": False,
    },
    # Knot Forcing: every block is denoised with the first frame of the next one.
    "knot": {
        "layout.kind": "teacher_forcing", "layout.block": 2, "layout.window": 4, "layout.knot": 1,
        "process.predict": "x0", "solver.kind": "ddim", "solver.eta": 0.5, "schedule.steps": 3,
    },
    # The past is told of no text in any branch, and in one of them of neither class nor actions.
    "commit_drop": CONDITIONS | {
        "layout.kind": "block_causal", "layout.block": 1, "layout.window": 3, "layout.sinks": 1,
        "guidance.drop": ("label", "text", "action"), "process.predict": "x0", "schedule.steps": 2,
        "cache.commit_drop": ("text",),
    },
    # Keys and values in 8 bits.
    "int8": {
        "model.depth": 2, "layout.kind": "teacher_forcing", "layout.block": 1, "layout.window": 3, "layout.sinks": 1,
        "model.patch": (1, 4, 4), "process.predict": "x0", "schedule.steps": 2, "cache.dtype": "int8",
    },
}  # fmt: skip


def make_config(**changes):
    """``BASE`` with the given sections changed, flat keys as in SYSTEMS."""
    return override(Config(), BASE | changes)


def make_params(recipe, scale=0.2):
    """Normal parameters, none at zero, scaled so that a stream neither dies nor explodes."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(recipe.streaming().init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(scale * rng.normal(size=s.shape) + (path[-1].key == "scale"), jnp.float32), shapes
    )


@kept
def make_pipeline(name: str) -> Pipeline:
    """The pipeline of one of SYSTEMS; compiled once for all tests."""
    config = make_config(**SYSTEMS[name])
    return Pipeline(config, make_params(build(config)))


def make_inputs(pipe, batch: int, context: int, frames: int) -> dict:
    """Arguments of ``stream`` and ``generate``: given frames and every condition that the system takes."""
    rng = np.random.default_rng(7)
    model, cond = pipe.recipe.model.config, {}
    if model.classes:
        cond["label"] = np.arange(batch) % model.classes
    if model.text:
        cond["text"] = rng.normal(size=(batch, 3, model.text)).astype(np.float32)
        cond["text_mask"] = np.array([[True, True, i % 2 == 0] for i in range(batch)])
    if model.action:
        past = rng.normal(size=(batch, context, model.action)).astype(np.float32)
        cond |= {"context_action": past} if context else {}
        cond["action"] = rng.normal(size=(batch, frames, model.action)).astype(np.float32)
    if pipe.recipe.layout.reference:
        cond["reference"] = rng.uniform(-1, 1, (batch, *pipe.recipe.frame_shape)).astype(np.float32)
    given = rng.uniform(-1, 1, (batch, context, *pipe.recipe.frame_shape)).astype(np.float32)
    return dict(batch=batch, cond=cond, context=given)


@pytest.fixture(scope="session")
def pipeline():
    """name -> Pipeline."""
    return make_pipeline


def count_executables(pipe) -> dict[str, int]:
    """{program: how many executables it has}. Other tests of a shared pipeline may have streamed other batch sizes:
    counts are compared with earlier ones.
    """
    both = {"filling": pipe.programs.filling, "full": pipe.programs.full}
    return {name: pipe.programs.executables(program) for name, program in both.items()}


@pytest.fixture(scope="session")
def executables():
    """The function ``count_executables``."""
    return count_executables


@pytest.fixture(scope="session")
def random_params():
    """The function ``make_params``."""
    return make_params


@pytest.fixture(scope="session")
def oracle():
    """The class Oracle of oracle.py."""
    return importlib.import_module("tests.streaming.oracle").Oracle


@pytest.fixture(scope="session")
def replay():
    """The class Replay of replay.py."""
    return importlib.import_module("tests.streaming.replay").Replay


@pytest.fixture(scope="session")
def systems():
    """The table SYSTEMS."""
    return SYSTEMS


@pytest.fixture(scope="session")
def inputs():
    """The function ``make_inputs``."""
    return make_inputs


@pytest.fixture(scope="session")
def config():
    """The function ``make_config``."""
    return make_config

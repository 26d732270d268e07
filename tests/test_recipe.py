"""The recipe: every clash is refused with both keys and a value that works."""

import ast
import re
import traceback
from pathlib import Path

import pytest

import causal_diffusion
from causal_diffusion.config import Config, override
from causal_diffusion.errors import UserError
from causal_diffusion.recipe import build
from tests.sound import CAUSAL, ONE_BY_ONE, PYRAMID, SOUND, TOGETHER, WINDOW

PREFIX = {"layout.kind": "partial_prefix", "levels.kind": "prefix"}
FACTORISED = {"model.attention": "factorised"}
GUIDED = {"guidance.kind": "cfg", "guidance.scale": 2.0}
TABLE = {"process.path": "vp_linear"}
LAST_NOISE = {"process.predict": "noise"}
REFINE = {"schedule.offset": "refine", "schedule.back": 2, "schedule.repeats": 1}
REAL_TIME = {"schedule.offset": "real_time", "schedule.in_flight": 3, "schedule.guess": 2}
EDM = {"process.path": "edm"}
TOLD = {"cache.commit_label": "fixed"}
MARKED = TOLD | {"cache.commit_label_at": 0.5}
TABLE_HEAD = {"model.positions": "additive"}
SINKS = {"layout.sinks": 2, "layout.window": 6}
DEEP = SINKS | {"cache.positions": "adjacent", "cache.budget": 6, "cache.recent": 2}
FAR = CAUSAL | {"layout.coarse": 4, "model.coarse": 2, "cache.kind": "two_level"}
SERIES = CAUSAL | {
    "data.source": "motion_clips", "data.classes": 0, "data.action_dim": 0, "data.height": 0, "data.width": 0,
    "data.shortest": 4, "model.patch": (1,), "model.text": 8, "model.vocabulary": 9, "text.encoder": "words",
}  # fmt: skip
KNOT = {"layout.block": 2, "layout.knot": 1}

# (what is changed, keys that the message names, the values it proposes, what else is wrong)
CLASHES = [
    # Shapes.
    ({"layout.block": 5}, "data.frames layout.block", {"data.frames": 10}),
    ({"layout.block": 5, "layout.first": 1}, "data.frames layout.block", {"data.frames": 11}),
    ({"data.frames": 4, "layout.block": 4}, "layout.block data.frames", {"data.frames": 8}),
    ({"data.channels": 3}, "model.channels data.channels", {"model.channels": 3}),
    ({"model.outputs": 2}, "model.outputs process.variance", {"model.outputs": 1}),
    ({"model.patch": (1, 6)}, "model.patch (time,16,16,1)", {"model.patch": (1, 2, 2)}),
    ({"model.patch": (2, 8, 8)}, "model.patch streams", {"model.patch": (1, 8, 8)}),
    ({"data.height": 20}, "data.height model.patch", {"data.height": 16}),
    ({"data.width": 4}, "data.width model.patch", {"data.width": 8}),
    ({"model.classes": 3, "data.classes": 0}, "model.classes labels", {"model.classes": 0}),
    ({"model.classes": 5}, "model.classes classes", {"model.classes": 10}),
    ({"model.action": 3}, "model.action data", {"model.action": 2}),
    ({"model.action": 3, "data.action_dim": 0}, "model.action data", {"model.action": 0}),
    # What is seen of the past, and what is not.
    (WINDOW | {"layout.kind": "full", "data.shortest": 8}, "data.shortest layout.kind", {"data.shortest": 0}),
    ({"layout.reference": 1, "data.shortest": 8}, "data.shortest layout.reference", {"data.shortest": 0}),
    (WINDOW | {"data.frames": 3} | TOGETHER, "cache.kind data.frames", {"data.frames": 4}),
    (WINDOW | {"layout.block": 4, "layout.first": 2, "data.frames": 10} | TOGETHER, "cache.kind data.frames",
     {"data.frames": 14}),
    # Levels against schedules.
    (TOGETHER, "layout.kind schedule.offset", ONE_BY_ONE | {"schedule.chunk": 1}),
    (PYRAMID, "layout.kind schedule.offset", ONE_BY_ONE),
    (REFINE | {"schedule.chunk": 2}, "layout.kind schedule.offset",
     ONE_BY_ONE | {"schedule.chunk": 1, "schedule.back": 0, "schedule.repeats": 0}),
    (PREFIX | REAL_TIME, "layout.kind schedule.offset", ONE_BY_ONE | {"schedule.guess": 0}),
    ({"layout.kind": "partial_prefix"}, "layout.kind levels.kind", {"levels.kind": "prefix"}),
    ({"layout.kind": "prefix", "levels.clean": 0.5, "cache.kind": "none"}, "layout.kind levels.clean",
     {"levels.clean": 0.0, "levels.kind": "prefix"}),
    ({"layout.kind": "bidirectional_window", "levels.clean": 0.5}, "layout.kind levels.clean",
     {"levels.clean": 0.0, "levels.kind": "prefix"}),
    ({"levels.clean": 0.5}, "layout.kind levels.clean", {"levels.clean": 0.0}),
    ({"levels.kind": "staircase"}, "layout.kind levels.kind", {"levels.kind": "independent"}),
    (CAUSAL | {"levels.kind": "shared"}, "levels.kind layout.kind", {"levels.kind": "independent"}),
    (CAUSAL | {"levels.kind": "shared", "schedule.offset": "pyramid", "schedule.stride": 1.0, "schedule.steps": 12},
     "levels.kind schedule.offset", {"levels.kind": "independent"}),
    (CAUSAL | {"levels.kind": "uniform_future"} | PYRAMID, "levels.kind schedule.offset",
     {"levels.kind": "independent"}),
    (CAUSAL | {"levels.kind": "prefix"} | PYRAMID, "levels.kind schedule.offset", ONE_BY_ONE),
    (CAUSAL | {"levels.kind": "prefix", "levels.chunk": 2} | TOGETHER, "levels.kind schedule.offset",
     ONE_BY_ONE | {"schedule.chunk": 1}),
    (CAUSAL | {"levels.kind": "staircase", "levels.in_flight": 4} | PYRAMID, "levels.in_flight schedule",
     {"levels.in_flight": 2}),
    (CAUSAL | {"levels.kind": "staircase"}, "levels.in_flight schedule", {"levels.in_flight": 1}),
    (CAUSAL | {"levels.kind": "staircase", "levels.in_flight": 3} | TOGETHER, "levels.kind schedule.offset",
     ONE_BY_ONE | {"schedule.chunk": 1, "levels.in_flight": 1}),
    (CAUSAL | {"levels.kind": "fopp", "schedule.offset": "interleaved", "schedule.chunk": 4},
     "levels.kind schedule.offset", ONE_BY_ONE | {"schedule.chunk": 1}),
    (CAUSAL | {"levels.kind": "sorted", "schedule.offset": "trapezoid", "schedule.chunk": 4, "schedule.stride": 3.0},
     "levels.kind schedule.offset", ONE_BY_ONE | {"schedule.chunk": 1}),
    # Grids.
    ({"schedule.grid": "edm"}, "schedule.grid process.path", {"schedule.grid": "uniform"}),
    ({"levels.density": "edm_log_normal"}, "levels.density process.path", {"levels.density": "uniform"}),
    (TABLE | {"levels.grid": 100}, "levels.grid process.steps", {"levels.grid": 1000}),
    (TABLE | {"schedule.grid": "discrete", "schedule.grid_steps": 100}, "schedule.grid_steps process.steps",
     {"schedule.grid_steps": 1000}),
    # The first prediction.
    (LAST_NOISE, "process.predict schedule.t_max", {"schedule.t_max": 0.99}),
    (LAST_NOISE | TABLE | {"process.zero_snr": True}, "process.predict schedule.t_max", {"schedule.t_max": 0.98}),
    (LAST_NOISE | {"schedule.steps": 2, "schedule.step_times": (1.0, 0.5)}, "process.predict schedule.t_max",
     {"process.predict": "velocity"}),
    (LAST_NOISE | {"process.path": "edm", "schedule.grid": "edm", "schedule.sigma_max": 2000.0},
     "process.predict schedule.t_max", {"process.predict": "velocity"}),
    (LAST_NOISE | {"schedule.grid": "discrete", "schedule.steps": 100, "schedule.grid_steps": 100},
     "process.predict schedule.t_max", {"process.predict": "velocity"}),
    # The past as it is kept, and as training shows it.
    ({"layout.kind": "full"}, "cache.kind layout.kind", {"cache.kind": "none"}),
    (PREFIX | {"layout.kind": "prefix"}, "cache.kind layout.kind", {"cache.kind": "none"}),
    ({"cache.kind": "none"}, "cache.kind layout.kind", {"cache.kind": "kv"}),
    (CAUSAL | FACTORISED | {"model.prefix": 2}, "model.prefix levels.kind", {"model.prefix": 0}),
    (CAUSAL | FACTORISED | {"model.mask_channel": True}, "model.mask_channel levels.kind",
     {"model.mask_channel": False}),
    (CAUSAL | {"model.modulate_clean": False}, "model.modulate_clean levels.kind", {"model.modulate_clean": True}),
    ({"cache.commit_level": 0.4, "levels.context": 0.25}, "cache.commit_level levels.context",
     {"cache.commit_level": 0.25}),
    (PREFIX | {"cache.commit_level": 0.4}, "cache.commit_level levels.context", {"cache.commit_level": 0.0}),
    (WINDOW | {"cache.commit_level": 0.4, "layout.ranges": (4, 2), "layout.range_levels": (0.3,)},
     "cache.commit_level layout.range_levels", {"cache.commit_level": 0.3}),
    ({"cache.commit_level": 0.4, "levels.context": 0.5, "layout.ranges": (4, 2), "layout.range_levels": (0.3,)},
     "cache.commit_level layout.range_levels", {"cache.commit_level": 0.3}),
    ({"levels.context_label": "fixed", "levels.context_label_at": -0.5}, "cache.commit_label levels.context_label",
     {"cache.commit_label": "fixed", "cache.commit_label_at": -0.5}),
    ({"cache.commit_label": "fixed", "cache.commit_label_at": -0.5}, "cache.commit_label_at levels.context_label_at",
     {"cache.commit_label_at": 0.0}),
    (TABLE | {"process.labels": "published", "cache.commit_label": "fixed", "cache.commit_label_at": -0.5},
     "cache.commit_label_at levels.context_label_at", {"cache.commit_label_at": -0.001}),
    ({"cache.commit_label": "fixed", "cache.commit_label_at": -0.5, "levels.context_label": "fixed",
      "levels.context_label_at": -0.25}, "cache.commit_label levels.context_label",
     {"cache.commit_label": "fixed", "cache.commit_label_at": -0.25}),
    ({"process.path": "trigflow", "process.labels": "published", "cache.commit_label": "fixed",
      "cache.commit_label_at": 0.5}, "cache.commit_label_at levels.context_label_at",
     {"cache.commit_label_at": 0.001571}),
    # Guidance by history.
    ({"levels.context": 0.1, "guidance.kind": "history_fractional", "guidance.scale": 2.0},
     "guidance.level levels.context", {"guidance.level": 0.1}),
    (WINDOW | {"levels.kind": "fopp", "guidance.kind": "history", "guidance.scale": 2.0},
     "guidance.kind levels.kind", {"levels.kind": "independent"}),
    ({"guidance.kind": "history_temporal"}, "guidance.lengths guidance.kind",
     {"guidance.lengths": (1,), "guidance.scales": (1.0,)}),
    ({"guidance.lengths": (1,), "guidance.scales": (2.0,)}, "guidance.lengths guidance.kind",
     {"guidance.lengths": (), "guidance.scales": ()}),
    ({"guidance.kind": "history_temporal", "guidance.lengths": (1, 3)}, "guidance.lengths guidance.scales",
     {"guidance.scales": (1.0, 1.0)}),
    # Places in time.
    (PREFIX | FACTORISED | {"model.prefix": 3, "layout.window": 2}, "model.prefix layout.window", {"model.prefix": 2}),
    (CAUSAL | TABLE_HEAD, "model.period model.positions", {"model.period": 12}),
    (CAUSAL | TABLE_HEAD | PYRAMID | {"layout.window": 14}, "model.period model.positions", {"model.period": 16}),
    (CAUSAL | TABLE_HEAD | {"model.period": 20, "layout.sinks": 2}, "model.period layout.sinks", {"layout.sinks": 0}),
    (CAUSAL | TABLE_HEAD | {"model.period": 9, "layout.window": 4}, "model.period data.frames", {"model.period": 12}),
    (CAUSAL | TABLE_HEAD | PYRAMID | {"model.period": 12}, "model.period layout.window", {"layout.window": 10}),
    (CAUSAL | TABLE_HEAD | {"model.period": 12, "schedule.offset": "rolling", "schedule.in_flight": 12,
                            "schedule.steps": 12}, "model.period layout.window", {"model.period": 23}),
    # What is kept, moved and compressed.
    ({"layout.window": 2, "layout.sinks": 4}, "layout.window layout.sinks", {"layout.sinks": 2}),
    (FACTORISED | DEEP, "cache.budget model.attention", {"cache.budget": 0, "cache.recent": 0}),
    (DEEP | {"layout.reference": 1}, "cache.budget layout.reference", {"layout.reference": 0}),
    (DEEP | {"layout.block": 2, "cache.recent": 3}, "cache.recent layout.block", {"cache.recent": 2}),
    (DEEP | {"layout.window": 4, "cache.recent": 4}, "cache.recent layout.window",
     {"cache.recent": 3, "cache.budget": 6}),
    (DEEP | {"cache.budget": 3}, "cache.budget layout.sinks cache.recent", {"cache.budget": 5}),
    (DEEP | {"cache.budget": 20}, "cache.budget layout.sinks cache.recent", {"cache.budget": 8}),
    (CAUSAL | TABLE_HEAD | {"model.period": 12, "cache.positions": "slot"}, "cache.positions model.positions",
     {"cache.positions": "absolute"}),
    (CAUSAL | TABLE_HEAD | {"model.period": 12, "cache.keys": "raw"}, "cache.keys model.positions",
     {"cache.keys": "auto"}),
    ({"cache.positions": "adjacent"}, "cache.positions layout.sinks", {"cache.positions": "absolute"}),
    ({"cache.positions": "ahead", "cache.ahead_step": 1}, "cache.positions layout.reference", {"layout.reference": 1}),
    ({"cache.positions": "ahead", "layout.reference": 1}, "cache.ahead_step layout.block", {"cache.ahead_step": 1}),
    (WINDOW | {"layout.reference": 1}, "layout.reference cache.kind", {"layout.reference": 0}),
    (FACTORISED | {"layout.reference": 1}, "layout.reference model.attention", {"layout.reference": 0}),
    (KNOT | REAL_TIME | {"schedule.in_flight": 1}, "layout.knot schedule.offset", ONE_BY_ONE | {"schedule.guess": 0}),
    (KNOT | {"cache.kind": "state"}, "layout.knot cache.kind", {"layout.knot": 0}, {"cache.kind": "kv"}),
    (KNOT | {"cache.commit": "fused"}, "layout.knot cache.commit", {"cache.commit": "separate"}),
    (KNOT | {"process.weight": "fused_snr"}, "layout.knot process.weight", {"process.weight": "min_snr"}),
    (CAUSAL | {"layout.coarse": 4}, "layout.coarse model.coarse", {"layout.coarse": 0}),
    (CAUSAL | {"model.coarse": 2}, "layout.coarse model.coarse", {"model.coarse": 0}),
    (FAR | {"cache.kind": "kv"}, "layout.coarse cache.kind", {"cache.kind": "two_level"}),
    (CAUSAL | {"cache.kind": "two_level"}, "layout.coarse cache.kind", {"cache.kind": "kv"}),
    ({"cache.kind": "state"}, "cache.kind model.attention", {"cache.kind": "kv"}),
    (FAR | {"layout.sinks": 2}, "layout.sinks layout.coarse", {"layout.sinks": 0}),
    (FAR | PYRAMID, "schedule.offset layout.coarse", ONE_BY_ONE),
    (FAR | {"guidance.kind": "history", "guidance.scale": 2.0}, "guidance.kind layout.coarse",
     {"guidance.kind": "none"}),
    ({"cache.commit_drop": ("text",)}, "cache.commit_drop model", {"cache.commit_drop": ()}),
    ({"cache.commit_drop": ("label",), "model.classes": 10, "train.drop": 0.0}, "cache.commit_drop train.drop",
     {"train.drop": 0.1}),
    ({"cache.commit_drop": ("action",), "model.action": 2}, "cache.commit_drop guidance.drop",
     {"guidance.drop": ("label", "text", "action")}),
    (CAUSAL | DEEP | TOGETHER, "cache.budget schedule.offset", ONE_BY_ONE | {"schedule.chunk": 1}),
    ({"cache.positions": "slot", "layout.reference": 1}, "cache.positions layout.reference",
     {"cache.positions": "absolute"}),
    (KNOT | {"guidance.observe": "square"}, "layout.knot guidance.observe", {"layout.knot": 0}),
    (CAUSAL | TABLE_HEAD | {"model.period": 12, "layout.reference": 1}, "model.period layout.reference",
     {"layout.reference": 0}),
    # Staggers that no clip can hold.
    (CAUSAL | {"schedule.offset": "pyramid", "schedule.stride": 1.0, "schedule.steps": 20, "cache.kind": "none"},
     "schedule.stride data.frames", {"schedule.stride": 2}),
    (CAUSAL | {"schedule.offset": "rolling", "schedule.in_flight": 20, "schedule.steps": 20},
     "schedule.in_flight data.frames", {"schedule.in_flight": 10}),
    # Conditions.
    ({"train.flip": True}, "train.flip data.source", {"train.flip": False}),
    (GUIDED, "guidance.kind label,text", {"guidance.kind": "none"}),
    (GUIDED | {"model.classes": 10, "train.drop": 0.0}, "guidance.kind train.drop", {"train.drop": 0.1}),
    # Evaluation.
    ({"evaluate.context": 0, "evaluate.clips": 8}, "evaluate.context evaluate.clips", {"evaluate.context": 1}),
    ({"layout.block": 3, "evaluate.clips": 8}, "evaluate.context layout.block", {"evaluate.context": 3}),
    ({"layout.block": 6, "evaluate.clips": 8}, "evaluate.context layout.block", {"evaluate.context": 6}),
    ({"layout.block": 5, "layout.first": 2, "evaluate.clips": 8}, "evaluate.context layout.block",
     {"evaluate.context": 2}),
    # layout
    ({"layout.block": 2, "layout.first": 3}, "layout.first layout.block", {"layout.first": 2}),
    ({"layout.gap": 2}, "layout.gap layout.sinks", {"layout.gap": 0}),
    ({"layout.block": 2, "layout.window": 3}, "layout.window layout.block", {"layout.window": 2}),
    ({"layout.block": 4, "layout.sinks": 6}, "layout.sinks layout.block", {"layout.sinks": 4}),
    (CAUSAL | {"layout.copies": 2}, "layout.copies layout.kind", {"layout.copies": 1}),
    ({"layout.coarse": 2}, "layout.coarse layout.kind", {"layout.coarse": 0}),
    ({"layout.ranges": (4, 2)}, "layout.ranges layout.range_levels", {"layout.range_levels": (0.5,)}),
    (CAUSAL | KNOT, "layout.knot layout.kind", {"layout.knot": 0}),
    ({"layout.block": 2, "layout.knot": 3}, "layout.knot layout.block", {"layout.knot": 1}),
    (PREFIX | {"layout.kind": "bidirectional_window", "layout.ranges": (4, 2), "layout.range_levels": (0.5,)},
     "layout.ranges layout.kind", {"layout.ranges": (), "layout.range_levels": ()}),
    # cache
    ({"cache.commit_label_at": 0.5}, "cache.commit_label_at cache.commit_label", {"cache.commit_label": "fixed"}),
    ({"cache.commit_level": 0.2, "cache.commit_data": "clean", "cache.commit_label": "fixed", "levels.context": 0.5},
     "cache.commit_level cache.commit_data", {"cache.commit_level": 0.0}),
    (WINDOW | {"cache.latents": False}, "cache.latents cache.kind", {"cache.latents": True}),
    (WINDOW | {"cache.commit": "fused"}, "cache.commit cache.kind", {"cache.commit": "separate"}),
    (SINKS | {"cache.sink_overlap": 1}, "cache.sink_overlap cache.positions", {"cache.sink_overlap": 0}),
    ({"cache.keys": "rotated", "cache.positions": "slot"}, "cache.keys cache.positions", {"cache.keys": "raw"}),
    ({"cache.commit": "fused", "cache.positions": "slot"}, "cache.commit cache.positions",
     {"cache.commit": "separate"}),
    ({"cache.commit": "fused", "cache.commit_sinks": False}, "cache.commit_sinks cache.commit",
     {"cache.commit": "separate"}),
    (DEEP | {"cache.positions": "absolute"}, "cache.budget cache.positions", {"cache.positions": "adjacent"}),
    ({"cache.recent": 2}, "cache.recent cache.budget", {"cache.recent": 0}),
    # guidance
    ({"guidance.observe_std": 0.1}, "guidance.observe_std guidance.observe", {"guidance.observe_std": 0.0}),
    ({"guidance.observe_levels": (0.5,)}, "guidance.observe_levels guidance.observe", {"guidance.observe_levels": ()}),
    # levels
    (CAUSAL | {"levels.kind": "fopp", "levels.density": "logit_normal"}, "levels.kind levels.density",
     {"levels.density": "uniform"}),
    (CAUSAL | {"levels.kind": "prefix", "levels.clean": 0.5}, "levels.kind levels.clean", {"levels.clean": 0.0}),
    (CAUSAL | {"levels.kind": "uniform_future", "levels.known": 0}, "levels.kind levels.known", {"levels.known": 1}),
    (EDM | {"levels.density": "edm_log_normal", "levels.shift": 2.0}, "levels.density levels.shift",
     {"levels.shift": 1.0}),
    (MARKED | {"levels.context_label_at": 0.5}, "levels.context_label levels.context_label_at",
     {"levels.context_label": "fixed"}),
    (TOLD | {"levels.context": 0.5, "levels.context_data": "clean", "levels.context_label": "fixed"},
     "levels.context levels.context_data", {"levels.context": 0.0}),
    (CAUSAL | {"levels.kind": "uniform_future", "levels.known": 12}, "levels.kind levels.known", {"levels.known": 11}),
    (CAUSAL | {"levels.kind": "prefix", "levels.known": 10, "levels.chunk": 3}, "levels.known levels.chunk",
     {"levels.chunk": 2}),
    (CAUSAL | {"levels.kind": "prefix", "levels.known": 12}, "levels.known levels.chunk", {"levels.known": 11}),
    # process
    ({"process.betas": (1e-4, 0.02)}, "process.betas process.path", {"process.betas": ()}),
    ({"process.zero_snr": True}, "process.zero_snr process.path", {"process.zero_snr": False}),
    ({"process.shift": 0.5}, "process.shift process.path", {"process.shift": 1.0}),
    ({"process.path": "trigflow", "process.data_std": 0.5}, "process.data_std process.path",
     {"process.data_std": 1.0}),
    # schedule
    (CAUSAL | {"schedule.offset": "pyramid", "schedule.stride": 50.0}, "schedule.stride schedule.steps",
     {"schedule.stride": 5}),
    (CAUSAL | {"schedule.offset": "rolling", "schedule.in_flight": 20}, "schedule.in_flight schedule.steps",
     {"schedule.in_flight": 10}),
    ({"schedule.chunk": 2}, "schedule.chunk schedule.offset", {"schedule.chunk": 1}),
    (CAUSAL | {"schedule.offset": "refine", "schedule.chunk": 2}, "schedule.back schedule.steps",
     {"schedule.back": 5, "schedule.repeats": 1}),
    (WINDOW | REAL_TIME | {"schedule.guess": 0}, "schedule.guess schedule.steps", {"schedule.guess": 2}),
    ({"schedule.grid": "discrete", "schedule.shift": 2.0}, "schedule.shift schedule.grid", {"schedule.shift": 1.0}),
    (EDM | {"schedule.grid": "edm", "schedule.t_max": 0.9}, "schedule.t_max schedule.grid", {"schedule.t_max": 1.0}),
    (EDM | {"schedule.grid": "edm", "schedule.sigma_min": 90.0}, "schedule.sigma_min schedule.sigma_max",
     {"schedule.sigma_min": 0.002, "schedule.sigma_max": 80.0}),
    ({"schedule.grid": "discrete", "schedule.grid_steps": 5}, "schedule.steps schedule.grid_steps",
     {"schedule.steps": 5}),
    ({"schedule.step_times": (1.0, 0.5)}, "schedule.steps schedule.step_times", {"schedule.steps": 2}),
    ({"schedule.steps": 2, "schedule.step_times": (1.0, 0.5), "schedule.t_max": 0.9},
     "schedule.t_max schedule.step_times", {"schedule.t_max": 1.0}),
    (CAUSAL | {"schedule.offset": "interleaved"}, "schedule.offset schedule.chunk", {"schedule.chunk": 2}),
    (CAUSAL | PYRAMID | {"schedule.stride": 2.5}, "schedule.offset schedule.steps", {"schedule.stride": 2}),
    (CAUSAL | PYRAMID | {"schedule.stride": 0.25}, "schedule.offset schedule.steps", {"schedule.stride": 1}),
    (CAUSAL | {"schedule.offset": "rolling", "schedule.in_flight": 4}, "schedule.offset schedule.steps",
     {"schedule.steps": 12}),
    # solver
    ({"solver.eta": 0.5}, "solver.eta solver.kind", {"solver.eta": 0.0}),
    ({"solver.order": 1}, "solver.order solver.kind", {"solver.order": 2}),
    # model
    ({"model.width": 18, "model.heads": 4}, "model.width model.heads", {"model.width": 16}),
    ({"model.axial_mlp": True}, "model.axial_mlp model.attention", {"model.axial_mlp": False}),
    (FACTORISED | {"model.registers": 2}, "model.registers model.attention", {"model.registers": 0}),
    (FACTORISED | {"model.time_every": 3}, "model.time_every model.depth", {"model.time_every": 2}),
    (PREFIX | FACTORISED | {"model.time_every": 2, "model.prefix": 1}, "model.prefix model.time_every",
     {"model.prefix": 0}),
    (PREFIX | FACTORISED | {"model.time_every": 2, "model.mask_channel": True}, "model.mask_channel model.time_every",
     {"model.mask_channel": False}),
    (PREFIX | FACTORISED | {"model.layers": "scan", "model.mask_channel": True}, "model.mask_channel model.layers",
     {"model.layers": "unrolled"}),
    ({"model.coarse": 2, "model.patch": (1,)}, "model.coarse model.patch", {"model.coarse": 0},
     {"model.patch": (1, 8, 8)}),  # no data of the library lack space
    ({"model.label_tokens": True, "model.classes": 10}, "model.label_tokens model.registers",
     {"model.label_tokens": False}),
    ({"model.period": 12}, "model.period model.positions", {"model.positions": "additive"}),
    (CAUSAL | TABLE_HEAD | {"model.period": 12, "model.rope_split": (2, 1, 1)}, "model.rope_split model.positions",
     {"model.rope_split": ()}),
    (FACTORISED | {"model.rope_split": (2, 1, 1)}, "model.rope_split model.attention", {"model.rope_split": ()}),
    ({"model.rope_split": (1, 1)}, "model.rope_split model.patch", {"model.rope_split": ()}),
    ({"model.rope_split": (3, 3, 7)}, "model.rope_split model.width", {"model.rope_split": ()}),
    # Prompts, and a network per token.
    ({"text.encoder": "words"}, "text.encoder model.text", {"model.text": 16}, {"model.vocabulary": 9}),
    ({"text.encoder": "clip"}, "text.encoder model.text", {"model.text": 768}),
    ({"text.encoder": "words", "model.text": 8}, "text.encoder model.vocabulary", {"model.vocabulary": 1000}),
    ({"text.encoder": "clip", "model.text": 8, "model.vocabulary": 9}, "text.encoder model.vocabulary",
     {"model.vocabulary": 0}),
    ({"model.vocabulary": 9}, "model.vocabulary model.text", {"model.text": 16}),
    (CAUSAL | {"model.head": "diffusion"}, "model.head layout.kind", {"model.head": "linear"}),
    ({"model.head": "diffusion", "model.coarse": 2}, "model.head model.coarse", {"model.coarse": 0}),
    (CAUSAL | {"train.own_past": (0.0, 0.5)}, "train.own_past layout.kind", {"train.own_past": ()}),
    ({"train.own_past": (0.0, 0.5), "layout.copies": 2}, "train.own_past layout.copies", {"layout.copies": 1}),
    (KNOT | {"train.own_past": (0.0, 0.5)}, "train.own_past layout.knot", {"layout.knot": 0}),
    ({"train.compose": 0.3}, "train.compose text.encoder data.height data.shortest", {"train.compose": 0.0}),
    (SERIES | {"train.compose": 0.3, "model.registers": 2}, "train.compose train.blend", {"train.compose": 0.0}),
]  # fmt: skip


def refusal_of(changed):
    """The error that the user meets."""
    with pytest.raises(UserError) as refusal:
        build(override(Config(), SOUND | changed))
    return refusal.value


def proposals(said):
    """The values that a message names after 'key = '."""
    found = re.findall(r"(\w+\.\w+) = ('\w+'|\([^)]*\)|[-\w.]+)", said.rpartition(";")[2])
    return {key: ast.literal_eval(value) for key, value in found}


def name_of(clash):
    return "+".join(f"{key}={value}" for key, value in clash[0].items())


@pytest.mark.parametrize("clash", CLASHES, ids=name_of)
def test_a_clash_is_refused_and_the_proposed_value_works(clash):
    changed, named, proposed, *other = clash
    said = str(refusal_of(changed))
    assert "\n" not in said and all(name in said.replace(" ", "") for name in named.split()), said
    assert (said.endswith(" would do") or ", try " in said) and proposals(said) == proposed, said
    for more in other:
        proposed = proposed | more
    build(override(Config(), SOUND | changed | proposed))


def sites(path, clashing):
    """(file, first line, last line) of the statements in a module that refuse, where ``clashing`` says so."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            text = ast.get_source_segment(source, node)
            if clashing(text):
                yield path, node.lineno, node.end_lineno


def test_every_refusal_is_met_above():
    """Every ``_refuse`` of the recipe, and every error of a section of the config that names two of its keys."""
    met = set()
    for changed, *_ in CLASHES:
        error = refusal_of(changed)
        while error is not None:
            met.update((Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
            error = error.__cause__ or error.__context__
    sections = "layout|cache|levels|process|schedule|solver|guidance|model"

    def pair(text):
        helper = text.startswith(("self._refuse(", "self._exclude("))
        return helper or (text.startswith("raise ValueError") and re.search(rf"\band (?:{sections})\.", text))

    package = Path(causal_diffusion.__file__).parent
    found = []
    for path in sorted((package / "compatibility").glob("*.py")):
        # training/test_autoencoder.py, streaming/test_decoding.py, test_vae_configs.py; parallel/test_refusals.py
        if path.stem in ("autoencoder", "mesh"):
            continue
        found += sites(path, lambda text: text.startswith("refuse("))
    assert len(found) > 55
    for name in ("layout/layout", "cache/config", "diffusion/levels", "diffusion/process", "diffusion/schedule",
                 "diffusion/solvers", "diffusion/guidance", "nn/config"):  # fmt: skip
        found += sites(package / f"{name}.py", pair)
    never = [site for site in found if not any((site[0], line) in met for line in range(site[1], site[2] + 1))]
    assert not never and len(found) > 100, (len(found), never)

"""Which of the six choices go together, and what they leave of the past.

The choices are independent in code; not every combination makes sense. ``check`` refuses those that would train or
stream nonsense, in one line that names the keys that clash and a value that would do. What it asks, in this order:

    shapes       do the data fit the network?
    past         how many frames are seen, in training and by a stream?
    levels       does training show the levels that the schedule visits?
    the cache    does training show the past as the stream does?
    conditions   is there something to guide with, and was the network trained without it?
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from causal_diffusion.config import Config
from causal_diffusion.data.sources import condition_sizes, element_spec
from causal_diffusion.diffusion.paths import TABLES
from causal_diffusion.errors import UserError
from causal_diffusion.layout import Layout

T_MAX = (0.99, 0.98, 0.95, 0.9)  # what is proposed where nothing is known of the data at pure noise


class Resolved(NamedTuple):
    """What follows from a config that makes sense."""

    layout: Layout  # with its window in frames
    slots: int  # frames of the past that a stream remembers beside the sinks
    frames: int  # of a training clip
    frame_shape: tuple[int, ...]  # (*space, channels)
    approximations: tuple[str, ...]  # why a stream is not exact; empty: it is


def check(config: Config) -> Resolved:
    """UserError where the choices clash, naming the keys and a value that would do."""
    spec = {name: s.shape for name, s in element_spec(config.data).items()}
    frames, *frame_shape = spec["video"]
    _check_shapes(config, frames, frame_shape, spec)
    view = _view(config)
    layout, slots = _resolve_window(config, frames, view)
    _check_levels(config, view)
    _check_grids(config)
    _check_noise(config)
    _check_past(config)
    _check_shown(config)
    _check_places(config, slots, view)
    _check_conditions(config)
    _check_evaluation(config)
    return Resolved(layout, slots, frames, tuple(frame_shape), _approximations(config))


def _approximations(config):
    if config.cache.kind == "none" or config.cache.dtype == "compute":
        return ()
    stored, computed = config.cache.dtype, jnp.dtype(config.model.compute_dtype).name
    if jnp.finfo(stored).bits >= jnp.finfo(computed).bits:
        return ()
    return (f"keys and values are computed in {computed} and stored in {stored}",)


def _check_shapes(config, frames, frame_shape, spec):
    layout, model, patch = config.layout, config.model, config.model.patch
    if layout.coarse or model.coarse:
        _refuse(
            f"layout.coarse is {layout.coarse} and model.coarse is {model.coarse}: no stream keeps coarse history; "
            "layout.coarse = 0 with model.coarse = 0 would do"
        )
    if (low := layout.whole(frames)) != frames:
        low = max(low, 2 * layout.block - layout.pad)
        _refuse(
            f"data.frames is {frames} and layout.block is {layout.block}: a clip is a whole number of blocks, "
            f"data.frames = {low} would do"
        )
    if layout.block_count(frames) < 2:
        _refuse(
            f"layout.block is {layout.block} and data.frames is {frames}: a clip holds at least two blocks, "
            f"data.frames = {2 * layout.block - layout.pad} would do"
        )
    if model.channels != frame_shape[-1]:
        _refuse(
            f"model.channels is {model.channels} and data.channels is {frame_shape[-1]}: they must be equal, "
            f"model.channels = {frame_shape[-1]} would do"
        )
    if model.outputs not in (1, config.process.outputs):
        _refuse(
            f"model.outputs is {model.outputs} and process.variance is {config.process.variance!r}: it follows from "
            "that, model.outputs = 1 would do"
        )
    if len(patch) != len(frame_shape):
        fitting = (1, *(math.gcd(size, patch[-1]) for size in frame_shape[:-1]))
        _refuse(
            f"model.patch is {patch} and the data are (time, {', '.join(map(str, frame_shape))}): one entry for every "
            f"axis but the last, model.patch = {fitting} would do"
        )
    if patch[0] != 1:
        _refuse(
            f"model.patch is {patch}: streams advance by single frames, model.patch = {(1, *patch[1:])} would do"
        )
    for name, size, part in zip(("data.height", "data.width"), frame_shape[:-1], patch[1:], strict=False):
        if size % part:
            _refuse(
                f"{name} is {size} and model.patch is {patch}: {part} must divide it, "
                f"{name} = {max(1, round(size / part)) * part} would do"
            )
    if model.classes and "label" not in spec:
        _refuse(f"model.classes is {model.classes} and the data have no labels: model.classes = 0 would do")
    action = spec.get("action", (0, 0))[-1]
    if model.action and model.action != action:
        _refuse(
            f"model.action is {model.action} and the data have {action} numbers per action: they must be equal, "
            f"model.action = {action} would do"
        )


def _view(config):
    """The schedule as a stream sees it, if there is one and a clip can have its levels."""
    try:
        config.levels.check(config.layout.block_count(config.data.frames))
        return config.schedule.view()
    except ValueError as error:
        _refuse(str(error))


def _resolve_window(config, frames, view):
    """(the layout with its window in frames, slots of the ring)."""
    layout, count = config.layout, config.layout.block_count(frames)
    window = layout.window or (count - 1) * layout.block
    resolved = dataclasses.replace(layout, window=window)
    if config.cache.kind == "kv" or layout.window:
        return resolved, window
    # Without a cache the network sees the past and the blocks in flight at once: as many frames as in training.
    slots = (count - view.in_flight) * layout.block
    if slots < layout.block:
        flying = view.in_flight * layout.block
        _refuse(
            f"cache.kind is 'none' and data.frames is {frames}, of which {flying} are in flight: nothing of the past "
            f"would be seen, data.frames = {flying + layout.block - layout.pad} would do"
        )
    return resolved, slots


def _check_levels(config, view):
    """Does training show every mix of levels that the schedule visits?"""
    layout, schedule, levels = config.layout, config.schedule, config.levels
    together = f"levels.kind is {levels.kind!r} and schedule.offset is {schedule.offset!r}"
    if view.in_flight > 1 and (layout.separate_clean or layout.by_role):
        _refuse(
            f"layout.kind is {layout.kind!r} and schedule.offset is {schedule.offset!r}: a noisy block sees only "
            f"clean blocks, so the one before it must be clean; {_one_by_one(schedule)} would do"
        )
    if layout.by_role and not levels.has_context:
        _refuse(
            f"layout.kind is {layout.kind!r} and levels.kind is {levels.kind!r}: no block would ever be the clean "
            "prefix; levels.kind = 'prefix' would do"
        )
    if layout.kind == "prefix" and levels.clean:
        _refuse(
            f"layout.kind is 'prefix' and levels.clean is {levels.clean}: clean blocks see each other, so those behind "
            "a noisy block would tell it its future; levels.clean = 0.0 with levels.kind = 'prefix' would do"
        )
    if layout.separate_clean and levels.has_context:
        name, value = ("clean", 0.0) if levels.clean else ("kind", "independent")
        _refuse(
            f"layout.kind is 'teacher_forcing' and levels.{name} is {getattr(levels, name)!r}: the past already has a "
            f"clean copy of its own; levels.{name} = {value!r} would do"
        )
    whole = view.in_flight == layout.block_count(config.data.frames)
    if not layout.separate_clean and not levels.shows_clean_past and not whole:
        _refuse(
            f"levels.kind is {levels.kind!r} and layout.kind is {layout.kind!r}: the past is cleaner than the block "
            "being streamed, which training would never show; levels.kind = 'independent' would do"
        )
    rows = np.concatenate([view.ramp, view.step])
    uneven = bool(np.any(rows != rows[:, :1]))
    if levels.kind in ("shared", "uniform_future") and uneven:
        _refuse(
            f"{together}: training gives blocks in flight one level, the schedule several; "
            "levels.kind = 'independent' would do"
        )
    if levels.kind == "prefix" and (uneven or view.in_flight > levels.chunk):
        _refuse(
            f"{together}: training shows {levels.chunk} noisy blocks at one level; {_one_by_one(schedule)} would do"
        )
    if levels.kind == "staircase" and view.in_flight != levels.in_flight:
        _refuse(
            f"levels.in_flight is {levels.in_flight} and the schedule {schedule.offset!r} has {view.in_flight} blocks "
            f"in flight: training shows the same number, levels.in_flight = {view.in_flight} would do"
        )
    if levels.kind == "staircase" and view.in_flight > 1 and not uneven:
        _refuse(
            f"{together}: training shows blocks in flight at rising levels, the schedule at one; "
            f"{_one_by_one(schedule)} with levels.in_flight = 1 would do"
        )
    if levels.monotone and np.any(np.diff(rows, axis=1) < 0):
        _refuse(
            f"{together}: a block would be cleaner than the one before it, which training would never show; "
            f"{_one_by_one(schedule)} would do"
        )


def _check_noise(config):
    """Is the first prediction of a stream, at pure noise, a finite one?"""
    schedule, process = config.schedule, config.process
    if not process.singular(float(schedule.times()[-1])):
        return
    proposed = "process.predict = 'velocity'"
    for t_max in T_MAX:
        try:
            last = float(dataclasses.replace(schedule, t_max=t_max).times()[-1])
        except ValueError:  # this grid ends where it ends
            continue
        if last < schedule.times()[-1] and not process.singular(last):
            proposed = f"schedule.t_max = {t_max}"
            break
    _refuse(
        f"process.predict is 'noise' and schedule.t_max is {schedule.t_max}: at pure noise the data cannot be "
        f"told from the noise; {proposed} would do"
    )


def _check_grids(config):
    """Do levels, schedule and process count the same steps?"""
    levels, schedule, process = config.levels, config.schedule, config.process
    if process.path not in ("edm", "trigflow"):
        for section, name, unset in (("schedule", "grid", "uniform"), ("levels", "density", "uniform")):
            value = getattr(getattr(config, section), name)
            if value.startswith("edm"):
                _refuse(
                    f"{section}.{name} is {value!r} and process.path is {process.path!r}: its levels are those of the "
                    f"paths edm and trigflow; {section}.{name} = {unset!r} would do"
                )
    if process.path not in TABLES:
        return
    if levels.grid and levels.grid != process.steps:
        _refuse(
            f"levels.grid is {levels.grid} and process.steps is {process.steps}: levels would lie between the steps; "
            f"levels.grid = {process.steps} would do"
        )
    if schedule.grid == "discrete" and schedule.grid_steps != process.steps:
        _refuse(
            f"schedule.grid_steps is {schedule.grid_steps} and process.steps is {process.steps}: levels would lie "
            f"between the steps; schedule.grid_steps = {process.steps} would do"
        )


def _check_past(config):
    """Can the past be kept as the cache keeps it?"""
    layout, cache, model, levels = config.layout, config.cache, config.model, config.levels
    if cache.kind == "kv" and not layout.cacheable:
        _refuse(
            f"cache.kind is 'kv' and layout.kind is {layout.kind!r}: later frames change what was computed of earlier "
            "ones; cache.kind = 'none' would do"
        )
    if layout.separate_clean and cache.kind == "none":
        _refuse(
            "cache.kind is 'none' and layout.kind is 'teacher_forcing': its past is made to be cached; "
            "cache.kind = 'kv' would do"
        )
    if layout.separate_clean or levels.has_context:
        return
    for name, plain in (("prefix", 0), ("mask_channel", False), ("modulate_clean", True)):
        if getattr(model, name) != plain:
            _refuse(
                f"model.{name} is {getattr(model, name)} and levels.kind is {levels.kind!r}: in training no frame "
                f"would be clean, in the stream the past is; model.{name} = {plain} would do"
            )


def _check_shown(config):
    """Is a finished block shown at a level, and with a label, that training has?"""
    layout, cache, levels, process = config.layout, config.cache, config.levels, config.process
    # A single stream shows blocks at every level, but where its kind says which ones are the past.
    past = levels.has_context and not levels.clean
    if (layout.separate_clean or past) and cache.commit_level > levels.context:
        _refuse(
            f"cache.commit_level is {cache.commit_level} and levels.context is {levels.context}: the past was never "
            f"shown at that level in training; cache.commit_level = {levels.context} would do"
        )
    if layout.range_levels and (layout.separate_clean or cache.kind == "none"):
        last = layout.range_levels[-1]
        if cache.commit_level > last:
            _refuse(
                f"cache.commit_level is {cache.commit_level} and layout.range_levels is {layout.range_levels}: in "
                f"training the past is of the last stage; cache.commit_level = {last} would do"
            )
    if (layout.separate_clean or past) and levels.context_label == "fixed":
        # Training tells the network nothing else of the past.
        at = levels.context_label_at
        told = cache.commit_label_at if cache.commit_label == "fixed" else float(process.label(cache.commit_level))
        if abs(told - at) > 1e-6:
            _refuse(
                f"cache.commit_label is {cache.commit_label!r}, which tells the network {told:g} of the past, and "
                f"levels.context_label is 'fixed': training tells it {at:g} and nothing else; "
                f"cache.commit_label = 'fixed' with cache.commit_label_at = {at} would do"
            )
    elif cache.commit_label == "fixed":
        told = sorted(round(float(process.label(jnp.float32(t))), 6) for t in (0.0, 1.0))
        proposed = min(max(cache.commit_label_at, told[0]), told[1])
        if levels.has_context and levels.context_label == "fixed":
            told, proposed = [*told, levels.context_label_at], levels.context_label_at
        low, high = min(told[:2]), max(told[:2])
        if not low - 1e-6 <= cache.commit_label_at <= high + 1e-6 and cache.commit_label_at not in told:
            _refuse(
                f"cache.commit_label_at is {cache.commit_label_at} and levels.context_label_at is "
                f"{levels.context_label_at}: training never tells the network so; "
                f"cache.commit_label_at = {proposed} would do"
            )


def _check_places(config, slots, view):
    """Do the frames in sight stand at places of their own, as in training?"""
    layout, model, frames = config.layout, config.model, config.data.frames
    flying = view.in_flight * layout.block
    if model.prefix > slots:
        _refuse(
            f"model.prefix is {model.prefix} and layout.window is {layout.window}: a stream remembers {slots} frames, "
            f"model.prefix = {slots} would do"
        )
    if model.positions == "additive" and not model.period:
        _refuse(
            "model.period is 0 and model.positions is 'additive': a stream goes on beyond every place that training "
            f"knows; model.period = {max(frames, slots + flying)} would do"
        )
    if not model.period:
        return
    if layout.sinks:
        _refuse(
            f"model.period is {model.period} and layout.sinks is {layout.sinks}: others would come to stand at their "
            "places; layout.sinks = 0 would do"
        )
    if model.period < frames:
        _refuse(
            f"model.period is {model.period} and data.frames is {frames}: two frames of a clip would stand at the same "
            f"place; model.period = {max(frames, slots + flying)} would do"
        )
    if slots + flying > model.period:
        fitting = (model.period - flying) // layout.block * layout.block
        proposed = f"layout.window = {fitting}" if fitting > 0 else f"model.period = {slots + flying}"
        _refuse(
            f"model.period is {model.period} and layout.window is {layout.window}: of {slots} frames remembered and "
            f"{flying} in flight two would stand at the same place; {proposed} would do"
        )


def _check_conditions(config):
    model, guidance = config.model, config.guidance
    if config.train.flip and condition_sizes(config.data)[1]:
        _refuse(
            f"train.flip is True and data.source {config.data.source!r} has actions, which a mirrored clip would "
            "contradict; train.flip = False would do"
        )
    if len(guidance.branches()) == 1:
        return
    takes = {"label": model.classes, "text": model.text, "action": model.action}
    hidden = {name for branch in guidance.branches() for name in branch.drop}
    _check_history(config)
    if not hidden:
        return
    if not any(takes[name] for name in hidden):
        _refuse(
            f"guidance.kind is {guidance.kind!r} and the model takes none of {', '.join(guidance.drop)}: there is "
            "nothing to leave out; guidance.kind = 'none' would do"
        )
    if not config.train.drop:
        _refuse(
            f"guidance.kind is {guidance.kind!r} and train.drop is 0: the model never trains without its "
            "conditions; train.drop = 0.1 would do"
        )


def _check_history(config):
    """Was the network trained on the pasts that guidance shows it?"""
    guidance, levels, layout = config.guidance, config.levels, config.layout
    noisiest = max(branch.level for branch in guidance.branches())
    if noisiest and (layout.separate_clean or levels.has_context) and levels.context < noisiest:
        _refuse(
            f"guidance.level is {guidance.level} and levels.context is {levels.context}: no past was so noisy in "
            f"training; guidance.level = {levels.context} would do"
        )
    hides = any(branch.past >= 0 for branch in guidance.branches())
    if hides and config.cache.kind == "none" and (levels.has_context or levels.kind not in ("independent", "sorted")):
        _refuse(
            f"guidance.kind is {guidance.kind!r} and levels.kind is {levels.kind!r}: without a cache the past is "
            "hidden by noise, of which training shows none before a cleaner block; levels.kind = 'independent' would do"
        )


def _check_evaluation(config):
    layout, context = config.layout, config.evaluate.context
    if config.evaluate.clips and (low := layout.whole(context)) != context:
        _refuse(
            f"evaluate.context is {context} and layout.block is {layout.block}: whole blocks are given, "
            f"evaluate.context = {low if low > 0 else low + layout.block} would do"
        )


def _one_by_one(schedule):
    """The keys that make a schedule denoise block after block."""
    keys = ["schedule.offset = 'autoregressive'"]
    for field in dataclasses.fields(schedule):
        if field.name in ("chunk", "back", "repeats", "guess") and getattr(schedule, field.name) != field.default:
            keys.append(f"schedule.{field.name} = {field.default}")
    return " with ".join(keys)


def _refuse(message):
    raise UserError(message)

"""Which of the six choices go together, and what they leave of the past.

The choices are independent in code; not every combination makes sense. ``check`` refuses those that would train or
stream nonsense, in one line that names the keys that clash and a value that would do. What it asks, in this order:

    latents      do the data fit the autoencoder, where there is one?
    shapes       do the data, or their latents, fit the network?
    past         how many frames are seen, in training and by a stream?
    levels       does training show the levels that the schedule visits?
    the cache    does training show the past as the stream does?
    conditions   is there something to guide with, and was the network trained without it?
"""

import dataclasses
import math
from typing import NamedTuple

from causal_diffusion.compatibility.autoencoder import check_latents, clip_shapes
from causal_diffusion.compatibility.conditions import check_conditions
from causal_diffusion.compatibility.kept import check_kept, kept_frames
from causal_diffusion.compatibility.levels import check_grids, check_levels, check_noise
from causal_diffusion.compatibility.past import approximations, check_past, check_places, check_shown
from causal_diffusion.compatibility.refusal import refuse
from causal_diffusion.config import Config
from causal_diffusion.data.sources import condition_sizes
from causal_diffusion.layout import Layout

__all__ = ["Resolved", "check"]


class Resolved(NamedTuple):
    """What follows from a config that makes sense."""

    layout: Layout  # with its window in frames
    slots: int  # frames of the past that a stream remembers beside the sinks
    kept: int  # and beside these: reference frames, or frames of tokens that compression keeps
    frames: int  # of a training clip
    frame_shape: tuple[int, ...]  # (*space, channels)
    approximations: tuple[str, ...]  # why a stream is not exact; empty: it is


def check(config: Config) -> Resolved:
    """UserError where the choices clash, naming the keys and a value that would do."""
    check_latents(config)
    spec = {name: s.shape for name, s in clip_shapes(config).items()}
    frames, *frame_shape = spec["video"]
    check_shapes(config, frames, frame_shape, spec)
    view = stream_view(config, frames)
    layout, slots = resolve_window(config, frames, view)
    check_levels(config, view)
    check_grids(config)
    check_noise(config)
    check_past(config)
    check_shown(config)
    check_places(config, slots, view)
    check_kept(config, slots, view)
    check_conditions(config)
    check_evaluation(config)
    return Resolved(layout, slots, kept_frames(config), frames, tuple(frame_shape), approximations(config))


def check_shapes(config, frames, frame_shape, spec):
    layout, model, patch = config.layout, config.model, config.model.patch
    if (low := layout.whole(frames)) != frames:
        low = max(low, 2 * layout.block - layout.pad)
        refuse(
            f"data.frames is {frames} and layout.block is {layout.block}: a clip is a whole number of blocks, "
            f"data.frames = {low} would do"
        )
    if layout.block_count(frames) < 2:
        refuse(
            f"layout.block is {layout.block} and data.frames is {frames}: a clip holds at least two blocks, "
            f"data.frames = {2 * layout.block - layout.pad} would do"
        )
    if model.channels != frame_shape[-1]:
        refuse(
            f"model.channels is {model.channels} and data.channels is {frame_shape[-1]}: they must be equal, "
            f"model.channels = {frame_shape[-1]} would do"
        )
    if model.outputs not in (1, config.process.outputs):
        refuse(
            f"model.outputs is {model.outputs} and process.variance is {config.process.variance!r}: it follows from "
            "that, model.outputs = 1 would do"
        )
    if len(patch) != len(frame_shape):
        fitting = (1, *(math.gcd(size, patch[-1]) for size in frame_shape[:-1]))
        refuse(
            f"model.patch is {patch} and the data are (time, {', '.join(map(str, frame_shape))}): one entry for every "
            f"axis but the last, model.patch = {fitting} would do"
        )
    if patch[0] != 1:
        refuse(
            f"model.patch is {patch}: streams advance by single frames, model.patch = {(1, *patch[1:])} would do"
        )
    for name, size, part in zip(("data.height", "data.width"), frame_shape[:-1], patch[1:], strict=False):
        if size % part:
            refuse(
                f"{name} is {size} and model.patch is {patch}: {part} must divide it, "
                f"{name} = {max(1, round(size / part)) * part} would do"
            )
    if model.classes and "label" not in spec:
        refuse(f"model.classes is {model.classes} and the data have no labels: model.classes = 0 would do")
    if model.classes and model.classes < (classes := condition_sizes(config.data)[0]):
        refuse(
            f"model.classes is {model.classes} and the data have {classes} classes: labels from {model.classes} on "
            f"have no embedding, try model.classes = {classes}"
        )
    action = spec.get("action", (0, 0))[-1]
    if model.action and model.action != action:
        refuse(
            f"model.action is {model.action} and the data have {action} numbers per action: they must be equal, "
            f"model.action = {action} would do"
        )


def stream_view(config, frames):
    """The schedule as a stream sees it, if there is one and a clip of ``frames`` can have its levels."""
    layout, schedule = config.layout, config.schedule
    count = layout.block_count(frames) - layout.block_of(layout.coarse)
    try:
        config.levels.check(count)
        view = schedule.view()
    except ValueError as error:
        refuse(str(error))
    # A causal block sees no later one, and none of the earlier ones beyond the window: as many as there may be.
    sees_ahead = config.cache.kind == "none" or layout.kind == "bidirectional_window"
    if schedule.offset == "pyramid" and view.in_flight > count and sees_ahead:
        wider = -(-schedule.steps // count)
        refuse(
            f"schedule.stride is {schedule.stride} and data.frames is {config.data.frames}: {view.in_flight} blocks "
            f"would be in flight, a clip has {count}; schedule.stride = {wider} would do"
        )
    if schedule.offset == "rolling" and view.in_flight > count:
        most = max(n for n in range(1, count + 1) if schedule.steps % n == 0)
        refuse(
            f"schedule.in_flight is {schedule.in_flight} and data.frames is {config.data.frames}: a clip has {count} "
            f"blocks; schedule.in_flight = {most} would do"
        )
    return view


def resolve_window(config, frames, view):
    """(the layout with its window in frames, slots of the ring)."""
    layout = config.layout
    count = layout.block_count(frames) - layout.block_of(layout.coarse)  # blocks that are not coarse
    window = layout.window or (count - 1) * layout.block
    resolved = dataclasses.replace(layout, window=window)
    if config.cache.kind == "kv" or layout.window:
        return resolved, window
    # Without a cache the network sees the past and the blocks in flight at once: as many frames as in training.
    slots = (count - view.in_flight) * layout.block
    if slots < layout.block:
        flying = view.in_flight * layout.block
        refuse(
            f"cache.kind is 'none' and data.frames is {frames}, of which {flying} are in flight: nothing of the past "
            f"would be seen, data.frames = {flying + layout.block - layout.pad} would do"
        )
    return resolved, slots


def check_evaluation(config):
    layout, context = config.layout, config.evaluate.context
    if not config.evaluate.clips:
        return
    if context < 1:
        refuse(
            f"evaluate.context is {context} and evaluate.clips is {config.evaluate.clips}: streams that are evaluated "
            f"begin with given frames, try evaluate.context = {max(1, layout.block - layout.pad)}"
        )
    if (low := layout.whole(context)) != context:
        refuse(
            f"evaluate.context is {context} and layout.block is {layout.block}: whole blocks are given, "
            f"evaluate.context = {low if low > 0 else low + layout.block} would do"
        )

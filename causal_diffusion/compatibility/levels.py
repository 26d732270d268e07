"""Does training show the levels that a schedule visits, and do they count the same steps?"""

import dataclasses

import numpy as np

from causal_diffusion.compatibility.refusal import one_by_one, refuse
from causal_diffusion.diffusion.paths import TABLES

T_MAX = (0.99, 0.98, 0.95, 0.9)  # what is proposed where nothing is known of the data at pure noise


def check_levels(config, view):
    """Does training show every mix of levels that the schedule visits?"""
    layout, schedule, levels = config.layout, config.schedule, config.levels
    together = f"levels.kind is {levels.kind!r} and schedule.offset is {schedule.offset!r}"
    apart = layout.separate_clean or layout.by_role and layout.kind != "bidirectional_window"
    if view.in_flight > 1 and apart:
        refuse(
            f"layout.kind is {layout.kind!r} and schedule.offset is {schedule.offset!r}: a noisy block sees only "
            f"clean blocks, so the one before it must be clean; {one_by_one(schedule)} would do"
        )
    if layout.by_role and not levels.has_context:
        refuse(
            f"layout.kind is {layout.kind!r} and levels.kind is {levels.kind!r}: no block would ever be the clean "
            "prefix; levels.kind = 'prefix' would do"
        )
    if layout.kind in ("prefix", "bidirectional_window") and levels.clean:
        refuse(
            f"layout.kind is {layout.kind!r} and levels.clean is {levels.clean}: clean blocks behind a noisy one would "
            "tell it its future; levels.clean = 0.0 with levels.kind = 'prefix' would do"
        )
    if layout.separate_clean and levels.has_context:
        name, value = ("clean", 0.0) if levels.clean else ("kind", "independent")
        refuse(
            f"layout.kind is 'teacher_forcing' and levels.{name} is {getattr(levels, name)!r}: the past already has a "
            f"clean copy of its own; levels.{name} = {value!r} would do"
        )
    whole = view.in_flight == layout.block_count(config.data.frames)
    if not layout.separate_clean and not levels.shows_clean_past and not whole:
        refuse(
            f"levels.kind is {levels.kind!r} and layout.kind is {layout.kind!r}: the past is cleaner than the block "
            "being streamed, which training would never show; levels.kind = 'independent' would do"
        )
    rows = np.concatenate([view.ramp, view.step])
    uneven = bool(np.any(rows != rows[:, :1]))
    if levels.kind in ("shared", "uniform_future") and uneven:
        refuse(
            f"{together}: training gives blocks in flight one level, the schedule several; "
            "levels.kind = 'independent' would do"
        )
    if levels.kind == "prefix" and (uneven or view.in_flight > levels.chunk):
        refuse(
            f"{together}: training shows {levels.chunk} noisy blocks at one level; {one_by_one(schedule)} would do"
        )
    if levels.kind == "staircase" and view.in_flight != levels.in_flight:
        refuse(
            f"levels.in_flight is {levels.in_flight} and the schedule {schedule.offset!r} has {view.in_flight} blocks "
            f"in flight: training shows the same number, levels.in_flight = {view.in_flight} would do"
        )
    if levels.kind == "staircase" and view.in_flight > 1 and not uneven:
        refuse(
            f"{together}: training shows blocks in flight at rising levels, the schedule at one; "
            f"{one_by_one(schedule)} with levels.in_flight = 1 would do"
        )
    if levels.monotone and np.any(np.diff(rows, axis=1) < 0):
        refuse(
            f"{together}: a block would be cleaner than the one before it, which training would never show; "
            f"{one_by_one(schedule)} would do"
        )


def check_noise(config):
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
    refuse(
        f"process.predict is 'noise' and schedule.t_max is {schedule.t_max}: at pure noise the data cannot be "
        f"told from the noise; {proposed} would do"
    )


def check_grids(config):
    """Do levels, schedule and process count the same steps?"""
    levels, schedule, process = config.levels, config.schedule, config.process
    if process.path not in ("edm", "trigflow"):
        for section, name, unset in (("schedule", "grid", "uniform"), ("levels", "density", "uniform")):
            value = getattr(getattr(config, section), name)
            if value.startswith("edm"):
                refuse(
                    f"{section}.{name} is {value!r} and process.path is {process.path!r}: its levels are those of the "
                    f"paths edm and trigflow; {section}.{name} = {unset!r} would do"
                )
    if process.path not in TABLES:
        return
    if levels.grid and levels.grid != process.steps:
        refuse(
            f"levels.grid is {levels.grid} and process.steps is {process.steps}: levels would lie between the steps; "
            f"levels.grid = {process.steps} would do"
        )
    if schedule.grid == "discrete" and schedule.grid_steps != process.steps:
        refuse(
            f"schedule.grid_steps is {schedule.grid_steps} and process.steps is {process.steps}: levels would lie "
            f"between the steps; schedule.grid_steps = {process.steps} would do"
        )

"""Contact sheets: clips as rows of frames, so that a whole rollout can be seen at a glance.

              legend        ● context   ● generated   ● past the training length
                            ═══════════ ‖ ═══════════ ‖ ════════════════════      (bars in those colours)
              numbers       0    1    2 ‖  3   4   5  ‖  6   7   8   9   10
    title     frames       [ ]  [ ]  [ ]‖ [ ] [ ] [ ] ‖ [ ] [ ] [ ] [ ] [ ]
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from causal_diffusion.render import style
from causal_diffusion.render.video import to_uint8

_PAD = 28                   # pixels around everything
_GAP = 4                    # between frames
_BREAK = 18                 # between frames where a phase ends
_ROW_GAP = 8
_GROUP_GAP = 24


def contact_sheet(rows: Mapping | Sequence, every: int = 1, cell: int = 72, context: int = 0,
                  train_length: int | None = None, title: str = "", group: int = 0,
                  smooth: bool = True, max_columns: int | None = None) -> np.ndarray:
    """Draw clips as rows of frames; returns a uint8 picture [H, W, 3].

    `rows`: {title: clip [T, H, W, C]} or a list of (title, clip), floats in [-1, 1] with 1 or 3 channels. A
    title may have a second line, drawn dimmer. Lengths may differ.
    `every`: show frames 0, every, 2 * every, ...; the first generated frame and the first past the training
    length are always shown. `max_columns` raises `every` until so many columns are enough.
    `cell`: height of a frame on the sheet in pixels. Smaller frames are enlarged smoothly (bicubic), or
    with `smooth=False` by repeating pixels.
    `context`: the first so many frames were given, the rest generated. `train_length`: frames from this
    index on lie past the length seen in training. Both are marked by colour and by a line.
    `group`: leave a wider gap after each so many rows (2 for pairs of true and generated clips).
    """
    rows = list(rows.items() if isinstance(rows, Mapping) else rows)
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    clips = [_clip(name, clip) for name, clip in rows]
    names = [style.plain(name).split("\n") for name, _ in rows]
    length = max(len(clip) for clip in clips)
    phases = _phases(length, context, train_length)
    shown = _shown(length, every, phases, max_columns)

    face, small, large = style.font(15), style.font(12), style.font(20)
    cell_width = max(round(cell * clip.shape[2] / clip.shape[1]) for clip in clips)
    label_width = max(style.text_width(line, face) for lines in names for line in lines)
    left = _PAD + (label_width + 20 if label_width else 0)
    columns, x, previous = [], left, None
    for index in shown:
        phase = _phase_of(index, phases)
        if previous is not None:
            x += cell_width + (_GAP if phase == previous else _BREAK)
        columns.append((index, x, phase))
        previous = phase
    right = x + cell_width
    legend = [(name, colour) for name, colour, _, _ in phases] if len(phases) > 1 else []
    legend_width = sum(style.text_width(name, small) + 34 for name, _ in legend)
    width = max(right, left + legend_width, _PAD + style.text_width(style.plain(title), large)) + _PAD
    top = _PAD + (36 if title else 0) + (26 if legend else 0) + (10 if legend else 0) + 22
    tops = [top + r * (cell + _ROW_GAP) + (r // group * (_GROUP_GAP - _ROW_GAP) if group else 0)
            for r in range(len(rows))]
    picture, pen = style.canvas(width, tops[-1] + cell + _PAD)

    y = _PAD
    if title:
        pen.text((_PAD, y), style.plain(title), style.TEXT, large)
        y += 36
    if legend:
        at = left
        for name, colour in legend:
            _disc(picture, at + 6, y + 8, 5, colour)
            pen.text((at + 18, y + 8), name, style.TEXT, small, anchor="lm")
            at += style.text_width(name, small) + 34
        y += 26
        for _, colour, start, stop in phases:
            inside = [x for index, x, _ in columns if start <= index < stop]
            pen.rounded_rectangle((inside[0], y, inside[-1] + cell_width - 1, y + 3), 2, colour)
        y += 10
    for index, x, phase in columns:
        colour = style.mix(phases[phase][1], style.TEXT, 0.75) if legend else style.DIM_TEXT
        pen.text((x + cell_width // 2, y + 9), str(index), colour, small, anchor="mm")

    for (_, x, phase), (_, _, before) in zip(columns[1:], columns[:-1], strict=True):
        if phase != before:
            line = x - (_BREAK + 1) // 2
            pen.rectangle((line - 1, y + 2, line, tops[-1] + cell - 1), phases[phase][1])
    for row_top, lines, clip in zip(tops, names, clips, strict=True):
        for number, line in enumerate(lines):
            middle = row_top + cell / 2 + (number - (len(lines) - 1) / 2) * 19
            pen.text((_PAD, middle), line, style.DIM_TEXT if number else style.TEXT, face, anchor="lm")
        own_width = round(cell * clip.shape[2] / clip.shape[1])
        for index, x, _ in columns:
            if index < len(clip):
                inset = (cell_width - own_width) // 2
                _paste(picture, clip[index], x + inset, row_top, own_width, cell, smooth)
    return np.asarray(picture)


def _clip(name, clip):
    pixels = to_uint8(clip)
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"row {name!r} must be a clip [T, H, W, C] with 1 or 3 channels; got {pixels.shape}")
    return np.broadcast_to(pixels, pixels.shape[:3] + (3,))


def _phases(length, context, train_length):
    """[(name, colour, first frame, past the last frame)], empty ones left out."""
    if context < 0 or (train_length is not None and train_length < 0):
        raise ValueError(f"context and train_length must not be negative; got {context} and {train_length}")
    seen = length if train_length is None else min(train_length, length)
    given = min(context, length)
    spans = [("context", style.CONTEXT, 0, given),
             ("generated", style.TRAINED, given, max(given, seen)),
             ("generated past the training length", style.BEYOND, max(given, seen), length)]
    return [span for span in spans if span[2] < span[3]]


def _phase_of(index, phases):
    return next(number for number, (_, _, start, stop) in enumerate(phases) if start <= index < stop)


def _shown(length, every, phases, max_columns):
    if every < 1 or (max_columns is not None and max_columns < len(phases)):
        raise ValueError(f"every must be at least 1 and max_columns at least {len(phases)}; "
                         f"got {every} and {max_columns}")
    starts = {start for _, _, start, _ in phases}
    while True:
        shown = sorted(starts | set(range(0, length, every)))
        if max_columns is None or len(shown) <= max_columns:
            return shown
        every += 1


def _paste(picture, pixels, x, y, width, height, smooth):
    frame = Image.fromarray(np.ascontiguousarray(pixels))
    if height < pixels.shape[0]:
        method = Image.Resampling.LANCZOS
    else:
        method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    picture.paste(frame.resize((width, height), method), (x, y), _rounded(width, height, 4))


def _rounded(width, height, radius):
    mask = Image.new("L", (4 * width, 4 * height), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), 4 * radius, 255)
    return mask.resize((width, height), Image.Resampling.BOX)


def _disc(picture, x, y, radius, colour):
    side = 2 * radius + 1
    mask = Image.new("L", (4 * side, 4 * side), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, 4 * side - 1, 4 * side - 1), 255)
    picture.paste(colour, (x - radius, y - radius), mask.resize((side, side), Image.Resampling.BOX))

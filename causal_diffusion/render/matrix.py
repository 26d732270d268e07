"""Matrices as heat maps, for masks, levels and schedules: one alone, or panels of several systems side by side.

                 title
                 legend      [] seen  [] hidden   ▒░ clean .. noise   ● context  x not scored
                 heading               heading               heading
                 caption               caption               caption
    name       0 [] [] []            0 [] [] []            0 [] [] []
    facts      1 [] [] []            1 [] [] []            1 [] [] []
                 0  1  2               0  1  2               0  1  2
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from causal_diffusion.render import style

_PAD = 28  # pixels around everything
_LARGEST = 26  # of a cell
_SEAM = 6  # gap at a break
_BETWEEN = 40  # panels in a row
_ROW_GAP = 26
_LINE = 17  # height of a line of small text
_FINER = 4  # signs are drawn so many times larger and reduced

RAMPS = {  # name -> (colour at 0, its name, colour at 1, its name, whether what lies between means something)
    "level": ((230, 237, 243), "clean", (42, 48, 56), "noise", True),
    "mask": ((27, 32, 39), "hidden", (163, 113, 247), "seen", False),
}
_ON_LIGHT = style.mix(style.CONTEXT, (0, 0, 80), 0.7)  # the colour of given frames, where cells are nearly white
SIGNS = {"disc": _ON_LIGHT, "cross": style.BEYOND, "dot": style.TEXT}  # name -> colour


@dataclasses.dataclass(frozen=True)
class Panel:
    """A matrix and how to draw it."""

    values: Any  # [R, C] in [0, 1], or bool; NaN leaves a cell empty
    ramp: str = "level"  # a key of RAMPS
    caption: str = ""  # a line above it
    rows: Sequence = ()  # labels; (): 0, 1, ...
    columns: Sequence = ()
    row_breaks: tuple[int, ...] = ()  # rows that stand behind a gap
    column_breaks: tuple[int, ...] = ()
    marks: Mapping = dataclasses.field(default_factory=dict)  # {name: (a key of SIGNS, bool [R, C])}

    def __post_init__(self):
        shape = np.shape(self.values)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"values must be [rows, columns]; got {shape}")
        cells = np.asarray(self.values, np.float64)
        if np.any((cells < 0) | (cells > 1)):
            raise ValueError(f"values must lie in [0, 1]; got {np.nanmin(cells):g} .. {np.nanmax(cells):g}")
        if self.ramp not in RAMPS:
            raise ValueError(f"ramp is {self.ramp!r}; it is one of {', '.join(RAMPS)}")
        for name, size in (("rows", shape[0]), ("columns", shape[1])):
            if len(getattr(self, name)) not in (0, size):
                raise ValueError(f"{name} has {len(getattr(self, name))} labels for {size} {name}")
        for name, (sign, where) in self.marks.items():
            if sign not in SIGNS or np.shape(where) != shape:
                raise ValueError(
                    f"mark {name!r} is a sign, one of {', '.join(SIGNS)}, and a bool array {shape}; got {sign!r} and "
                    f"{np.shape(where)}"
                )


def matrix_plot(panel: Panel, title: str = "", size: tuple[int, int] = (420, 320)) -> np.ndarray:
    """Draw one matrix; returns a uint8 picture [H, W, 3]. ``size``: at most, in pixels, of the cells alone."""
    return matrix_sheet([("", [panel])], title=title, size=size)


def matrix_sheet(rows: Mapping | Sequence, headings: Sequence[str] = (), title: str = "",
                 size: tuple[int, int] = (240, 240)) -> np.ndarray:
    """Draw matrices side by side, one row of panels per name; returns a uint8 picture [H, W, 3].

    Args:
        rows: {name: panels} or a list of (name, panels), with equally many panels each. A name may have more lines,
            drawn dimmer.
        headings: one for each column of panels; may have a second line, drawn dimmer.
        title: of the whole.
        size: (width, height) in pixels that the cells of a panel fill at most. Cells are at least one pixel.
    """
    rows = list(rows.items() if isinstance(rows, Mapping) else rows)
    count = len(rows[0][1]) if rows else 0
    if not count or any(len(panels) != count for _, panels in rows) or len(headings) not in (0, count):
        raise ValueError(
            f"rows must hold equally many panels each, and as many as headings; got "
            f"{[len(panels) for _, panels in rows]} and {len(headings)} headings"
        )
    face, small, large = style.font(15), style.font(12), style.font(20)
    names = [style.plain(name).split("\n") for name, _ in rows]
    placed = [[_place(panel, size, small) for panel in panels] for _, panels in rows]
    heads = [style.plain(text).split("\n") for text in headings]
    wide = max(style.text_width(line, small if n else face) for lines in names for n, line in enumerate(lines))
    left = _PAD + (wide + 28 if wide else 0)
    starts = []  # where the cells of each column of panels begin
    for column in range(count):
        margin = max(row[column].margin for row in placed)
        taken = [row[column].across.total for row in placed]
        taken += [style.text_width(style.plain(row[column].panel.caption), small) for row in placed]
        taken += [style.text_width(line, face) for line in (heads[column] if heads else ())]
        starts.append(left + margin)
        left += margin + max(taken) + (_BETWEEN if column + 1 < count else 0)
    legend = _legend([panel for _, panels in rows for panel in panels])
    legend_width = sum(_entry_width(entry, small) for entry in legend)
    width = max(left, starts[0] + legend_width, _PAD + style.text_width(style.plain(title), large)) + _PAD
    heights = [_height(lines, row) for lines, row in zip(names, placed, strict=True)]
    top = _PAD + (36 if title else 0) + (32 if legend else 0) + max(map(len, heads), default=0) * 20 + 10 * bool(heads)
    picture, pen = style.canvas(width, top + sum(heights) + (len(rows) - 1) * _ROW_GAP + _PAD)

    y = _PAD
    if title:
        pen.text((_PAD, y), style.plain(title), style.TEXT, large)
        y += 36
    if legend:
        _draw_legend(picture, pen, legend, starts[0], y + 9, small)
        y += 32
    for start, lines in zip(starts, heads, strict=False):
        for n, line in enumerate(lines):
            pen.text((start, y + 10 + 20 * n), line, style.DIM_TEXT if n else style.TEXT, small if n else face,
                     anchor="lm")  # fmt: skip
    y = top
    for lines, row, height in zip(names, placed, heights, strict=True):
        cells = y + _LINE * any(one.panel.caption for one in row)
        for n, line in enumerate(lines):
            pen.text((_PAD, cells + 9 + 19 * n), line, style.DIM_TEXT if n else style.TEXT, small if n else face,
                     anchor="lm")  # fmt: skip
        for start, one in zip(starts, row, strict=True):
            pen.text((start, y + 5), style.plain(one.panel.caption), style.DIM_TEXT, small, anchor="lm")
            _draw(picture, pen, one, start, cells, small)
        y += height + _ROW_GAP
    return np.asarray(picture)


class _Axis(NamedTuple):
    """Places of cells along one axis, in pixels."""

    starts: np.ndarray
    ends: np.ndarray  # the first pixel behind each cell
    labels: list  # (index, text), thinned out until none touches the next

    @property
    def total(self):
        return int(self.ends[-1])

    @property
    def middles(self):
        return (self.starts + self.ends) / 2

    @property
    def cell(self):
        return int(min(self.ends - self.starts))


class _Placed(NamedTuple):
    panel: Panel
    across: _Axis
    down: _Axis
    margin: int  # for the labels on the left


def _place(panel, size, face):
    (R, C), texts = np.shape(panel.values), []
    for labels, n in ((panel.rows, R), (panel.columns, C)):
        texts.append([style.plain(str(label)) for label in (labels if len(labels) else range(n))])
    widths = [style.text_width(text, face) for text in texts[1]]
    across = _axis(C, size[0], panel.column_breaks, texts[1], max(widths) + 5)
    down = _axis(R, size[1], panel.row_breaks, texts[0], 13)
    return _Placed(panel, across, down, max(style.text_width(text, face) for text in texts[0]) + 7)


def _axis(count, size, breaks, texts, room):
    pitch = min(_LARGEST, max(1, (size - _SEAM * len(breaks)) / count))
    gap = 1 if pitch >= 8 else 0
    if gap:  # cells that are told apart are equal, the many others fill what there is
        pitch = int(pitch)
    group = np.sum(np.arange(count)[:, None] >= np.array(breaks, int), axis=1)
    edges = np.round(np.arange(count + 1) * pitch).astype(int)
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, 200, 500, count) if n * pitch >= room or n >= count)
    labels = [
        (int(i), texts[i]) for g in range(len(breaks) + 1) for i in np.flatnonzero(group == g)[::every] if texts[i]
    ]
    return _Axis(edges[:-1] + group * _SEAM, edges[1:] + group * _SEAM - gap, labels)


def _height(lines, row):
    above = _LINE * any(one.panel.caption for one in row)
    return above + max(19 * len(lines), max(one.down.total for one in row) + _LINE)


def _draw(picture, pen, placed, left, top, face):
    panel, across, down = placed.panel, placed.across, placed.down
    low, _, high, _, _ = RAMPS[panel.ramp]
    for i, row in enumerate(np.asarray(panel.values, np.float64)):
        for j, value in enumerate(row):
            if np.isfinite(value):
                box = (left + across.starts[j], top + down.starts[i], left + across.ends[j] - 1, top + down.ends[i] - 1)
                pen.rectangle([int(edge) for edge in box], style.mix(high, low, value))
    for sign, where in panel.marks.values():
        for i, j in np.argwhere(where):
            room = min(across.cell, down.cell)
            _sign(picture, sign, left + across.middles[j], top + down.middles[i], room)
    for j, text in across.labels:
        pen.text((left + across.middles[j], top + down.total + 10), text, style.DIM_TEXT, face, anchor="mm")
    for i, text in down.labels:
        pen.text((left - 7, top + down.middles[i]), text, style.DIM_TEXT, face, anchor="rm")


def _sign(picture, name, x, y, room):
    """A sign centred at (x, y), in a square cell of ``room`` pixels."""
    side = max(5, min(14, room))
    mask = Image.new("L", (_FINER * side, _FINER * side), 0)
    pen, far = ImageDraw.Draw(mask), _FINER * side - 1
    if name == "cross":
        inset = 0.22 * far
        for a, b in ((inset, far - inset), (far - inset, inset)):
            pen.line((inset, a, far - inset, b), 255, max(_FINER, round(0.14 * far)))
    else:
        inset = (0.2 if name == "disc" else 0.32) * far
        pen.ellipse((inset, inset, far - inset, far - inset), 255)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    picture.paste(SIGNS[name], (round(x - side / 2), round(y - side / 2)), mask)


def _legend(panels):
    """[(kind, what, text)] of all that the panels use, each once."""
    entries = []
    for ramp in dict.fromkeys(panel.ramp for panel in panels):
        low, low_name, high, high_name, between = RAMPS[ramp]
        if between:
            entries.append(("scale", (low, high), (low_name, high_name)))
        else:
            entries += [("cell", high, high_name), ("cell", low, low_name)]
    used = [(name, sign) for panel in panels for name, (sign, where) in panel.marks.items() if np.any(where)]
    return entries + [("sign", sign, style.plain(name)) for name, sign in dict.fromkeys(used)]


_SCALE = 90  # length of the legend's scale in pixels


def _entry_width(entry, face):
    kind, _, text = entry
    if kind == "scale":
        return sum(style.text_width(end, face) for end in text) + _SCALE + 12 + 26
    return style.text_width(text, face) + 20 + 26


def _draw_legend(picture, pen, legend, x, y, face):
    for entry in legend:
        kind, what, text = entry
        if kind == "scale":
            begin = x + style.text_width(text[0], face) + 6
            pen.text((x, y), text[0], style.TEXT, face, anchor="lm")
            for i in range(_SCALE):
                pen.line((begin + i, y - 7, begin + i, y + 6), style.mix(what[1], what[0], i / (_SCALE - 1)))
            pen.text((begin + _SCALE + 6, y), text[1], style.TEXT, face, anchor="lm")
        else:
            cell = what if kind == "cell" else style.mix(style.TEXT, style.BACKGROUND, 0.45)
            pen.rectangle((x, y - 7, x + 13, y + 6), cell)
            if kind == "sign":
                _sign(picture, what, x + 7, y, 13)
            pen.text((x + 20, y), text, style.TEXT, face, anchor="lm")
        x += _entry_width(entry, face)

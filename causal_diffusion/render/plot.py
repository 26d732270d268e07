"""A line plot as a picture, for curves by frame (share recognised, PSNR). Drawn with Pillow alone."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from causal_diffusion.render import style

_FINER = 3                  # everything is drawn so many times larger and reduced: smooth lines
_EDGE = 28 * _FINER
_LINE = 22 * _FINER         # height of a line of the legend or of the marks' names


def line_plot(curves: Mapping, title: str = "", xlabel: str = "frame", ylabel: str = "",
              marks: Mapping | None = None, y_range: tuple | None = None, x_start: float = 0,
              size: tuple[int, int] = (760, 380)) -> np.ndarray:
    """Draw curves; returns a uint8 picture [H, W, 3].

    `curves`: {name: y [T]} (x is x_start, x_start + 1, ...) or {name: (x [T], y [T])}. Values that are not
    finite leave a gap. `marks`: {text: x}, dashed upright lines such as the end of the context or of the
    training length. `y_range`: (bottom, top), curves are cut there; by default the values' own, widened to
    round numbers. `size`: (width, height) in pixels.
    """
    lines = {style.plain(name): _xy(name, curve, x_start) for name, curve in curves.items()}
    marks = {style.plain(text): float(x) for text, x in (marks or {}).items()}
    if not lines:
        raise ValueError("a plot needs at least one curve")
    x_low, x_high, x_ticks = _x_axis(lines, marks)
    low, high, y_ticks = _y_axis(lines, y_range)

    k = _FINER
    width, height = k * size[0], k * size[1]
    picture, pen = style.canvas(width, height)
    face, small, large = style.font(13 * k), style.font(12 * k), style.font(18 * k)
    labels = _labels(y_ticks)
    left = _EDGE + max(style.text_width(text, small) for text in labels) + 10 * k + (22 * k if ylabel else 0)
    right, bottom = width - _EDGE, height - 58 * k
    legend = _in_lines(lines, face, 47 * k, left, right) if len(lines) > 1 or not title else []
    legend_top = 20 * k + (36 * k if title else 0)
    marks_top = legend_top + (legend[-1][2] + 1 if legend else 0) * _LINE

    def across(x):
        return left + (x - x_low) / (x_high - x_low) * (right - left)

    flags = _flags({text: across(x) for text, x in marks.items()}, small, left, right)
    top = marks_top + (max(level for *_, level in flags) + 1 if flags else 0) * _LINE + 10 * k
    if right - left < 40 * k or bottom - top < 40 * k:
        raise ValueError(f"size {size} leaves no room for the plot")

    def down(y):
        return bottom - (y - low) / (high - low) * (bottom - top)

    if title:
        pen.text((_EDGE, 22 * k), style.plain(title), style.TEXT, large)
    for tick, text in zip(y_ticks, labels, strict=True):
        pen.line((left, down(tick), right, down(tick)), style.RULE, k)
        pen.text((left - 10 * k, down(tick)), text, style.DIM_TEXT, small, anchor="rm")
    pen.line((left, bottom, right, bottom), style.DIM_TEXT, k)
    for tick in x_ticks:
        pen.line((across(tick), bottom, across(tick), bottom + 5 * k), style.DIM_TEXT, k)
        pen.text((across(tick), bottom + 10 * k), f"{tick:g}", style.DIM_TEXT, small, anchor="mt")
    pen.text(((left + right) / 2, height - 14 * k), style.plain(xlabel), style.DIM_TEXT, face, anchor="mb")
    if ylabel:
        _upright(picture, style.plain(ylabel), face, _EDGE + 4 * k, (top + bottom) // 2)

    for text, at, anchor, level in flags:
        middle = marks_top + level * _LINE + _LINE // 2
        pen.text((at, middle), text, style.DIM_TEXT, small, anchor=anchor)
        x = across(marks[text])
        for start in range(middle - 6 * k, bottom, 8 * k):
            pen.line((x, start, x, min(start + 4 * k, bottom)), style.DIM_TEXT, k)
    for number, (x, y) in enumerate(lines.values()):
        _curve(pen, across(x), down(np.clip(y, low, high)), np.isfinite(y), _colour(number))
    for number, (name, at, line) in enumerate(legend):
        middle = legend_top + line * _LINE + _LINE // 2
        pen.rounded_rectangle((at, middle - 1.5 * k, at + 18 * k, middle + 1.5 * k), 1.5 * k, _colour(number))
        pen.text((at + 25 * k, middle), name, style.TEXT, face, anchor="lm")
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def _xy(name, curve, x_start):
    if isinstance(curve, tuple):
        x, y = (np.asarray(values, np.float64) for values in curve)
    else:
        y = np.asarray(curve, np.float64)
        x = x_start + np.arange(y.size)
    if y.ndim != 1 or y.size == 0 or x.shape != y.shape or not np.isfinite(x).all():
        raise ValueError(f"curve {name!r} must be y [T] or (x [T], y [T]) with finite x; got "
                         f"{x.shape} and {y.shape}")
    return x, y


def _x_axis(lines, marks):
    xs = np.concatenate([x for x, _ in lines.values()] + [np.array(list(marks.values()))])
    low, high = float(xs.min()), float(xs.max())
    high = high if high > low else low + 1
    whole = bool(np.all(xs == np.round(xs)))
    return low, high, [tick for tick in _ticks(low, high, 10, whole) if low <= tick <= high]


def _y_axis(lines, y_range):
    if y_range is not None:
        low, high = map(float, y_range)
        if not high > low:
            raise ValueError(f"y_range is {y_range}; its second number must be above the first")
        slack = 1e-9 * (high - low)
        return low, high, [tick for tick in _ticks(low, high, 5) if low - slack <= tick <= high + slack]
    finite = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):       # a level line stands in the middle
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    ticks = _ticks(low, high, 5)
    return ticks[0], ticks[-1], ticks


def _ticks(low, high, about, whole=False):
    """Round numbers from at or below `low` to at or above `high`, about so many."""
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, np.ceil(step))
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(number * step) for number in np.arange(first, last + 1)]


def _labels(ticks):
    """All with as many decimals as the step between them needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    for decimals in range(7):
        if abs(round(step, decimals) - step) < 1e-6 * step:
            return [f"{tick:.{decimals}f}" for tick in ticks]
    return [f"{tick:g}" for tick in ticks]


def _in_lines(names, face, extra, left, right):
    """[(name, x, line)]: entries of the legend from left to right, in as many lines as they need."""
    placed, x, line = [], left, 0
    for name in names:
        wide = style.text_width(name, face) + extra
        if x > left and x + wide > right:
            x, line = left, line + 1
        placed.append((name, x, line))
        x += wide
    return placed


def _flags(places, face, left, right):
    """[(text, x, anchor, level)]: each name hangs right of its line like a flag, at the edge left of it.

    A flag stands lower where one on its left is in the way, and never above that one, so that no line runs
    through a name.
    """
    placed, ends = [], []
    for text, x in sorted(places.items(), key=lambda item: item[1]):
        wide = style.text_width(text, face) + 6 * _FINER
        turned = x + wide > right and x - wide >= left
        start = x - wide if turned else x
        level = max((n + 1 for n, end in enumerate(ends) if end > start - 4 * _FINER), default=0)
        ends[level:] = [start + wide]
        placed.append((text, x + (-6 if turned else 6) * _FINER, "rm" if turned else "lm", level))
    return placed


def _colour(number):
    return style.SERIES[number % len(style.SERIES)]


def _curve(pen, x, y, finite, colour):
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite, [False]])))
    radius = 2.75 * _FINER
    for start, stop in zip(edges[::2], edges[1::2], strict=True):       # runs of finite values
        points = list(zip(x[start:stop].tolist(), y[start:stop].tolist(), strict=True))
        if len(points) > 1:
            pen.line(points, colour, round(2.25 * _FINER), joint="curve")
        if len(x) <= 60 or len(points) == 1:        # dots show the values, while they can be told apart
            for px, py in points:
                pen.ellipse((px - radius, py - radius, px + radius, py + radius), colour)


def _upright(picture, text, face, x, y):
    """Text turned to read upwards, centred at (x, y)."""
    left, top, right, bottom = (int(edge) for edge in face.getbbox(text))
    mask = Image.new("L", (right - left + 4, bottom - top + 4), 0)
    ImageDraw.Draw(mask).text((2 - left, 2 - top), text, 255, face)
    mask = mask.rotate(90, expand=True)
    picture.paste(style.DIM_TEXT, (int(x) - mask.width // 2, int(y) - mask.height // 2), mask)

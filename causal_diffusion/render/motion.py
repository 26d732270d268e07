"""Human motion as pictures: clips that play, and strips of poses along a path.

Everywhere ``positions`` are those of joints in the world, [T, J, 3] in metres, y up and the floor at y = 0; ``parents``
is a tree of joints as ``figure.figure_of`` takes it, and ``captions`` is a text, or {frame: text} where the text
changes. The path on the floor has another colour under each text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh, inverse_kinematics
from causal_diffusion.render import style
from causal_diffusion.render.figure import (
    NIGHT,
    Look,
    draw_bodies,
    draw_path,
    figure_of,
    floor_picture,
    heading,
    shadow_of,
)
from causal_diffusion.render.projection import fitted, view_axes
from causal_diffusion.render.video import write_video

_ROOM = 0.13  # metres around joints that must be in the picture: limbs are thick
_PAD = 16  # pixels around text
_LINE = 21
_SMOOTH = 0.4  # seconds: over which a camera that follows evens out the body's path
_TRAIL = 3.0  # seconds of its path that stay visible behind a body
_FPS = 30  # frames a second, where nobody says
_APART = 0.75  # of its height: how far the poses of a motion in place are set apart
_TRAVELS = 0.3  # of its height between poses: from there on they are left where they are


def frames(
    positions,
    parents,
    *,
    names: Sequence[str] = (),
    captions: str | Mapping[int, str] = "",
    size: tuple[int, int] = (480, 480),
    follow: bool = True,
    azimuth: float | None = None,
    elevation: float = 0.26,
    fps: float | None = None,
    look: Look = NIGHT,
) -> np.ndarray:
    """A clip as pictures, uint8 [T, H, W, 3].

    Args:
        size: (width, height) in pixels.
        follow: the camera goes along with the body; else it stands still and sees all of the path.
        azimuth, elevation: from where it looks, radians, see ``projection.Camera``; None: half from the front.
        fps: writes the time below, in seconds.

    Raises:
        UserError: positions, parents, names or captions that do not fit each other.
    """
    x, figure = np.asarray(positions, np.float64), figure_of(positions, parents, names)
    texts = _texts(captions, len(x))
    width, height = size
    azimuth = heading(figure, x) + 0.6 if azimuth is None else azimuth
    shift = np.zeros((len(x), 3))
    if follow:
        shift[:, [0, 2]] = _smoothed(x[:, 0, [0, 2]], _SMOOTH * (fps or _FPS))
    above = _PAD + _LINE * max(len(_wrapped(text, width)) for _, text in texts) if any(t for _, t in texts) else _PAD
    camera = fitted(_padded(x - shift[:, None]), azimuth, elevation, width, height, margins=(_PAD, above, _PAD, 30))
    colour = _colours(texts, len(x), look)
    trail = max(1, round(_TRAIL * (fps or _FPS)))
    reach = 2.2 * np.linalg.norm(np.ptp(_padded(x - shift[:, None]), axis=0))
    pictures = np.empty((len(x), height, width, 3), np.uint8)
    for t in range(len(x)):
        seen = camera.moved(shift[t])
        focus = shift[t, [0, 2]] if follow else x[:, 0, [0, 2]].mean(axis=0)
        picture = floor_picture(seen, look, focus, reach, shadow_of(seen, figure, x[t : t + 1]))
        start = max(0, t - trail) if follow else 0
        strength = np.linspace(0.3, 0.85, t + 1 - start)
        picture = draw_path(picture, seen, x[start : t + 1, 0, [0, 2]], colour[start : t + 1], strength)
        picture = draw_bodies(picture, seen, figure, x[t : t + 1], look)
        pictures[t] = _lettered(picture, look, _current(texts, t), None if fps is None else f"{t / fps:.1f} s")
    return pictures


def write_clip(path, positions, parents, fps: float = 30, **options) -> Path:
    """``frames`` to a file, .mp4 or .gif; options as there. Returns the path; UserError where it cannot be written."""
    return write_video(path, frames(positions, parents, fps=fps, **options), fps, scale=1)


def strip(
    positions,
    parents,
    columns: int = 8,
    captions: str | Mapping[int, str] = "",
    *,
    names: Sequence[str] = (),
    width: int = 1280,
    height: int = 420,
    azimuth: float | None = None,
    elevation: float = 0.3,
    spread: bool | None = None,
    fps: float | None = None,
    look: Look = NIGHT,
) -> np.ndarray:
    """Several poses along the path in one scene, seen half from the front: a uint8 picture [H, W, 3].

    The path runs from left to right and towards the camera; later poses stand out more. The poses of a motion in place
    would hide each other: they are set apart from left to right.

    Args:
        columns: poses, evenly in time, the first and the last among them.
        width: pixels. ``height``: of the scene, at most; what would be empty is cut away.
        spread: sets poses apart, or never; None: where they would hide each other.
        fps: writes below each pose when it is, in seconds.

    Raises:
        UserError: as ``frames``, or fewer columns than one.
    """
    one = _strip(positions, parents, columns, captions, names=names, width=width, height=height, azimuth=azimuth,
                 elevation=elevation, spread=spread, fps=fps, look=look)  # fmt: skip
    return _joined([one])


def _strip(positions, parents, columns, captions, *, names=(), width=1280, height=420, azimuth=None, elevation=0.3,
           spread=None, fps=None, look=NIGHT, key=True):  # fmt: skip
    """(the lines above, the scene, first and last row of it with something in it)."""
    x, figure = np.asarray(positions, np.float64), figure_of(positions, parents, names)
    texts = _texts(captions, len(x))
    if columns < 1:
        raise UserError(f"columns is {columns}; a strip shows at least 1 pose, 8 would do")
    shown = np.unique(np.round(np.linspace(0, len(x) - 1, columns)).astype(int))
    tall = float(np.median(np.ptp(x[..., 1], axis=1)))
    ground = x[:, 0, [0, 2]]
    steps = np.linalg.norm(np.diff(ground[shown], axis=0), axis=-1)
    spread = len(shown) > 1 and np.median(steps) < _TRAVELS * tall if spread is None else spread
    if azimuth is None and spread:
        azimuth = heading(figure, x) + 0.45
    elif azimuth is None:
        away = ground[-1] - ground[0]
        azimuth = float(np.arctan2(*away)) - 1.1 if np.linalg.norm(away) > 0.5 * tall else heading(figure, x) + 0.6
    if spread:
        place = np.interp(np.arange(len(x)), shown, np.arange(len(shown)) * _APART * tall)
        x = x + (place[:, None] * view_axes(azimuth, elevation)[0])[:, None]
        ground = x[:, 0, [0, 2]]
    below = 34 if fps else 14
    camera = fitted(_padded(x[shown]), azimuth, elevation, width, height, fov=0.2, margins=(28, 14, 28, below))
    presence = [0.38 + 0.62 * float(share) for share in np.linspace(1 if len(shown) == 1 else 0, 1, len(shown))]
    reach = 0.9 * np.linalg.norm(np.ptp(_padded(x[shown]), axis=0)) + 1.0
    focus = (ground[shown].min(axis=0) + ground[shown].max(axis=0)) / 2
    picture = floor_picture(camera, look, focus, reach, shadow_of(camera, figure, x[shown], presence))
    if not spread or len(texts) > 1:  # the line along poses that were set apart is no path, but tells texts apart
        strength = np.linspace(0.55, 0.95, len(x))
        picture = draw_path(picture, camera, ground, _colours(texts, len(x), look), strength, wide=0.025)
    picture = draw_bodies(picture, camera, figure, x[shown], look, presence, finer=3)
    picture = _as_uint8(picture)
    feet, _ = camera.project(_padded(x[shown], sides=False).reshape(len(shown), -1, 3))
    top, bottom = feet[..., 1].min() - 14, feet[..., 1].max() + below
    if fps:
        picture = _timed(picture, look, feet, [f"{t / fps:.1f} s" for t in shown])
    return _heading(texts, look, width, fps, set(figure.sides) if key else set()), picture, (int(top), int(bottom))


def _joined(row):
    """Strips side by side, each below its lines, cut to what is in the tallest."""
    heads, scenes, rows = zip(*row, strict=True)
    tall = min(len(scenes[0]), max(bottom - top for top, bottom in rows))
    over = max(len(head) for head in heads)
    parts = []
    for head, scene, (top, bottom) in row:
        start = int(np.clip((top + bottom - tall) // 2, 0, len(scene) - tall))
        parts.append(np.concatenate([_below(head, over, head[:1, :1]), scene[start : start + tall]]))
    return np.concatenate(parts, axis=1)


def sheet(
    clips: Mapping | Sequence, parents, columns: int = 8, *, across: int = 1, title: str = "", **options
) -> np.ndarray:
    """Strips below each other: a uint8 picture [H, W, 3].

    Args:
        clips: {caption: positions} or a list of (captions, positions), each as ``strip`` takes it.
        across: strips in a row.
        options: of ``strip``.
    """
    clips = list(clips.items() if isinstance(clips, Mapping) else clips)
    if not clips or across < 1:
        raise UserError(f"a sheet of {len(clips)} clips, {across} in a row: at least 1 of each would do")
    look, width = options.get("look", NIGHT), options.pop("width", 1280 // across)
    rows = []
    for start in range(0, len(clips), across):
        row = clips[start : start + across]
        row = [_strip(x, parents, columns, captions, width=width, key=not start, **options) for captions, x in row]
        picture = _joined(row)
        rest = np.full((len(picture), across * width - picture.shape[1], 3), look.sky, np.uint8)
        rows.append(np.concatenate([picture, rest], axis=1))
    gap = np.full((10, across * width, 3), look.sky, np.uint8)
    head = []
    if title:
        picture = Image.new("RGB", (rows[0].shape[1], 44), look.sky)
        ImageDraw.Draw(picture).text((_PAD, 24), style.plain(title), look.text, style.font(20), anchor="lm")
        head = [np.asarray(picture)]
    return np.concatenate(head + [part for row in rows for part in (row, gap)][:-1])


def write_bvh(path, positions, skeleton, fps: float = 30) -> Path:
    """Joint positions [T, J, 3] as a BVH file: rotations by inverse kinematics (``motion.inverse_kinematics``).

    ``skeleton``: a rest pose that it lacks is estimated from these very positions.
    """
    positions = np.asarray(positions, np.float64)
    if skeleton.offsets is None:
        skeleton = skeleton.with_offsets(inverse_kinematics.rest_offsets(positions, skeleton))
    rotations, root = inverse_kinematics.solve(skeleton, positions)
    bvh.write(path, skeleton, rotations, root, fps)
    return Path(path)


def _texts(captions, length):
    """[(first frame, text)] in order of time, from frame 0 on."""
    given = {0: captions} if isinstance(captions, str) else dict(captions)
    for frame in given:
        if not 0 <= frame < max(length, 1):
            raise UserError(f"captions has a text from frame {frame} on: the clip has frames 0 to {length - 1}")
    return sorted(({0: ""} | {int(frame): style.plain(text) for frame, text in given.items()}).items())


def _current(texts, frame):
    return [text for start, text in texts if start <= frame][-1]


def _colours(texts, length, look):
    """Of the path, [T, 3]."""
    number, colours = -1, np.empty((length, 3), int)
    for start, text in texts:
        number += bool(text)
        colours[start:] = look.paths[max(number, 0) % len(look.paths)]
    return colours


def _padded(x, sides: bool = True):
    """What must be in the picture of joints [T, J, 3]: they with some room around, and the floor below. [N, 3]."""
    stretched = [x + _ROOM * np.array(way) for way in ((0, 1.3, 0), (0, -0.4, 0))]
    if sides:
        stretched += [x + _ROOM * np.array(way) for way in ((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1))]
    return np.concatenate([*stretched, x * np.array([1, 0, 1])], axis=1).reshape(-1, 3)


def _smoothed(path, width):
    """A path [T, 2] under a Gaussian over time, ``width`` frames; at both ends it goes on as it came."""
    reach = int(np.ceil(3 * width))
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    longer = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(column, weight / weight.sum(), mode="valid") for column in longer.T], axis=-1)


def _wrapped(text, width):
    """Lines of words that fit."""
    face, lines = style.font(15), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and style.text_width(longer, face) > width - 2 * _PAD:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _as_uint8(picture):
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _lettered(picture, look, text, time):
    image = Image.fromarray(_as_uint8(picture))
    pen = ImageDraw.Draw(image)
    for n, line in enumerate(_wrapped(text, image.width)):
        pen.text((_PAD, _PAD + 4 + n * _LINE), line, look.text, style.font(15), anchor="lm")
    if time:
        pen.text((image.width - _PAD, image.height - 14), time, look.dim_text, style.font(12), anchor="rm")
    return np.asarray(image)


def _heading(texts, look, width, fps, sides):
    """The lines above a strip: its texts, and which colour is which side."""
    face, small = style.font(15), style.font(12)
    told = [(start, text) for start, text in texts if text]
    key = [(name, look.side(name)) for name in ("left", "right") if name in sides]
    wide = sum(style.text_width(name, small) + 34 for name, _ in key)
    lines = []  # (mark, when, text)
    for n, (start, text) in enumerate(told):
        when = f"{start / fps:.1f} s" if fps and len(told) > 1 else ""
        mark = look.paths[n % len(look.paths)] if len(told) > 1 else None
        lines += [(mark if not i else None, when if not i else "", line)
                  for i, line in enumerate(_wrapped(text, width - wide - 96 * (len(told) > 1)))]  # fmt: skip
    image = Image.new("RGB", (width, max(len(lines), 1) * _LINE + 14), look.sky)
    pen = ImageDraw.Draw(image)
    for n, (mark, when, line) in enumerate(lines):
        y, at = 20 + n * _LINE, _PAD
        if len(told) > 1:
            if mark:
                pen.rounded_rectangle((at, y - 2, at + 16, y + 1), 2, mark)
            pen.text((at + 26, y), when, look.dim_text, small, anchor="lm")
            at += 74 if fps else 26
        pen.text((at, y), line, look.text, face, anchor="lm")
    at = width - _PAD - wide + 10
    for name, colour in key:
        dot = Image.new("L", (40, 40), 0)
        ImageDraw.Draw(dot).ellipse((0, 0, 39, 39), 255)
        image.paste(colour, (at, 15), dot.resize((10, 10), Image.Resampling.BOX))
        pen.text((at + 16, 20), name, look.dim_text, small, anchor="lm")
        at += style.text_width(name, small) + 34
    return np.asarray(image)


def _timed(picture, look, places, labels):
    """Writes labels below the places [P, N, 2] of poses, where none touches another."""
    image = Image.fromarray(picture)
    pen, face, ends = ImageDraw.Draw(image), style.font(12), []
    for place, label in zip(places, labels, strict=True):
        x, y, half = place[:, 0].mean(), place[:, 1].max() + 14, style.text_width(label, face) / 2 + 4
        if all(abs(y - other) > 15 or x - half > right or x + half < left for left, right, other in ends):
            pen.text((x, y), label, look.dim_text, face, anchor="mm")
            ends.append((x - half, x + half, y))
    return np.asarray(image)


def _below(picture, height, colour):
    """Rows of a colour under a picture, to that height."""
    return np.concatenate([picture, np.broadcast_to(colour, (height - len(picture), picture.shape[1], 3))])

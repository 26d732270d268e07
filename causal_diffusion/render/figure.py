"""A moving body as a figure of tubes on a floor: what stills and clips of motion (``motion``) are drawn with.

Left limbs have one colour, right limbs another, and the rest is neutral. How thick a limb is follows from the tree of
joints alone: the more joints hang on it, the thicker.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from causal_diffusion.errors import UserError
from causal_diffusion.motion.skeleton import of
from causal_diffusion.render import style
from causal_diffusion.render.projection import Camera, blank, checker, draw_tube

SIDES = ("left", "right", "middle")
_TALL = 1.7  # metres: the height to which the thicknesses below belong
_SUN = (-0.5, 1.0, 0.25)  # towards the light that throws the shadow: along the camera's right, up, back
_PATH_FINER = 3


@dataclasses.dataclass(frozen=True)
class Look:
    """Colours, 0..255."""

    sky: tuple  # at the top of the picture, and what the floor fades into
    horizon: tuple
    floor: tuple  # dark and light squares
    floor_light: tuple
    line: tuple
    shadow: tuple
    left: tuple
    right: tuple
    middle: tuple
    text: tuple
    dim_text: tuple
    paths: tuple  # of the ground path, one for each caption in turn

    def side(self, name: str) -> tuple:
        return getattr(self, name)


NIGHT = Look(
    sky=style.BACKGROUND,
    horizon=(22, 28, 37),
    floor=(27, 33, 42),
    floor_light=(38, 46, 57),
    line=(58, 68, 81),
    shadow=(6, 8, 11),
    left=style.SERIES[0],
    right=style.SERIES[1],
    middle=(214, 220, 227),
    text=style.TEXT,
    dim_text=style.DIM_TEXT,
    paths=(style.SERIES[3], style.SERIES[2], style.SERIES[4], style.SERIES[5]),
)
PAPER = Look(
    sky=(255, 255, 255),
    horizon=(250, 251, 252),
    floor=(232, 236, 241),
    floor_light=(246, 248, 250),
    line=(208, 214, 221),
    shadow=(150, 158, 168),
    left=(26, 106, 214),
    right=(220, 98, 20),
    middle=(104, 114, 126),
    text=(31, 35, 40),
    dim_text=(101, 109, 118),
    paths=((130, 80, 223), (26, 127, 55), (191, 57, 137), (154, 103, 0)),
)


class Figure(NamedTuple):
    """How a tree of joints is drawn."""

    parents: tuple[int, ...]
    sides: tuple[str, ...]  # of each joint
    radii: np.ndarray  # [J], metres, of limbs
    balls: np.ndarray  # [J], metres, of joints
    head: int  # the joint that carries the head's ball; -1: none
    hips: tuple[int, int]  # left and right joints that tell where it faces; (-1, -1): unknown


def figure_of(positions, parents, names=()) -> Figure:
    """Looks at names and at one motion [T, J, 3] to find sides, head and size.

    Args:
        parents: of each joint, -1 for the root; or a skeleton, anything with ``parents`` and ``names``.
        names: of the joints; without them there are no sides. ``motion.skeleton`` says how they tell sides.

    Raises:
        UserError: parents or names that do not fit the positions, or positions that are not finite.
    """
    names = tuple(names) or tuple(getattr(parents, "names", ()))
    parents = tuple(int(p) for p in getattr(parents, "parents", parents))
    shape, joints = np.shape(positions), len(parents)
    if len(shape) != 3 or shape[0] < 1 or shape[1:] != (joints, 3):
        raise UserError(f"positions are {shape}; [frames, joints, 3] with the {joints} joints of parents would do")
    if len(names) not in (0, joints):
        raise UserError(f"there are {len(names)} names for {joints} joints: one each, or none, would do")
    skeleton = of(names or [f"j{j}" for j in range(joints)], parents)
    if not np.isfinite(positions).all():
        frame, joint = np.argwhere(~np.isfinite(positions))[0][:2]
        raise UserError(f"joint {joint} of frame {frame} is not finite: every position must be a number of metres")
    y = np.asarray(positions, np.float64)[..., 1]
    size = max(float(np.median(y.max(axis=1) - y.min(axis=1))), 1e-3) / _TALL
    below = np.ones(joints)
    for joint in range(joints - 1, 0, -1):
        if parents[joint] >= 0:
            below[parents[joint]] += below[joint]
    sides = tuple(side or "middle" for side in skeleton.sides)
    trunk = (below > 4) & (np.array(sides) == "middle") & bool(names)
    radii = size * (0.027 + 0.0068 * np.minimum(below - 1, 4)) * np.where(trunk, 1.4, 1.0)
    head = skeleton.roles.get("head", -1)
    if head < 0:
        leaves = [joint for joint in range(joints) if joint not in parents]
        middle = [joint for joint in leaves if sides[joint] == "middle"]
        head = max(middle or leaves, key=lambda joint: y[:, joint].mean())
    hips = tuple(skeleton.roles.get(f"{side}_hip", -1) for side in SIDES[:2])
    return Figure(parents, sides, radii, radii * np.where(trunk, 1.02, 1.18), head, hips if min(hips) > 0 else (-1, -1))


def heading(figure: Figure, positions) -> float:
    """Where a body [T, J, 3] faces on average, radians about y from +z towards +x; 0 where no hips are known."""
    left, right = figure.hips
    if left < 0:
        return 0.0
    across = np.asarray(positions, np.float64)[:, left] - np.asarray(positions, np.float64)[:, right]
    x, z = -across[:, 2].sum(), across[:, 0].sum()  # left x up
    return float(np.arctan2(x, z)) if np.hypot(x, z) > 1e-9 else 0.0


def draw_body(canvas, camera: Camera, figure: Figure, pose, look: Look, presence: float = 1.0) -> None:
    """One pose [J, 3] as tubes and balls; ``presence`` below 1 fades it towards the floor's colour."""
    pose = np.asarray(pose, np.float64)
    for joint, parent in enumerate(figure.parents):
        tone = style.mix(look.side(figure.sides[joint]), look.floor_light, presence)
        radius = figure.radii[joint]
        draw_tube(canvas, camera, pose[[joint, joint]], [figure.balls[joint]] * 2, tone)
        if parent >= 0:
            wide = min(figure.radii[parent], 1.35 * radius)
            draw_tube(canvas, camera, pose[[parent, joint]], [wide, radius], tone)
    for centre, radius in head_balls(figure, pose):
        tone = style.mix(look.middle, look.floor_light, presence)
        draw_tube(canvas, camera, np.stack([centre, centre]), [radius, radius], tone)


def head_balls(figure: Figure, pose):
    """[(centre, radius)] of the head, metres."""
    if figure.head < 0 or figure.parents[figure.head] < 0:
        return []
    top = pose[figure.head]
    way = top - pose[figure.parents[figure.head]]
    size = figure.radii.min() / 0.027
    return [(top + 0.055 * size * way / max(np.linalg.norm(way), 1e-9), 0.105 * size)]


def floor_picture(camera: Camera, look: Look, focus, reach: float, shade=0.0) -> np.ndarray:
    """Sky and floor, float32 [H, W, 3].

    Args:
        focus: x and z that the floor is about, metres; it fades away from there.
        reach: how far, metres.
        shade: [H, W], how much of the light a shadow takes.
    """
    xz, depth = camera.floor()
    light, lines = checker(xz)
    mixed = _mix(np.broadcast_to(np.float32(look.floor), (*light.shape, 3)), look.floor_light, light)
    mixed = _mix(mixed, look.line, lines)
    mixed = _mix(mixed, look.shadow, shade)
    rows = np.linspace(0, 1, camera.height, dtype=np.float32)[:, None]
    sky = _mix(np.broadcast_to(np.float32(look.sky), mixed.shape), look.horizon, np.broadcast_to(rows, light.shape))
    off = np.nan_to_num((xz - focus).astype(np.float32) / np.float32(reach), nan=99)
    fade = np.exp(-(off[..., 0] ** 2 + off[..., 1] ** 2)) * np.isfinite(depth)
    return sky + (mixed - sky) * fade[..., None].astype(np.float32)


def shadow_of(camera: Camera, figure: Figure, poses, presence=None) -> np.ndarray:
    """How much of the light the poses [P, J, 3] take from the floor, float32 [H, W] in [0, 1]."""
    whole = np.zeros((camera.height, camera.width), np.float32)
    right = camera.axes[0]
    sun = _SUN[0] * right + _SUN[2] * np.array([-right[2], 0, right[0]])
    for pose, share in zip(np.asarray(poses, np.float64), presence or [1.0] * len(poses), strict=True):
        mask = Image.new("L", (camera.width, camera.height), 0)
        pen = ImageDraw.Draw(mask)
        pairs = [(pose[[max(p, 0), j]], figure.radii[j]) for j, p in enumerate(figure.parents)]
        pairs += [(np.stack([centre, centre]), radius) for centre, radius in head_balls(figure, pose)]
        for ends, radius in pairs:
            fallen = ends - np.maximum(ends[:, 1:2], 0) * sun / _SUN[1]
            fallen[:, 1] = 0
            (a, b), (za, zb) = camera.project(fallen)
            if np.isfinite([za, zb]).all():
                wide = camera.focal / min(za, zb) * radius
                pen.line([*a, *b], 255, max(1, round(2 * wide)))
                for x, y in (a, b):
                    pen.ellipse((x - wide, y - 0.7 * wide, x + wide, y + 0.7 * wide), 255)
        blurred = mask.filter(ImageFilter.GaussianBlur(max(1.0, camera.height / 240)))
        whole = np.maximum(whole, np.asarray(blurred, np.float32) / 255 * share)
    return 0.62 * whole


def draw_path(picture, camera: Camera, ground, colours, strength, wide: float = 0.02) -> np.ndarray:
    """A line on the floor over ``picture`` float32 [H, W, 3]: ``ground`` [T, 2] x and z, metres.

    ``colours`` [T, 3] and ``strength`` [T] in [0, 1] belong to the piece that ends at each point; ``wide``: metres.
    """
    k = _PATH_FINER
    fine = camera.finer(k)
    points = np.stack([ground[:, 0], np.zeros(len(ground)), ground[:, 1]], axis=-1)
    places, depth = fine.project(points)
    for colour in dict.fromkeys(map(tuple, np.asarray(colours).tolist())):
        mask = Image.new("L", (fine.width, fine.height), 0)
        pen = ImageDraw.Draw(mask)
        for i in range(1, len(ground)):
            if tuple(np.asarray(colours[i]).tolist()) == colour and np.isfinite(depth[i - 1 : i + 1]).all():
                thick = max(k, round(fine.focal / depth[i] * wide))
                value = int(255 * strength[i])
                pen.line([*places[i - 1], *places[i]], value, thick)
                pen.ellipse([*(places[i] - thick / 2), *(places[i] + thick / 2)], value)
        cover = mask.resize((camera.width, camera.height), Image.Resampling.BOX)
        picture = _mix(picture, colour, np.asarray(cover, np.float32) / 255)
    return picture


def draw_bodies(picture, camera: Camera, figure: Figure, poses, look: Look, presence=None, finer: int = 2):
    """Poses [P, J, 3] over ``picture``, smoothed by drawing ``finer`` times as large."""
    fine = camera.finer(finer)
    canvas = blank(fine)
    for pose, share in zip(poses, presence or [1.0] * len(poses), strict=True):
        draw_body(canvas, fine, figure, pose, look, share)
    seen = np.isfinite(canvas.depth)
    if not seen.any():
        return picture
    spans = [np.flatnonzero(seen.any(axis=axis)) // finer for axis in (1, 0)]
    (top, bottom), (left, right) = [(span[0], span[-1] + 1) for span in spans]
    fine_box = np.s_[finer * top : finer * bottom, finer * left : finer * right]
    cover = _reduced(seen[fine_box][..., None].astype(np.float32), finer)
    colour = _reduced(canvas.colour[fine_box].clip(0, 255), finer)  # 0 where nothing is
    whole = np.array(picture)
    box = np.s_[top:bottom, left:right]
    whole[box] = whole[box] * (1 - cover) + colour
    return whole


def _reduced(picture, times):
    """The mean over squares of pixels."""
    rows = sum(picture[i::times] for i in range(times))
    return sum(rows[:, i::times] for i in range(times)) / times**2


def _mix(picture, colour, share):
    """``share`` [H, W] of a colour over the rest of a picture."""
    share = np.asarray(share, np.float32)[..., None]
    return picture * (1 - share) + np.float32(colour) * share

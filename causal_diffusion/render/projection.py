"""A pinhole camera over a floor, y up, and solid tubes seen through it.

A camera stands at ``eye`` and looks along ``forward``; ``right`` and ``up`` span its picture. A point p has

    z = (p - eye) . forward                                   depth, metres                                         (1)
    (u, v) = (W / 2 + s (p - eye) . right,  H / 2 - s (p - eye) . up),    s = f / z,  f = H / (2 tan(fov / 2))      (2)

so s is the number of pixels of a metre at that depth.

A tube from a to b with radii ra, rb is drawn as what it looks like from the camera, without triangles: at pixel q, with
c the nearest point of the projected axis and r the radius there,

    height(q) = sqrt(r^2 - |q - c|^2),   normal = (q - c, height) / r,   depth = z(c) - height / s                  (3)

which is exact for a ball, and for a tube as far as it lies across the view.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

_NEAREST = 0.05  # metres: what is closer than that, or behind the camera, is not drawn


@dataclasses.dataclass(frozen=True)
class Camera:
    """See the module's docstring. ``azimuth`` and ``elevation`` say from where it looks, in radians: azimuth 0 looks
    from +z towards -z, pi / 2 from +x; elevation is above the floor, below pi / 2."""

    eye: tuple[float, float, float]  # metres
    azimuth: float
    elevation: float
    width: int  # pixels
    height: int
    fov: float = 0.55  # radians, from the top of the picture to its bottom

    @property
    def focal(self) -> float:
        """f of equation (2), pixels."""
        return self.height / (2 * np.tan(self.fov / 2))

    @property
    def axes(self) -> np.ndarray:
        """right, up, forward [3, 3], one a row."""
        return view_axes(self.azimuth, self.elevation)

    def project(self, points) -> tuple[np.ndarray, np.ndarray]:
        """Equations (1) and (2): metres [..., 3] -> (pixels [..., 2], depth [...]); NaN where it is not in front."""
        seen = (np.asarray(points, np.float64) - self.eye) @ self.axes.T
        depth = np.where(seen[..., 2] > _NEAREST, seen[..., 2], np.nan)
        s = self.focal / depth
        return np.stack([self.width / 2 + s * seen[..., 0], self.height / 2 - s * seen[..., 1]], axis=-1), depth

    def floor(self) -> tuple[np.ndarray, np.ndarray]:
        """What each pixel shows of the plane y = 0: (x and z [H, W, 2], depth [H, W]), metres; NaN above it."""
        across = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        above = (self.height / 2 - np.arange(self.height) - 0.5) / self.focal
        right, up, forward = self.axes
        ray = across[None, :, None] * right + above[:, None, None] * up + forward
        fall = ray[:, 0, 1]  # the same all along a row: the camera does not roll
        depth = np.full(self.height, np.nan)
        depth[fall < -1e-6] = -self.eye[1] / fall[fall < -1e-6]
        xz = depth[:, None, None] * ray[..., [0, 2]] + np.array(self.eye)[[0, 2]]
        return xz, np.broadcast_to(depth[:, None], xz.shape[:2])

    def moved(self, by) -> "Camera":
        """The same camera elsewhere, ``by`` [3] metres."""
        return dataclasses.replace(self, eye=tuple(np.asarray(self.eye) + by))

    def finer(self, times: int) -> "Camera":
        """The same view in so many times as many pixels each way."""
        return dataclasses.replace(self, width=times * self.width, height=times * self.height)


def view_axes(azimuth: float, elevation: float) -> np.ndarray:
    """right, up, forward [3, 3] of a camera that looks from there, one a row."""
    (sa, ca), (se, ce) = ((np.sin(angle), np.cos(angle)) for angle in (azimuth, elevation))
    return np.array([[ca, 0, -sa], [-sa * se, ce, -ca * se], [-sa * ce, -se, -ca * ce]])


def fitted(points, azimuth: float, elevation: float, width: int, height: int, *, fov: float = 0.55, margins=(0,) * 4):
    """The nearest camera with that view of which all points [N, 3] are in the picture.

    ``margins``: pixels kept free at the left, top, right and bottom.

    Seen along the camera's axes, a point (x, y, z) is left of the picture's right edge where x - cx <= t (z + D), with
    t the tangent of that edge's angle; over all points that bounds the distance D below, and at the bound the sideways
    place cx follows. Rows are alike.
    """
    left, top, right, bottom = margins
    if min(width - left - right, height - top - bottom) < 8:
        raise ValueError(f"margins {tuple(margins)} leave nothing of a picture of {width} x {height} pixels")
    axes, focal = view_axes(azimuth, elevation), height / (2 * np.tan(fov / 2))
    x, y, z = (np.asarray(points, np.float64).reshape(-1, 3) @ axes.T).T
    bounds = []
    for at, low, high in ((x, width / 2 - left, width / 2 - right), (y, height / 2 - bottom, height / 2 - top)):
        low, high = low / focal, high / focal  # tangents towards the negative and the positive edge
        bounds.append((low, np.min(at + low * z), high, np.max(at - high * z)))
    distance = max((b - a) / (low + high) for low, a, high, b in bounds)
    distance = max(distance, 4 * _NEAREST - z.min())
    # Both sides leave a span of places: its middle.
    place = [((b - high * distance) + (a + low * distance)) / 2 for low, a, high, b in bounds]
    return Camera(tuple(np.array([*place, -distance]) @ axes), azimuth, elevation, width, height, fov)


class Canvas(NamedTuple):
    """What solids have been drawn on: the nearest so far, for each pixel."""

    colour: np.ndarray  # float32 [H, W, 3] in 0..255
    depth: np.ndarray  # float32 [H, W], metres; inf: nothing is there


def blank(camera: Camera) -> Canvas:
    shape = (camera.height, camera.width)
    return Canvas(np.zeros((*shape, 3), np.float32), np.full(shape, np.inf, np.float32))


LIGHT = np.array([-0.45, 0.70, 0.55])  # towards the light, along the camera's right, up and back
LIGHT = LIGHT / np.linalg.norm(LIGHT)


def draw_tube(canvas: Canvas, camera: Camera, ends, radii, colour) -> None:
    """Draws one tube, equation (3), where it is nearer than what is there.

    Args:
        ends: its two ends [2, 3], metres; equal ends are a ball.
        radii: at the two ends, metres.
        colour: 0..255.
    """
    (a, b), (za, zb) = camera.project(np.asarray(ends))
    if not np.isfinite([za, zb]).all():
        return
    ra, rb = camera.focal / za * radii[0], camera.focal / zb * radii[1]
    low = np.floor(np.minimum(a - ra, b - rb)).astype(int).clip(0)
    high = np.ceil(np.maximum(a + ra, b + rb)).astype(int).clip(0, (camera.width, camera.height))
    if np.any(high <= low):
        return
    box = np.s_[low[1] : high[1], low[0] : high[0]]
    u = np.arange(low[0], high[0], dtype=np.float32)[None, :] + np.float32(0.5)
    v = np.arange(low[1], high[1], dtype=np.float32)[:, None] + np.float32(0.5)
    du, dv = (b - a).astype(np.float32)
    length = float(du * du + dv * dv)
    au, av = a.astype(np.float32)
    share = np.clip(((u - au) * du + (v - av) * dv) / length, 0, 1) if length > 1e-6 else np.zeros_like(u * v)
    r = np.float32(ra) + share * np.float32(rb - ra)
    nu, nv = (u - au - share * du) / r, (v - av - share * dv) / r
    rest = 1 - nu * nu - nv * nv
    height = np.sqrt(np.maximum(rest, 0))
    depth = np.float32(za) + share * np.float32(zb - za) - height * r * np.float32(za / camera.focal)
    drawn = (rest > 0) & (depth < canvas.depth[box])
    facing = np.maximum(np.float32(LIGHT[0]) * nu - np.float32(LIGHT[1]) * nv + np.float32(LIGHT[2]) * height, 0)
    # Light from above left, some from everywhere, a soft highlight, and edges that darken: a round look.
    shade = (0.42 + 0.62 * facing) * (0.72 + 0.28 * height)
    shine = 70 * facing**14
    pixels = np.asarray(colour, np.float32) * shade[..., None] + shine[..., None]
    canvas.colour[box][drawn] = pixels[drawn]
    canvas.depth[box][drawn] = depth[drawn]


def checker(xz, side: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A floor of squares, smoothed over each pixel's footprint: (share of light squares, share of lines), both [H, W].

    The share of light squares is the mean of the pattern over the box that the pixel covers: of a square wave of period
    2, the mean over [p - w/2, p + w/2] is the difference of its integral, a triangle wave, over w; the two directions
    multiply. Far away both tend to their mean, without a moire.
    """
    p = np.asarray(xz / side, np.float32)
    w = _footprint(p)
    wave = (_triangle(p + w / 2) - _triangle(p - w / 2)) / w
    light = 0.5 + 0.5 * wave[..., 0] * wave[..., 1]
    thick = 0.012 / side  # of a line, in squares
    off = np.abs(p - np.round(p))
    cover = np.clip((thick / 2 + w / 2 - off) / w, 0, 1) * np.minimum(1, thick / w + 0.25)
    return np.nan_to_num(light, nan=0.5), np.nan_to_num(cover.max(axis=-1))


def _triangle(p):
    """The integral of a wave that is 1 on [0, 1) and -1 on [1, 2)."""
    return 1 - np.abs(p % 2 - 1)


def _footprint(p):
    """How far p moves from a pixel to its neighbours."""
    with np.errstate(invalid="ignore"):
        steps = [np.abs(np.gradient(p, axis=axis)) for axis in (0, 1)]
    return np.maximum(steps[0] + steps[1], 1e-4)

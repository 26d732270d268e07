"""Is a motion smooth, do its feet stand where they stand, and does a long stream stay what it was?

Positions are in metres, y up, in the world: [..., T, J, 3].

Jerk (Barquero et al., "Seamless human motion composition with blended positional encodings", CVPR 2024, section 4), in
metres per frame^3, a third finite difference without the frame rate, summed over the axes, the greatest of all joints:

    j_i = max over joints of |x_(i+3) - 3 x_(i+2) + 3 x_(i+1) - x_i|_1      [T - 3]                          (1)
    J_i = mean of j_i over clips                                                                             (2)
    peak = max over i of J_i,      area = sum over i of |J_i - J_gt|                                         (3)

J_gt is the mean jerk of real motion, or its curve. A peak of a mean curve falls as there are more clips and rises with
their length, and all of it grows as the frame rate falls: compare equally many windows of one length and rate.

Foot skating (Karunratanakul et al., "Guided motion diffusion for controllable human motion synthesis", ICCV 2023): a
foot touches the ground from frame t to t + 1 where it is below 5 cm in both; it skates where meanwhile its horizontal
speed exceeds 0.5 m/s, and so does the mean of that speed over 5 frames. The *ratio* is the share of frames in which at
least one foot skates. Beside it stands the mean horizontal speed of feet while they touch the ground, which knows no
second threshold.

Drift: a stream is cut into windows, and the height of its root and the speeds of its joints are held against the range
that they have in the data.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# J_gt of equation (3), as published: the mean jerk of the real clips of each set, in metres per frame^3.
HUMANML3D_JERK = 0.033031363  # at 20 fps
BABEL_JERK = 0.016383045  # at 30 fps

TOUCH = 0.05  # metres above the floor below which a foot touches it
SKATE = 0.5  # m/s above which a foot that touches the ground skates
SMOOTH = 5  # frames over which that speed is averaged


def jerk(positions) -> np.ndarray:
    """Equation (1): [..., T, J, 3] -> [..., T - 3]."""
    x = _motion(positions, 4)
    return np.abs(np.diff(x, n=3, axis=-3)).sum(axis=-1).max(axis=-1)


def peak_jerk(curves) -> float:
    """Equation (3) of jerks [clips, T - 3], or of one clip's [T - 3]."""
    return float(_mean_curve(curves).max())


def area_under_jerk(curves, reference: float | np.ndarray = HUMANML3D_JERK) -> float:
    """Equation (3) of jerks [clips, T - 3], or of one clip's [T - 3].

    reference: J_gt, a number, or the curve [T - 3] of real clips (the mean of their ``jerk``).
    """
    curve, reference = _mean_curve(curves), np.asarray(reference, np.float64)
    if reference.ndim and reference.shape != curve.shape:
        raise ValueError(f"reference is a curve {reference.shape} and the jerk {curve.shape}: windows of as many "
                         "frames would do")  # fmt: skip
    return float(np.abs(curve - reference).sum())


def _mean_curve(curves):
    curves = np.asarray(curves, np.float64)
    return curves.reshape(-1, curves.shape[-1]).mean(axis=0)


class Skating(NamedTuple):
    """ratio: share of frames in which a foot skates. speed: mean m/s of feet on the ground, 0 where none is."""

    ratio: float
    speed: float

    def __str__(self):
        return f"{100 * self.ratio:.1f} % of frames skate, feet on the ground move at {self.speed:.3f} m/s"


def foot_skating(
    positions, feet: Sequence[int], fps: float, floor: float | None = 0.0, touch: float = TOUCH, skate: float = SKATE,
    smooth: int = SMOOTH,
) -> Skating:  # fmt: skip
    """Of one clip [T, J, 3] or of clips [..., T, J, 3]; see the module's docstring.

    Args:
        feet: joints that stand on the ground; published: both toes (HumanML3D's joints 10 and 11).
        floor: height of the ground in metres; None: of each clip the lowest place of its feet.
        smooth: frames over which the speed is averaged (zeros stand outside the clip, as published); 1: not at all.
    """
    x = _motion(positions, 2)[..., list(feet), :]
    height = x[..., 1] - (x[..., 1].min(axis=(-1, -2), keepdims=True) if floor is None else floor)
    speed = np.linalg.norm(np.diff(x[..., [0, 2]], axis=-3), axis=-1) * fps  # [..., T - 1, feet]
    touches = (height[..., 1:, :] < touch) & (height[..., :-1, :] < touch)
    slides = touches & (speed > skate) & (_moving_mean(speed, smooth) > skate)
    total = touches.sum()
    return Skating(float(slides.any(axis=-1).mean()), float(speed[touches].sum() / total) if total else 0.0)


def _moving_mean(x, frames):
    """Mean over ``frames`` frames around each, zeros outside: [..., T, K] -> [..., T, K]."""
    if frames < 1:
        raise ValueError(f"smooth is {frames}; it is at least 1")
    length, before = x.shape[-2], frames // 2
    pad = np.zeros((*x.shape[:-2], frames, x.shape[-1]))
    total = np.cumsum(np.concatenate([pad[..., : before + 1, :], x, pad[..., : frames - 1 - before, :]], axis=-2), -2)
    return (total[..., frames : frames + length, :] - total[..., :length, :]) / frames


@dataclass(frozen=True)
class Range:
    """What is usual in the data: percentiles over all frames (and joints) of real clips.

    low, high: of the height of the root, metres. speed: of the speed of joints in the world, m/s.
    percentile: which one ``high`` and ``speed`` are; ``low`` is 100 minus that.
    """

    low: float
    high: float
    speed: float
    percentile: float = 99.9

    @classmethod
    def of(cls, clips: Iterable, fps: float, root: int = 0, percentile: float = 99.9) -> "Range":
        """Of real clips [T, J, 3] of two frames or more, whose lengths may differ."""
        heights, speeds = [], []
        for clip in clips:
            x = _motion(clip, 2)
            heights.append(x[:, root, 1])
            speeds.append(_speeds(x, fps).ravel())
        if not heights:
            raise ValueError("there is no clip to take a range from")
        low, high = np.percentile(np.concatenate(heights), [100.0 - percentile, percentile])
        speed = np.percentile(np.concatenate(speeds), percentile)
        return cls(float(low), float(high), float(speed), percentile)


class Drift(NamedTuple):
    """Curves [windows] of a stream.

    height, lowest, highest: of the root in metres: mean, least and greatest. speed, fastest: of the joints in m/s: mean
    over frames and joints, and the greatest. height_outside: share of frames whose root is out of range;
    speed_outside: share of frames and joints that are too fast.

    In the data itself these shares are 0.2 % and 0.1 % for the 99.9th percentile; a window that holds a movement which
    is rare there may have more. `within` asks whether the means are in range, which a stream that has drifted leaves.
    """

    height: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    speed: np.ndarray
    fastest: np.ndarray
    height_outside: np.ndarray
    speed_outside: np.ndarray

    def within(self, usual: Range) -> np.ndarray:
        """bool [windows]: mean height of the root and mean speed of the joints are in range."""
        return (self.height >= usual.low) & (self.height <= usual.high) & (self.speed <= usual.speed)

    def __str__(self):
        return (
            f"{len(self.height)} windows: root {self.lowest.min():.2f} to {self.highest.max():.2f} m high, out of "
            f"range in {100 * self.height_outside.mean():.2f} % of frames ({100 * self.height_outside.max():.1f} % of "
            f"the worst window); joints up to {self.fastest.max():.1f} m/s, too fast in "
            f"{100 * self.speed_outside.mean():.2f} % ({100 * self.speed_outside.max():.1f} %)"
        )


def drift(windows: Iterable, usual: Range, fps: float, root: int = 0) -> Drift:
    """Statistics of the windows of a stream, [T, J, 3] each, one after the other.

    Only the last frame of a window is kept, so a stream of any length can be measured while it comes; the step from one
    window to the next counts in the later one. A stream without a second frame has no speed: 0.
    """
    rows, before = [], None
    for window in windows:
        x = _motion(window, 1)
        height = x[:, root, 1]
        speeds = _speeds(x if before is None else np.concatenate([before, x]), fps)
        speeds = speeds if len(speeds) else np.zeros((1, x.shape[1]))
        outside = (height < usual.low) | (height > usual.high)
        rows.append(
            (height.mean(), height.min(), height.max(), speeds.mean(), speeds.max(), outside.mean(),
             (speeds > usual.speed).mean())
        )  # fmt: skip
        before = x[-1:]
    if not rows:
        raise ValueError("the stream has no window to measure")
    return Drift(*np.array(rows).T)


def _speeds(x, fps):
    """[T, J, 3] -> m/s [T - 1, J]."""
    return np.linalg.norm(np.diff(x, axis=0), axis=-1) * fps


def _motion(positions, least):
    x = np.asarray(positions, np.float64)
    if x.ndim < 3 or x.shape[-1] != 3 or x.shape[-3] < least:
        raise ValueError(f"positions are {x.shape}; [..., frames, joints, 3] with {least} frames or more would do")
    return x

"""What BVH files leave open, decided once for all files of a folder: vertical axis, unit, meaning of positions.

Files of one rig (names, parents and channels of the joints) come from one program and share one decision. Only the
meaning of positions, which is unambiguous in every pose, is found file by file.

    positions   replace the OFFSET ('absolute') or are added to it ('relative'): the reading by which bones keep the
                lengths that OFFSETs have
    up          the axis with the most evidence, in which a file counts once and other rigs of the folder half:
                  + 1      head above hips, the mean cosine over the frames (at least -0.5: handstands)
                  + 0.7    head, hips and ankles in a line of the rest pose
                  + 0.3    the lowest joint is at height 0
                  - 0.8    as many body heights as the lowest joint rises and falls (at most one)
                  - prior  z 0.3, x 1, downwards 1.5: y is the most common
    unit        of metres, centimetres, millimetres, inches and feet the one that gives the median body of the rig the
                most likely height (UNITS); else whatever makes it TALL. A body is taken to be 1.3 times as tall as hips
                to head and hip to ankle together, along the bones

A body that lies or crawls is thus not stood up if other files, its rest pose or the floor contradict that. A folder in
which every body lies is ambiguous: state the axis.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.bvh_text import POSITIONS, Recording
from causal_diffusion.motion.skeleton import Skeleton, forward

TALL = 1.7  # metres, where the unit cannot be told
HEIGHTS = (0.6, 2.6)  # metres: no human body is smaller or taller
SAMPLE = 64  # frames of a file that are looked at
CLOSE = 0.25  # of evidence: an axis that leads by less is uncertain
AXES = ("y", "z", "x", "-y", "-z", "-x")
_PRIOR = np.array([0.0, 0.3, 1.0, 1.5, 1.5, 1.5])


class Unit(NamedTuple):
    """Metres, body heights that are believed, and how unlikely the unit is (logarithm)."""

    metres: float
    heights: tuple[float, float]
    rare: float


UNITS = {
    "m": Unit(1.0, HEIGHTS, 0.0),
    "cm": Unit(0.01, HEIGHTS, 0.0),
    "mm": Unit(0.001, HEIGHTS, 0.0),
    "in": Unit(0.0254, (1.4, 2.1), 2.5),
    "ft": Unit(0.3048, (1.4, 2.1), 2.5),
}
_SPREAD = 0.2  # standard deviation of the logarithm of a body's height over TALL
_HALF = math.sqrt(0.5)
_TURNS = {  # of axes of the file, to y up
    "y": rot.IDENTITY, "z": np.array([_HALF, -_HALF, 0, 0]), "x": np.array([_HALF, 0, 0, _HALF]),
    "-y": np.array([0.0, 1, 0, 0]), "-z": np.array([_HALF, _HALF, 0, 0]), "-x": np.array([_HALF, 0, 0, -_HALF]),
}  # fmt: skip


class Conventions(NamedTuple):
    """How a file is read: vertical axis (AXES), metres per unit, meaning of positions; unit: its name or ''."""

    up: str
    scale: float
    positions: str
    unit: str = ""

    @property
    def turn(self) -> np.ndarray:
        """The quaternion that turns the file's axes so that y is up."""
        return _TURNS[self.up]

    def __str__(self) -> str:
        return f"up = {self.up}, unit = {self.unit or f'{self.scale:.4g} m'}, positions = {self.positions}"


@dataclasses.dataclass
class Evidence:
    """Evidence of one file about its conventions.

    Attributes:
        rig: of the recording.
        stretch: how far bones are from their OFFSETs, as a share of them, if positions are (absolute, relative); None:
            there are no position channels beside the root's.
        axes: evidence for each of AXES, per reading of positions, [6].
        height: of the body in units of the file, per reading of positions.
    """

    rig: tuple
    stretch: tuple[float, float] | None
    axes: dict[str, np.ndarray]
    height: dict[str, float]

    @property
    def reading(self) -> str:
        """The value of POSITIONS by which bones keep their lengths."""
        absolute, relative = self.stretch or (0.0, 1.0)
        return "relative" if relative < 0.5 * absolute else "absolute"

    def contradicts(self, conventions: "Conventions") -> bool:
        """Whether the evidence of this file alone is clearly in favour of another axis."""
        axes = self.axes[conventions.positions]
        return bool(axes.max() - axes[AXES.index(conventions.up)] > 2 * CLOSE)


class Decided(NamedTuple):
    """The conventions of a file, and what about them is uncertain ('' if nothing)."""

    conventions: Conventions
    uncertain: str


def metres(unit: str | None, scale: float | None, option: str = "") -> float | None:
    """Metres per unit of a name of UNITS (or a number), or ``scale``; None if both are.

    Args:
        option: what stands before the names in messages: '--' for options of a command.

    Raises:
        UserError: both are given, or a value that is none.
    """
    if scale is not None and not 0 < scale < np.inf:
        raise UserError(f"{option}scale is {scale}: metres per unit, 0.01 would do")
    if unit is None:
        return scale
    if scale is not None:
        raise UserError(f"{option}unit is {unit} and {option}scale is {scale:g}: give one of them")
    if unit in UNITS:
        return UNITS[unit].metres
    try:
        value = float(unit)
    except ValueError:
        value = 0.0
    if not 0 < value < np.inf:
        raise UserError(f"{option}unit is {unit!r}: one of {', '.join(UNITS)}, or metres per unit, 0.0254")
    return value


def check(up: str | None, positions: str | None, option: str = "") -> None:
    """A UserError if one is neither None nor a value of AXES and POSITIONS."""
    for name, value, allowed in (("up", up, AXES), ("positions", positions, POSITIONS)):
        if value is not None and value not in allowed:
            raise UserError(f"{option}{name} is {value!r}: one of {', '.join(allowed)} would do")


def evidence(recording: Recording) -> Evidence:
    """Computes the evidence of a recording."""
    stretch = _stretch(recording)
    axes, height = {}, {}
    for positions in POSITIONS if stretch else ("absolute",):
        joints, rotations, offsets = recording.local(positions)
        skeleton = _bare(joints)
        x = forward(skeleton, rotations, offsets[:, 0], offsets)
        still = np.tile(rot.IDENTITY, (1, len(joints), 1))
        rest = forward(skeleton, still, np.zeros((1, 3)), np.median(offsets, axis=0))
        real = np.array([not joint.end for joint in joints])
        height[positions] = body_height(skeleton, x)
        axes[positions] = _axes(skeleton, x, rest[0], real, height[positions])
    if not stretch:
        axes["relative"], height["relative"] = axes["absolute"], height["absolute"]
    return Evidence(recording.rig, stretch, axes, height)


def decide(
    files: Sequence[Evidence], up: str | None = None, scale: float | None = None, positions: str | None = None
) -> list[Decided]:
    """The conventions of each file, from the evidence of all; what is given is not decided.

    Args:
        files: the evidence of each file of a folder.
        up, scale, positions: a value of AXES, metres per unit, a value of POSITIONS; None: decided.
    """
    groups = {}
    for at, file in enumerate(files):
        groups.setdefault((file.rig, positions or file.reading), []).append(at)
    axes = {key: np.mean([files[at].axes[key[1]] for at in some], axis=0) for key, some in groups.items()}
    decided = [None] * len(files)
    for key, some in groups.items():
        of_group, doubts = axes[key].copy(), []
        if others := [other for other in groups if other != key]:
            weights = [len(groups[other]) for other in others]
            of_group += 0.5 * np.average([axes[other] for other in others], axis=0, weights=weights)
        first, second = np.argsort(-of_group, kind="stable")[:2]
        if up is None and of_group[first] - of_group[second] < CLOSE:
            doubts.append(f"up is taken to be {AXES[first]} and may be {AXES[second]}: try up = {AXES[second]}")
        height = float(np.median([files[at].height[key[1]] for at in some]))
        unit = _unit(height) if scale is None else next((u for u in UNITS if UNITS[u].metres == scale), "")
        size = scale or (UNITS[unit].metres if unit else TALL / height if height > 0 else 1.0)
        if scale is None and not unit:
            doubts.append(f"a body of {height:.4g} units is in none of {', '.join(UNITS)} and is scaled to {TALL} m: "
                          "try unit = 0.0254, or what it is")  # fmt: skip
        for at in some:
            decided[at] = Decided(Conventions(up or AXES[first], size, key[1], unit), "; ".join(doubts))
    return decided


def body_height(skeleton: Skeleton, positions: np.ndarray) -> float:
    """How tall a body stands, in units of the positions [T, J, 3]; without named legs and head, its largest extent."""
    roles = skeleton.roles
    if not all(role in roles for role in ("head", "left_hip", "left_ankle")):
        return float(np.median(np.ptp(positions, axis=1).max(axis=-1)))
    lengths, tall = np.append(0.0, np.median(skeleton.bone_lengths(positions), axis=0)), 0.0
    for role, above in (("head", "hips"), ("left_ankle", "left_hip")):
        joint = roles[role]
        while joint not in (roles[above], -1):
            tall += 1.3 * lengths[joint]
            joint = skeleton.parents[joint]
    return float(tall)


def _bare(joints) -> Skeleton:
    """Names that are there twice do not matter here."""
    seen, names = set(), []
    for j, joint in enumerate(joints):
        names.append(joint.name if joint.name not in seen else f"{joint.name} {j}")
        seen.add(names[-1])
    return Skeleton(tuple(names), tuple(joint.parent for joint in joints))


def _stretch(recording: Recording) -> tuple[float, float] | None:
    """How far bones are from their OFFSETs by the two readings of positions; the root and a helper's child are none."""
    joints = recording.joints
    first = [j for j, joint in enumerate(joints) if joint.parent == 0]
    roots = {0, *(first if len(first) == 1 else ())}
    absolute = relative = length = 0.0
    for j, axis, kind, values in recording.channels():
        if kind == "position" and j not in roots:
            offset = joints[j].offset[axis]
            absolute += np.abs(values - offset).mean()
            relative += np.abs(values).mean()
            length += abs(offset)
    return (absolute / length, relative / length) if length > 0 else None


def _axes(skeleton: Skeleton, x: np.ndarray, rest: np.ndarray, real: np.ndarray, height: float) -> np.ndarray:
    """Evidence for each of AXES [6] from positions [T, J, 3] in units of the file, see the module's docstring."""
    roles, height = skeleton.roles, max(height, 1e-9)
    if "head" in roles:
        upright = _unit_vector(x[:, roles["head"]] - x[:, roles["hips"]]).mean(axis=0)
        standing = _standing(skeleton, rest)
    else:
        extent = np.ptp(x[0], axis=0)
        upright, standing = extent / max(extent.max(), 1e-9), np.zeros(3)
    x = x[:, real]
    lowest = np.concatenate([x.min(axis=1), -x.max(axis=1)], axis=-1)  # [T, 6] along x, y, z, -x, -y, -z
    travels = np.minimum(1.0, np.ptp(lowest, axis=0) / height)
    floor = np.abs(lowest.min(axis=0)) < 0.1 * height
    upright, standing = np.concatenate([upright, -upright]), np.concatenate([standing, -standing])
    total = np.maximum(upright, -0.5) + 0.7 * standing + 0.3 * floor - 0.8 * travels
    order = ["xyz".index(axis[-1]) + 3 * axis.startswith("-") for axis in AXES]
    return total[order] - _PRIOR


def _standing(skeleton: Skeleton, rest: np.ndarray) -> np.ndarray:
    """The direction from hips to head of a rest pose [J, 3] that stands; zeros of one that does not."""
    roles = skeleton.roles
    ankles = [roles[role] for role in ("left_ankle", "right_ankle") if role in roles]
    if not ankles:
        return np.zeros(3)
    spine = _unit_vector(rest[roles["head"]] - rest[roles["hips"]])
    legs = _unit_vector(rest[roles["hips"]] - rest[ankles].mean(axis=0))
    return spine if spine @ legs > 0.8 else np.zeros(3)


def _unit(height: float) -> str:
    """The name of the most likely unit of a body of so many units, '' if none is plausible."""
    scores = {}
    for name, unit in UNITS.items():
        tall = height * unit.metres
        if unit.heights[0] <= tall <= unit.heights[1]:
            scores[name] = -0.5 * (math.log(tall / TALL) / _SPREAD) ** 2 - unit.rare
    return max(scores, key=scores.get) if scores else ""


def _unit_vector(v):
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)

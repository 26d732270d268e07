"""What a body's joints are called and how they hang together, and where they are when each is turned.

Joint j has the offset o_j from its parent p(j) in the rest pose, in which no joint is turned. With local rotations R_j
the joints are at x_j, their frames turned by G_j:

    x_0 = root,   G_0 = R_0,   x_j = x_p(j) + G_p(j) o_j,   G_j = G_p(j) R_j                                 (1)

Metres, y up, facing +z with the left at +x. Files name joints in their own ways. Two that are each other's mirror
images are found by their names ('left_hip', 'UpperLeg_L', 'LeftUpLeg', 'LHipJoint', 'lhand'), and so are those that
play a role that the representations need: see ``joint_names`` and ``Skeleton.roles``.
"""

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.joint_names import MIDDLE, OTHER, SIDED, split

Array = Any


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """J joints, the root first and every parent before its children.

    Attributes:
        names: J different names.
        parents: J indices; -1 for the root.
        offsets: J times (x, y, z), metres: the rest pose, o_j of equation (1); the root's is not used. None: unknown.

    Raises:
        UserError: the lengths differ, a name is there twice, or a parent is not before its child.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self):
        put = functools.partial(object.__setattr__, self)
        put("names", tuple(str(name) for name in self.names))
        put("parents", tuple(int(parent) for parent in self.parents))
        if len(self.names) != len(self.parents) or not self.names:
            raise UserError(f"{len(self.names)} joint names and {len(self.parents)} parents: as many, one or more, do")
        for j, (name, parent) in enumerate(zip(self.names, self.parents, strict=True)):
            if not (parent == -1 if j == 0 else 0 <= parent < j):
                least = "-1, it is the root" if j == 0 else f"one of 0 to {j - 1}, the joints before it"
                raise UserError(f"the parent of joint {j} ({name}) is {parent}: it must be {least}")
            if name in self.names[:j]:
                raise UserError(f"joints {self.names.index(name)} and {j} are both named {name!r}: rename one")
        if self.offsets is not None:
            offsets = np.asarray(self.offsets, np.float64)
            if offsets.shape != (self.joints, 3) or not np.isfinite(offsets).all():
                raise UserError(f"offsets {offsets.shape} must be finite, of shape ({self.joints}, 3)")
            put("offsets", tuple(tuple(offset) for offset in offsets.tolist()))

    @property
    def joints(self) -> int:
        """J."""
        return len(self.names)

    def index(self, name: str) -> int:
        """Which joint has that name; a UserError names the nearest if none has."""
        if name not in self.names:
            near = difflib.get_close_matches(name.lower(), [n.lower() for n in self.names], n=1, cutoff=0.0)[0]
            near = next(n for n in self.names if n.lower() == near)
            raise UserError(f"no joint is named {name!r}: {near!r} would do, of {', '.join(self.names)}")
        return self.names.index(name)

    def children(self, joint: int) -> tuple[int, ...]:
        """The joints whose parent it is."""
        return tuple(j for j, parent in enumerate(self.parents) if parent == joint)

    def chains(self) -> tuple[tuple[int, ...], ...]:
        """For every joint without children, the joints from the root to it."""
        chains = []
        for joint in range(self.joints):
            if joint not in self.parents:
                chain = [joint]
                while chain[-1] != 0:
                    chain.append(self.parents[chain[-1]])
                chains.append(tuple(reversed(chain)))
        return tuple(chains)

    def bone_lengths(self, positions: Array) -> Array:
        """[..., J, 3] -> [..., J - 1], how far joints 1 to J - 1 are from their parents."""
        _check(self, positions)
        bones = positions[..., 1:, :] - positions[..., np.array(self.parents[1:], int), :]
        return _kind(positions).linalg.norm(bones, axis=-1)

    def with_offsets(self, offsets: Array | None) -> "Skeleton":
        """The same joints with another rest pose, [J, 3] metres."""
        return dataclasses.replace(self, offsets=offsets)

    @property
    def sides(self) -> tuple[str | None, ...]:
        """Per joint 'left', 'right' or None, as its name says."""
        return tuple(side for side, _ in self._sides)

    @functools.cached_property
    def mirrored(self) -> tuple[int, ...]:
        """For each joint the one on the other side, and itself in the middle.

        Raises:
            UserError: a joint's name says left or right, and no joint is its mirror image.
        """
        found = {}
        for j, key in enumerate(self._sides):
            found.setdefault(key, []).append(j)
        mirrored = []
        for j, (side, stem) in enumerate(self._sides):
            if side is None:
                mirrored.append(j)
                continue
            same, other = found[side, stem], found.get((OTHER[side], stem), [])
            if len(same) != len(other):
                raise UserError(
                    f"joint {self.names[j]!r} has no mirror image: a {OTHER[side]} joint named the same way would do"
                )
            mirrored.append(other[same.index(j)])
        return tuple(mirrored)

    @functools.cached_property
    def roles(self) -> dict[str, int]:
        """Role -> joint: hips, neck, head, and with left_ and right_ hip, knee, ankle, toe, shoulder, elbow, wrist.

        'hips' is the root if no joint is named so. A role that no joint plays is not in the dict; asking for it by
        ``[]`` raises a UserError that says what the joint could be named.
        """
        found = {key: j for j, key in reversed(list(enumerate(self._sides)))}
        roles = _Roles(self.names)
        for side, table in ((None, MIDDLE), ("left", SIDED), ("right", SIDED)):
            for role, stems in table.items():
                joints = [found[side, stem] for stem in stems if (side, stem) in found]
                joints = [j for j in joints if role == "hips" or j not in roles.values()]
                if joints:
                    roles[role if side is None else f"{side}_{role}"] = joints[0]
        return roles

    @functools.cached_property
    def _sides(self) -> tuple[tuple[str | None, str], ...]:
        """Per joint 'left', 'right' or None, and its name in lower case without side, prefix and punctuation."""
        return split(self.names)


@dataclasses.dataclass(frozen=True)
class Motion:
    """A clip of T frames.

    Attributes:
        rotations: local unit quaternions [T, J, 4].
        root: [T, 3], where the root is, metres.
        positions: [T, J, 3], where the joints are, metres. Equation (1) gives them, up to how much bones stretch.
        fps: frames per second.
    """

    skeleton: Skeleton
    rotations: np.ndarray
    root: np.ndarray
    positions: np.ndarray
    fps: float


class UnknownRole(UserError):
    """No joint plays a role that is asked for."""


class _Roles(dict):
    def __init__(self, names):
        super().__init__(hips=0)
        self._names = names

    def __missing__(self, role):
        side, _, part = role.partition("_")
        stems = MIDDLE.get(role) or (SIDED.get(part) if side in OTHER else None)
        if stems is None:
            raise UserError(f"there is no role {role!r}: 'left_hip' would do")
        named = stems if role in MIDDLE else tuple(f"{side}_{stem}" for stem in stems)
        shown = ", ".join(self._names[:40]) + (", ..." if len(self._names) > 40 else "")
        raise UnknownRole(f"the skeleton has no joint for {role!r}: one named {' or '.join(map(repr, named))} would "
                          f"do; its joints are {shown}")  # fmt: skip


def of(names: Sequence[str], parents: Sequence[int]) -> Skeleton:
    """A skeleton without a rest pose; lists and arrays will do."""
    return Skeleton(names, parents)


def forward(skeleton: Skeleton, rotations: Array, root: Array, offsets: Array | None = None) -> Array:
    """Equation (1): forward kinematics.

    Args:
        rotations: local unit quaternions [..., T, J, 4].
        root: [..., T, 3], where the root is.
        offsets: broadcasts to [..., T, J, 3], for bones that change or another body; None: those of the skeleton.

    Returns:
        Positions [..., T, J, 3], of numpy or jax as the rotations are.
    """
    xp = _kind(rotations)
    if rotations.shape[-2:] != (skeleton.joints, 4) or root.shape != (*rotations.shape[:-2], 3):
        raise UserError(
            f"rotations {rotations.shape} and root {root.shape} do not fit {skeleton.joints} joints: "
            f"[..., frames, {skeleton.joints}, 4] and [..., frames, 3] would do"
        )
    offsets = rest(skeleton) if offsets is None else offsets
    offsets = xp.asarray(offsets, rotations.dtype)
    turned, positions = [rotations[..., 0, :]], [xp.asarray(root, rotations.dtype)]
    for j in range(1, skeleton.joints):
        parent = skeleton.parents[j]
        positions.append(positions[parent] + rot.rotate(turned[parent], offsets[..., j, :]))
        turned.append(rot.multiply(turned[parent], rotations[..., j, :]))
    return xp.stack(positions, axis=-2)


def turned(skeleton: Skeleton, rotations: Array) -> Array:
    """G of equation (1): local rotations [..., J, 4] -> how each joint's frame is turned in the world."""
    out = [rotations[..., 0, :]]
    for j in range(1, skeleton.joints):
        out.append(rot.multiply(out[skeleton.parents[j]], rotations[..., j, :]))
    return _kind(rotations).stack(out, axis=-2)


def rest(skeleton: Skeleton) -> np.ndarray:
    """The offsets as an array, float64 [J, 3]; a UserError if they are unknown."""
    if skeleton.offsets is None:
        raise UserError("the skeleton has no offsets: Skeleton.with_offsets(inverse_kinematics.rest_offsets(...)) does")
    return np.array(skeleton.offsets)


def _check(skeleton: Skeleton, positions: Array) -> None:
    if positions.ndim < 2 or positions.shape[-2:] != (skeleton.joints, 3):
        raise UserError(
            f"positions {positions.shape} do not fit {skeleton.joints} joints: [..., {skeleton.joints}, 3] would do"
        )


def _kind(x):
    return jnp if isinstance(x, jax.Array) else np


_HUMANML3D = """pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot
right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist
right_wrist"""

# The first 22 joints of SMPL, as HumanML3D orders them; 'left_foot' is where the toes begin.
HUMANML3D = Skeleton(
    tuple(_HUMANML3D.split()), (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
)

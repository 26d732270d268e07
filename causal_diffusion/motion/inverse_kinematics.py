"""Which way joints are turned, found from where they are.

Forward kinematics puts joint c at x_c = x_j + G_j o_c below its parent j (``skeleton.forward``). Given positions, the
joints are gone through from the root down, and G_j is the rotation that takes the offsets of the joints below j to
where those are seen from j:

    one joint below     the shortest rotation, from the way the bone would point if j were not turned
    several             the least-squares rotation (Kabsch 1976): R = U diag(1, 1, det(U V^T)) V^T of U S V^T =
                        sum over c of (x_c - x_j) o_c^T, which minimises sum over c of |x_c - x_j - R o_c|^2     (1)
    none                none: a leaf is not turned

A bone shorter than 2 mm points nowhere, so the joints below it stand for its end. Directions are what is kept: where
bones stretch, or the offsets are another body's, joints are off by the lengths. How a limb turns about its own
axis is not in the positions of its joints; the shortest rotation turns it least.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import Skeleton, rest

Array = Any
SHORT = 2e-3  # metres
FLAT = 1e-3  # second to first singular value of offsets that are all on one line


def solve(skeleton: Skeleton, positions: Array) -> tuple[Array, Array]:
    """Positions [..., T, J, 3] -> (local rotations [..., T, J, 4], root [..., T, 3]); numpy or jax, and the same back.

    Raises:
        UserError: the skeleton has no offsets (``rest_offsets`` estimates them), the shapes do not fit, or (numpy) a
            position is not finite.
    """
    xp = jnp if isinstance(positions, jax.Array) else np
    _check(skeleton, positions)
    offsets = rest(skeleton)
    below = _below(skeleton, np.linalg.norm(offsets, axis=-1))
    identity = xp.broadcast_to(xp.asarray(rot.IDENTITY, positions.dtype), (*positions.shape[:-2], 4))
    local, frames = [], []
    for joint, parent in enumerate(skeleton.parents):
        above = identity if parent < 0 else frames[parent]
        seen = xp.stack([positions[..., c, :] for c in below[joint]], axis=-2) if below[joint] else None
        if seen is None:
            turn = identity
        else:
            seen = rot.rotate(rot.inverse(above)[..., None, :], seen - positions[..., joint, None, :])
            offset = np.stack([_offset(skeleton, offsets, joint, c) for c in below[joint]])
            turn = _turn(xp, xp.asarray(offset, positions.dtype), offset, seen)
        local.append(turn)
        frames.append(rot.multiply(above, turn))
    return xp.stack(local, axis=-2), positions[..., 0, :]


def rest_offsets(positions: Array, skeleton: Skeleton) -> np.ndarray:
    """Offsets of a body from clips of it, float64 [J, 3] metres: lengths of bones, and a rest pose.

    Args:
        positions: [..., T, J, 3], the more poses the better.

    Lengths are medians over all frames. The rest pose is a T-pose as far as names tell: legs point down, feet ahead
    (+z), arms to their side (left +x, right -x), everything else to the side that its name says or up. Where several
    bones leave a joint they keep the shape among each other that they have on average (of the poses fitted onto one
    another by equation (1)), and as a whole are turned as near to these directions as that allows.

    Raises:
        UserError: the shapes do not fit, there is no frame, or a position is not finite.
    """
    _check(skeleton, positions)
    positions = np.asarray(positions, np.float64).reshape(-1, skeleton.joints, 3)
    if not len(positions):
        raise UserError("there are no frames to estimate offsets from: one or more would do")
    lengths = np.append(0.0, np.median(skeleton.bone_lengths(positions), axis=0))
    below, offsets = _below(skeleton, lengths), np.zeros((skeleton.joints, 3))
    for joint, ends in enumerate(below):
        if not ends:
            continue
        ideal = np.stack([_ideal(skeleton, c) for c in ends])
        seen = positions[:, list(ends)] - positions[:, joint, None]
        far = np.median(np.linalg.norm(seen, axis=-1), axis=0)[:, None]
        shape = ideal if len(ends) == 1 else _shape(seen)
        shape = rot.rotate(_turn(np, shape, shape, ideal), shape)
        shape = shape / np.linalg.norm(shape, axis=-1, keepdims=True) * far
        for c, offset in zip(ends, shape, strict=True):
            if lengths[c] >= SHORT:
                offsets[c] = offset
    return offsets


def _shape(seen: np.ndarray) -> np.ndarray:
    """Vectors [N, K, 3] that are N turned and disturbed copies of one [K, 3]: that one."""
    shape = seen[0]
    for _ in range(5):
        turn = _turn(np, shape, shape, seen)
        shape = rot.rotate(rot.inverse(turn)[:, None], seen).mean(axis=0)
    return shape


def _turn(xp, offset, static, seen):
    """The rotation [..., 4] of offset [K, 3] to seen [..., K, 3]; ``static``: the offsets, known to numpy."""
    longest = int(np.argmax(np.linalg.norm(static, axis=-1)))
    singular = np.linalg.svd(static, compute_uv=False)
    if len(static) == 1 or singular[1] < FLAT * singular[0]:  # nothing tells the turn about the line
        return rot.between(offset[longest], seen[..., longest, :])
    u, _, vt = xp.linalg.svd(xp.swapaxes(seen, -1, -2) @ offset)
    sign = xp.linalg.det(u) * xp.linalg.det(vt)
    third = xp.stack([xp.ones_like(sign), xp.ones_like(sign), sign], axis=-1)
    return rot.from_matrix((u * third[..., None, :]) @ vt)


def _below(skeleton: Skeleton, lengths: np.ndarray) -> list[tuple[int, ...]]:
    """For each joint those at the ends of the bones that leave it, followed through bones without length."""
    below = [() for _ in skeleton.names]
    for joint in reversed(range(skeleton.joints)):
        for child in skeleton.children(joint):
            below[joint] += (child,) if lengths[child] >= SHORT else below[child]
    return below


def _offset(skeleton, offsets, joint, end):
    """The sum of the offsets from a joint down to one below it."""
    total = np.zeros(3)
    while end != joint:
        total, end = total + offsets[end], skeleton.parents[end]
    return total


def _ideal(skeleton: Skeleton, joint: int) -> np.ndarray:
    """The way that the bone above a joint points in a T-pose."""
    roles, above = skeleton.roles, []
    parent = skeleton.parents[joint]
    while parent >= 0:
        above.append(parent)
        parent = skeleton.parents[parent]
    for side, x in (("left", 1.0), ("right", -1.0)):
        if roles.get(f"{side}_ankle") in above:
            return np.array([0.0, 0.0, 1.0])
        if roles.get(f"{side}_hip") in above:
            return np.array([0.0, -1.0, 0.0])
        if roles.get(f"{side}_shoulder") in above or skeleton.sides[joint] == side:
            return np.array([x, 0.0, 0.0])
    return np.array([0.0, 1.0, 0.0])


def _check(skeleton, positions):
    if positions.ndim < 3 or positions.shape[-2:] != (skeleton.joints, 3):
        raise UserError(
            f"positions {positions.shape} do not fit {skeleton.joints} joints: [..., frames, {skeleton.joints}, 3] do"
        )
    if isinstance(positions, np.ndarray) and not np.isfinite(positions).all():
        *_, frame, joint, _ = np.argwhere(~np.isfinite(positions))[0].tolist()
        raise UserError(f"joint {skeleton.names[joint]} of frame {frame} is nowhere (not finite): leave the frame out")

"""A motion on other bones: other lengths, fewer joints, other names."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import Motion, Skeleton, turned

Array = Any


def retarget(positions: Array, skeleton: Skeleton, lengths: Array, floor: bool = True) -> Array:
    """Positions with bones of other lengths, as HumanML3D brings all bodies to one (Guo et al. 2022).

    Every bone keeps its direction. The path of the root is scaled by the ratio of the lengths of the legs, thigh and
    lower leg of both sides, so that feet which stood hardly slide. A bone without length has no direction and keeps
    none.

    Args:
        positions: [..., T, J, 3] metres, y up.
        lengths: [J - 1] metres, of the bones above joints 1 to J - 1: ``skeleton.bone_lengths`` of one frame of the
            other body.
        floor: the lowest joint of each clip in all its frames is put at height 0.

    Returns:
        [..., T, J, 3], of the same kind.

    Raises:
        UserError: shapes do not fit, a length is negative or not finite, or the skeleton has no named legs.
    """
    xp = jnp if isinstance(positions, jax.Array) else np
    own = skeleton.bone_lengths(positions)
    lengths = np.asarray(lengths, np.float64)
    if lengths.shape != (skeleton.joints - 1,) or not (np.isfinite(lengths) & (lengths >= 0)).all():
        raise UserError(f"lengths {lengths.shape} must be {skeleton.joints - 1} finite lengths of bones in metres")
    if positions.ndim < 3:
        raise UserError(f"positions {positions.shape} have no frames: [..., frames, {skeleton.joints}, 3] would do")
    leg = np.array([skeleton.roles[f"{side}_{role}"] for side in ("left", "right") for role in ("knee", "ankle")]) - 1
    ratio = lengths[leg].sum() / xp.median(own[..., leg], axis=-2).sum(axis=-1)
    out = [positions[..., 0, :] * ratio[..., None, None]]
    for joint in range(1, skeleton.joints):
        parent, length = skeleton.parents[joint], own[..., joint - 1, None]
        direction = (positions[..., joint, :] - positions[..., parent, :]) / xp.where(length > 0, length, 1.0)
        out.append(out[parent] + float(lengths[joint - 1]) * direction)
    moved = xp.stack(out, axis=-2).astype(positions.dtype)
    if floor:
        height = moved[..., 1].min(axis=(-2, -1))[..., None, None]
        moved = moved - xp.stack([0 * height, height, 0 * height], axis=-1)
    return moved


def select(motion: Motion, names: Sequence[str] | Mapping[str, str]) -> Motion:
    """The joints of those names, in that order; the others are dropped, and a mapping {new name: name} renames.

    Each joint hangs on the nearest joint above it that is kept. Positions stay what they are. Offsets are medians over
    the frames, since where a joint that turned was dropped no offset is constant: there forward kinematics of the
    rotations is as far off as the dropped joint turned, and ``inverse_kinematics.solve`` finds nearer rotations.

    Raises:
        UserError: a name is unknown (the nearest is named), or the first joint is not above all others, or one is
            before the joint that it hangs on.
    """
    pairs = list(names.items() if isinstance(names, Mapping) else zip(names, names, strict=True))
    if not pairs:
        raise UserError(f"no joint is selected: {motion.skeleton.names[0]!r} and some below it would do")
    selected, kept, parents = [motion.skeleton.index(old) for _, old in pairs], [], []
    for (_, old), joint in zip(pairs, selected, strict=True):
        above = joint
        if joint in kept:
            raise UserError(f"joint {old!r} is selected twice: select it once")
        while (above := motion.skeleton.parents[above]) >= 0 and above not in selected:
            pass
        if above >= 0 and above not in kept:
            first = pairs[selected.index(above)][1]
            raise UserError(f"joint {old!r} is selected before {first!r}, which it hangs on: put {first!r} first")
        if above < 0 and kept:
            raise UserError(f"joint {old!r} does not hang on {pairs[0][1]!r}: put a joint that is above both first")
        parents.append(kept.index(above) if above >= 0 else -1)
        kept.append(joint)
    positions, frames = motion.positions[:, kept], turned(motion.skeleton, motion.rotations)[:, kept]
    above = np.array(parents[1:], int)
    rotations, offsets = frames.copy(), np.zeros_like(positions)
    if above.size:
        back = rot.inverse(frames[:, above])
        rotations[:, 1:] = rot.multiply(back, frames[:, 1:])
        offsets[:, 1:] = rot.rotate(back, positions[:, 1:] - positions[:, above])
    skeleton = Skeleton(tuple(new for new, _ in pairs), tuple(parents), np.median(offsets, axis=0))
    return Motion(skeleton, rotations, positions[:, 0].copy(), positions, motion.fps)

"""A clip of human motion as numbers per frame: where the body goes, and where its joints are around it.

A clip of J joints in the world (y up) is split into the path of the ground point, the vertical shadow of the first
joint (the hips), and positions around it::

    root        [T, 2]      x, z of the ground point in the world, metres
    positions   [T, J, 3]   metres; x and z relative to the ground point, y above the ground

and a frame has 2 + 3 J numbers, in metres (65 for 21 joints):

    x_t = [ root_t - root_(t-1) | positions_t ]                                                             (1)
    root_t = before + sum over s <= t of (root_s - root_(s-1)),   before = root_(-1)                        (2)

Frame t depends on no later frame, so a motion can be coded as it arrives. A clip that begins with nothing before it
begins at rest: root_(-1) = root_0. Its numbers do not say where in the world that is; ``before`` does.

The functions take numpy or jax arrays, with any axes in front, and return the same kind.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError

Array = Any
ROOT = 2  # leading numbers of a frame: metres per frame along x and z


def width(joints: int) -> int:
    """Numbers per frame of a body of that many joints."""
    return ROOT + 3 * joints


def groups(joints: int) -> dict[str, slice]:
    """Which numbers of a frame are of one kind, and so share a scale."""
    return {"root velocity": slice(0, ROOT), "joint positions": slice(ROOT, width(joints))}


def encode(positions: Array, root: Array, before: Array | None = None) -> Array:
    """Equation (1): [..., T, J, 3] and [..., T, 2] -> [..., T, 2 + 3 J].

    ``before``: [..., 2], the ground point of the frame before the first; None: that of the first frame, at rest.
    """
    if positions.ndim < 3 or positions.shape[-1] != 3 or root.shape != (*positions.shape[:-2], 2):
        raise UserError(
            f"positions {positions.shape} and root {root.shape} are no motion: [..., frames, joints, 3] and "
            "[..., frames, 2] of the same frames would do"
        )
    xp = _kind(positions)
    start = root[..., :1, :] if before is None else xp.asarray(before)[..., None, :]
    velocity = root - xp.concatenate([start, root[..., :-1, :]], axis=-2)
    return xp.concatenate([velocity, positions.reshape(*positions.shape[:-2], -1)], axis=-1)


def decode(features: Array, before: Array | None = None) -> tuple[Array, Array]:
    """Equation (2), the inverse of ``encode``: [..., T, 2 + 3 J] -> (positions [..., T, J, 3], root [..., T, 2]).

    ``before``: [..., 2], the ground point of the frame before the first; None: the origin. A stream is decoded piece
    by piece with the last ground point of one piece as ``before`` of the next.
    """
    positions = joint_positions(features)
    root = _kind(features).cumsum(features[..., :ROOT], axis=-2)
    return positions, root if before is None else root + _kind(features).asarray(before)[..., None, :]


def joint_positions(features: Array) -> Array:
    """The positions [..., T, J, 3] alone, x and z around the hips' ground point."""
    joints, rest = divmod(features.shape[-1] - ROOT, 3)
    if rest or joints < 1:
        raise UserError(f"a frame has {features.shape[-1]} numbers: 2 + 3 per joint, {width(21)} of 21 joints would do")
    return features[..., ROOT:].reshape(*features.shape[:-1], joints, 3)


def world(positions: Array, root: Array) -> Array:
    """Positions in the world, [..., T, J, 3]: the ground point is added to x and z."""
    xp = _kind(positions)
    return positions + xp.stack([root[..., 0], xp.zeros_like(root[..., 0]), root[..., 1]], axis=-1)[..., None, :]


def _kind(x):
    return jnp if isinstance(x, jax.Array) else np

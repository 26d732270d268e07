"""The same motion at another frame rate.

Frame k of the result is at the time k / fps_to, counted from the first frame, which stays; the last is at or before the
last frame of the clip, so nothing is made up beyond it. It lies between the frames left and right of that time,
linearly for positions and along the great circle for rotations, and is one of them, unchanged, where it falls on it. A
rate that fps_from is a whole multiple of therefore takes every n-th frame, as HumanML3D does (120 to 20: every sixth).
Nothing is smoothed before: motion faster than half the new rate is folded over.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot

Array = Any
NEAR = 1e-6  # frames: what rounding of rates may shift a frame by


def resample(motion: Array | tuple[Array, Array], fps_from: float, fps_to: float) -> Array | tuple[Array, Array]:
    """Positions [..., T, J, 3], or (local rotations [..., T, J, 4], root [..., T, 3]) -> the same with other T.

    Numpy or jax, and the same kind back.

    Raises:
        UserError: a rate is not positive and finite, or there is no frame.
    """
    for name, fps in (("fps_from", fps_from), ("fps_to", fps_to)):
        if not 0 < fps < np.inf:
            raise UserError(f"{name} is {fps}: frames per second, 30 would do")
    if not isinstance(motion, tuple):
        return _lerp(motion, _times(motion.shape[-3], fps_from, fps_to), -3)
    rotations, root = motion
    times = _times(rotations.shape[-3], fps_from, fps_to)
    if root.shape[-2] != rotations.shape[-3]:
        raise UserError(f"rotations of {rotations.shape[-3]} frames and root of {root.shape[-2]}: as many would do")
    return _slerp(rotations, times), _lerp(root, times, -2)


def _times(frames: int, fps_from: float, fps_to: float) -> np.ndarray:
    """Of the new frames, in old frames; whole numbers where they are nearly."""
    if frames < 1:
        raise UserError("the motion has no frames: one or more would do")
    ratio = fps_from / fps_to
    times = np.arange(int((frames - 1) / ratio + NEAR) + 1) * ratio
    near = np.rint(times)
    return np.minimum(np.where(np.abs(times - near) < NEAR * np.maximum(near, 1), near, times), frames - 1)


def _take(x, times, axis):
    """The frames to the left and right of each time, how far along it is, and the module that computes."""
    xp = jnp if isinstance(x, jax.Array) else np
    left = np.floor(times).astype(int)
    right = np.minimum(left + 1, x.shape[axis] - 1)
    along = np.asarray(times - left, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else float)
    return xp, xp.take(x, left, axis=axis), xp.take(x, right, axis=axis), along.reshape(-1, *[1] * (-1 - axis))


def _lerp(x, times, axis):
    xp, left, right, along = _take(x, times, axis)
    return left if not along.any() else xp.where(along == 0, left, left + along * (right - left))


def _slerp(q, times):
    xp, left, right, along = _take(q, times, -3)
    return left if not along.any() else xp.where(along == 0, left, rot.slerp(left, right, along[..., 0]))

"""How far a motion is from the one it should be: mean distance of the joints, in millimetres.

*Local* distances are between joints around the hips' ground point, *world* ones between joints in the world, where an
error of the path adds up over a clip. Both are means over joints, by frame, of motions that begin at the same ground
point. Clips are the numbers of ``motion.joints`` in metres, [T, 2 + 3 J], unless a ``decode`` says what else they are:
(local joints [T, J, 3], joints in the world [T, J, 3]) of a clip.

The measure of an autoencoder of motion is ``GroupPCA``, the best linear one that codes each group of frames by itself:
of the least mean square error over the groups that it was fitted to, with as many numbers per group (Eckart & Young
1936).
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from causal_diffusion.motion import joints

MILLIMETRES = 1000.0  # per metre


class JointError(NamedTuple):
    """Mean distances of joints in millimetres: floats, or curves by frame."""

    local: float | np.ndarray
    world: float | np.ndarray

    def __str__(self):
        return f"{np.mean(self.local):.1f} mm local, {np.mean(self.world):.1f} mm world"


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of the joints of two motions, [..., T, J, 3] in metres -> [..., T] in millimetres."""
    if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
        raise ValueError(f"two motions must have one shape [..., frames, joints, 3], got {a.shape} and {b.shape}")
    offset = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return MILLIMETRES * np.linalg.norm(offset, axis=-1).mean(axis=-1)


def _decode(x):
    positions, root = joints.decode(np.asarray(x, np.float64))
    return positions, joints.world(positions, root)


def joint_error(got: np.ndarray, wanted: np.ndarray, decode=_decode) -> JointError:
    """By frame, [..., T], of two motions [..., T, C]."""
    if np.shape(got) != np.shape(wanted):
        raise ValueError(f"two motions must have one shape, got {np.shape(got)} and {np.shape(wanted)}")
    return JointError(*(distance(*pair) for pair in zip(decode(got), decode(wanted), strict=True)))


def mean_joint_error(pairs: Iterable[tuple[np.ndarray, np.ndarray]], decode=_decode) -> JointError:
    """Mean over all frames of all pairs (got, wanted) of clips [T, C], whose lengths may differ."""
    errors = [joint_error(got, wanted, decode) for got, wanted in pairs]
    if not errors:
        raise ValueError("there is no clip to measure")
    return JointError(*(float(np.concatenate(curves).mean()) for curves in zip(*errors, strict=True)))


def joint_error_by_frame(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> JointError:
    """Curves [longest T]: at each frame the mean over the clips that are as long."""
    errors = [joint_error(got, wanted) for got, wanted in pairs]
    if not errors:
        raise ValueError("there is no clip to measure")
    longest = max(len(error.local) for error in errors)
    total, clips = np.zeros((2, longest)), np.zeros(longest)
    for error in errors:
        total[:, : len(error.local)] += error
        clips[: len(error.local)] += 1
    return JointError(*(total / clips))


@dataclasses.dataclass(frozen=True, eq=False)
class GroupPCA:
    """Principal components of groups of frames.

    time: frames of a group. mean: [time C]. basis: [time C, K], orthonormal; K numbers stand for a group.
    """

    time: int
    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def fit(cls, clips: Iterable[np.ndarray], time: int, latent: int) -> "GroupPCA":
        """From every run of ``time`` frames of clips [T, C], whatever its start; ``latent`` is K.

        Raises:
            ValueError: no clip has that many frames, or a group has fewer numbers than K.
        """
        count, total, products = 0, 0.0, 0.0
        for clip in clips:
            if len(clip) < time:
                continue
            frames = np.asarray(clip, np.float64)
            x = np.concatenate([frames[i : len(clip) - time + 1 + i] for i in range(time)], axis=1)
            count, total, products = count + len(x), total + x.sum(axis=0), products + x.T @ x
        if not count:
            raise ValueError(f"no clip has {time} frames: nothing to find components of")
        if not 0 < latent <= len(total):
            raise ValueError(f"a group has {len(total)} numbers: it has 1 to {len(total)} components, not {latent}")
        mean = total / count
        _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        return cls(time, mean, vectors[:, ::-1][:, :latent])

    def encode(self, clip: np.ndarray) -> np.ndarray:
        """[..., T, C] -> [..., T / time, K]. ValueError: T is no multiple of ``time``."""
        *lead, frames, channels = clip.shape
        if frames % self.time or self.time * channels != len(self.mean):
            raise ValueError(f"a clip {clip.shape} is no whole number of groups of {self.time} frames of "
                             f"{len(self.mean) // self.time} numbers")  # fmt: skip
        return (clip.reshape(*lead, frames // self.time, -1) - self.mean) @ self.basis

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """[..., L, K] -> [..., time L, C]."""
        groups = latents @ self.basis.T + self.mean
        return groups.reshape(*latents.shape[:-2], self.time * latents.shape[-2], -1)

    def reconstruct(self, clip: np.ndarray) -> np.ndarray:
        """[..., T, C] -> what is left of it."""
        return self.decode(self.encode(clip))

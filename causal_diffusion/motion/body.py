"""What the numbers of a frame of motion mean: the representation, the skeleton, the scale.

    joints      2 + 3 J     path of the ground point, positions around it       (``motion.joints``)
    humanml     12 J - 1    Guo et al. 2022: 263 numbers of 22 joints           (``motion.humanml``)
    essential   3 J + 1     the first of them: root and positions, no rotations, velocities and contacts (MARDM, Meng et
                            al. 2025, arXiv 2411.16575: 67 numbers of 22 joints), with the heading of each frame

A data set of motion, an autoencoder trained on it and a system that streams its latents all carry a ``Body``, so that
whoever has frames can see the joints.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import humanml, joints
from causal_diffusion.motion.skeleton import Skeleton, of

Array = Any


class Representation(NamedTuple):
    """encode(positions [T, J, 3] in the world, skeleton) -> [T', C]; decode(x, J, before) -> (positions, after)."""

    width: Callable[[int], int]  # numbers per frame of J joints
    groups: Callable[[int], dict[str, slice]]  # which of them share a scale
    encode: Callable
    decode: Callable
    lost: int  # frames of a clip that have no numbers of their own, at its end


def _encode_joints(positions, skeleton):
    del skeleton
    root = positions[:, 0, [0, 2]]
    return joints.encode(joints.world(positions, -root), root)


def _decode_joints(x, count, before):
    del count
    positions, root = joints.decode(x, before)
    return joints.world(positions, root), root[..., -1, :]


def _essential_groups(count):
    return {name: part for name, part in humanml.groups(count).items() if part.start < humanml.essential_width(count)}


def _encode_essential(positions, skeleton):
    # The body faces where its hips and shoulders do at each frame: it looks one frame ahead, and no clip begins with
    # the leap that the smoothed heading of the released vectors has.
    return humanml.essential(humanml.encode(positions, skeleton, smooth=0))


REPRESENTATIONS = {
    "joints": Representation(joints.width, joints.groups, _encode_joints, _decode_joints, 0),
    "humanml": Representation(humanml.width, humanml.groups, humanml.encode, humanml.decode, 1),
    "essential": Representation(humanml.essential_width, _essential_groups, _encode_essential, humanml.decode, 1),
}


@dataclasses.dataclass(frozen=True)
class Body:
    """A skeleton and the scale of its numbers.

    Attributes:
        representation: a key of REPRESENTATIONS.
        names, parents: of the joints; the parent of the first is -1.
        fps: frames per second.
        mean, std: of the C numbers: a frame is (numbers - mean) / std.
    """

    representation: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    fps: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def joints(self) -> int:
        """How many joints there are."""
        return len(self.parents)

    @property
    def skeleton(self) -> Skeleton:
        """Names and parents, for what asks for roles of joints."""
        return of(self.names, self.parents)

    def normalise(self, numbers: Array) -> Array:
        """Numbers of the representation -> frames."""
        return (numbers - np.float32(self.mean)) / np.float32(self.std)

    def denormalise(self, frames: Array) -> Array:
        """Frames -> numbers of the representation."""
        return frames * np.float32(self.std) + np.float32(self.mean)

    def positions(self, frames: Array, before: Array | None = None) -> tuple[Array, Array]:
        """Frames [..., T, C] -> (joints in the world [..., T, J, 3] in metres, y up, and where the next piece goes on).

        ``before``: the second value that the piece before gave; None: a motion begins, over the origin.
        """
        if frames.shape[-1] != len(self.mean):
            raise UserError(f"a frame of this body has {len(self.mean)} numbers, and these have {frames.shape[-1]}")
        return REPRESENTATIONS[self.representation].decode(self.denormalise(frames), self.joints, before)

    def local(self, frames: Array) -> Array:
        """Joints around the ground point of the hips, [..., T, J, 3] metres, facing as the representation has them."""
        numbers = self.denormalise(frames)
        if self.representation == "joints":
            return joints.joint_positions(numbers)
        still = numbers * (np.arange(numbers.shape[-1]) > 2).astype(np.float32)  # neither turn nor go
        return humanml.decode(still, self.joints)[0]

    def to_meta(self) -> dict:
        """For the meta of a checkpoint: ``Body.of_meta`` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def of_meta(cls, meta: dict | None) -> "Body | None":
        """The inverse of ``to_meta``; None of None."""
        if not meta:
            return None
        return cls(**{key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in meta.items()})


def statistics(clips, representation: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) float32 [C] over all frames of clips [T, C]: deviations are averaged within their kind.

    HumanML3D's way (Guo et al. 2022): joints keep their proportions, and one that hardly moves does not become noise.
    """
    frames = sum(len(clip) for clip in clips)
    mean = sum(clip.sum(axis=0, dtype=np.float64) for clip in clips) / frames
    std = np.sqrt(sum(((clip - mean) ** 2).sum(axis=0) for clip in clips) / frames)
    for kind in REPRESENTATIONS[representation].groups(count).values():
        std[kind] = std[kind].mean() if std[kind].mean() > 1e-6 else 1.0  # metres: nothing of this kind moves
    return mean.astype(np.float32), std.astype(np.float32)

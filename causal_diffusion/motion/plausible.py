"""Whether a motion can be that of a human body, before it is written."""

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion.bvh_conventions import HEIGHTS, body_height
from causal_diffusion.motion.skeleton import Motion, Skeleton

REACH = 5.0  # metres: no joint is farther from the hips
SPEED = 30.0  # metres per second: the hips are not faster
STRETCH = 0.5  # of a bone's median length: spine and legs do not change by more
_ENDS = (("head", "hips"), ("left_ankle", "left_hip"), ("right_ankle", "right_hip"))


def check_body(motion: Motion) -> None:
    """Refuses a body that no human has: its height, bones without length or that stretch, joints far away.

    Raises:
        UserError: what is implausible, with its value.
    """
    skeleton, roles, x = motion.skeleton, motion.skeleton.roles, motion.positions
    bad = ~np.isfinite(x).all(axis=(1, 2))
    if bad.any():
        raise UserError(f"frame {int(np.argmax(bad))} has a joint whose position is not finite: repair or remove it")
    chains = [_chain(skeleton, roles[end], roles[start]) for end, start in _ENDS if end in roles and start in roles]
    if len(chains) == len(_ENDS):
        tall = body_height(skeleton, x)
        if not HEIGHTS[0] <= tall <= HEIGHTS[1]:
            raise UserError(f"its body is {tall:.3g} m tall, and bodies are {HEIGHTS[0]} to {HEIGHTS[1]} m: import it "
                            "by itself if it has another unit, or try --unit")  # fmt: skip
    bones = skeleton.bone_lengths(x)
    median = np.median(bones, axis=0)
    for joint in {joint for chain in chains for joint in chain}:
        off = np.abs(bones[:, joint - 1] - median[joint - 1])
        if np.percentile(off, 95) > STRETCH * max(median[joint - 1], 0.02):
            least, most = bones[:, joint - 1].min(), bones[:, joint - 1].max()
            raise UserError(f"the bone above {skeleton.names[joint]} is {least:.3g} to {most:.3g} m long: try "
                            "--positions=relative, or absolute")  # fmt: skip
    reach = np.linalg.norm(x - x[:, :1], axis=-1)
    if reach.max() > REACH:
        frame, joint = np.unravel_index(reach.argmax(), reach.shape)
        raise UserError(f"{skeleton.names[joint]} is {reach.max():.3g} m from the first joint in frame {frame}, and "
                        f"{REACH:g} m is the most: try --unit, or --positions")  # fmt: skip


def check_clip(positions: np.ndarray, root: np.ndarray, joints: int, fps: float) -> None:
    """Refuses a clip that is not what is declared: positions [T, J, 3], path [T, 2], finite, not faster than SPEED.

    Raises:
        UserError: what is wrong, with its frame.
    """
    if positions.shape != (len(root), joints, 3) or root.shape != (len(positions), 2):
        raise UserError(f"its positions {positions.shape} and path {root.shape} are not those of {joints} joints")
    bad = ~(np.isfinite(positions).all(axis=(1, 2)) & np.isfinite(root).all(axis=1))
    if bad.any():
        raise UserError(f"frame {int(np.argmax(bad))} of the clip is not finite: a bone may have no length")
    speed = np.linalg.norm(np.diff(root, axis=0), axis=-1) * fps
    if len(speed) and speed.max() > SPEED:
        raise UserError(f"its hips move at {speed.max():.3g} m/s in frame {int(speed.argmax()) + 1} of the clip, and "
                        f"{SPEED:g} m/s is the most: cut the file there")  # fmt: skip


def _chain(skeleton: Skeleton, joint: int, top: int) -> list[int]:
    """The joints from below ``top`` down to ``joint``."""
    found = []
    while joint not in (top, -1, 0):
        found.append(joint)
        joint = skeleton.parents[joint]
    return found

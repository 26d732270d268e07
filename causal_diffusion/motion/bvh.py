"""Motion capture in BVH files (Biovision hierarchy): a tree of joints, then a row of numbers per frame.

    HIERARCHY                                       MOTION
    ROOT Hips {                                     Frames: 2
        OFFSET 0 0 0                                Frame Time: 0.033333
        CHANNELS 6 Xposition Yposition Zposition    0.0 91.2 4.1 0.0 0.0 3.5 12.0 ...
                   Zrotation Xrotation Yrotation    0.0 91.3 4.3 0.0 0.1 3.6 12.2 ...
        JOINT Spine { ... End Site { OFFSET 0 10 0 } }
    }

What a file leaves open is settled so:

    rotations   the product of the rotation channels in their order, each joint in an order of its own, or with fewer
    positions   position channels of any joint replace the OFFSET, or are added to it (``bvh_conventions``); the
                skeleton's offset then is their median
    root        a ROOT whose only child has position channels is a helper: it moves the child and is dropped
    up          the vertical axis of the file (``bvh_conventions``); a motion with z up is turned to y up,
                (x, y, z) -> (x, z, -y), rest pose and all
    unit        metres, centimetres, millimetres, inches or feet (``bvh_conventions``)
    rate        the common one, 29.97 say, of which the frame time is rounded to its last digit; else its inverse
                (``bvh_text``)

Axis, unit and meaning of positions are decided from the evidence of all files that are read together: ``read`` has one,
``motion_import`` a folder.
"""

import dataclasses
from pathlib import Path

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import bvh_conventions
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.bvh_conventions import SAMPLE, TALL, Conventions
from causal_diffusion.motion.bvh_text import Recording, parse
from causal_diffusion.motion.skeleton import Motion, Skeleton, forward, rest

__all__ = ["TALL", "read", "to_motion", "write"]


def read(
    path: str | Path,
    up: str | None = None,
    scale: float | None = None,
    ends: bool = False,
    positions: str | None = None,
    unit: str | None = None,
) -> Motion:
    """A BVH file as a motion, float64, in metres with y up.

    Args:
        up: the vertical axis of the file: y, z or x, with a '-' before it if that points down; None: decided.
        scale: metres per unit of the file; None: decided.
        ends: also the End Sites, as joints named after their parent with '_end' behind.
        positions: 'absolute' if position channels replace the OFFSET, 'relative' if they are added; None: decided.
        unit: m, cm, mm, in or ft instead of ``scale``.

    Raises:
        UserError: there is no such file, or it is cut short, has a number that is not finite or words that are not BVH.
            The message names the file and the line or frame.
    """
    bvh_conventions.check(up, positions)
    scale = bvh_conventions.metres(unit, scale)
    recording = parse(path)
    if None in (up, scale, positions):
        some = np.unique(np.linspace(0, len(recording.rows) - 1, SAMPLE).astype(int))
        said = bvh_conventions.evidence(dataclasses.replace(recording, rows=recording.rows[some]))
        ((conventions, _),) = bvh_conventions.decide([said], up, scale, positions)
    else:
        conventions = Conventions(up, scale, positions)
    return to_motion(recording, conventions, ends)


def to_motion(recording: Recording, conventions: Conventions, ends: bool = False) -> Motion:
    """A recording as a motion in metres with y up, read by given conventions.

    Raises:
        UserError: two joints have one name.
    """
    joints, rotations, offsets = recording.local(conventions.positions)
    kept = [j for j, joint in enumerate(joints) if ends or not joint.end]  # End Sites are leaves
    number = {-1: -1} | {j: at for at, j in enumerate(kept)}
    rotations, root, offsets = rotations[:, kept], offsets[:, 0], offsets[:, kept]
    names, parents = [joints[j].name for j in kept], [number[joints[j].parent] for j in kept]
    try:
        skeleton = Skeleton(names, parents, np.median(offsets, axis=0))
    except UserError as error:
        raise UserError(f"{recording.path}: {error}") from None
    positions = forward(skeleton, rotations, root, offsets)
    if conventions.up != "y":
        turn = conventions.turn
        positions, root, offsets = (rot.rotate(turn, v) for v in (positions, root, offsets))
        rotations = rot.multiply(rot.multiply(turn, rotations), rot.inverse(turn))
    scale = conventions.scale
    skeleton = skeleton.with_offsets(np.median(offsets, axis=0) * scale * (np.arange(len(kept)) > 0)[:, None])
    return Motion(skeleton, rotations, root * scale, positions * scale, recording.fps)


def write(
    path: str | Path,
    skeleton: Skeleton,
    rotations: np.ndarray,
    root: np.ndarray,
    fps: float,
    order: str = "ZXY",
    scale: float = 0.01,
) -> None:
    """A BVH file with y up that ``read`` gives back, its joints depth first.

    Args:
        skeleton: with offsets, metres.
        rotations: local unit quaternions [T, J, 4].
        root: [T, 3], metres.
        order: of the rotation channels of every joint.
        scale: metres per unit of the file: 0.01 for centimetres. ``read`` needs it only if the body is not
            0.6 to 2.6 m tall, and up='y' only if the body lies.

    Raises:
        UserError: shapes do not fit, a number is not finite, the frame rate is not positive, the order is no order, or
            the file cannot be written.
    """
    rotations, root, offsets = np.asarray(rotations, float), np.asarray(root, float), rest(skeleton) / scale
    if rotations.ndim != 3 or rotations.shape[1:] != (skeleton.joints, 4) or root.shape != (len(rotations), 3):
        raise UserError(
            f"rotations {rotations.shape} and root {root.shape} are no motion of {skeleton.joints} joints: "
            f"[frames, {skeleton.joints}, 4] and [frames, 3] would do"
        )
    finite = np.isfinite(rotations).all(axis=(1, 2)) & np.isfinite(root).all(axis=1)
    if not finite.all() or not 0 < fps < np.inf:
        what = f"fps is {fps}" if finite.all() else f"frame {int(np.argmin(finite))} has a number that is not finite"
        raise UserError(f"{what}: a motion with finite numbers at 30 frames per second would do")
    lines, visited = ["HIERARCHY"], []

    def visit(joint, indent):
        visited.append(joint)
        tab, children = "\t" * indent, skeleton.children(joint)
        offset = np.zeros(3) if joint == 0 else offsets[joint]
        turns = " ".join(f"{axis}rotation" for axis in order.upper())
        channels = f"6 Xposition Yposition Zposition {turns}" if joint == 0 else f"3 {turns}"
        lines.extend([f"{tab}{'JOINT' if joint else 'ROOT'} {skeleton.names[joint]}", tab + "{"])
        lines.extend([f"{tab}\tOFFSET {_numbers(offset)}", f"{tab}\tCHANNELS {channels}"])
        for child in children:
            visit(child, indent + 1)
        if not children:
            lines.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET {_numbers(np.zeros(3))}", f"{tab}\t}}"])
        lines.append(tab + "}")

    visit(0, 0)
    angles = np.rad2deg(rot.to_euler(rotations[:, visited], order)).reshape(len(root), -1)
    lines.extend(["MOTION", f"Frames: {len(root)}", f"Frame Time: {1 / fps:.9f}"])
    lines.extend(_numbers(row) for row in np.concatenate([root / scale, angles], axis=1))
    try:
        Path(path).write_text("\n".join(lines) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): one in a folder that exists would do") from None


def _numbers(values):
    return " ".join(f"{value:.6f}" for value in values)

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
    positions   position channels replace the OFFSET, of any joint; the skeleton's offset then is their median
    root        a ROOT whose only child has position channels is a helper: it moves the child and is dropped
    up          the axis, y or z, along which heads are above hips on average; a motion with z up is turned to y up,
                (x, y, z) -> (x, z, -y), rest pose and all
    unit        metres, centimetres or millimetres, whichever makes the body 0.6 to 2.6 m tall; else whatever makes it
                1.7 m. It is taken to be 1.3 times as tall as hips to head and hip to ankle together, along the bones
    rate        the common one, 29.97 say, of which the frame time is rounded to its last digit; else its inverse

Some libraries read sound files of all these dialects (upc-pymotion 0.3.4, bvhio 1.5.4). Both let NaN pass; of a
file with too few frames the first makes frames at rest, and the second does not return; root, up, unit and rate are
left to their caller. To find and name what is wrong in a file takes a parser, and this is it.
"""

import dataclasses
import decimal
import re
from pathlib import Path

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.motion.skeleton import Motion, Skeleton, forward, rest

TALL = 1.7  # metres, where the unit cannot be told
UNITS = (1.0, 0.01, 0.001)  # metres
HEIGHTS = (0.6, 2.6)  # metres
RATES = tuple(float(r) for r in (10, 12, 12.5, 15, 20, 24, 25, 30, 40, 48, 50, 60, 72, 75, 90, 100, 120, 144, 200, 240))
RATES += tuple(r / 1.001 for r in (24.0, 30.0, 48.0, 60.0, 120.0, 240.0))
_CHANNEL = re.compile(r"([XYZ])(position|rotation)", re.IGNORECASE)


@dataclasses.dataclass
class _Joint:
    name: str
    parent: int
    offset: list[float] | None = None
    channels: list[str] | None = None  # 'Xposition'; None: not stated yet
    end: bool = False


def read(path: str | Path, up: str | None = None, scale: float | None = None, ends: bool = False) -> Motion:
    """A BVH file as a motion, float64, in metres with y up.

    Args:
        up: 'y' or 'z', the vertical axis of the file; None: found from the motion, see above.
        scale: metres per unit of the file; None: found from the bones.
        ends: also the End Sites, as joints named after their parent with '_end' behind.

    Raises:
        UserError: there is no such file, or it is cut short, has a number that is not finite or words that are not BVH.
            The message names the file and the line or frame.
    """
    if up not in (None, "y", "z"):
        raise UserError(f"up is {up!r}: 'y' or 'z' would do")
    if scale is not None and not 0 < scale < np.inf:
        raise UserError(f"scale is {scale}: metres per unit, 0.01 would do")
    path = Path(path).expanduser()
    try:
        lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): a BVH file would do") from None
    joints, motion = _hierarchy(path, lines)
    rows, fps = _rows(path, lines, motion, joints)
    rotations, offsets = _local(joints, rows)
    joints, rotations, offsets = _without_helper(joints, rotations, offsets)
    kept = [j for j, joint in enumerate(joints) if ends or not joint.end]  # End Sites are leaves
    number = {-1: -1} | {j: at for at, j in enumerate(kept)}
    rotations, root, offsets = rotations[:, kept], offsets[:, 0], offsets[:, kept]
    names, parents = [joints[j].name for j in kept], [number[joints[j].parent] for j in kept]
    try:
        skeleton = Skeleton(names, parents, np.median(offsets, axis=0))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    positions = forward(skeleton, rotations, root, offsets)
    if (up or _up(skeleton, positions)) == "z":
        quarter = rot.from_euler([-np.pi / 2, 0, 0], "XYZ")
        positions, root, offsets = (rot.rotate(quarter, v) for v in (positions, root, offsets))
        rotations = rot.multiply(rot.multiply(quarter, rotations), rot.inverse(quarter))
    scale = scale or _scale(skeleton, positions)
    skeleton = skeleton.with_offsets(np.median(offsets, axis=0) * scale * (np.arange(len(kept)) > 0)[:, None])
    return Motion(skeleton, rotations, root * scale, positions * scale, fps)


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
        scale: metres per unit of the file: 0.01 for centimetres. To ``read`` it need be told only if the body is not
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


def _hierarchy(path: Path, lines: list[str]) -> tuple[list[_Joint], int]:
    """The joints, End Sites among them, and the index of the line that says MOTION."""
    joints, open_, opening = [], [], None  # open_: the joints whose braces are open; opening: whose is next
    statements = ((at, part.strip()) for at, line in enumerate(lines) for part in re.split(r"([{}])", line))
    statements = ((at, part) for at, part in statements if part)
    at, first = next(statements, (0, "nothing"))
    if first.upper() != "HIERARCHY":
        raise _bad(path, at, f"{first[:40]!r} where a BVH file begins with 'HIERARCHY'")
    for at, statement in statements:
        word, *rest_ = statement.split()
        word = word.upper()
        if (opening is not None) != (word == "{"):
            raise _bad(path, at, f"{statement[:40]!r} where " + ("'{' is due" if opening is not None else "none is"))
        if word == "{":
            open_.append(opening)
            opening = None
        elif word == "}" and open_:
            joint = joints[open_.pop()]
            if joint.offset is None or joint.channels is None:
                what = "OFFSET" if joint.offset is None else "CHANNELS"
                raise _bad(path, at, f"joint {joint.name} ends without {what}")
        elif word == "MOTION" and joints and not open_:
            return joints, at
        elif word == "ROOT" and not joints or word in ("JOINT", "END") and open_ and not joints[open_[-1]].end:
            end, parent = word == "END", open_[-1] if open_ else -1
            name = f"{joints[parent].name}_end" if end else " ".join(rest_)
            same = sum(joint.end and joint.parent == parent for joint in joints) if end else 0
            joints.append(_Joint(name + str(same + 1) * (same > 0), parent, channels=[] if end else None, end=end))
            opening = len(joints) - 1
        elif word == "OFFSET" and open_:
            joints[open_[-1]].offset = _floats(path, at, rest_, 3, "OFFSET")
        elif word == "CHANNELS" and open_ and not joints[open_[-1]].end:
            joints[open_[-1]].channels = _channels(path, at, rest_)
        else:
            raise _bad(path, at, f"{statement[:40]!r} has no place here")
    raise _bad(path, len(lines) - 1, "the file is cut short: no MOTION follows the joints")


def _channels(path, at, words):
    count, words = words[0] if words else "", words[1:]
    if count != str(len(words)):
        raise _bad(path, at, f"CHANNELS {count} is followed by {len(words)} names")
    for word in words:
        if not _CHANNEL.fullmatch(word):
            raise _bad(path, at, f"unknown channel {word!r}: 'Xposition' or 'Zrotation' would do")
    return [word[0].upper() + word[1:].lower() for word in words]


def _rows(path: Path, lines: list[str], motion: int, joints: list[_Joint]) -> tuple[np.ndarray, float]:
    """The numbers [T, channels] that follow line ``motion``, and the frame rate."""
    labels = [f"{joint.name} {channel}" for joint in joints for channel in joint.channels]
    body = ((at, line) for at, line in enumerate(lines) if at > motion and line.strip())
    stated = []
    for pattern in (r"Frames\s*:\s*(\d+)", r"Frame Time\s*:\s*(\S+)"):
        at, line = next(body, (len(lines) - 1, ""))
        match = re.fullmatch(pattern, line.strip(), re.IGNORECASE)
        if not match:
            example = "'Frames: 100'" if not stated else "'Frame Time: 0.033333'"
            what = repr(line.strip()[:40]) if line else "the file is cut short"
            raise _bad(path, at, f"{what} where {example} is due")
        stated.append(match[1])
    frames, seconds = int(stated[0]), _floats(path, at, [stated[1]], 1, "Frame Time")[0]
    if seconds <= 0 or frames < 1:
        raise _bad(path, at, f"{frames} frames of {seconds} s: one or more of 0.033333 would do")
    rows = []
    for at, line in body:
        row = _floats(path, at, line.split(), len(labels), f"frame {len(rows)}", labels)
        rows.append(row)
    if len(rows) != frames:
        why = "is cut short" if len(rows) < frames else "goes on after its end"
        raise UserError(f"{path} {why}: it has {len(rows)} frames and says 'Frames: {frames}'")
    return np.array(rows).reshape(frames, len(labels)), _rate(stated[1])


def _floats(path, at, words, count, what, labels=None) -> list[float]:
    if len(words) != count:
        raise _bad(path, at, f"{what} has {len(words)} numbers of {count}")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        word = str(error).removeprefix("could not convert string to float: ")
        raise _bad(path, at, f"{what}: {word[:40]} is no number") from None
    if not np.isfinite(values).all():
        first = int(np.argmin(np.isfinite(values)))
        raise _bad(path, at, f"{what} has {values[first]}" + (f" for {labels[first]}" if labels else ""))
    return values


def _bad(path, at, what):
    return UserError(f"{path}, line {at + 1}: {what}")


def _rate(text: str) -> float:
    """Frames per second of a frame time as it is printed."""
    seconds = float(text)
    last_digit = 10.0 ** decimal.Decimal(text).as_tuple().exponent
    for slack in (0.5 * last_digit, last_digit):  # rounded, or cut
        for rate in RATES:
            if abs(1 / rate - seconds) <= min(slack, 0.002 * seconds):
                return rate
    return 1 / seconds


def _local(joints: list[_Joint], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [T, J, 4] and offsets [T, J, 3] of every frame, in units and axes of the file."""
    rotations = np.tile(rot.IDENTITY, (len(rows), len(joints), 1))
    offsets = np.tile([joint.offset for joint in joints], (len(rows), 1, 1))
    at = 0
    for j, joint in enumerate(joints):
        for channel in joint.channels:
            axis, values = "XYZ".index(channel[0]), rows[:, at]
            at += 1
            if channel.endswith("position"):
                offsets[:, j, axis] = values
            else:
                half = np.deg2rad(values) / 2
                turn = np.zeros((len(rows), 4))
                turn[:, 0], turn[:, 1 + axis] = np.cos(half), np.sin(half)
                rotations[:, j] = rot.multiply(rotations[:, j], turn)
    return rotations, offsets


def _without_helper(joints, rotations, offsets):
    while True:
        children = [joint for joint in joints if joint.parent == 0]
        if len(children) != 1 or not any(channel.endswith("position") for channel in children[0].channels):
            return joints, rotations, offsets
        offsets[:, 1] = offsets[:, 0] + rot.rotate(rotations[:, 0], offsets[:, 1])
        rotations[:, 1] = rot.multiply(rotations[:, 0], rotations[:, 1])
        joints = [dataclasses.replace(joint, parent=joint.parent - 1) for joint in joints[1:]]
        rotations, offsets = rotations[:, 1:], offsets[:, 1:]


def _up(skeleton: Skeleton, positions: np.ndarray) -> str:
    """'y' or 'z': where heads are above hips, or, if no joint is named head, where the first frame is larger."""
    roles = skeleton.roles
    if "head" in roles:
        extent = np.abs((positions[:, roles["head"]] - positions[:, roles["hips"]]).mean(axis=0))
    else:
        extent = np.ptp(positions[0], axis=0)
    return "z" if extent[2] > extent[1] else "y"


def _scale(skeleton: Skeleton, positions: np.ndarray) -> float:
    """Metres per unit, of a motion with y up; bodies without named legs and head are as tall as they stand."""
    roles, tall = skeleton.roles, float(np.median(np.ptp(positions[..., 1], axis=1)))
    if all(role in roles for role in ("head", "left_hip", "left_ankle")):
        lengths = np.append(0.0, np.median(skeleton.bone_lengths(positions), axis=0))
        tall = 0.0
        for role, above in (("head", "hips"), ("left_ankle", "left_hip")):
            joint = roles[role]
            while joint not in (roles[above], -1):
                tall += 1.3 * lengths[joint]
                joint = skeleton.parents[joint]
    for unit in UNITS:
        if HEIGHTS[0] <= tall * unit <= HEIGHTS[1]:
            return unit
    return TALL / tall if tall > 0 else 1.0

"""The text of a BVH file: its joints and a row of numbers per frame, in axes and units of the file (see ``bvh``).

    Frames        a header that is off by one from the rows is corrected with a warning (Rokoko writes one too few)
    Frame Time    the common rate of which it is rounded to its last digit, within 4.5 %; else its inverse

Some libraries read sound files of all these dialects (upc-pymotion 0.3.4, bvhio 1.5.4). Both let NaN pass; of a
file with too few frames the first makes frames at rest, and the second does not return. To find and name what is wrong
in a file takes a parser, and this is it.
"""

import dataclasses
import decimal
import logging
import re
from pathlib import Path

import numpy as np

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot
from causal_diffusion.text_files import read_lines

log = logging.getLogger(__name__)

RATES = tuple(float(r) for r in (10, 12, 12.5, 15, 20, 24, 25, 30, 40, 48, 50, 60, 72, 75, 90, 100, 120, 144, 200, 240))
NTSC_RATES = tuple(r / 1.001 for r in (24.0, 30.0, 48.0, 60.0, 120.0, 240.0))
NEAR, NEARER = 0.045, 0.002  # of a frame time: how far it may be from a common one that was rounded, or cut
FRAME_TIMES = (0.0005, 1.0)  # seconds
LARGEST = 1e9  # units or degrees: larger numbers are damage
POSITIONS = ("absolute", "relative")
_CHANNEL = re.compile(r"([XYZ])(position|rotation)", re.IGNORECASE)


@dataclasses.dataclass
class Joint:
    """A joint as the file has it; ``end``: an End Site."""

    name: str
    parent: int
    offset: list[float] | None = None
    channels: list[str] | None = None  # 'Xposition'; None: not stated yet
    end: bool = False

    @property
    def moves(self) -> bool:
        """Whether it has position channels."""
        return any(channel.endswith("position") for channel in self.channels)


@dataclasses.dataclass
class Recording:
    """The content of a file: joints, parents first, the numbers of its frames [T, channels], and frames per second."""

    path: Path
    joints: list[Joint]
    rows: np.ndarray
    fps: float

    @property
    def rig(self) -> tuple:
        """The same for files of one skeleton by one program: names, parents and channels of the joints."""
        return tuple((joint.name, joint.parent, *joint.channels) for joint in self.joints)

    def local(self, positions: str = "absolute") -> tuple[list[Joint], np.ndarray, np.ndarray]:
        """Joints, rotations [T, J, 4] and offsets [T, J, 3] of every frame, in units and axes of the file.

        A helper root (see ``bvh``) is dropped.

        Args:
            positions: what position channels are, a value of POSITIONS: they replace the OFFSET or are added to it.
        """
        rotations = np.tile(rot.IDENTITY, (len(self.rows), len(self.joints), 1))
        offsets = np.tile([joint.offset for joint in self.joints], (len(self.rows), 1, 1))
        for j, axis, kind, values in self.channels():
            if kind == "position":
                offsets[:, j, axis] = values + (self.joints[j].offset[axis] if positions == "relative" else 0.0)
            else:
                half = np.deg2rad(values) / 2
                turn = np.zeros((len(self.rows), 4))
                turn[:, 0], turn[:, 1 + axis] = np.cos(half), np.sin(half)
                rotations[:, j] = rot.multiply(rotations[:, j], turn)
        return _without_helper(list(self.joints), rotations, offsets)

    def channels(self):
        """(joint, axis 0 to 2, 'position' or 'rotation', values [T]) of every channel, in order."""
        at = 0
        for j, joint in enumerate(self.joints):
            for channel in joint.channels:
                yield j, "XYZ".index(channel[0]), channel[1:], self.rows[:, at]
                at += 1


def parse(path: str | Path, sample: int | None = None) -> Recording:
    """The content of a BVH file.

    Args:
        sample: at most so many frames, spread evenly, and no warning; None: all.

    Raises:
        UserError: there is no such file, or it is cut short, has a number that is not finite or beyond LARGEST, or
            words that are not BVH. The message names the file and the line or frame.
    """
    path = Path(path).expanduser()
    try:
        lines = [line.text for line in read_lines(path)]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): a BVH file would do") from None
    if len(lines) > 1 and not lines[-1]:
        lines.pop()
    joints, motion = _hierarchy(path, lines)
    return Recording(path, joints, *_rows(path, lines, motion, joints, sample))


def _hierarchy(path: Path, lines: list[str]) -> tuple[list[Joint], int]:
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
            joints.append(Joint(name + str(same + 1) * (same > 0), parent, channels=[] if end else None, end=end))
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


def _rows(path: Path, lines: list[str], motion: int, joints: list[Joint], sample: int | None):
    """The numbers [T, channels] that follow line ``motion``, and the frame rate."""
    labels = [f"{joint.name} {channel}" for joint in joints for channel in joint.channels]
    body = ((at, line) for at, line in enumerate(lines) if at > motion and line.strip())
    stated = []
    for pattern in (r"Frames\s*:\s*(\d{1,12})", r"Frame\s+Time\s*:\s*(\S+)"):
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
    if not FRAME_TIMES[0] <= seconds <= FRAME_TIMES[1]:
        raise _bad(path, at, f"Frame Time is {seconds:g} s, beyond {FRAME_TIMES[0]:g} to {FRAME_TIMES[1]:g} s: "
                             "try 'Frame Time: 0.033333'")  # fmt: skip
    body = list(body)
    taken = range(len(body)) if sample is None else np.unique(np.linspace(0, max(len(body) - 1, 0), sample).astype(int))
    rows = [_floats(path, body[i][0], body[i][1].split(), len(labels), f"frame {i}", labels) for i in taken if body]
    if abs(len(body) - frames) > 1 or not body:
        why = "is cut short" if len(body) < frames else "goes on after its end"
        raise UserError(f"{path} {why}: it has {len(body)} frames and says 'Frames: {frames}'")
    if len(body) != frames and sample is None:
        log.warning("%s says 'Frames: %d' and has %d frames, which are used", path, frames, len(body))
    return np.array(rows).reshape(len(rows), len(labels)), _rate(stated[1])


def _floats(path, at, words, count, what, labels=None) -> list[float]:
    if len(words) != count:
        raise _bad(path, at, f"{what} has {len(words)} numbers of {count}")
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        word = str(error).removeprefix("could not convert string to float: ")
        raise _bad(path, at, f"{what}: {word[:40]} is no number") from None
    good = np.abs(values) < LARGEST  # of NaN too
    if not good.all():
        first = int(np.argmin(good))
        raise _bad(path, at, f"{what} has {values[first]}" + (f" for {labels[first]}" if labels else ""))
    return values


def _bad(path, at, what):
    return UserError(f"{path}, line {at + 1}: {what}")


def _rate(text: str) -> float:
    """Frames per second of a frame time as it is printed."""
    seconds = float(text)
    last_digit = 10.0 ** decimal.Decimal(text).as_tuple().exponent
    for slack, near in ((0.5 * last_digit, NEAR), (last_digit, NEARER)):  # rounded, or cut
        for rates in (RATES, NTSC_RATES):
            off, rate = min((abs(1 / rate - seconds), rate) for rate in rates)
            if off <= min(slack * (1 + 1e-9), near / rate):
                return rate
    return 1 / seconds


def _without_helper(joints, rotations, offsets):
    while True:
        children = [joint for joint in joints if joint.parent == 0]
        if len(children) != 1 or not children[0].moves:
            return joints, rotations, offsets
        offsets[:, 1] = offsets[:, 0] + rot.rotate(rotations[:, 0], offsets[:, 1])
        rotations[:, 1] = rot.multiply(rotations[:, 0], rotations[:, 1])
        joints = [dataclasses.replace(joint, parent=joint.parent - 1) for joint in joints[1:]]
        rotations, offsets = rotations[:, 1:], offsets[:, 1:]

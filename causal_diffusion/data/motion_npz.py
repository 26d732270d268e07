"""Files of motion clips: joint positions and the path of the body, one clip after the other in an npz archive.

positions   [F, J, 3]   metres, y up; x and z around the ground point of the first joint (the hips) of that frame
root_xz     [F, 2]      metres, the ground point
clip_start  int [N + 1]: clip i is rows clip_start[i] : clip_start[i+1]
text, name  str [N]     a caption, and what the clip is called
fps         float       the same in every file, as the number of joints and their names and parents are
joint_names, parents    [J], optional; the parent of the first joint is -1
content, style          int [N], optional, with content_names and style_names: what is done, and how
"""

import logging
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import open_file, retried
from causal_diffusion.motion import joints
from causal_diffusion.text_files import check_share

log = logging.getLogger(__name__)


class Clip(NamedTuple):
    """One clip, as a file has it."""

    positions: np.ndarray  # float32 [T, J, 3], in the world
    name: str
    caption: str
    kind: str  # 'content, style', '' where the file does not say


class Skeletal(NamedTuple):
    """What all files of a folder must agree on."""

    joints: int
    fps: float
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]


def read_file(path: Path) -> tuple[list[Clip], Skeletal]:
    """All clips of a file; those with a value that is not finite are left out with a warning.

    Raises:
        UserError: it is no such file, or more than ``text_files.SHARE`` of its clips are not finite.
        UnreadableError: it cannot be read now.
    """

    def read():
        with open_file(path) as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is no npz archive")
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}

    try:
        data = retried(path, read)
    except UnreadableError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): replace or remove it") from None
    for key in ("positions", "root_xz", "clip_start", "text", "name", "fps"):
        if key not in data:
            raise UserError(f"{path} has no array {key!r}: data.path is a folder of motion clips, see motion_clips.py")
    positions, root, start = data["positions"], data["root_xz"], data["clip_start"]
    frames, count = len(positions), len(start) - 1
    named = dict(text=(count,), name=(count,), root_xz=(frames, 2), positions=(frames, *positions.shape[1:2], 3))
    for key, shape in named.items():
        if data[key].shape != shape:
            raise UserError(f"{path}: {key} has the shape {data[key].shape}; with {count} clips of {frames} frames "
                            f"together it is {shape}")  # fmt: skip
    if count < 1 or start[0] != 0 or start[-1] != frames or (np.diff(start) < 1).any():
        raise UserError(f"{path}: clip_start must rise from 0 to the {frames} frames, clip by clip")
    names, captions = ([str(s) for s in data[key]] for key in ("name", "text"))
    wrong = _not_finite(data, start, names)
    check_share(list(wrong.values()), count, f"clips of {path}")
    if wrong:
        log.warning("left out %d of %d clips of %s: %s", len(wrong), count, path, next(iter(wrong.values())))
    if not 0 < float(data["fps"]) < np.inf:
        raise UserError(f"{path}: fps is {float(data['fps'])}: frames per second, 20 would do")
    skeletal = Skeletal(
        positions.shape[1],
        float(data["fps"]),
        tuple(str(name) for name in data.get("joint_names", ())),
        tuple(int(parent) for parent in data.get("parents", ())),
    )
    kinds = _kinds(data, count)
    clips = []
    for i, (name, caption, kind, a, b) in enumerate(zip(names, captions, kinds, start[:-1], start[1:], strict=True)):
        if i in wrong:
            continue
        world = joints.world(positions[a:b].astype(np.float32), root[a:b].astype(np.float32))
        clips.append(Clip(world, name, caption, kind))
    return clips, skeletal


def _not_finite(data, start, names) -> dict[int, str]:
    """{clip: where it has a value that is not finite}."""
    wrong = {}
    for key in ("positions", "root_xz"):
        bad = ~np.isfinite(data[key]).reshape(len(data[key]), -1).all(axis=1)
        for row in np.flatnonzero(bad):
            clip = int(np.searchsorted(start, row, side="right")) - 1
            wrong.setdefault(clip, f"frame {row - start[clip]} of clip {names[clip]} has a value in {key} that is not "
                                   "finite: repair or remove it")  # fmt: skip
    return wrong


def _kinds(data, count):
    """'content, style' of each clip."""
    named = [key for key in ("content", "style") if key in data and f"{key}_names" in data]
    parts = [[str(data[f"{key}_names"][i]) for i in data[key]] for key in named]
    return [", ".join(of_clip) for of_clip in zip(*parts, strict=True)] if parts else [""] * count

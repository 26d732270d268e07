"""clips.jsonl: what is in a folder of videos, one clip per line.

    {"file": "a/door.mp4", "start": 2.0, "end": 5.5, "label": 3, "caption": "a door opens", "actions":
    "a/door.npy"}

Only "file" is required. Paths are relative to the folder. "start" and "end" are seconds since the file's
first frame. "actions" names a .npy or .csv file of numbers [frames, A]: one row for every frame of the whole
video file as it lies on disk, in which row f is what led from frame f-1 to frame f.
"""

import csv
import io
import logging
import math
import posixpath
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.array_file import read_array
from causal_diffusion.data.folder_files import printable
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import parse_json
from causal_diffusion.text_files import check_share, read_lines, read_text

log = logging.getLogger(__name__)

CLIP_LIST = "clips.jsonl"
_KEYS = ("file", "caption", "label", "actions", "actions_are", "start", "end")
ACTIONS_ARE = ("once", "held")


class Clip(NamedTuple):
    """A stretch of a video file and what is known about it.

    file: relative to the folder, with '/'.
    where: the line that lists it, for messages; '' if none does.
    actions: relative path of the action file, or ''.
    actions_are: 'once', 'held', or '' if the list does not say.
    start, end: seconds since the file's first frame.
    """

    file: str
    where: str = ""
    caption: str = ""
    label: int | None = None
    actions: str = ""
    start: float = 0.0
    end: float = math.inf
    actions_are: str = ""

    @property
    def name(self) -> str:
        """How to name the clip in a message."""
        return f"{self.where} ({printable(self.file)})" if self.where else printable(self.file)


class _UnusableLine(UserError):
    """A line that says nothing wrong of the others: without it the list can be used."""


def read_clip_list(folder: Path, classes: int, action_dim: int) -> list[Clip]:
    """Reads and checks folder/clips.jsonl.

    Args:
        classes: if not 0, every clip must have a label below it.
        action_dim: if not 0, every clip must name an action file.

    Raises:
        UserError: the first line that is wrong, by its number. Lines that are damaged (no UTF-8, no JSON) or whose file
            is not there are left out with a warning, unless they are more than ``text_files.SHARE``.
    """
    clips, wrong = [], []
    lines = [line for line in read_lines(folder / CLIP_LIST) if line.text.strip() or line.wrong]
    for line in lines:
        where = f"{CLIP_LIST} line {line.number}"
        try:
            if line.wrong:
                raise _UnusableLine(f"{where} {line.wrong}")
            clips.append(_parse(line.text, where, folder, classes, action_dim))
        except _UnusableLine as error:
            wrong.append(str(error))
    check_share(wrong, len(lines), f"lines of {folder / CLIP_LIST}")
    if wrong:
        log.warning("left out %d of %d lines of %s: %s", len(wrong), len(lines), CLIP_LIST, wrong[0])
    if not clips:
        raise UserError(f"{folder / CLIP_LIST} lists no clip: write one JSON object per line, "
                        "or remove the file")
    return clips


def read_actions(folder: Path, clip: Clip, frames: int, action_dim: int) -> np.ndarray:
    """The clip's action file, float32 [frames, action_dim], for a video file of so many frames.

    Raises:
        UserError: the file is missing, no table of finite numbers, or of another length or width.
    """
    path = folder / clip.actions
    if path.suffix not in (".npy", ".csv"):
        raise UserError(f"{clip.where}: actions must be a .npy or .csv file, got {clip.actions!r}")
    try:
        actions = _read_table(path)
    except FileNotFoundError:
        raise UserError(f"{clip.where}: there is no action file {clip.actions!r} in the folder") from None
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{clip.where}: {clip.actions!r} is not a table of numbers: {reason}") from error
    if actions.shape != (frames, action_dim):
        raise UserError(f"{clip.where}: {clip.actions!r} has shape {actions.shape}, but {clip.file} has "
                        f"{frames} frames and data.action_dim={action_dim}: "
                        f"it must be ({frames}, {action_dim})")
    if not np.isfinite(actions).all():
        row = int(np.argmax(~np.isfinite(actions).all(axis=1)))
        raise UserError(f"{clip.where}: {clip.actions!r} row {row} is not finite")
    return actions


def _read_table(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        table = read_array(path)
    else:
        rows = csv.reader(io.StringIO(read_text(path)))
        table = np.array([[float(cell) for cell in row] for row in rows if row])
    return table.astype(np.float32)


def _parse(line: str, where: str, folder: Path, classes: int, action_dim: int) -> Clip:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise _UnusableLine(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise UserError(f'{where}: must be an object such as {{"file": "a.mp4"}}, got {type(entry).__name__}')
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}: the keys are {', '.join(_KEYS)}")
    for key in ("file", "caption", "actions"):
        if key in entry and not isinstance(entry[key], str):
            raise UserError(f"{where}: {key} must be a string, got {entry[key]!r}")
    for key in ("start", "end"):
        if key in entry and (type(entry[key]) not in (int, float) or not entry[key] >= 0):
            raise UserError(f"{where}: {key} must be a number of seconds from 0, got {entry[key]!r}")
    if "label" in entry and (type(entry["label"]) is not int or entry["label"] < 0):
        raise UserError(f"{where}: label must be an integer from 0, got {entry['label']!r}")
    if entry.get("actions_are", "once") not in ACTIONS_ARE:
        raise UserError(f"{where}: actions_are must be one of {', '.join(ACTIONS_ARE)}, got {entry['actions_are']!r}")
    if not entry.get("file"):
        raise UserError(f'{where}: "file" is missing')
    entry["file"] = posixpath.normpath(entry["file"])  # one file has one name, or a split could share it
    clip = Clip(where=where, **entry)
    if not (folder / clip.file).is_file():
        raise _UnusableLine(f"{where}: there is no file {clip.file!r} in the folder")
    if not clip.start < clip.end:
        raise UserError(f"{where}: start {clip.start} must be before end {clip.end}")
    if classes and clip.label is None:
        raise UserError(f"{where}: label is missing, and data.classes={classes} asks for one")
    if classes and clip.label >= classes:
        raise UserError(f"{where}: label {clip.label} must be below data.classes={classes}")
    if action_dim and not clip.actions:
        raise UserError(f"{where}: actions is missing, and data.action_dim={action_dim} asks for it")
    return clip

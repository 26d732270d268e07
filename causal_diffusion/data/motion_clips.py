"""Clips of human motion as a source: joint positions and the path of the body, from a folder of npz files.

    *_train_*.npz     the training split          *_test.npz     the held-out one

A file holds clips one after the other; clip i is rows clip_start[i] : clip_start[i+1] of

    positions   [F, J, 3]   metres, y up; x and z around the ground point of the first joint (the hips) of that frame
    root_xz     [F, 2]      metres, the ground point
    clip_start  int [N + 1]
    text, name  str [N]     a caption, and what the clip is called
    fps         float       the same in every file, as the number of joints and their names and parents are
    joint_names, parents    [J], optional; the parent of the first joint is -1

A frame becomes the 2 + 3 J numbers of ``motion.joints``, less the mean of each number over the training split, over one
deviation for each kind of number (HumanML3D's way, Guo et al. 2022): the mean of the deviations of those of its kind.
So joints keep their proportions, and a joint that hardly moves does not become noise.

    clip        |----------------------------------------------|
    elements    [--------][--------][--------]                       data.frames long, starts data.stride apart

Everything is in memory, positions in float16 or float32 as the files have them; sources of one folder that are alive
share it.
"""

import hashlib
import logging
import threading
import weakref
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.config import DataConfig
from causal_diffusion.errors import UserError
from causal_diffusion.motion import joints

log = logging.getLogger(__name__)

PATTERNS = {"train": "*_train_*.npz", "test": "*_test.npz"}


class MotionClips:
    """Windows of the motion clips in data.path: see the module's docstring, and sources.py for an element.

    data.channels is 2 + 3 J and data.height and data.width are 0. Clips shorter than data.frames make no element. Whole
    clips, however short, are ``clip(0)`` to ``clip(clips - 1)``.

    Attributes:
        captions: one string per element.
        clips, names, clip_captions: how many whole clips there are, what they are called, and what they show.
        mean, std: float32 [2 + 3 J], metres: element = (numbers - mean) / std.
        joint_names, parents: of the J joints; () where the files do not say.
        fps: frames per second.

    Raises:
        UserError: the folder is missing, holds no usable file or no long enough clip, or is not what the config says.
    """

    def __init__(self, config: DataConfig, split: str):
        self._config, self._split = config, split
        self._library = library = _library(_checked_folder(config.path))
        if split not in library.clips:
            raise UserError(f"there is no {PATTERNS[split]} in {library.folder}: put the {split} split there")
        self._clips = library.clips[split]
        self.mean, self.std, self.fps = library.mean, library.std, library.body.fps
        self.joint_names, self.parents = library.body.joint_names, library.body.parents
        self.names, self.clip_captions = self._clips.names, self._clips.captions
        _check_config(config, library.body)
        lengths = np.diff(self._clips.start)
        windows = np.maximum(0, (lengths - config.frames) // config.stride + 1)
        _check_lengths(config, split, lengths, self.names)
        # Element i lies in the clip s with first_window[s] <= i < first_window[s + 1].
        self._first_window = np.cumsum([0, *windows])

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        del config
        return 0, 0

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def __repr__(self) -> str:
        c = self._config
        return (
            f"MotionClips(split={self._split!r}, clips={len(self)}, stretches={self.clips}, "
            f"digest={self._library.digest(self._split)}, size={(c.frames, c.channels)}, stride={c.stride})"
        )

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        clip, start = self._locate(range(len(self))[i])
        return {"video": self._read(clip, start, start + self._config.frames)}

    @property
    def captions(self) -> list[str]:
        return [c for c, n in zip(self.clip_captions, np.diff(self._first_window), strict=True) for _ in range(n)]

    @property
    def clips(self) -> int:
        return len(self.names)

    def clip(self, i: int) -> np.ndarray:
        """All frames of clip i, float32 [T, 2 + 3 J], normalised as elements are."""
        return self._read(range(self.clips)[i], 0, None)

    def denormalise(self, x):
        """[..., 2 + 3 J] of elements -> the numbers of ``motion.joints``, metres."""
        return x * self.std + self.mean

    def _locate(self, i: int) -> tuple[int, int]:
        """Element i's clip, and its first frame there."""
        clip = int(np.searchsorted(self._first_window, i, side="right")) - 1
        return clip, (i - int(self._first_window[clip])) * self._config.stride

    def _read(self, clip, start, stop):
        c = self._clips
        rows = slice(*c.start[clip : clip + 2])
        positions, root = c.positions[rows][start:stop], c.root[rows]
        before = root[max(start - 1, 0)]
        return (joints.encode(positions.astype(np.float32), root[start:stop], before) - self.mean) / self.std


class _Clips(NamedTuple):
    """Clips of one split, one after the other."""

    positions: np.ndarray  # float16 or float32 [F, J, 3]
    root: np.ndarray  # float32 [F, 2]
    start: np.ndarray  # int [N + 1]
    names: list[str]
    captions: list[str]

    def numbers(self, i: int) -> np.ndarray:
        """float32 [T, 2 + 3 J] of clip i, metres."""
        rows = slice(*self.start[i : i + 2])
        return joints.encode(self.positions[rows].astype(np.float32), self.root[rows])


class _Body(NamedTuple):
    """What all files must agree on."""

    joints: int
    fps: float
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]


class _Library:
    """The clips of one folder and the statistics of its training split; a class, for weak references to share."""

    def __init__(self, folder: Path, files: dict[str, list[Path]]):
        self.folder, self.clips, bodies = folder, {}, {}
        self._hashes = {}
        for split, paths in files.items():
            parts = []
            for path in paths:
                part, bodies[path] = _read_file(path)
                parts.append(part)
            self.clips[split] = clips = _join(parts)
            content = (clips.positions, clips.root, clips.start, repr((clips.names, clips.captions)).encode())
            self._hashes[split] = "".join(hashlib.sha256(part).hexdigest() for part in content)
        first, self.body = next(iter(bodies.items()))
        for path, body in bodies.items():
            for name, value, other in zip(_Body._fields, body, self.body, strict=True):
                if value != other:
                    raise UserError(f"{path} has {name} {value} and {first.name} has {other}: move one of them away")
        self.mean, self.std = _statistics(self.clips["train"], self.body.joints)

    def digest(self, split: str) -> str:
        """Of a split's content and, through the statistics, of the training split's."""
        return hashlib.sha256((self._hashes["train"] + self._hashes[split]).encode()).hexdigest()[:12]


_open_libraries: weakref.WeakValueDictionary[tuple, _Library] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _library(folder: Path) -> _Library:
    """The folder's content, from a source that is alive if one has it already."""
    files = {split: sorted(folder.glob(pattern)) for split, pattern in PATTERNS.items()}
    files = {split: paths for split, paths in files.items() if paths}
    if "train" not in files:
        raise UserError(f"there is no {PATTERNS['train']} in {folder}: its statistics scale every clip, put it there")
    states = [(path, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths]
    with _opening:
        library = _open_libraries.get(key := tuple(states))
        if library is None:
            library = _open_libraries[key] = _Library(folder, files)
    return library


def _statistics(clips: _Clips, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) of each number, the deviations averaged within their kind."""
    total, squares = np.zeros(joints.width(count)), np.zeros(joints.width(count))
    for i in range(len(clips.names)):
        total += clips.numbers(i).sum(axis=0, dtype=np.float64)
    mean = total / clips.start[-1]
    for i in range(len(clips.names)):
        squares += ((clips.numbers(i) - mean) ** 2).sum(axis=0)
    std = np.sqrt(squares / clips.start[-1])
    for kind in joints.groups(count).values():
        std[kind] = std[kind].mean() if std[kind].mean() > 1e-6 else 1.0  # metres: nothing of this kind moves
    return mean.astype(np.float32), std.astype(np.float32)


def _read_file(path: Path) -> tuple[_Clips, _Body]:
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is no npz archive")
            with np.load(file, allow_pickle=False) as archive:
                data = {key: archive[key] for key in archive.files}
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
    for key in ("positions", "root_xz"):
        bad = ~np.isfinite(data[key]).reshape(frames, -1).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            clip = int(np.searchsorted(start, row, side="right")) - 1
            raise UserError(f"{path}: frame {row - start[clip]} of clip {names[clip]} has a value in {key} that is not "
                            "finite: repair or remove it")  # fmt: skip
    body = _Body(
        positions.shape[1],
        float(data["fps"]),
        tuple(str(name) for name in data.get("joint_names", ())),
        tuple(int(parent) for parent in data.get("parents", ())),
    )
    positions = positions.astype(np.float16 if positions.dtype == np.float16 else np.float32, "C")
    root = root.astype(np.float32, "C")
    return _Clips(positions, root, start.astype(np.int64), names, captions), body


def _join(parts: list[_Clips]) -> _Clips:
    shifts = np.cumsum([0, *(part.start[-1] for part in parts)])
    start = [part.start[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
    return _Clips(
        np.concatenate([part.positions for part in parts]),
        np.concatenate([part.root for part in parts]),
        np.concatenate([*start, shifts[-1:]]),
        [name for part in parts for name in part.names],
        [caption for part in parts for caption in part.captions],
    )


def _checked_folder(path: str) -> Path:
    if not path:
        raise UserError("data.path is empty: set it to a folder of motion clips (npz files)")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path {path!r} is no folder: set it to the one that holds the motion clips (npz files)")
    return folder.resolve()


def _check_config(config: DataConfig, body: _Body) -> None:
    numbers = joints.width(body.joints)
    if config.channels != numbers:
        raise UserError(f"data.channels is {config.channels}: a frame of {body.joints} joints has {numbers} numbers, "
                        f"set data.channels={numbers}")  # fmt: skip
    if config.height or config.width:
        raise UserError(f"data.height is {config.height} and data.width is {config.width}: motion has no pixels, set "
                        "data.height=0 and data.width=0")  # fmt: skip
    if config.fps not in (0, body.fps):
        raise UserError(f"data.fps is {config.fps:g}: these clips have {body.fps:g} frames per second and are not "
                        "resampled, set data.fps=0")  # fmt: skip
    for key in ("classes", "action_dim"):
        if getattr(config, key):
            raise UserError(f"data.{key} is {getattr(config, key)}: motion clips have captions only, set data.{key}=0")


def _check_lengths(config: DataConfig, split: str, lengths: np.ndarray, names: list[str]) -> None:
    short, longest = int((lengths < config.frames).sum()), int(np.argmax(lengths))
    kind = {"train": "training", "test": "held-out"}[split]
    if short == len(lengths):
        raise UserError(f"no {kind} clip has data.frames={config.frames} frames: the longest, {names[longest]}, has "
                        f"{lengths[longest]}; set data.frames to at most {lengths[longest]}")  # fmt: skip
    if short:
        log.warning("skipped %d of %d %s clips: they have fewer than data.frames=%d frames",
                    short, len(lengths), kind, config.frames)  # fmt: skip

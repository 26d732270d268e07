"""Clips of human motion as a source, from a folder of npz files (``motion_npz``) of joint positions.

    *_train_*.npz     the training split          *_test.npz     the held-out one

A clip is resampled to data.fps and told in the numbers of data.representation (``motion.body``), less the mean of each
number over the training split, over one deviation for each kind of number.

    clip        |----------------------------------------------|
    elements    [--------][--------][--------]                       data.frames long, starts data.stride apart
    short clip  |------|~~~~                                         from data.shortest frames on: padded with zeros

With data.shortest an element also says how many of its frames count ('length'), a multiple of four. With data.mirror
the training split has every clip twice, the second time left and right exchanged, in the caption too. With data.unseen
a share of the kinds (content and style) is not in the training split at all: every content and every style is, but not
these together.

Everything is in memory, as float32; sources of one folder that are alive share it.
"""

import hashlib
import logging
import threading
import weakref
from pathlib import Path

import numpy as np

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.motion_npz import read_file
from causal_diffusion.errors import UserError
from causal_diffusion.motion.body import REPRESENTATIONS, Body, statistics
from causal_diffusion.motion.mirror import mirror_caption, mirror_positions
from causal_diffusion.motion.resample import resample
from causal_diffusion.motion.skeleton import of

log = logging.getLogger(__name__)

PATTERNS = {"train": "*_train_*.npz", "test": "*_test.npz"}
UNIT = 4  # frames: a clip that is padded counts to a multiple of these, as many as motion autoencoders join


class MotionClips:
    """Windows of the motion clips in data.path: see the module's docstring, and sources.py for an element.

    data.channels is the width of the representation and data.height and data.width are 0. Clips shorter than
    data.frames, or than data.shortest if that is set, make no element. Whole clips, however short, are ``clip(0)`` to
    ``clip(clips - 1)``.

    Attributes:
        captions, kinds: one string per element: what it shows; its content and style, as the files say ('' if not).
        clips, names, clip_captions, clip_kinds: how many whole clips there are, what they are called, and what they
            show.
        body: what the numbers mean (``motion.body``); mean, std: float32 [C], element = (numbers - mean) / std.
        fps: frames per second.
        unseen: kinds that the training split does not have.

    Raises:
        UserError: the folder is missing, holds no usable file or no long enough clip, or is not what the config says.
    """

    def __init__(self, config: DataConfig, split: str):
        self._config, self._split = config, split
        self._library = library = _library(_checked_folder(config.path), config)
        if split not in library.clips:
            raise UserError(f"there is no {PATTERNS[split]} in {library.folder}: put the {split} split there")
        self.body, self.fps, self.unseen = library.body, library.body.fps, library.unseen
        self.mean, self.std = np.float32(self.body.mean), np.float32(self.body.std)
        kept = library.clips[split]
        self._numbers = [numbers for _, numbers in kept]
        self.names = [clip.name for clip, _ in kept]
        self.clip_captions = [clip.caption for clip, _ in kept]
        self.clip_kinds = [clip.kind for clip, _ in kept]
        _check_config(config, library.body)
        lengths = np.array([len(numbers) for numbers in self._numbers])
        kind = {"train": "training", "test": "held-out"}[split]
        windows = count_windows(config, lengths, self.names, kind, f"no {kind} clip")
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
        shortest = f", shortest={c.shortest}" if c.shortest else ""
        return (
            f"MotionClips(split={self._split!r}, clips={len(self)}, stretches={self.clips}, "
            f"digest={self._library.digest(self._split)}, size={(c.frames, c.channels)}, stride={c.stride}{shortest})"
        )

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        clip, start = self._locate(range(len(self))[i])
        frames = self._normal(self._numbers[clip][start : start + self._config.frames])
        if not self._config.shortest:
            return {"video": frames}
        return padded(frames, self._config.frames)

    @property
    def captions(self) -> list[str]:
        return self._by_element(self.clip_captions)

    @property
    def kinds(self) -> list[str]:
        return self._by_element(self.clip_kinds)

    @property
    def clips(self) -> int:
        return len(self.names)

    def clip(self, i: int) -> np.ndarray:
        """All frames of clip i, float32 [T, C], normalised as elements are."""
        return self._normal(self._numbers[range(self.clips)[i]])

    def denormalise(self, x):
        """[..., C] of elements -> the numbers of the representation."""
        return self.body.denormalise(x)

    def _normal(self, numbers):
        return (numbers - self.mean) / self.std

    def _by_element(self, of_clip):
        return [value for value, n in zip(of_clip, np.diff(self._first_window), strict=True) for _ in range(n)]

    def _locate(self, i: int) -> tuple[int, int]:
        """Element i's clip, and its first frame there."""
        clip = int(np.searchsorted(self._first_window, i, side="right")) - 1
        return clip, (i - int(self._first_window[clip])) * self._config.stride


def padded(frames: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """{'video': frames [T, C] with zeros up to ``length``, 'length': how many count, a multiple of UNIT}."""
    count = min(len(frames), length) // UNIT * UNIT
    video = np.zeros((length, *frames.shape[1:]), np.float32)
    video[:count] = frames[:count]
    return {"video": video, "length": np.asarray(count, np.int32)}


def count_windows(config: DataConfig, lengths: np.ndarray, names: list[str], kind: str, none: str) -> np.ndarray:
    """How many elements each clip makes, by its frames: int [clips]. Those that make none are told in the log.

    Args:
        names: of the clips.
        kind, none: what clips of this split are called in messages, and how it is said that there is none.

    Raises:
        UserError: no clip makes any.
    """
    key = "shortest" if config.shortest else "frames"
    least, longest = getattr(config, key), int(np.argmax(lengths))
    short = int((lengths < least).sum())
    if short == len(lengths):
        raise UserError(f"{none} has data.{key}={least} frames: the longest, {names[longest]}, has {lengths[longest]}; "
                        f"set data.{key} to at most {lengths[longest]}")  # fmt: skip
    if short:
        log.warning("skipped %d of %d %s clips: they have fewer than data.%s=%d frames",
                    short, len(lengths), kind, key, least)  # fmt: skip
    windows = np.maximum(0, (lengths - config.frames) // config.stride + 1)
    return np.maximum(windows, lengths >= config.shortest) if config.shortest else windows


class _Library:
    """The clips of one folder, told in a representation; a class, for weak references to share."""

    def __init__(self, folder: Path, files: dict[str, list[Path]], config: DataConfig):
        self.folder, self.clips, read = folder, {}, {}
        skeletals = {}
        for split, paths in files.items():
            read[split] = []
            for path in paths:
                clips, skeletals[path] = read_file(path)
                read[split] += clips
        first, skeletal = next(iter(skeletals.items()))
        for path, other in skeletals.items():
            for name, value, wanted in zip(skeletal._fields, other, skeletal, strict=True):
                if value != wanted:
                    raise UserError(f"{path} has {name} {value} and {first.name} has {wanted}: move one of them away")
        self.unseen = _unseen([clip.kind for clip in read["train"]], config.unseen)
        read["train"] = [clip for clip in read["train"] if clip.kind not in self.unseen]
        kind, fps = REPRESENTATIONS[config.representation], config.fps or skeletal.fps
        names = skeletal.joint_names or tuple(f"joint {i}" for i in range(skeletal.joints))
        skeleton = None
        if config.representation != "joints" or config.mirror:
            if not skeletal.parents:
                raise UserError(f"{first} has no 'joint_names' and 'parents', and data.representation = "
                                f"{config.representation!r} and data.mirror ask for them: data.representation = "
                                "'joints', data.mirror = False would do")  # fmt: skip
            skeleton = of(names, skeletal.parents)
        if config.mirror:
            read["train"] += [
                clip._replace(
                    positions=mirror_positions(clip.positions, skeleton),
                    caption=mirror_caption(clip.caption), kind=mirror_caption(clip.kind),
                    name=f"{clip.name}, mirrored",
                )
                for clip in read["train"]
                if mirror_caption(clip.kind) not in self.unseen
            ]  # fmt: skip
        for split, clips in read.items():
            self.clips[split] = []
            for clip in clips:
                positions = resample(clip.positions, skeletal.fps, fps)
                if len(positions) > kind.lost:
                    numbers = kind.encode(positions, skeleton).astype(np.float32)
                    self.clips[split].append((clip._replace(positions=None), numbers))
        mean, std = statistics([numbers for _, numbers in self.clips["train"]], config.representation, skeletal.joints)
        scale = (tuple(map(float, mean)), tuple(map(float, std)))
        self.body = Body(config.representation, names, skeletal.parents or (-1,) * skeletal.joints, float(fps), *scale)

    def digest(self, split: str) -> str:
        """Of a split's content and, through the statistics, of the training split's."""
        content = hashlib.sha256(repr((self.body.mean, self.body.std)).encode())
        for clip, numbers in self.clips[split]:
            content.update(repr((clip.name, clip.caption, clip.kind)).encode())
            content.update(numbers)
        return content.hexdigest()[:12]


_open_libraries: weakref.WeakValueDictionary[tuple, _Library] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _library(folder: Path, config: DataConfig) -> _Library:
    """The folder's content, from a source that is alive if one has it already."""
    files = {split: sorted(folder.glob(pattern)) for split, pattern in PATTERNS.items()}
    files = {split: paths for split, paths in files.items() if paths}
    if "train" not in files:
        raise UserError(f"there is no {PATTERNS['train']} in {folder}: its statistics scale every clip, put it there")
    states = [(path, path.stat().st_size, path.stat().st_mtime_ns) for paths in files.values() for path in paths]
    told = (config.representation, config.fps, config.mirror, config.unseen)
    with _opening:
        library = _open_libraries.get(key := (told, *states))
        if library is None:
            library = _open_libraries[key] = _Library(folder, files, config)
    return library


def _unseen(kinds: list[str], share: float) -> tuple[str, ...]:
    """About that share of the kinds, always the same ones; of each content and of each style at least one stays."""
    if not share:
        return ()
    pairs = sorted(set(kinds))
    if any(kind.count(", ") != 1 for kind in pairs):
        raise UserError(f"data.unseen is {share} and the clips have no content and style: data.unseen = 0 would do")
    left = {part: sum(part in kind.split(", ") for kind in pairs) for pair in pairs for part in pair.split(", ")}
    out = []
    for i in np.random.default_rng(0).permutation(len(pairs)):
        parts = pairs[i].split(", ")
        if len(out) < round(share * len(pairs)) and all(left[part] > 1 for part in parts):
            out.append(pairs[i])
            for part in parts:
                left[part] -= 1
    return tuple(sorted(out))


def _checked_folder(path: str) -> Path:
    if not path:
        raise UserError("data.path is empty: set it to a folder of motion clips (npz files)")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.path {path!r} is no folder: set it to the one that holds the motion clips (npz files)")
    return folder.resolve()


def _check_config(config: DataConfig, body: Body) -> None:
    numbers = len(body.mean)
    if config.channels != numbers:
        raise UserError(f"data.channels is {config.channels}: a frame of {body.joints} joints has {numbers} numbers in "
                        f"data.representation={config.representation!r}, set data.channels={numbers}")  # fmt: skip
    if config.height or config.width:
        raise UserError(f"data.height is {config.height} and data.width is {config.width}: motion has no pixels, set "
                        "data.height=0 and data.width=0")  # fmt: skip
    if 0 < config.shortest < UNIT:
        raise UserError(f"data.shortest is {config.shortest}: a motion is at least four frames, set "
                        f"data.shortest={UNIT}")  # fmt: skip
    for key in ("classes", "action_dim"):
        if getattr(config, key):
            raise UserError(f"data.{key} is {getattr(config, key)}: motion clips have captions only, set data.{key}=0")

"""Any folder of video files as a source of clips.

All files are decoded once at the start, at the target size, and kept as uint8: in memory up to MEMORY_BUDGET,
beyond it in an unnamed temporary file that is mapped into memory. That costs one pass over the data (two over damaged
files) and finds what damage FFmpeg notices before the first step; reading a clip afterwards is a copy. The decoded
files are shared by all sources of the same folder and size that are alive, whatever their split or clip length.

    file      |----------------------------------------------|      frames at data.fps
    clip            |<- start                      end ->|          all of the file, or as clips.jsonl says
    elements        [--------][--------][--------]                  data.frames long, starts data.stride apart

If the folder has a clips.jsonl (see clip_list.py), only the files it names are used. Clips are cut where frames are
damaged or missing, and where the clock jumps (video_decode.py): an element lies between two cuts.
"""

import hashlib
import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.clip_list import CLIP_LIST, Clip, read_actions, read_clip_list
from causal_diffusion.data.config import DataConfig, held_out_count
from causal_diffusion.data.folder_files import Unused, printable
from causal_diffusion.data.video_decode import DecodedVideo, NoVideoError, UndecodableError, decode_video
from causal_diffusion.data.video_files import find_files
from causal_diffusion.errors import UserError
from causal_diffusion.frames import as_floats

log = logging.getLogger(__name__)

# Endings that promise a video: a file that has one and is not used is named in a line of its own.
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".mts",
            ".m2ts", ".ogv", ".3gp", ".3g2", ".vob", ".mxf", ".webp", ".apng")  # fmt: skip
MEMORY_BUDGET = 2**30  # bytes of decoded frames kept in memory; the rest waits in a temporary file
MOST_DECODERS = 8      # files decoded at once, though at least data.threads: each has its pictures in memory


class VideoFolder:
    """Clips of the videos in data.path: see the module's docstring, and sources.py for what an element holds.

    Held out are whole files, chosen by a hash of their names; of a single file, the last part of its time.
    Files that cannot be decoded and clips shorter than data.frames are skipped with a warning.

    `captions` has one string per element, '' where clips.jsonl gives none.

    Raises:
        UserError: the folder is missing or holds nothing usable, or clips.jsonl or an action file is wrong.
    """

    def __init__(self, config: DataConfig, split: str):
        self._config, self._split = config, split
        folder = _checked_folder(config.path)
        clips, unused = _find_clips(folder, config)
        self._library = _library(folder, sorted({clip.file for clip in clips}), unused, config)
        videos = self._library.videos
        clips = [clip for clip in clips if clip.file in videos]
        self._actions = {}
        if config.action_dim:
            clips = [clip for clip in clips if self._read_actions(folder, clip, videos[clip.file])]
            if not clips:
                raise UserError(f"no clip in {folder} has actions that fit its video: the warnings above name them")
        stretches = [stretch for clip in clips for stretch in _Stretch.all_of(clip, videos[clip.file])]
        self._stretches = self._long_enough(_of_split(stretches, split, config.holdout))
        windows = [(s.stop - s.start - config.frames) // config.stride + 1 for s in self._stretches]
        # Element i lies in the stretch s with first_window[s] <= i < first_window[s + 1].
        self._first_window = np.cumsum([0, *windows])

    def _read_actions(self, folder: Path, clip: Clip, video: DecodedVideo) -> bool:
        """Whether the clip has actions: of a damaged file they may fit no more."""
        key = clip.file, clip.actions, clip.actions_are
        if key in self._actions:
            return True
        try:
            own = read_actions(folder, clip, video.own_frames, self._config.action_dim)
        except UserError as error:
            if not video.damage:
                raise
            log.warning("skipped a clip: %s, which is damaged", error)
            return False
        if not clip.actions_are and (np.diff(video.shown) == 0).any():
            log.warning('%s shows frames again at data.fps=%g, with the same action again, as clips.jsonl does not say '
                        'how long an action lasts: try "actions_are": "once" or "held"', clip.name,
                        self._config.fps)  # fmt: skip
        self._actions[key] = _resample_actions(own, video, clip.actions_are)
        return True

    @staticmethod
    def condition_sizes(config: DataConfig) -> tuple[int, int]:
        return config.classes, config.action_dim

    def __len__(self) -> int:
        return int(self._first_window[-1])

    def __repr__(self) -> str:
        c = self._config
        content = [(s.clip.file, s.start, s.stop) for s in self._stretches]
        digest = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
        size = (c.frames, c.height, c.width, c.channels)
        return (f"VideoFolder(split={self._split!r}, clips={len(self)}, stretches={len(content)}, "
                f"digest={digest}, size={size}, fps={c.fps}, stride={c.stride})")

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        stretch, window = self._locate(range(len(self))[i])
        video, clip = self._library.videos[stretch.clip.file], stretch.clip
        element = {"video": as_floats(video.pictures[video.picture[window]])}
        if self._config.classes:
            element["label"] = np.asarray(clip.label, np.int32)
        if self._config.action_dim:
            element["action"] = self._actions[clip.file, clip.actions, clip.actions_are][window].copy()
        return element

    @property
    def captions(self) -> list[str]:
        counts = np.diff(self._first_window)
        return [s.clip.caption for s, n in zip(self._stretches, counts, strict=True) for _ in range(n)]

    def _locate(self, i: int) -> tuple["_Stretch", slice]:
        """Element i's stretch, and its frames among those of the file."""
        s = int(np.searchsorted(self._first_window, i, side="right")) - 1
        start = self._stretches[s].start + (i - int(self._first_window[s])) * self._config.stride
        return self._stretches[s], slice(start, start + self._config.frames)

    def _long_enough(self, stretches: list["_Stretch"]) -> list["_Stretch"]:
        frames, name = self._config.frames, {"train": "training", "test": "held-out"}[self._split]
        longest: dict[Clip, int] = {}  # of a clip that is cut, the longest part counts
        for s in stretches:
            longest[s.clip] = max(s.stop - s.start, longest.get(s.clip, 0))
        for clip, length in longest.items():
            if 0 < length < frames:  # 0: the other split has all of it
                log.warning("skipped a %s clip: %s has %d frames, fewer than data.frames=%d",
                            name, clip.name, length, frames)
        kept = [s for s in stretches if s.stop - s.start >= frames]
        if not kept:
            clip = max(longest, key=longest.get)
            raise UserError(f"no {name} clip has data.frames={frames} frames: the longest, "
                            f"{clip.name}, has {longest[clip]}; "
                            f"set data.frames to at most {longest[clip]}, or add longer videos")
        return kept


class _Stretch(NamedTuple):
    """A clip's frames [start, stop) among the decoded frames of its file, without a cut."""

    clip: Clip
    start: int
    stop: int

    @classmethod
    def all_of(cls, clip: Clip, video: DecodedVideo) -> list["_Stretch"]:
        """One for each section of the file."""
        # A microsecond of slack: "start": 0.1 means the frame that shows at 0.1 s, however 1/fps rounds.
        start, stop = np.searchsorted(video.times, [clip.start - 1e-6, clip.end - 1e-6])
        if start >= stop:
            message = (f"{clip.name}: there is no frame from {clip.start} s to "
                       f"{clip.end} s: its last one is at {video.times[-1]:.3f} s")
            if not video.damage:
                raise UserError(message)
            log.warning("skipped a clip: %s, and the file is damaged", message)
            return []
        cuts = start + 1 + np.flatnonzero(np.diff(video.section[start:stop]))
        edges = [int(start), *map(int, cuts), int(stop)]
        return [cls(clip, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


class _Library:
    """The decoded files of one folder at one size. A class, so that weak references can share it."""

    def __init__(self, videos: dict[str, DecodedVideo]):
        self.videos = videos


_open_libraries: weakref.WeakValueDictionary[tuple, _Library] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _library(folder: Path, files: list[str], unused: Unused | None, config: DataConfig) -> _Library:
    """The decoded files, from a source that is alive if one has them already."""
    states = [(folder / file).stat() for file in files]
    key = (folder, config.height, config.width, config.channels, config.fps,
           *((file, state.st_size, state.st_mtime_ns) for file, state in zip(files, states, strict=True)))
    with _opening:
        library = _open_libraries.get(key)
        if library is None:
            library = _open_libraries[key] = _Library(_decode_all(folder, files, unused, config))
    return library


def _decode_all(folder: Path, files: list[str], unused: Unused | None, config: DataConfig) -> dict[str, DecodedVideo]:
    """Unused: what was left out before, if the folder was searched."""
    from tqdm import tqdm

    in_memory, counting = 0, threading.Lock()

    def decode(file: str) -> DecodedVideo | UndecodableError:
        nonlocal in_memory
        try:
            video = decode_video(folder / file, config.height, config.width, config.channels, config.fps)
        except UndecodableError as error:
            return error
        with counting:
            fits = in_memory + video.pictures.nbytes <= MEMORY_BUDGET
            in_memory += video.pictures.nbytes if fits else 0
        return video if fits else video._replace(pictures=_spool(video.pictures))

    videos, searched = {}, unused is not None
    unused = unused if searched else Unused()
    # A file is decoded by one thread, which is how damage is found, so several files at once use the machine.
    pool = ThreadPoolExecutor(max(1, config.threads, min(os.cpu_count() or 1, MOST_DECODERS)))
    try:
        decoded = tqdm(pool.map(decode, files), "decoding videos", len(files), leave=False, unit="file")
        for file, video in zip(files, decoded, strict=True):
            if isinstance(video, DecodedVideo):
                videos[file] = video
            elif searched and isinstance(video, NoVideoError):
                unused.add(str(video), file)
            elif searched and not file.lower().endswith(SUFFIXES):
                unused.add("that FFmpeg cannot read", file)
            else:
                log.warning("skipped %s: it cannot be decoded: %s", printable(file), video)
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C need not wait for the files not yet begun
    if unused:
        log.log(logging.INFO if unused.ordinary else logging.WARNING, "not used: %s", unused)
    if not videos:
        raise UserError(f"none of the {len(files)} video files in {folder} can be decoded (the first is "
                        f"{printable(files[0])}): play one to see whether it is damaged")
    _report(videos)
    return videos


def _report(videos: dict[str, DecodedVideo]) -> None:
    """Warns of damage, file by file, and of what is not shown as declared, all files in one line."""
    noted: dict[str, Unused] = {}
    for file, video in videos.items():
        if video.damage:
            log.warning("%s: %s: clips are cut there", printable(file), "; ".join(video.damage))
        for note in video.notes:
            noted.setdefault(note, Unused()).add("files", file)
    for note, files in noted.items():
        log.warning("%s: %s", files, note)


def _spool(frames: np.ndarray) -> np.ndarray:
    """The same array, read back from a temporary file without a name: it goes when the array does."""
    try:
        with tempfile.TemporaryFile() as file:
            file.write(frames.data)
            file.flush()
            return np.memmap(file, frames.dtype, "r", shape=frames.shape)
    except OSError as error:
        raise UserError(f"no room in {tempfile.gettempdir()} for {frames.nbytes / 1e6:,.0f} MB of decoded "
                        f"frames ({error.strerror}): free some, set TMPDIR, or lower data.height, data.width "
                        "or data.fps") from error


def _checked_folder(path: str) -> Path:
    if not path:
        raise UserError("data.path is empty: set it to a folder of video files")
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"data.path {path!r} does not exist: set it to a folder of video files")
    if not folder.is_dir():
        raise UserError(f"data.path {path!r} is not a folder: set it to the one that holds the video files")
    return folder.resolve()


def _find_clips(folder: Path, config: DataConfig) -> tuple[list[Clip], Unused | None]:
    """The clips that clips.jsonl lists, or else one for every file below the folder, and the files left out."""
    if (folder / CLIP_LIST).exists():
        return read_clip_list(folder, config.classes, config.action_dim), None
    for key in ("classes", "action_dim"):
        if getattr(config, key):
            raise UserError(f"data.{key}={getattr(config, key)} needs a {CLIP_LIST} in {folder}: write one, "
                            f"or set data.{key}=0")
    files, unused = find_files(folder)
    if not files:
        found = f", only other files: {unused}" if unused else ""
        raise UserError(f"there is no video file in {folder}{found}: put some there ({' '.join(SUFFIXES)}, or any "
                        "other that FFmpeg reads)")
    return [Clip(name) for name in files], unused


def _of_split(stretches: list[_Stretch], split: str, holdout: float) -> list[_Stretch]:
    """The stretches of one split. Which files it gets depends on their names and on holdout alone."""
    files = _by_hash({s.clip.file for s in stretches})
    if len(files) > 1 or holdout == 0:
        held_out = set(files[:held_out_count(len(files), holdout)])
        return [s for s in stretches if (s.clip.file in held_out) == (split == "test")]
    first, last = min(s.start for s in stretches), max(s.stop for s in stretches)
    cut = last - round(holdout * (last - first))
    if split == "test":
        return [s._replace(start=max(s.start, cut), stop=max(s.stop, cut)) for s in stretches]
    return [s._replace(start=min(s.start, cut), stop=min(s.stop, cut)) for s in stretches]


def _by_hash(files: Iterable[str]) -> list[str]:
    """An order that looks random, is the same everywhere, and hardly changes when a file is added."""
    return sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest())


def _resample_actions(own: np.ndarray, video: DecodedVideo, actions_are: str) -> np.ndarray:
    """Actions of the file's own frames [n, A] -> of the N slots [N, A], as clip_list.py says.

    A slot gets those of the frames since the slot before: all that led from there to here. After a cut it gets that of
    its own frame.
    """
    before = np.append(-1, video.shown[:-1])
    first = np.append(True, np.diff(video.section) > 0)
    start = np.where(first, video.shown, np.minimum(before + 1, video.shown))
    combine = np.sum if actions_are == "once" else np.mean
    actions = np.stack([combine(own[a:b + 1], axis=0) for a, b in zip(start, video.shown, strict=True)])
    if actions_are == "once":
        actions[(video.shown == before) & ~first] = 0
    return actions

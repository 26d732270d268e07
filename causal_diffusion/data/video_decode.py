"""One video file -> an array of small frames, with PyAV.

Each output slot holds the frame that a player shows at its time (video_time.py), as the file declares that it is to be
shown (video_display.py). Frames that damage may have changed are left out (video_damage.py). The time is cut where
frames are missing, and what lies between two cuts is a section.

A frame that fills several slots is kept once.
"""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.video_damage import Frames, description, errors_of_ffmpeg
from causal_diffusion.data.video_display import Crop, Display, deinterlaced
from causal_diffusion.data.video_time import Clock, has_slot, slots
from causal_diffusion.errors import UnreadableError
from causal_diffusion.file_access import is_transient, open_file, retried, size_and_sha256

# Containers in which the time to the next frame is the declared duration of a frame.
_HOLDS = {"mov", "gif", "apng", "avi", "webp", "nut"}
_LISTS = {"hls", "dash", "concat", "concatf", "imf", "sdp", "rtsp", "applehttp"}  # name other files
_OPTIONS = {"protocol_whitelist": "file"}  # a file cannot make the decoder open an address



class DecodedVideo(NamedTuple):
    """N slots of one file.

    pictures: uint8 [P, H, W, C], those that any slot shows.
    picture: int64 [N], the picture of each slot.
    times: float64 [N], seconds since the file's first frame.
    shown: int64 [N], which of the file's own frames each slot shows.
    section: int64 [N], rising; it changes where the time is cut.
    own_frames: the number of frames in the file.
    damage: spans of time that are left out, and why, in words.
    notes: what the file declares and is not applied, in words.
    """

    pictures: np.ndarray
    picture: np.ndarray
    times: np.ndarray
    shown: np.ndarray
    section: np.ndarray
    own_frames: int
    damage: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> np.ndarray:
        """uint8 [N, H, W, C], read-only: a copy if a picture fills several slots."""
        if len(self.pictures) == len(self.picture):
            return self.pictures
        frames = self.pictures[self.picture]
        frames.flags.writeable = False
        return frames


class UndecodableError(Exception):
    """Nothing of this file can be decoded; the message says why."""


class NoVideoError(UndecodableError):
    """This file is something else than a video; the message says what."""


def decode_video(path: Path, height: int, width: int, channels: int, fps: float = 0.0) -> DecodedVideo:
    """Decodes the main video stream of a file.

    Args:
        path: the file.
        height, width: of a frame, in pixels.
        channels: 1 (grey) or 3 (RGB).
        fps: frames per second after resampling; 0 keeps every frame of the file.

    Raises:
        NoVideoError: not a video.
        UndecodableError: no frame can be decoded.
        UnreadableError: the system cannot read the file now.
    """
    size = (height, width, channels)
    try:
        retried(path, lambda: open_file(path).close())
        reading = _read(path, size, fps, None)
        if reading.source.suspicious:  # what a clock makes of damaged frames is noise: the next one gets the others
            reading = _read(path, size, fps, reading)
    except (UndecodableError, UnreadableError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # FFmpegError is one of them, by its kind
        if is_transient(error):  # or damage, of which FFmpeg says the same
            size_and_sha256(path)
        raise UndecodableError(getattr(error, "strerror", None) or str(error).partition("\n")[0]) from error
    return reading.finished(size, fps)


def _read(path: Path, size: tuple[int, int, int], fps: float, before: "_Reading | None") -> "_Reading":
    """Reads a file to its end. Before: what an earlier reading of it knows, which found damage."""
    import av

    # Titles that are not UTF-8 are replaced; from PyAV 19 on that is how it reads them, and the option is gone.
    titles = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    with (errors_of_ffmpeg() as errors,
          av.open(os.path.abspath(path), options=_OPTIONS, **titles) as container):  # fmt: skip
        stream = _video_stream(container)
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        reading = _Reading(container, stream, size, errors, before)
        for frame, (i, ratio) in deinterlaced(reading.timed()):
            reading.keep(frame, i, ratio, fps)
    return reading


def _video_stream(container):
    """The main picture, which is no cover of a record."""
    name = container.format.name
    kinds = set(name.split(","))
    if name.endswith("_pipe") or kinds & {"image2", "ico", "tty"}:
        raise NoVideoError(f"FFmpeg reads it as a still picture ({name})")
    if kinds & _LISTS:
        raise NoVideoError(f"it is a list of other files ({name})")
    covers = [s for s in container.streams.video if "attached_pic" in _dispositions(s)]
    videos = [s for s in container.streams.video if s not in covers]
    if not videos:
        raise NoVideoError("it has no video stream" + (", only a cover picture" if covers else ""))
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise UndecodableError("FFmpeg has no decoder for its video stream")
    return stream


def _dispositions(stream) -> set[str]:
    return {flag.name for flag in type(stream.disposition) if flag & stream.disposition}


class _Reading:
    """What is known of a file while it is read: its frames' times and trust, and the pictures that slots show.

    Frames have three numbers: that of the decoder's output, that among the good ones (which `_clock`, `_place` and
    `_kept` count), and that among all frames of the file.
    """

    def __init__(self, container, stream, size: tuple[int, int, int], errors: list, before: "_Reading | None"):
        self.source = Frames(container, stream, errors)
        # Packets of frames that can be trusted: what a decoder makes of the others differs from time to time.
        self._good = before.good_packets() if before else None
        self._notes: list[str] = []
        crop = Crop.of(description(container), stream.index)
        self._display = Display(*size, self._notes.append, crop)
        self._context = stream.codec_context
        self._unit = float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        constant = bool(stream.base_rate) and abs(stream.base_rate / rate - 1) < 0.01
        self._usual = 1 / float(stream.guessed_rate or rate)
        holds = bool(_HOLDS & set(container.format.name.split(",")))
        zero = before.first_time() if before else None
        self._clock = Clock(self._unit, rate if constant else None, self._usual, holds, zero)
        self._declared_end = _declared_end(stream)  # by the file's clock
        # A container's aspect ratio overrides the codec's, which may change on the way.
        ratio = stream.sample_aspect_ratio
        self._ratio = ratio if ratio != self._context.sample_aspect_ratio else None
        self._place: list[int] = []  # of each good frame, its number among the decoder's
        self._pixels = bytearray()   # grows in place: a list of frames to be stacked would need the memory twice
        self._kept: list[int] = []   # the good frame of each picture

    def good_packets(self) -> set[int]:
        """The packets of the frames that can be trusted. Raises UndecodableError if there is none."""
        decoded, good = self.source.decoded, self.source.good()
        if not good.any():
            raise UndecodableError(f"all of its {len(good)} frames are damaged" if decoded else
                                   "none of its frames can be decoded")  # fmt: skip
        return {frame.order for frame, kept in zip(decoded, good, strict=True) if kept}

    def first_time(self) -> float | None:
        """The time stamp of the file's first frame, damaged or not, in seconds: None if it is not known."""
        stamps = [stamp for stamp in self.source.stamps.values() if stamp is not None]
        first_good = self.source.decoded[int(np.argmax(self.source.good()))].stamp
        return None if first_good is None or min(stamps) > first_good else min(stamps) * self._unit

    def timed(self) -> Iterator[tuple]:
        """(frame, whether it begins a section, (number, sample aspect ratio)) of each good frame, when the clock
        knows how long it is shown."""
        before = None
        for place, frame in enumerate(self.source):
            if self._good is not None and self.source.decoded[-1].order not in self._good:
                continue
            unit = float(frame.time_base or self._unit)
            self._clock.place(None if frame.pts is None else frame.pts * unit, (frame.duration or 0) * unit)
            fresh = bool(self._place) and (place > self._place[-1] + 1 or self._clock.jumped)
            self._place.append(place)
            if before is not None:
                yield before
            before = frame, fresh, (len(self._place) - 1, self._ratio or self._context.sample_aspect_ratio)
        if before is not None:
            yield before

    def keep(self, frame, i: int, ratio: Fraction | None, fps: float) -> None:
        """Keeps the picture of good frame i, if a slot shows it."""
        if self._good is None and self.source.suspicious:
            return  # another reading follows, and the frame may be anything
        begin = self._clock.begins[i]
        if has_slot(begin, begin + self._clock.durations[i], fps):
            self._pixels += self._display(frame, ratio).tobytes()
            self._kept.append(i)

    def finished(self, size: tuple[int, int, int], fps: float) -> DecodedVideo:
        """Raises UndecodableError if nothing can be shown."""
        if not self._place:
            raise UndecodableError("it has no frames")
        number, own_frames = self._numbers()
        jumps = np.isin(np.arange(len(number)), [jump.frame for jump in self._clock.jumps])
        missing = np.append(False, np.diff(number) > 1) | self._after_holes()  # frames before this one
        durations, before = np.array(self._clock.durations), np.append(missing[1:], False)
        begins = np.array(self._clock.begins)
        ends = begins + np.where(before, np.minimum(durations, self._usual), durations)
        times, shown = (begins, np.arange(len(number))) if fps == 0 else slots(begins, ends, fps)
        if not len(times):
            raise UndecodableError(f"no frame of it shows at a multiple of 1 / {fps:g} s: it is {ends[-1]:.3f} s long")
        pictures = np.frombuffer(self._pixels, np.uint8).reshape(-1, *size)
        pictures.flags.writeable = False  # shared by all who read the file
        damage = [*_left_out(missing, number, own_frames, begins, ends), *map(str, self._clock.jumps),
                  *self._early_end()]  # fmt: skip
        return DecodedVideo(pictures, np.searchsorted(self._kept, shown), times, number[shown],
                            np.cumsum(jumps | missing)[shown], own_frames, tuple(damage),
                            tuple(dict.fromkeys(self._notes)))  # fmt: skip

    def _numbers(self) -> tuple[np.ndarray, int]:
        """(each good frame's number among all of the file, the number of those). Lost frames count."""
        stamps = sorted(stamp for stamp in self.source.stamps.values() if stamp is not None)
        own = [self.source.decoded[place].stamp for place in self._place]
        known = len(set(stamps)) == len(self.source.stamps) and set(own) <= set(stamps)
        if self._good is None or not known:
            return np.array(self._place), len(self.source.decoded) + len(self.source.lost)
        return np.searchsorted(stamps, own), len(stamps)

    def _after_holes(self) -> np.ndarray:
        """Which good frames are the first after packets that are missing in the file."""
        order = np.array([self.source.decoded[place].order for place in self._place])
        first = [int(np.argmax(order >= hole)) for hole in self.source.holes if (order >= hole).any()]
        return np.isin(np.arange(len(order)), [i for i in first if i > 0])

    def _early_end(self) -> list[str]:
        begin, lasts, stamp = self._clock.begins[-1], self._clock.durations[-1], self.source.decoded[-1].stamp
        if self._declared_end is None or stamp is None:
            return []
        missing = self._declared_end - stamp * self._unit - lasts
        if missing <= max(0.1, 2 * lasts):
            return []
        return [f"it ends at {begin + lasts:.3f} s, {missing:.3f} s before the end that it declares"]


def _declared_end(stream) -> float | None:
    """The time at which a video stream ends, by its file's header: None if that does not say."""
    start = float((stream.start_time or 0) * stream.time_base)
    if stream.duration and "mov" in stream.container.format.name:
        return start + float(stream.duration * stream.time_base)
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip("\0 "))
    if clock is None:  # Matroska has the last frame's end as a tag
        return None
    hours, minutes, seconds = (float(part) for part in clock.groups())
    return 3600 * hours + 60 * minutes + seconds


def _left_out(missing: np.ndarray, number: np.ndarray, own_frames: int, begins: np.ndarray,
              ends: np.ndarray) -> list[str]:  # fmt: skip
    """The spans of frames that are damaged or lost, in words."""
    spans = []
    if number[0] > 0:
        spans.append((int(number[0]), 0.0, 0.0))
    for i in np.flatnonzero(missing):
        spans.append((int(number[i] - number[i - 1] - 1), ends[i - 1], begins[i]))
    if number[-1] < own_frames - 1:
        spans.append((int(own_frames - 1 - number[-1]), ends[-1], None))
    words = []
    for count, begin, end in spans:
        frames = f"{count} frames are" if count > 1 else "a frame is" if count else "frames are"
        where = f"at {begin:.3f} s, before the first good one" if end == 0 else f"from {begin:.3f} s to " + (
            "the end" if end is None else f"{end:.3f} s")  # fmt: skip
        words.append(f"{frames} damaged or lost {where}")
    return words

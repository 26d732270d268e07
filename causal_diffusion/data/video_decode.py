"""One video file -> an array of small frames, with PyAV.

Frames are resampled in time first (each output slot shows the file's frame that is nearest in time), then
turned upright, cropped around the centre to the wanted aspect ratio, and resized with an antialiasing bicubic
filter.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

_TIE = 1e-6  # seconds: time stamps are rounded, so a slot this close to halfway counts as halfway


class DecodedVideo(NamedTuple):
    """N frames of one file.

    frames: uint8 [N, H, W, C].
    times: float64 [N], seconds since the file's first frame.
    shown: int64 [N], which of the file's own frames each one is.
    own_frames: the number of frames in the file.
    """

    frames: np.ndarray
    times: np.ndarray
    shown: np.ndarray
    own_frames: int


class UndecodableError(Exception):
    """This file is no video that can be decoded to its end; the message says why."""


def decode_video(path: Path, height: int, width: int, channels: int, fps: float = 0.0) -> DecodedVideo:
    """Decodes the main video stream of a file.

    Args:
        path: the file.
        height, width: of a frame, in pixels.
        channels: 1 (grey) or 3 (RGB).
        fps: frames per second after resampling; 0 keeps every frame of the file.

    Raises:
        UndecodableError: not a video, or damaged.
    """
    import av  # here, because only video folders need it

    pixels = bytearray()  # grows in place: a list of frames to be stacked would need the memory twice
    times, shown, own_frames = [], [], 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UndecodableError("it has no video stream")
            stream.thread_type = "AUTO"
            for (time, i, frame), (next_time, _, _) in itertools.pairwise(_timed(container, stream)):
                own_frames = i + 1
                slots = [time] if fps == 0 else _slots(time, next_time, len(times), fps)
                if slots:
                    pixels += _fit(frame, height, width, channels).tobytes() * len(slots)
                    times += slots
                    shown += [i] * len(slots)
    except (av.error.FFmpegError, OSError) as error:
        raise UndecodableError(str(error)) from error
    if not times:
        raise UndecodableError("it has no frames")
    frames = np.frombuffer(pixels, np.uint8).reshape(-1, height, width, channels)
    frames.flags.writeable = False  # shared by all who read the file
    return DecodedVideo(frames, np.array(times), np.array(shown), own_frames)


def _timed(container, stream) -> Iterator[tuple]:
    """(seconds since the first frame, number, frame) in rising time, then the time the last frame ends."""
    gap = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    first = time = None
    i = -1
    for i, frame in enumerate(container.decode(stream)):
        if first is None:
            first, time = frame.time or 0.0, 0.0
        elif frame.time is None or frame.time - first <= time:  # no time stamp, or one that steps back
            time += gap
        else:
            gap = frame.time - first - time
            time = frame.time - first
        yield time, i, frame
    if i >= 0:
        yield time + gap, None, None


def _slots(time: float, next_time: float, done: int, fps: float) -> list[float]:
    """Times k / fps, from k = done on, to which the frame at `time` is nearer than the one at `next_time`."""
    end = int(np.floor(((time + next_time) / 2 + _TIE) * fps)) + 1
    return [k / fps for k in range(done, end)]


def _fit(frame, height: int, width: int, channels: int) -> np.ndarray:
    """A PyAV frame -> uint8 [H, W, C]: upright, centre crop to the aspect ratio, resized."""
    from PIL import Image

    image = frame.to_image()
    if channels == 1:
        image = image.convert("L")
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    # Telephones store pictures as the sensor lay. Degrees count counterclockwise, here and in Pillow.
    turn = turns.get(round(frame.rotation) % 360)
    if turn is not None:
        image = image.transpose(turn)
    scale = min(image.width / width, image.height / height)
    wide, high = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    # Not by resize's own box: its filter would let the outside shine in at the edges.
    image = image.crop((left, top, left + wide, top + high))
    # Integer reduction to twice the size comes first: several times faster, and no visible difference.
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(small).reshape(height, width, channels)

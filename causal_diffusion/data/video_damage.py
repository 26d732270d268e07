"""Reading a damaged file: which frames can be trusted.

A decoder goes on after wrong bytes. It marks a frame in which it noticed them, but not the frames predicted from that
one, which are wrong too. So nothing is trusted from the damage until the next key frame, in the order of decoding:

    decoding order   I0  P3  b1  b2  P6  b4  b5  I9  b7  b8  P12
    wrong bytes                      x
    trusted          yes yes yes yes --  --  --  yes --  --  yes

b7 and b8 are decoded after the key frame and shown before it: they may be predicted from P6. A key frame here is one
that the decoder calls so and that has no prediction; a stream that is refreshed bit by bit has one only at its start.

Signs of damage are a frame or packet that FFmpeg marks, an exception, and an error that it logs. Wrong bytes that form
a legal stream give no sign.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_INTRA = (0, 1)  # picture types: not known, I
_INVISIBLE = ("vp8", "vp9", "av1", "libvpx", "libdav1d")  # their streams have packets of which no frame is shown
_MOST_READ_ERRORS = 100  # in a row, then the rest of the file is given up
_logging, _captures = threading.Lock(), 0


class Decoded(NamedTuple):
    """What is known of a frame beside its pixels.

    order: the number of its packet, in the order of decoding.
    stamp: its time stamp, in the stream's unit, if it has one.
    key: whether decoding can begin here.
    corrupt: whether the decoder marked it.
    """

    order: int
    stamp: int | None
    key: bool
    corrupt: bool


class Frames:
    """The frames of a video stream, in the order of their times. Goes on after errors. Use within `errors_of_ffmpeg`.

    Attributes:
        decoded: what is known of each frame so far.
        failed: numbers of the packets that could not be read or decoded whole.
        complaints: numbers of the packets while FFmpeg read or decoded which it logged an error.
        holes: numbers of the packets before which others are missing.
        lost: numbers of the packets of which a frame should have come; complete at the end.
        stamps: time stamps of the packets of which frames came or should have come, by number.
    """

    def __init__(self, container, stream, errors: list):
        self._container, self._stream, self._errors = container, stream, errors
        self.decoded: list[Decoded] = []
        self.failed: set[int] = set()
        self.complaints: set[int] = set()
        self.holes: set[int] = set()
        self.lost: set[int] = set()
        self.stamps: dict[int, int | None] = {}
        self._decode_stamps: list[int | None] = []
        self._corrupt = False
        self._misread = _of_container(errors, container)
        errors.clear()  # what FFmpeg says of the frames it tries at opening comes again

    @property
    def suspicious(self) -> bool:
        """Whether there is any sign of damage."""
        return bool(self._corrupt or self.failed or self.complaints or self.holes or self.lost
                    or self.decoded and not self.decoded[0].key)  # fmt: skip

    def good(self) -> np.ndarray:
        """Which of the decoded frames can be trusted: bool [N].

        Some files make FFmpeg complain of every key frame, and are right: complaints that leave nothing are ignored.
        """
        if not self.decoded:
            return np.zeros(0, bool)
        good = trusted(self.decoded, self.failed | self.complaints, self.holes)
        return good if good.any() else trusted(self.decoded, self.failed, self.holes)

    def __iter__(self) -> Iterator:
        self._stream.codec_context.copy_opaque = True  # a frame carries its packet's number
        pending = set()  # packets without a frame so far
        for packet in self._packets():
            number = len(self._decode_stamps)
            packet.opaque = [number]  # of its own: PyAV keeps it by its address, and equal integers share one
            if not packet.size and packet.dts is not None:
                continue  # an empty packet repeats the frame before, but would end the decoder
            if packet.size:
                self._decode_stamps.append(packet.dts)
                if not packet.is_discard:
                    self.stamps[number] = packet.pts
                    pending.add(number)
            if packet.is_corrupt:
                self.failed.add(number)
            try:
                frames = packet.decode()
            except _decode_errors():
                frames = []
                self.failed.add(number)
            if _any(self._errors):
                self.complaints.add(number)
            self._errors.clear()
            for frame in frames:
                order = number if frame.opaque is None else frame.opaque[0]
                pending.discard(order)
                key = frame.key_frame and int(frame.pict_type) in _INTRA
                self._corrupt |= frame.is_corrupt
                self.decoded.append(Decoded(order, frame.pts, key, frame.is_corrupt))
                yield frame
        # Of many streams some packets have no frame of their own: the second field of two, a reference never shown.
        # In files that keep whole frames a packet without one is a sign of damage, if there are others.
        first = min((frame.order for frame in self.decoded), default=0)
        self.lost = {number for number in pending if number in self.failed | self.complaints or number < first}
        codec = self._stream.codec_context.name
        if self.suspicious and "mov" in self._container.format.name and not codec.startswith(_INVISIBLE):
            self.lost = pending
        for number in pending - self.lost:
            del self.stamps[number]
        if self._misread:
            self.holes |= _steps(self._decode_stamps)
        self.failed |= {number - 1 for number in self.holes if number > 0}  # the one that the hole begins in

    def _packets(self) -> Iterator:
        """An error in the container ends PyAV's iterator, not the file."""
        import av

        errors = 0
        while errors < _MOST_READ_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    errors = 0
                    self._heed_container()
                    yield packet
                self._heed_container()
                return
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                errors += 1
                self._misread = True
                self.holes.add(len(self._decode_stamps))

    def _heed_container(self) -> None:
        self._misread |= _of_container(self._errors, self._container)
        self._errors.clear()


@contextlib.contextmanager
def errors_of_ffmpeg() -> Iterator[list[tuple[int, str, str]]]:
    """Collects the errors that FFmpeg logs on this thread: (level, part of FFmpeg, message).

    Within it, use codecs with one thread: PyAV may wait forever for a thread that has something to log.
    """
    import av.logging

    global _captures
    with _logging:
        _captures += 1
        if _captures == 1:
            errors_of_ffmpeg.before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(av.logging.ERROR)
            av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(True) as errors:
            yield errors
    finally:
        with _logging:
            _captures -= 1
            if _captures == 0:
                level, skip = errors_of_ffmpeg.before
                av.logging.set_level(level)
                av.logging.set_skip_repeated(skip)


def description(container) -> str:
    """FFmpeg's own description of a file, which has what PyAV does not pass on. Use within `errors_of_ffmpeg`."""
    import av.logging

    with _logging:
        av.logging.set_level(av.logging.INFO)
        try:
            return container.dumps_format()
        finally:
            av.logging.set_level(av.logging.ERROR)


def _any(errors: list, part: str = "") -> bool:
    """Whether there are errors, of one part of FFmpeg: other threads may let messages of less weight through."""
    import av.logging

    return any(level <= av.logging.ERROR and part in ("", name) for level, name, _ in errors)


def _of_container(errors: list, container) -> bool:
    return _any(errors, container.format.name)


def _decode_errors() -> tuple[type[Exception], ...]:
    import av

    return av.error.FFmpegError, ValueError


def _steps(stamps: list[int | None]) -> set[int]:
    """The numbers of packets whose decoding time follows the one before by more than is usual."""
    steps = np.diff(np.array(stamps, np.float64))  # None becomes nan, which is no step
    known = steps[np.isfinite(steps)]
    usual = np.median(known) if known.size else 0
    return {int(i) + 1 for i in np.flatnonzero((steps > 1.5 * usual) | (steps < 0))}


def trusted(frames: list[Decoded], failed: set[int], holes: set[int]) -> np.ndarray:
    """Which frames, in the order of their times, are as they were before the damage: bool [N]."""
    good = np.ones(len(frames), bool)
    order = np.array([frame.order for frame in frames], np.int64)
    keys = sorted((frame.order, place) for place, frame in enumerate(frames)
                  if frame.key and not frame.corrupt and frame.order not in failed)  # fmt: skip
    starts = {(start, False) for start in failed | {frame.order for frame in frames if frame.corrupt}}
    starts |= {(start, True) for start in holes}
    if keys and keys[0][0] > order.min():
        starts.add((int(order.min()), False))  # the stream begins in the middle of a group of pictures
    clean = -1  # everything before this packet is dealt with
    for start, hole in sorted(starts):
        if start < clean:
            continue
        clean, place = next((key for key in keys if key[0] >= start + (not hole)), (np.iinfo(np.int64).max, len(good)))
        good &= ~((order >= start) & (order < clean))
        good[:place] &= order[:place] <= clean  # decoded after the key frame and shown before it
    return good

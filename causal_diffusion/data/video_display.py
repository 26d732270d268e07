"""A decoded frame -> the picture that a player shows.

A stream declares how its frames are to be shown, beside their pixels. FFmpeg's filters apply it, in this order:

    interlaced frames          bwdif, one picture per frame, at the time of its first field
    cropping                   crop: Matroska's PixelCrop, QuickTime's clean aperture
    display matrix             transpose, hflip, vflip: quarter turns and mirrorings
    sample aspect ratio        scale=iw*sar:ih, setsar=1: square pixels
    matrix, range, sampling    format: YUV of the declared coefficients and range -> RGB of full range
    PQ, HLG                    tone-mapped to SDR (video_hdr.py)

What is declared and not applied becomes a note that names it and a remedy: matrices that turn by other angles or
skew, wide primaries without HDR, rare transfer functions and colour spaces, stereoscopic packing.
"""

import math
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from causal_diffusion.data.video_hdr import PEAK, WHITE, to_sdr

# Numbers of ITU-T H.273, as FFmpeg has them.
_BT2020_PRIMARIES, _WIDE_PRIMARIES = 9, {9: "BT.2020", 10: "XYZ", 11: "DCI-P3", 12: "Display P3"}
_HDR = {16: "pq", 18: "hlg"}
_OTHER_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428"}
_OTHER_MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE ST 2085", 12: "derived", 13: "derived",
                   14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-R", 17: "YCgCo-R"}  # fmt: skip
_SDR_FILTER = "-vf zscale=transfer=linear,tonemap,zscale=transfer=bt709:matrix=bt709:primaries=bt709"
_DEINTERLACE = ["bwdif=mode=send_frame:parity=auto:deint=interlaced"]
_ANGLE_SLACK = 0.02  # of the matrix' length: about one degree, as FFmpeg allows


class Orientation(NamedTuple):
    """What a display matrix asks for, in this order. `exact` is False if it asks for more than that."""

    transpose: bool = False
    hflip: bool = False
    vflip: bool = False
    exact: bool = True

    @classmethod
    def of(cls, matrix: bytes | None) -> "Orientation":
        """The nearest of the eight. The matrix: nine 32-bit integers (a b u c d v x y w), which move a pixel from
        (p, q), right and down, to (a p + c q + x, b p + d q + y)."""
        if matrix is None:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
        transpose = abs(b) + abs(c) > abs(a) + abs(d)
        along, across = ((c, b), (a, d)) if transpose else ((a, d), (b, c))
        exact = (min(abs(x) for x in along) > 0  # lengths may differ: FFmpeg makes that an aspect ratio
                 and max(abs(x) for x in across) <= _ANGLE_SLACK * min(abs(x) for x in along))  # fmt: skip
        return cls(transpose, along[0] < 0, along[1] < 0, exact)

    @property
    def filters(self) -> list[str]:
        """FFmpeg's filters. Its name for a plain transposition is cclock_flip."""
        names = (("transpose=cclock_flip", self.transpose), ("hflip", self.hflip), ("vflip", self.vflip))
        return [name for name, wanted in names if wanted]


class Crop(NamedTuple):
    """Pixels that a container declares not to be shown, at each edge."""

    left: int
    right: int
    top: int
    bottom: int

    @classmethod
    def of(cls, description: str, stream: int) -> "Crop | None":
        """What FFmpeg's description of a file says of the stream of that number."""
        text = re.search(rf"Stream #0:{stream}\b(.*?)(?=\n +Stream #|\Z)", description, re.DOTALL)
        found = re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", text[1] if text else "", re.IGNORECASE)
        return cls(*map(int, found.groups())) if found else None

    def filter(self, frame) -> str:
        width, height = frame.width - self.left - self.right, frame.height - self.top - self.bottom
        return f"crop={width}:{height}:{self.left}:{self.top}"


class Filters:
    """One chain of FFmpeg's filters, for frames that are alike."""

    def __init__(self, frame, sample_aspect_ratio: Fraction, chain: list[str]):
        import av.filter

        self._graph = graph = av.filter.Graph()
        graph.threads = 1  # files are decoded side by side already
        source = graph.add(
            "buffer", f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000000"
            f":pixel_aspect={sample_aspect_ratio.numerator}/{sample_aspect_ratio.denominator}"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}")  # fmt: skip
        filters = [graph.add(*step.split("=", 1)) for step in chain]
        graph.link_nodes(source, *filters, graph.add("buffersink"))
        graph.configure()

    def push(self, frame) -> None:
        """None ends the stream."""
        self._graph.push(frame)

    def pull(self) -> Iterator:
        """The frames that are ready."""
        import av

        while True:
            try:
                yield self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return


def deinterlaced(frames: Iterator[tuple]) -> Iterator[tuple]:
    """Makes frames progressive that declare to be interlaced.

    From the first interlaced frame on, all pass through bwdif, which leaves the progressive ones as they are. It
    looks one frame back and one ahead, though not over a cut.

    Args:
        frames: (frame, whether it follows a cut, anything) of each frame.

    Yields:
        (frame, anything) of each frame.
    """
    filters, kind, waiting = None, None, deque()

    def drained():
        if filters is not None:
            filters.push(None)
            yield from ((done, waiting.popleft()) for done in filters.pull())

    for frame, cut, about in frames:
        if filters is not None and (cut or kind != _kind(frame)):
            yield from drained()
            filters, kind = Filters(frame, Fraction(0, 1), _DEINTERLACE), _kind(frame)
        if filters is None and frame.interlaced_frame:
            filters, kind = Filters(frame, Fraction(0, 1), _DEINTERLACE), _kind(frame)
        if filters is None:
            yield frame, about
            continue
        waiting.append(about)
        filters.push(frame)
        yield from ((done, waiting.popleft()) for done in filters.pull())
    yield from drained()


class Display:
    """Frames of one file -> uint8 [H, W, C]: shown as declared, then cropped around the centre to the wanted aspect
    ratio, and resized with an antialiasing bicubic filter.

    Args:
        height, width, channels: of the result.
        note: is called with what the file declares and is not applied.
        crop: what its container declares not to be shown.
    """

    def __init__(self, height: int, width: int, channels: int, note: Callable[[str], None], crop: Crop | None = None):
        self._size, self._note, self._crop = (height, width, channels), note, crop
        self._filters, self._key = None, None

    def __call__(self, frame, sample_aspect_ratio: Fraction | None) -> np.ndarray:
        from PIL import Image

        height, width, channels = self._size
        matrix = _side_data(frame, "DISPLAYMATRIX")
        key = (*_kind(frame), matrix, sample_aspect_ratio, frame.color_trc, frame.color_primaries)
        if key != self._key:
            self._filters, self._key = self._build(frame, matrix, sample_aspect_ratio), key
        self._filters.push(frame)
        (shown,) = self._filters.pull()
        transfer = _HDR.get(int(frame.color_trc))
        if transfer is None:
            image = _centre(Image.fromarray(shown.to_ndarray()), height, width)
        else:
            image = Image.fromarray(to_sdr(_centre_reduced(shown.to_ndarray(), height, width), transfer, _peak(frame)))
        if channels == 1:
            image = image.convert("L")
        # Integer reduction to twice the size comes first: several times faster, and no visible difference.
        small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return np.asarray(small).reshape(height, width, channels)

    def _build(self, frame, matrix: bytes | None, sample_aspect_ratio: Fraction | None) -> Filters:
        orientation = Orientation.of(matrix)
        ratio = sample_aspect_ratio or Fraction(1)
        if not Fraction(1, 8) <= ratio <= 8:
            self._note(f"its sample aspect ratio {ratio} is implausible and is not applied: try ffmpeg -i IN -vf "
                       "setsar=1 OUT, with the right ratio")  # fmt: skip
            ratio = Fraction(1)
        self._note_unapplied(frame, orientation)
        chain = ["setparams=colorspace=bt470bg"] if int(frame.colorspace) in _OTHER_MATRICES else []
        if self._crop and _fits(self._crop, frame):
            chain.append(self._crop.filter(frame))
        chain += orientation.filters
        if ratio != 1:
            chain += ["scale=iw*sar:ih", "setsar=1"]
        return Filters(frame, ratio, [*chain, f"format={'rgb48le' if int(frame.color_trc) in _HDR else 'rgb24'}"])

    def _note_unapplied(self, frame, orientation: Orientation) -> None:
        transfer, primaries, matrix = int(frame.color_trc), int(frame.color_primaries), int(frame.colorspace)
        if not orientation.exact:
            self._note("its display matrix turns or skews the picture, and only quarter turns and mirrorings are "
                       "applied: try ffmpeg -i IN OUT, which applies all of it")  # fmt: skip
        if transfer in _OTHER_TRANSFERS:
            self._note(f"it declares a {_OTHER_TRANSFERS[transfer]} transfer function, which is not applied: try "
                       f"ffmpeg -i IN {_SDR_FILTER} OUT")  # fmt: skip
        if primaries in _WIDE_PRIMARIES and transfer not in _HDR:
            self._note(f"it declares {_WIDE_PRIMARIES[primaries]} primaries, which are not converted, so its colours "
                       "are paler than they should be: try ffmpeg -i IN -vf zscale=primaries=bt709:matrix=bt709:"
                       "transfer=bt709 OUT")  # fmt: skip
        if transfer in _HDR and primaries not in (2, _BT2020_PRIMARIES):
            self._note("it declares HDR with other primaries than BT.2020, and is read as BT.2020: try ffmpeg -i IN "
                       f"{_SDR_FILTER} OUT")  # fmt: skip
        if matrix in _OTHER_MATRICES:
            self._note(f"it declares {_OTHER_MATRICES[matrix]} colours, which are read as BT.601: try ffmpeg -i IN "
                       "-vf zscale=matrix=bt709 OUT")  # fmt: skip
        dolby_vision = any(_side_data(frame, name) is not None for name in ("DOVI_METADATA", "DOVI_RPU_BUFFER"))
        if dolby_vision and transfer == 2:
            self._note("it is Dolby Vision without a compatible base layer, so its colours are wrong: try ffmpeg -i "
                       "IN -vf libplacebo=colorspace=bt709:color_trc=bt709:color_primaries=bt709 OUT")  # fmt: skip
        stereo = _side_data(frame, "STEREO3D")
        if stereo is not None and struct.unpack("=i", stereo[:4])[0] > 0:
            self._note("its frames hold the views of both eyes, which are used as one picture: try ffmpeg -i IN -vf "
                       "stereo3d=sbsl:ml OUT, or abl:ml")  # fmt: skip


def _fits(crop: Crop, frame) -> bool:
    return crop.left + crop.right < frame.width and crop.top + crop.bottom < frame.height


def _kind(frame) -> tuple:
    """What a chain of filters must know in advance."""
    return frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range)


def _side_data(frame, name: str) -> bytes | None:
    import av

    data = frame.side_data.get(getattr(av.sidedata.sidedata.Type, name))
    return None if data is None else bytes(data)


def _peak(frame) -> float:
    """Nits of the brightest pixel, as the file declares it: its content light level, or its mastering screen."""
    light = _side_data(frame, "CONTENT_LIGHT_LEVEL")
    screen = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    peak = struct.unpack("=I", light[:4])[0] if light else 0
    if not peak and screen:  # ten fractions, of which the last is the maximum; then two flags
        numbers = struct.unpack("=22i", screen[:88])
        peak = numbers[18] / numbers[19] if numbers[21] and numbers[19] else 0
    return float(min(max(peak, WHITE), 10000)) if peak else PEAK


def _centre_box(own_height: int, own_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred part of that aspect ratio."""
    scale = min(own_width / width, own_height / height)
    wide, high = max(1, round(scale * width)), max(1, round(scale * height))
    left, top = (own_width - wide) // 2, (own_height - high) // 2
    return left, top, left + wide, top + high


def _centre(image, height: int, width: int):
    """Cropped, and not by resize's own box: its filter would let the outside shine in at the edges."""
    return image.crop(_centre_box(image.height, image.width, height, width))


def _centre_reduced(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint16 [H, W, 3], cropped likewise, and averaged over squares of pixels down to twice the size or more.

    Tone mapping is slow: a 4K picture would take most of a second.
    """
    left, top, right, bottom = _centre_box(*picture.shape[:2], height, width)
    picture = picture[top:bottom, left:right]
    factor = math.floor(min(picture.shape[0] / (2 * height), picture.shape[1] / (2 * width)))
    if factor < 2:
        return picture
    high, wide = picture.shape[0] // factor, picture.shape[1] // factor
    squares = picture[:high * factor, :wide * factor].reshape(high, factor, wide, factor, 3)
    return np.rint(squares.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint16)

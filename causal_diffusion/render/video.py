"""Video files: .mp4 (H.264 through PyAV) and .gif (Pillow), chosen by the file's suffix.

Everything here takes videos as the rest of the library has them, float in [-1, 1], channel-last with 1 or 3
channels; arrays of uint8 are taken as finished pictures.
"""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from causal_diffusion.errors import UserError
from causal_diffusion.render.files import write_bytes

WATCHABLE = 256             # pixels: small canvases are enlarged until their shorter side has these
_GIF_TICKS = 100            # GIF delays are whole hundredths of a second,
_GIF_SHORTEST = 2           # and viewers slow anything below two of them down to ten


def to_uint8(frames) -> np.ndarray:
    """Floats in [-1, 1] -> uint8 (-1 is 0, 1 is 255), rounded and clipped, NaN as black. uint8 stays."""
    frames = np.asarray(frames)
    if frames.dtype == np.uint8:
        return frames
    levels = np.nan_to_num((frames.astype(np.float32) + 1.0) * 127.5, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def tile(videos, columns: int | None = None, gutter: int = 1, fill: float = -0.75) -> np.ndarray:
    """Several clips [B, T, H, W, C] side by side in one video [T, H', W', C], row by row.

    `columns`: clips in a row (default: the nearest to a square). `gutter`: pixels between clips, of value
    `fill` (as are the places left over in the last row).
    """
    videos = np.asarray(videos)
    if videos.ndim != 5 or 0 in videos.shape:
        raise ValueError(f"videos must be [B, T, H, W, C]; got {videos.shape}")
    count, frames, height, width, channels = videos.shape
    columns = int(np.ceil(np.sqrt(count))) if columns is None else min(columns, count)
    if columns < 1 or gutter < 0:
        raise ValueError(f"columns must be at least 1 and gutter at least 0; got {columns} and {gutter}")
    rows = -(-count // columns)
    if videos.dtype == np.uint8:
        fill = to_uint8(fill)
    shape = (frames, rows * (height + gutter) - gutter, columns * (width + gutter) - gutter, channels)
    board = np.full(shape, fill, videos.dtype)
    for index in range(count):
        y, x = index // columns * (height + gutter), index % columns * (width + gutter)
        board[:, y:y + height, x:x + width] = videos[index]
    return board


def write_video(path, frames, fps: float, scale: int | None = None) -> Path:
    """Write one clip [T, H, W, C] to `path` (.mp4 or .gif) and return the path.

    `fps`: frames per second. `scale`: whole factor by which every pixel is enlarged (crisp, nearest
    neighbour); by default the smallest that brings the shorter side to 256 pixels, so that tiny canvases
    can be watched. For several clips see `tile`. Raises UserError for another suffix or a path that cannot
    be written.
    """
    writers = {".mp4": mp4_bytes, ".gif": gif_bytes}
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise UserError(f"cannot write a video to {path}: the name must end in {' or '.join(writers)}")
    return write_bytes(path, writers[suffix](frames, fps, scale))


def mp4_bytes(frames, fps: float, scale: int | None = None) -> bytes:
    """A clip [T, H, W, C] as an H.264 mp4 (yuv420p, plays in every browser).

    yuv420p needs even sizes: odd ones get their last row or column twice. Colour is stored at half
    resolution, so single coloured pixels lose saturation unless the clip is enlarged.
    """
    pixels = _enlarge(_clip(frames), scale)
    pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
    pixels = np.ascontiguousarray(np.broadcast_to(pixels, pixels.shape[:3] + (3,)))
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_rate(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        # The conversion below uses the BT.601 matrix; unless told, players guess BT.709 for large frames.
        stream.options = {"crf": "17", "preset": "medium", "x264-params": "colormatrix=smpte170m:range=tv"}
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def gif_bytes(frames, fps: float, scale: int | None = None) -> bytes:
    """A clip [T, H, W, C] as an endlessly repeated GIF.

    Delays are whole hundredths of a second; they are chosen so that no frame is ever off its time by more
    than half of one. GIF cannot play more than 50 frames per second: above that, frames are dropped evenly.
    Grey clips keep their exact levels; coloured ones get 256 colours per frame.
    """
    pixels = _enlarge(_clip(frames), scale)
    rate = _rate(fps)
    ends = [round((index + 1) * _GIF_TICKS / rate) for index in range(len(pixels))]
    pictures, delays, last = [], [], 0
    for picture, end in zip(pixels, ends, strict=True):
        if end - last < _GIF_SHORTEST:
            continue
        pictures.append(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture))
        delays.append(10 * (end - last))
        last = end
    if not pictures:
        pictures, delays = [Image.fromarray(pixels[0, ..., 0] if pixels.shape[-1] == 1 else pixels[0])], [20]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=delays, loop=0)
    return buffer.getvalue()


def _clip(frames):
    pixels = to_uint8(frames)
    if pixels.ndim != 4 or 0 in pixels.shape or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"a clip must be [T, H, W, C] with 1 or 3 channels; got {pixels.shape}")
    return pixels


def _enlarge(pixels_THWC, scale):
    if scale is None:
        scale = max(1, -(-WATCHABLE // min(pixels_THWC.shape[1:3])))
    if scale < 1 or scale != int(scale):
        raise ValueError(f"scale is {scale}; it must be a whole number from 1")
    return pixels_THWC.repeat(int(scale), axis=1).repeat(int(scale), axis=2)


def _rate(fps):
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps is {fps}; it must be above 0")
    return Fraction(fps)

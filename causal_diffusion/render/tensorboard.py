"""Clips that play in TensorBoard: an animated GIF in an image summary.

`SummaryWriter.add_video` needs moviepy and without it writes nothing; TensorBoard itself shows the bytes of
an image summary as they are, so a GIF plays.
"""

import io

from PIL import Image
from tensorboardX.proto.summary_pb2 import Summary

from causal_diffusion.render.files import png_bytes
from causal_diffusion.render.video import gif_bytes, tile


def video_summary(tag: str, frames, fps: float, columns: int | None = None,
                  scale: int | None = None) -> Summary:
    """Clips [B, T, H, W, C] in [-1, 1], tiled into one animated picture.

    Add it with `writer.file_writer.add_summary(video_summary(...), step)`. `columns` as in `tile`, `scale`
    as in `write_video`.
    """
    data = gif_bytes(tile(frames, columns), fps, scale)
    return _image_summary(tag, data)


def image_summary(tag: str, pixels) -> Summary:
    """A finished picture [H, W, 3] of uint8 (a contact sheet, a plot) as a PNG."""
    return _image_summary(tag, png_bytes(pixels))


def _image_summary(tag, data):
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])

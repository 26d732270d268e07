"""Clips that play in TensorBoard: an animated GIF in an image summary.

`SummaryWriter.add_video` needs moviepy and without it writes nothing; TensorBoard itself shows the bytes of
an image summary as they are, so a GIF plays.
"""

import io
import os
import socket
import time
from pathlib import Path

from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from causal_diffusion.render.files import png_bytes
from causal_diffusion.render.video import gif_bytes, tile


def video_summary(tag: str, frames, fps: float, columns: int | None = None,
                  scale: int | None = None) -> Summary:
    """Clips [B, T, H, W, C] in [-1, 1], tiled into one animated picture.

    Add it with `EventFile.add(video_summary(...), step)`. `columns` as in `tile`, `scale`
    as in `write_video`.
    """
    data = gif_bytes(tile(frames, columns), fps, scale)
    return _image_summary(tag, data)


def image_summary(tag: str, pixels) -> Summary:
    """A finished picture [H, W, 3] of uint8 (a contact sheet, a plot) as a PNG."""
    return _image_summary(tag, png_bytes(pixels))


def scalar_summary(tag: str, value: float) -> Summary:
    """One number."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])


def _image_summary(tag, data):
    with Image.open(io.BytesIO(data)) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


class EventFile:
    """A TensorBoard event file, written in the calling thread.

    tensorboardX's SummaryWriter writes from a thread of its own; when the disk is full that thread dies and the next
    flush waits for it for ever. Here the error reaches the caller.

    Args:
        folder: where the file goes; made if missing.
        start: steps after this one that an earlier file of the folder holds are hidden by TensorBoard.
    """

    def __init__(self, folder, start: int = 0):
        Path(folder).mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"  # no other run's
        self._writer = RecordWriter(str(Path(folder) / name))
        self._write(Event(wall_time=now, file_version="brain.Event:2"))
        self._write(Event(wall_time=now, step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Summary, step: int) -> None:
        """Appends one summary."""
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Puts everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and ends the file; it is ended even where the rest of it cannot be written."""
        self._writer.close()

    def _write(self, event) -> None:
        self._writer.write(event.SerializeToString())

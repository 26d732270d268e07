"""Small encoded videos for tests, and FFmpeg's own filters as the oracle of what a player shows."""

import struct
from fractions import Fraction

import av
import av.filter
import numpy as np

ONE = 1 << 16


def moving(frames, height=64, width=64, seed=0):
    """uint8 [N, H, W, 3]: coloured squares that move, none like its neighbour or its mirror image."""
    squares = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = squares.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(picture, (i, 3 * i), (0, 1)) for i in range(frames)])


def flat(frames, height=16, width=16, step=20):
    """uint8 [N, H, W, 3]: frame i is grey of value step * i."""
    value = (np.arange(frames) * step % 256).astype(np.uint8)[:, None, None, None]
    return np.broadcast_to(value, (frames, height, width, 3))


def encode(path, frames, codec="libx264", rate=25, pixels="yuv420p", options=None, times=None, setup=None,
           filters=(), converted=True):  # fmt: skip
    """Writes frames.

    Args:
        times: of each frame, in milliseconds; None: by the rate.
        setup: called with the stream, before it opens.
        filters: FFmpeg's, through which frames go before they are encoded.
        converted: whether to the stream's matrix and range.
    """
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if setup:
            setup(stream)
        graph = _graph(f"{width}x{height}", pixels, filters, "1/1") if filters else None
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            colours = dict(dst_colorspace=int(stream.codec_context.colorspace),
                           dst_color_range=int(stream.codec_context.color_range)) if converted else {}  # fmt: skip
            frame = frame.reformat(format=pixels, **colours)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            else:
                frame.pts, frame.time_base = i, 1 / Fraction(rate)
            if graph:
                graph.push(frame)
                frame = graph.pull()
                frame.pts, frame.time_base = i, 1 / Fraction(rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _graph(size, pixels, filters, aspect, colours=""):
    graph = av.filter.Graph()
    nodes = [graph.add("buffer", f"video_size={size}:pix_fmt={pixels}:time_base=1/1000:pixel_aspect={aspect}{colours}")]
    nodes += [graph.add(*step.split("=", 1)) for step in filters]
    graph.link_nodes(*nodes, graph.add("buffersink"))
    graph.configure()
    return graph


def shown_by_ffmpeg(path, *filters, rgb="rgb24"):
    """[N, H, W, 3]: a file's frames after a chain of FFmpeg's filters, named as its command line names them."""
    pictures = []
    with av.open(str(path)) as file:
        stream, graph = file.streams.video[0], None
        for frame in [*file.decode(stream), None]:
            if graph is None:
                aspect = stream.sample_aspect_ratio or Fraction(1)
                colours = f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
                graph = _graph(f"{frame.width}x{frame.height}", frame.format.name, [*filters, f"format={rgb}"],
                               f"{aspect.numerator}/{aspect.denominator}", colours)  # fmt: skip
            graph.push(frame)
            while True:
                try:
                    pictures.append(graph.pull().to_ndarray())
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return np.stack(pictures)


def set_display_matrix(path, a, b, c, d):
    """Makes the track header of an MP4 ask for a display matrix: (p, q) is shown at (a p + c q, b p + d q)."""
    data = path.read_bytes()
    plain = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    at = data.index(plain, data.index(b"tkhd"))
    numbers = [round(x * ONE) for x in (a, b, 0, c, d, 0, 0, 0)]
    path.write_bytes(data[:at] + struct.pack(">9i", *numbers, 1 << 30) + data[at + len(plain):])
    return path


def set_clean_aperture(path, height, width):
    """Makes an MP4 ask for the middle of its picture."""
    data = bytearray(path.read_bytes())
    aperture = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    end = entry + struct.unpack(">I", data[entry:entry + 4])[0]
    data[end:end] = aperture
    for name in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = data.rindex(name, 0, entry + 8) - 4
        data[at:at + 4] = struct.pack(">I", struct.unpack(">I", data[at:at + 4])[0] + len(aperture))
    path.write_bytes(data)
    return path

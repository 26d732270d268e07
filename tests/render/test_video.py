import io

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from causal_diffusion.errors import UserError
from causal_diffusion.render import video


def wave(frames=7, height=20, width=30, channels=1):
    """Smooth moving pictures, all frames different."""
    t, y, x, c = np.meshgrid(*(np.arange(n) for n in (frames, height, width, channels)), indexing="ij")
    return (0.8 * np.sin(0.3 * y + 0.7 * t + c) * np.cos(0.2 * x + c)).astype(np.float32)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        context = stream.codec_context
        return np.stack(pictures), stream.average_rate, context.pix_fmt, context.name


def test_to_uint8_rounds_and_clips():
    values = np.array([-1.0, 1.0, 0.0, -5.0, 5.0, np.inf, -np.inf, np.nan, 0.5 / 127.5, 1.5 / 127.5])
    assert video.to_uint8(values).tolist() == [0, 255, 128, 0, 255, 255, 0, 0, 128, 129]
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(video.to_uint8(levels / 127.5 - 1), levels)
    assert video.to_uint8(levels) is levels


@pytest.mark.parametrize("height, width, channels, scale",
                         [(20, 30, 1, 2), (33, 17, 3, 3), (16, 16, 1, None)])
def test_an_mp4_reads_back(tmp_path, height, width, channels, scale):
    frames = wave(7, height, width, channels)
    path = video.write_video(tmp_path / "new folder" / "clip.mp4", frames, fps=12, scale=scale)
    pictures, rate, pixel_format, codec = decode(path)
    scale = scale or 256 // 16
    even = [-(-scale * n // 2) * 2 for n in (height, width)]
    assert pictures.shape == (7, *even, 3)
    assert rate == 12 and pixel_format == "yuv420p" and codec == "h264"
    expected = video.to_uint8(frames).repeat(scale, axis=1).repeat(scale, axis=2)
    shown = pictures[:, :scale * height, :scale * width].astype(int)
    error = np.abs(shown - expected).mean(axis=(1, 2, 3))
    assert np.all(error < 6), error        # noise would be off by 85, a neighbouring frame by 20
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_colours_survive(tmp_path):
    colours = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0.2, -0.4, 0.6], [1, 1, 1], [-1, -1, -1]])
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    pictures, *_ = decode(video.write_video(tmp_path / "clip.mp4", frames, fps=5, scale=1))
    assert np.abs(pictures.astype(int) - video.to_uint8(frames)).max() <= 6


def test_an_odd_edge_is_repeated(tmp_path):
    frames = wave(2, 9, 9)
    pictures, *_ = decode(video.write_video(tmp_path / "clip.mp4", frames, fps=5, scale=1))
    assert pictures.shape[1:3] == (10, 10)
    assert np.abs(pictures[:, 9, :9].astype(int) - pictures[:, 8, :9]).max() < 12


@pytest.mark.parametrize("fps", [29.97, 0.5, 60])
def test_frame_rates_survive(tmp_path, fps):
    pictures, rate, *_ = decode(video.write_video(tmp_path / "clip.mp4", wave(4, 16, 16), fps=fps, scale=1))
    assert float(rate) == pytest.approx(fps, rel=1e-4)
    assert len(pictures) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_moves_and_keeps_its_levels(tmp_path, channels):
    frames = wave(6, 10, 14, channels)
    path = video.write_video(tmp_path / "CLIP.GIF", frames, fps=10, scale=3)
    with Image.open(path) as gif:
        assert gif.n_frames == 6 and gif.is_animated and gif.size == (42, 30) and gif.info["loop"] == 0
        pictures = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    expected = np.broadcast_to(video.to_uint8(frames).repeat(3, 1).repeat(3, 2), pictures.shape)
    error = np.abs(pictures.astype(int) - expected)
    assert error.max() == 0 if channels == 1 else error.mean() < 6


@pytest.mark.parametrize("fps, shown", [(8, 24), (30, 24), (100, 12)])
def test_a_gif_keeps_its_time(fps, shown):
    """Delays are hundredths of a second, at least two: the sum is right, too fast a clip drops frames."""
    with Image.open(io.BytesIO(video.gif_bytes(wave(24, 8, 8), fps, scale=1))) as gif:
        delays = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert len(delays) == shown and min(delays) >= 20
    assert sum(delays) == pytest.approx(1000 * 24 / fps, abs=10)


def test_a_single_fast_frame_is_a_gif():
    with Image.open(io.BytesIO(video.gif_bytes(wave(1, 8, 8), 100))) as gif:
        assert gif.n_frames == 1 and gif.size == (256, 256)


def test_tile_places_every_clip():
    videos = np.stack([np.full((2, 4, 6, 1), value, np.float32) for value in (0.1, 0.2, 0.3, 0.4, 0.5)])
    board = video.tile(videos, columns=2, gutter=1, fill=-0.5)
    assert board.shape == (2, 3 * 4 + 2, 2 * 6 + 1, 1) and board.dtype == np.float32
    for index in range(5):
        y, x = index // 2 * 5, index % 2 * 7
        assert np.all(board[:, y:y + 4, x:x + 6] == videos[index])
    for gutter in (board[:, [4, 9]], board[:, :, 6], board[:, 10:, 7:]):
        assert np.all(gutter == -0.5)
    assert video.tile(videos).shape == (2, 2 * 5 - 1, 3 * 7 - 1, 1)
    assert video.tile(videos[:1], columns=4).shape == videos.shape[1:]
    pictures = video.tile(video.to_uint8(videos), fill=1.0)
    assert pictures.dtype == np.uint8 and np.all(pictures[:, 4] == 255)


def test_errors_are_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    (tmp_path / "taken.gif").mkdir()
    for path, words in [(tmp_path / "clip.avi", ".mp4 or .gif"), (tmp_path / "clip", ".mp4 or .gif"),
                        (blocked / "clip.mp4", "cannot write"), (tmp_path / "taken.gif", "cannot write")]:
        with pytest.raises(UserError, match=words) as caught:
            video.write_video(path, wave(2, 8, 8), fps=8, scale=1)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.gif"]      # no half-written rest


@pytest.mark.parametrize("call, words", [
    (lambda x: video.mp4_bytes(x[0], 8), r"\[T, H, W, C\]"),
    (lambda x: video.gif_bytes(x[..., :2], 8), "1 or 3 channels"),
    (lambda x: video.gif_bytes(x, 0), "fps"),
    (lambda x: video.mp4_bytes(x, 8, scale=0), "scale"),
    (lambda x: video.mp4_bytes(x, 8, scale=1.5), "scale"),
    (lambda x: video.tile(x), r"\[B, T, H, W, C\]"),
    (lambda x: video.tile(x[None], columns=0), "columns"),
])
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(wave(2, 8, 8, 3))

import itertools
import math
from fractions import Fraction

import av
import numpy as np
import pytest

from causal_diffusion.data.video_decode import decode_video
from tests.data.footage import encode, flat, moving, set_clean_aperture, set_display_matrix, shown_by_ffmpeg

SHOWN = {  # of (a, b, c, d): what FFmpeg's command line inserts, and the same in NumPy, on [N, H, W, C]
    (1, 0, 0, 1): ([], lambda x: x),
    (-1, 0, 0, 1): (["hflip"], lambda x: x[:, :, ::-1]),
    (1, 0, 0, -1): (["vflip"], lambda x: x[:, ::-1]),
    (-1, 0, 0, -1): (["hflip", "vflip"], lambda x: x[:, ::-1, ::-1]),
    (0, 1, 1, 0): (["transpose=cclock_flip"], lambda x: x.swapaxes(1, 2)),
    (0, 1, -1, 0): (["transpose=clock"], lambda x: x.swapaxes(1, 2)[:, :, ::-1]),
    (0, -1, 1, 0): (["transpose=cclock"], lambda x: x.swapaxes(1, 2)[:, ::-1]),
    (0, -1, -1, 0): (["transpose=clock_flip"], lambda x: x.swapaxes(1, 2)[:, ::-1, ::-1]),
}
SQUARE = ["scale=iw*sar:ih", "setsar=1"]


def assert_shown(path, wanted, notes=0):
    """Within two levels, which is what the resampling of equal sizes may add: nothing."""
    video = decode_video(path, *wanted.shape[1:3], 3)
    assert np.abs(video.frames.astype(int) - wanted).max() <= 2
    assert len(video.notes) == notes and video.damage == ()
    return video


@pytest.mark.parametrize("matrix", SHOWN)
@pytest.mark.parametrize("aspect", [None, Fraction(64, 45), Fraction(8, 9)])
def test_every_orientation_with_every_aspect_ratio(tmp_path, matrix, aspect):
    def setup(stream):
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect

    path = encode(tmp_path / "a.mp4", moving(2, 48, 64), pixels="yuv444p", options={"qp": "0"}, setup=setup)
    stored = shown_by_ffmpeg(path)
    set_display_matrix(path, *matrix)
    filters, turn = SHOWN[matrix]
    wanted = shown_by_ffmpeg(path, *filters, *(SQUARE if aspect else []))
    if not aspect:
        np.testing.assert_array_equal(wanted, turn(stored))
    assert_shown(path, wanted)


@pytest.mark.parametrize("degrees, noted", [(0.3, 0), (90.3, 0), (10, 1), (45.5, 1)])
def test_other_angles_are_noted_and_the_nearest_is_shown(tmp_path, degrees, noted):
    path = encode(tmp_path / "a.mp4", moving(1), pixels="yuv444p", options={"qp": "0"})
    stored = shown_by_ffmpeg(path)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    set_display_matrix(path, cos, sin, -sin, cos)
    turned = SHOWN[0, 1, -1, 0][1](stored) if degrees > 45 else stored
    video = assert_shown(path, turned, noted)
    assert all("only quarter turns and mirrorings are applied: try ffmpeg" in note for note in video.notes)


def test_a_matrix_that_skews_is_noted(tmp_path):
    path = set_display_matrix(encode(tmp_path / "a.mp4", moving(1)), 1, 0, 0.3, 1)
    (note,) = decode_video(path, 16, 16, 3).notes
    assert "turns or skews the picture" in note


def test_the_aspect_ratio_of_the_container_counts_more_than_the_codecs(tmp_path):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = encode(tmp_path / "a.mp4", moving(1, 48, 48), setup=setup)
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    path.write_bytes(data[:at] + b"\0\0\0\2\0\0\0\1" + data[at + 8:])
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.sample_aspect_ratio == Fraction(4, 3)
    wanted = shown_by_ffmpeg(path, *SQUARE)
    assert wanted.shape[1:3] == (48, 96)
    assert_shown(path, wanted)


def test_an_implausible_aspect_ratio_is_noted(tmp_path):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(1, 20)

    path = encode(tmp_path / "a.mp4", moving(1), setup=setup)
    video = assert_shown(path, shown_by_ffmpeg(path), notes=1)
    assert "sample aspect ratio 1/20 is implausible and is not applied: try" in video.notes[0]


def test_a_disc_of_an_anamorphic_film_is_round(tmp_path):
    y, x = np.mgrid[:96, :80] - np.array([47.5, 39.5])[:, None, None]
    disc = np.where(x**2 * (64 / 45)**2 + y**2 < 40**2, 255, 0).astype(np.uint8)

    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)

    path = encode(tmp_path / "a.mkv", np.repeat(disc[None, ..., None], 3, -1), pixels="yuv444p", setup=setup)
    shown = decode_video(path, 48, 48, 1).frames[0, ..., 0] > 127
    assert abs(int(shown.any(axis=0).sum()) - int(shown.any(axis=1).sum())) <= 1


@pytest.mark.parametrize("matrix, depth, full", [
    *itertools.product((1, 5, 7, 9), (8,), (False, True)), (1, 10, False), (9, 10, True)])  # fmt: skip
def test_matrix_and_range(tmp_path, matrix, depth, full):
    def setup(stream):
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1

    pixels = "yuv444p10le" if depth == 10 else "yuv444p"
    codec, options = ("libx264", {"qp": "0"}) if depth == 8 else ("ffv1", {})
    frames = moving(2)
    path = encode(tmp_path / "a.mkv", frames, codec, pixels=pixels, options=options, setup=setup)
    video = assert_shown(path, shown_by_ffmpeg(path))
    assert np.abs(video.frames.astype(int) - frames).max() <= 4  # so they are what was encoded, too


def test_420_as_ffmpeg(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(3))
    assert_shown(path, shown_by_ffmpeg(path))


def fields(frames, first):
    """Pictures of 2 N moments -> N interlaced frames; first: the row in which the earlier field begins."""
    woven = frames[::2].copy() if first == 0 else frames[1::2].copy()
    woven[:, 1::2] = (frames[1::2] if first == 0 else frames[::2])[:, 1::2]
    return woven


@pytest.mark.parametrize("suffix, codec, options", [
    (".ts", "mpeg2video", {"flags": "+ilme+ildct"}), (".mkv", "libx264", {"flags": "+ilme+ildct"})])  # fmt: skip
@pytest.mark.parametrize("first", ["tff", "bff"])
def test_interlaced_video_loses_its_combs(tmp_path, suffix, codec, options, first):
    def setup(stream):
        stream.codec_context.bit_rate = 8_000_000

    frames = fields(moving(12), 0 if first == "tff" else 1)
    path = encode(tmp_path / ("a" + suffix), frames, codec, options=options, filters=[f"setfield={first}"], setup=setup)
    with av.open(str(path)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    both_fields = shown_by_ffmpeg(path, "bwdif")
    video = assert_shown(path, both_fields[::2])
    np.testing.assert_array_equal(both_fields[::2], shown_by_ffmpeg(path, "bwdif=mode=send_frame"))
    assert len(video.times) == 6 and np.allclose(video.times, np.arange(6) / 25)
    assert np.abs(video.frames.astype(int) - shown_by_ffmpeg(path)).mean() > 3


def test_progressive_frames_stay_as_they_are(tmp_path):
    path = encode(tmp_path / "a.ts", moving(5), "mpeg2video")
    np.testing.assert_array_equal(decode_video(path, 64, 64, 3).frames, shown_by_ffmpeg(path))


def test_a_clean_aperture_is_cut_out(tmp_path):
    path = encode(tmp_path / "a.mp4", moving(2), pixels="yuv444p", options={"qp": "0"})
    stored = shown_by_ffmpeg(path)
    set_clean_aperture(path, 48, 32)
    assert_shown(path, stored[:, 8:56, 16:48])


@pytest.mark.parametrize("field, value, words", [
    ("color_primaries", 9, "BT.2020 primaries, which are not converted"),
    ("color_primaries", 12, "Display P3 primaries, which are not converted"),
    ("color_trc", 8, "a linear transfer function, which is not applied"),
    ("colorspace", 8, "YCgCo colours, which are read as BT.601")])  # fmt: skip
def test_what_is_not_applied_is_noted(tmp_path, field, value, words):
    def setup(stream):
        setattr(stream.codec_context, field, value)

    path = encode(tmp_path / "a.mkv", flat(2), "ffv1", pixels="yuv444p", setup=setup, converted=field != "colorspace")
    (note,) = decode_video(path, 16, 16, 3).notes
    assert words in note and ": try ffmpeg -i IN " in note

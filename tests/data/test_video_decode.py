import struct

import av
import numpy as np
import pytest

from causal_diffusion.data.video_decode import UndecodableError, decode_video


def numbered(frames, height=16, width=16):
    """Frames of one colour each, frame i of value 3 i."""
    value = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 3
    return np.broadcast_to(value, (frames, height, width, 3))


def test_frames_of_the_target_size_arrive_bit_for_bit(tmp_path, write_video):
    frames = np.random.default_rng(0).integers(0, 256, (10, 16, 24, 3), np.uint8)
    write_video(tmp_path / "a.mkv", frames, fps=30)
    video = decode_video(tmp_path / "a.mkv", 16, 24, 3)
    np.testing.assert_array_equal(video.frames, frames)
    np.testing.assert_array_equal(video.shown, np.arange(10))
    np.testing.assert_allclose(video.times, np.arange(10) / 30, atol=1.1e-3)  # Matroska's clock ticks in ms
    assert video.own_frames == 10
    assert not video.frames.flags.writeable


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
@pytest.mark.parametrize("own, fps", [(30, 15), (30, 10), (30, 12.5), (10, 20), (10, 24), (29.97, 10)])
def test_each_slot_shows_the_last_frame_that_has_begun(tmp_path, write_video, suffix, own, fps):
    path = tmp_path / ("a" + suffix)
    write_video(path, numbered(40), fps=own)
    video = decode_video(path, 16, 16, 3, fps)
    slots = np.arange(len(video.times)) / fps
    np.testing.assert_allclose(video.times, slots)
    np.testing.assert_array_equal(video.shown, np.floor(slots * own + 1e-4))  # Matroska's milliseconds are undone
    assert len(slots) == np.ceil(40 / own * fps - 1e-4)
    assert video.own_frames == 40
    np.testing.assert_array_equal(video.frames[:, 0, 0, 0], 3 * video.shown)


def test_same_rate_neither_drops_nor_repeats_a_frame_although_time_stamps_are_rounded(tmp_path, write_video):
    write_video(tmp_path / "a.mkv", numbered(70), fps=30)
    np.testing.assert_array_equal(decode_video(tmp_path / "a.mkv", 16, 16, 1, fps=30).shown, np.arange(70))


@pytest.mark.parametrize("height, width", [(16, 16), (8, 8), (32, 32)])
def test_centre_crop_keeps_the_middle(tmp_path, write_video, height, width):
    wide = np.zeros((2, 32, 96, 3), np.uint8)
    wide[:, :, 32:64] = 255
    write_video(tmp_path / "wide.mkv", wide, fps=10)
    write_video(tmp_path / "tall.mkv", wide.transpose(0, 2, 1, 3), fps=10)
    for name in ("wide.mkv", "tall.mkv"):
        assert (decode_video(tmp_path / name, height, width, 3).frames == 255).all()


def test_crop_follows_the_target_aspect_ratio(tmp_path, write_video):
    square = np.zeros((1, 64, 64, 3), np.uint8)
    square[:, 16:48] = 255
    write_video(tmp_path / "a.mkv", square, fps=10)
    assert (decode_video(tmp_path / "a.mkv", 16, 32, 3).frames == 255).all()
    assert (decode_video(tmp_path / "a.mkv", 32, 16, 3).frames[0, :, 0].min(axis=-1) == 0).any()


def test_shrinking_is_antialiased(tmp_path, write_video):
    board = (np.indices((128, 128)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write_video(tmp_path / "a.mkv", np.repeat(board[None, ..., None], 3, axis=-1), fps=10)
    small = decode_video(tmp_path / "a.mkv", 16, 16, 1).frames.astype(int)
    assert np.abs(small - 127.5).max() <= 2


def test_grey_is_luma(tmp_path, write_video):
    frames = np.broadcast_to(np.array([200, 100, 50], np.uint8), (1, 16, 16, 3))
    write_video(tmp_path / "a.mkv", frames, fps=10)
    video = decode_video(tmp_path / "a.mkv", 16, 16, 1)
    assert video.frames.shape == (1, 16, 16, 1)
    assert np.abs(video.frames.astype(float) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() <= 1


def test_sound_before_the_picture_does_not_matter(tmp_path, write_video):
    write_video(tmp_path / "a.mkv", numbered(6), fps=10, audio=True)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert [s.type for s in container.streams] == ["audio", "video"]
    np.testing.assert_array_equal(decode_video(tmp_path / "a.mkv", 16, 16, 3).frames, numbered(6))


def test_a_turned_picture_is_set_upright(tmp_path):
    """An MP4 whose track header asks for a quarter turn clockwise, as a telephone held upright writes it."""
    path = tmp_path / "a.mp4"
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = 255  # white on the left: after the turn, white on top
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    one = 1 << 16
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    header = data.index(b"tkhd")
    at = data.index(upright, header)
    path.write_bytes(data[:at] + turned + data[at + len(turned):])
    frame = decode_video(path, 64, 32, 1).frames[0, :, :, 0].astype(int)
    assert frame[4:28].min() > 230 and frame[36:60].max() < 25


def test_undecodable_files(tmp_path, write_video):
    write_video(tmp_path / "whole.avi", numbered(6), fps=10)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
    damaged = bytearray((tmp_path / "whole.avi").read_bytes())
    at = damaged.index(b"movi") + 12  # the first bytes of the first frame
    damaged[at:at + 40] = bytes(40)
    (tmp_path / "damaged.avi").write_bytes(damaged)
    for name in ("empty.mp4", "text.mp4", "sound.mkv", "damaged.avi", "missing.mp4"):
        with pytest.raises(UndecodableError) as error:
            decode_video(tmp_path / name, 16, 16, 3)
        assert str(error.value) and "\n" not in str(error.value)
    assert decode_video(tmp_path / "whole.avi", 16, 16, 3).own_frames == 6


def test_several_video_streams(shared_videos):
    """This file also has sound tracks and subtitles; its main picture is 480x270 at 29.97 per second."""
    video = decode_video(shared_videos / "nasa_13013.mp4", 27, 48, 3, fps=5)
    assert video.frames.shape == (66, 27, 48, 3)  # 13.013 s
    assert video.own_frames == 390
    assert video.frames.std() > 20

"""Damaged files: whatever is used equals the intact file's, and the rest is named with its time."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from causal_diffusion.data import video_damage
from causal_diffusion.data.video_damage import Decoded, trusted
from causal_diffusion.data.video_decode import UndecodableError, decode_video
from tests.data.footage import encode, moving

FRAMES = 48
GROUP = {"g": "12"}
KINDS = {  # name: codec, options
    "closed.mp4": ("libx264", {"bf": "3", **GROUP}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "a.ts": ("libx264", {"bf": "2", **GROUP}),
    "b.ts": ("mpeg2video", {"bf": "2", **GROUP}),
    "a.avi": ("mpeg4", {"bf": "2", **GROUP}),
    "ffv1.mkv": ("ffv1", {"level": "3", "slicecrc": "1", **GROUP}),
    "a.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8", **GROUP}),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """name -> (path, its bytes, its frames); each is encoded once."""
    folder, made = tmp_path_factory.mktemp("intact"), {}

    def get(name):
        if name not in made:
            codec, options = KINDS[name]
            path = encode(folder / name, moving(FRAMES), codec, options=options)
            video = decode_video(path, 64, 64, 3)
            assert video.own_frames == FRAMES and video.damage == () and len(video.times) == FRAMES
            made[name] = path, path.read_bytes(), video.frames
        return made[name]

    return get


def assert_right(video, frames, shift=0):
    """Every picture is that of its time; shift: frames of the intact file before the first one."""
    place = np.rint(video.times * 25).astype(int) + shift
    np.testing.assert_array_equal(video.frames, frames[place])


def zeros(data, share, length):
    """The payload of an MP4 lies before its index, and headers of the others at their start."""
    at = int(len(data) * share)
    return data[:at] + bytes(length) + data[at + length:]


@pytest.mark.parametrize("name", ["closed.mp4", "open.mp4", "ffv1.mkv", "a.webm"])
@pytest.mark.parametrize("share", [0.3, 0.45])
def test_a_hole_is_cut_out(tmp_path, intact, name, share):
    _, data, frames = intact(name)
    (tmp_path / name).write_bytes(zeros(data, share, len(data) // 10))
    video = decode_video(tmp_path / name, 64, 64, 3)
    assert_right(video, frames)
    assert 8 <= len(video.times) < FRAMES and len(set(video.section)) >= 2
    assert any("damaged or lost from " in words for words in video.damage)
    if name.endswith("mp4"):  # its index still lists all frames, so numbers are those of the file
        assert video.own_frames == FRAMES
        np.testing.assert_array_equal(video.shown, np.rint(video.times * 25))


@pytest.mark.parametrize("name", ["a.ts", "b.ts"])
@pytest.mark.parametrize("seed", range(2))
def test_lost_packets_of_a_transport_stream(tmp_path, intact, name, seed):
    _, data, frames = intact(name)
    packets = [data[i:i + 188] for i in range(0, len(data), 188)]
    rng = np.random.default_rng(seed)
    left = [p for i, p in enumerate(packets) if i < 20 or rng.random() > 0.01]
    assert len(left) < len(packets)
    (tmp_path / name).write_bytes(b"".join(left))
    video = decode_video(tmp_path / name, 64, 64, 3)
    assert_right(video, frames)
    assert len(video.times) < FRAMES and video.damage


@pytest.mark.parametrize("name", ["a.ts", "b.ts"])
def test_a_recording_that_begins_in_the_middle(tmp_path, intact, name):
    _, data, frames = intact(name)
    cut = len(data) // 188 * 3 // 8 * 188
    (tmp_path / name).write_bytes(data[:188 * 3] + data[cut:])
    video = decode_video(tmp_path / name, 64, 64, 3)
    np.testing.assert_array_equal(video.frames, frames[-len(video.frames):])
    assert 12 <= len(video.times) <= 36 and len(video.times) % 12 == 0  # whole groups


@pytest.mark.parametrize("name", ["a.ts", "b.ts", "a.avi", "ffv1.mkv", "a.webm"])
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_a_file_that_ends_early(tmp_path, intact, name, share):
    _, data, frames = intact(name)
    (tmp_path / name).write_bytes(data[:int(share * len(data))])
    video = decode_video(tmp_path / name, 64, 64, 3)
    assert_right(video, frames)
    assert 0 < len(video.times) < FRAMES
    if name.endswith((".mkv", ".webm")):  # their headers say how long they should be
        assert any("before the end that it declares" in words for words in video.damage)


def test_a_checksum_finds_any_wrong_byte(tmp_path, intact):
    _, data, frames = intact("ffv1.mkv")
    for share in (0.2, 0.5, 0.8):
        at = int(share * len(data))
        (tmp_path / "a.mkv").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        video = decode_video(tmp_path / "a.mkv", 64, 64, 3)
        assert_right(video, frames)
        assert len(video.times) < FRAMES and video.damage


def test_slots_of_damaged_frames_are_left_out(tmp_path, intact):
    _, data, frames = intact("closed.mp4")
    (tmp_path / "a.mp4").write_bytes(zeros(data, 0.3, len(data) // 10))
    every, some = (decode_video(tmp_path / "a.mp4", 64, 64, 3, fps) for fps in (0, 12.5))
    np.testing.assert_allclose(some.times, [t for t in every.times if round(t * 25) % 2 == 0], atol=1e-9)
    assert_right(some, frames)


def test_a_file_without_a_good_frame(tmp_path, intact):
    _, data, _ = intact("closed.mp4")
    begin, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    (tmp_path / "a.mp4").write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    with pytest.raises(UndecodableError, match="none of its frames can be decoded"):
        decode_video(tmp_path / "a.mp4", 64, 64, 3)


def group_of_pictures(rng, frames=40):
    """Frames in the order of decoding: (number in the order of times, whether a key frame, frames it needs)."""
    made, shown, anchor = [], 0, None
    while shown < frames:
        between = [] if anchor is None else list(range(shown, shown + int(rng.integers(0, 4))))
        key = anchor is None or rng.random() < 0.2
        place = shown + len(between)
        made.append((place, key, [] if key else [anchor]))
        made += [(number, False, [anchor, place]) for number in between]
        anchor, shown = place, place + 1
    return made


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_trusted_that_depends_on_damage(seed):
    rng = np.random.default_rng(seed)
    stream = group_of_pictures(rng)
    damaged = set(rng.choice(len(stream), int(rng.integers(0, 4)), replace=False).tolist())
    wrong = {}
    for order, (place, _, needs) in enumerate(stream):
        wrong[place] = order in damaged or any(wrong[need] for need in needs)
    by_time = sorted((place, Decoded(order, place, key, False)) for order, (place, key, _) in enumerate(stream))
    good = trusted([frame for _, frame in by_time], damaged, set())
    assert not any(good[place] and wrong[place] for place in wrong)
    first = min(damaged, default=len(stream))
    assert good[[place for order, (place, _, _) in enumerate(stream) if order < first]].all()
    if not damaged:
        assert good.all()
    last_key = max(order for order, (_, key, _) in enumerate(stream) if key)
    if damaged and max(damaged) < last_key:
        assert good[[place for place, _, _ in stream[last_key:] if place >= stream[last_key][0]]].all()


def test_complaints_that_leave_nothing_are_ignored(tmp_path, intact, monkeypatch):
    path, _, frames = intact("a.ts")
    monkeypatch.setattr(video_damage, "_any", lambda errors, part="": part == "")
    video = decode_video(path, 64, 64, 3)
    assert_right(video, frames)
    assert len(video.times) == FRAMES


def test_files_read_side_by_side_do_not_disturb_each_other(intact):
    """Packets are numbered from 0 in each file, and decoders hold some of them back."""
    def reading():
        container = av.open(str(intact("closed.mp4")[0]))
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return video_damage.Frames(container, stream, [])

    alone, slow = reading(), reading()
    for _ in alone:
        pass
    for place, _ in enumerate(slow):
        if place % 10 == 3:
            for _ in reading():  # to its end, so that all its packets are freed
                pass
    assert slow.decoded == alone.decoded and not slow.suspicious


@pytest.mark.parametrize("extra", [1, 2])
def test_a_field_of_its_own_has_no_frame_of_its_own(extra):
    """Packets without a frame and without an error are no damage: second fields, references that are not shown."""
    class Packet:
        size, dts, is_discard, is_corrupt = 9, 0, False, False

        def __init__(self, number):
            self.number, self.pts = number, 100 * number

        def decode(self):
            if self.number % (1 + extra):
                return []
            key = self.number == 0
            return [SimpleNamespace(opaque=self.opaque, pts=self.pts, key_frame=key, pict_type=1 if key else 2,
                                    is_corrupt=False)]  # fmt: skip

    container = SimpleNamespace(format=SimpleNamespace(name="mpegts"), demux=lambda _: map(Packet, range(30)))
    source = video_damage.Frames(container, SimpleNamespace(codec_context=SimpleNamespace(name="h264")), [])
    assert len(list(source)) == 30 // (1 + extra)
    assert not source.suspicious and source.lost == set() and source.good().all()

"""Which files of a folder are videos, and the account of all others."""

import dataclasses
import errno
import logging
import os
import shutil

import av
import numpy as np
import pytest

from causal_diffusion.data.config import DataConfig
from causal_diffusion.data.sources import make_source
from causal_diffusion.data.video_files import find_files
from causal_diffusion.errors import UnreadableError, UserError
from tests.data.footage import encode, flat
from tests.fake_disk import IDS, TRANSIENT, failing_disk

CODECS = {".ts": "mpeg2video", ".MTS": "libx264", ".ogv": "libtheora", ".3gp": "libx264", ".WebM": "libvpx",
          ".mxf": "mpeg2video", ".VOB": "mpeg2video", ".flv": "libx264"}  # fmt: skip
FORMATS = {".MTS": "mpegts", ".WebM": "webm", ".VOB": "vob"}


def source_of(folder, **changes):
    config = DataConfig(source="video_folder", path=str(folder), frames=4, height=8, width=8, holdout=0.0)
    return make_source(dataclasses.replace(config, **changes), "train")


def names(source):
    return sorted({stretch.clip.file for stretch in source._stretches})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("clip") / "clip.mkv", flat(6), "ffv1", pixels="bgr0")


def unused(caplog):
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("not used: ")]
    return line


def test_any_ending_and_none(tmp_path, clip, caplog):
    for suffix, codec in CODECS.items():
        if codec in av.codecs_available:
            made = encode(tmp_path / ("a" + suffix.lower()), flat(6, 64, 64), codec) if suffix not in FORMATS else None
            if made is None:
                with av.open(str(tmp_path / ("a" + suffix)), "w", format=FORMATS[suffix]) as file:
                    stream = file.add_stream(codec, rate=25)
                    stream.width = stream.height = 64
                    stream.pix_fmt = "yuv420p"
                    for image in flat(6, 64, 64):
                        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
                    file.mux(stream.encode())
            elif made.suffix != suffix:
                made.rename(tmp_path / ("a" + suffix))
    for name in ("noending", "UPPER.MKV", "odd.dat", "two.dots.mkv", "ünï.mkv", "sp ace.mkv", "100%d.mkv"):
        shutil.copy(clip, tmp_path / name)
    made = sorted(entry.name for entry in tmp_path.iterdir())
    assert len(made) >= 13
    assert names(source_of(tmp_path)) == made and not caplog.records


def test_names_that_are_not_utf8(tmp_path, clip, caplog):
    shutil.copy(clip, os.fsencode(tmp_path) + b"/caf\xe9.mkv")
    (tmp_path / os.fsdecode(b"bad\xff.mkv")).write_bytes(b"rubbish")
    with caplog.at_level(logging.WARNING):
        source = source_of(tmp_path)
    assert len(source) == 3
    assert [r.getMessage() for r in caplog.records] == [
        "skipped bad\\udcff.mkv: it cannot be decoded: Invalid data found when processing input"]
    with pytest.raises(UserError) as error:
        source_of(tmp_path, frames=50)
    assert str(error.value).encode()  # it can be printed


def test_titles_that_are_not_utf8(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        file.metadata["title"] = "cafXX"
        for image in flat(6):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        file.mux(stream.encode())
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data.replace(b"cafXX", b"caf\xe9\xff"))
    assert len(source_of(tmp_path)) == 3


def test_links_are_followed_and_loops_end(tmp_path, clip, caplog):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    for made in (folder / "sub", outside / "deep"):
        made.mkdir(parents=True)
    shutil.copy(clip, folder / "sub" / "own.mkv")
    shutil.copy(clip, outside / "deep" / "far.mkv")
    shutil.copy(clip, outside / "alone.mkv")
    (folder / "linked").symlink_to(outside / "deep")
    (folder / "again").symlink_to(outside / "deep")
    (folder / "file.mkv").symlink_to(outside / "alone.mkv")
    (folder / "a_copy.mkv").symlink_to(folder / "sub" / "own.mkv")
    os.link(folder / "sub" / "own.mkv", folder / "sub" / "zzz.mkv")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "gone.mkv").symlink_to(tmp_path / "nowhere")
    source = source_of(folder)
    assert names(source) == ["again/far.mkv", "file.mkv", "sub/own.mkv"]
    line = unused(caplog)
    assert "folder that is used under another name (" in line and "linked" in line and "sub/loop" in line
    assert "2 files: the same file as sub/own.mkv (a_copy.mkv, sub/zzz.mkv)" in line or (
        "the same file as sub/own.mkv" in line and "sub/zzz.mkv" in line)  # fmt: skip
    assert "2 files: broken link (gone.mkv, self)" in line


def _sing(file):
    """A second of silence in the first stream."""
    stream = file.streams.audio[0]
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
    sound.sample_rate = 8000
    for packet in stream.encode(sound) + stream.encode():
        file.mux(packet)


def test_what_is_no_video_is_named_by_its_kind(tmp_path, clip, caplog):
    shutil.copy(clip, tmp_path / "a.mkv")
    with av.open(str(tmp_path / "song.wav"), "w") as file:
        file.add_stream("pcm_s16le", rate=8000)
        _sing(file)
    from PIL import Image

    Image.fromarray(flat(1)[0]).save(tmp_path / "still.tiff")
    Image.fromarray(flat(1)[0]).save(tmp_path / "still.webp")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.mkv\n")
    (tmp_path / "weights.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".DS_Store").write_bytes(b"x" * 100)
    os.mkfifo(tmp_path / "pipe.mkv")
    with caplog.at_level(logging.INFO):
        assert names(source_of(tmp_path)) == ["a.mkv"]
    line = unused(caplog)
    for words in ("it has no video stream (song.wav)", "as a still picture", "still.tiff", "still.webp", "list.m3u8",
                  "that FFmpeg cannot read (", "weights.bin", "empty (empty.mp4)", "hidden (.DS_Store)",
                  "of other kinds, by their endings (notes.txt)",
                  "neither a file nor a folder (pipe.mkv)"):  # fmt: skip
        assert words in line


def test_a_cover_picture_is_no_video(tmp_path, clip, caplog):
    shutil.copy(clip, tmp_path / "a.mkv")
    from PIL import Image

    Image.fromarray(flat(1)[0]).save(tmp_path / "cover.png")
    with av.open(str(tmp_path / "song.flac"), "w") as file, av.open(str(tmp_path / "cover.png")) as cover:
        file.add_stream("flac", rate=8000)
        picture = file.add_stream_from_template(cover.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        for packet in cover.demux():
            if packet.size:
                packet.stream = picture
                file.mux(packet)
        _sing(file)
    assert names(source_of(tmp_path)) == ["a.mkv"]
    assert "it has no video stream, only a cover picture (song.flac)" in unused(caplog)


def test_many_are_counted_and_few_named(tmp_path, clip, caplog):
    shutil.copy(clip, tmp_path / "a.mkv")
    for i in range(12):
        (tmp_path / f"{i:02}.bin").write_bytes(bytes(100))
    source_of(tmp_path)
    assert unused(caplog) == ("not used: 12 files: that FFmpeg cannot read (00.bin, 01.bin, 02.bin, 03.bin, 04.bin and "
                              "7 more)")


def test_a_folder_of_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"there is no video file in .*only other files: 1 file: .*\(notes.txt\)"):
        source_of(tmp_path)


@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
@pytest.mark.parametrize("ending, call", [("b.mkv", "open"), ("below", "list")])
def test_what_cannot_be_read_now_is_not_skipped(tmp_path, clip, caplog, monkeypatch, code, ending, call):
    """Training would go on with other data. Folders of others, which no waiting opens, are left out by name."""
    (tmp_path / "below").mkdir()
    for name in ("a.mkv", "b.mkv", "below/c.mkv"):
        shutil.copy(clip, tmp_path / name)
    disk = failing_disk(monkeypatch)
    disk.fail(ending, code, times=2, calls=(call,))
    if call == "open" or code != errno.EACCES:
        assert names(source_of(tmp_path)) == ["a.mkv", "b.mkv", "below/c.mkv"]
        disk.fail(ending, code, calls=(call,))
        with pytest.raises(UnreadableError, match=f"cannot read .*{ending} now"):
            source_of(tmp_path)
    else:
        assert names(source_of(tmp_path)) == ["a.mkv", "b.mkv"]
        assert "folder that cannot be read (Permission denied) (below/)" in unused(caplog)


def test_the_order_of_files_does_not_depend_on_the_disk(tmp_path, clip):
    for name in ("b.mkv", "a.mkv", "c/a.mkv", "B.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    files, left_out = find_files(tmp_path)
    assert files == ["B.mkv", "a.mkv", "b.mkv", "c/a.mkv"] and not left_out


def test_clips_are_cut_around_damage_and_it_is_named(tmp_path, caplog):
    """One packet of 30 has wrong bytes, which its checksum tells: the clips before and after it stay."""
    frames = flat(30, step=8)
    path = encode(tmp_path / "a.mkv", frames, "ffv1", pixels="bgr0", options={"slicecrc": "1", "g": "1"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packet = [p for p in file.demux(video=0) if p.size][12]
    data[packet.pos + packet.size // 2] ^= 1
    path.write_bytes(data)
    np.save(tmp_path / "a.npy", np.arange(30.0)[:, None])
    source = source_of(tmp_path)
    shown = [np.rint((source[i]["video"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist() for i in range(len(source))]
    starts = [*range(9), *range(13, 27)]
    assert shown == [[8 * (s + i) for i in range(4)] for s in starts]
    (line,) = [r.getMessage() for r in caplog.records]
    assert line == "a.mkv: a frame is damaged or lost from 0.480 s to 0.520 s: clips are cut there"
    (tmp_path / "clips.jsonl").write_text('{"file": "a.mkv", "actions": "a.npy", "start": 0.2, "end": 1.0}\n')
    source = source_of(tmp_path, action_dim=1)
    assert [int(source[i]["action"][0, 0]) for i in range(len(source))] == [5, 6, 7, 8, *range(13, 22)]


def test_a_damaged_file_whose_actions_fit_no_more_is_skipped(tmp_path, clip, caplog):
    shutil.copy(clip, tmp_path / "a.mkv")
    path = encode(tmp_path / "b.ts", flat(30), "mpeg2video", options={"g": "5"})
    data = path.read_bytes()
    path.write_bytes(data[:188 * 30] + data[188 * 45:])
    np.save(tmp_path / "a.npy", np.zeros((6, 1)))
    np.save(tmp_path / "b.npy", np.zeros((30, 1)))
    (tmp_path / "clips.jsonl").write_text('{"file": "a.mkv", "actions": "a.npy"}\n{"file": "b.ts", "actions": "b.npy"}')
    assert names(source_of(tmp_path, action_dim=1)) == ["a.mkv"]
    assert any(r.getMessage().startswith("skipped a clip: clips.jsonl line 2: 'b.npy' has shape (30, 1), but b.ts has ")
               for r in caplog.records)  # fmt: skip

"""Event files: clips that play, pictures, scalars, resumed runs, and a disk that is full."""

import errno
import io
import resource
import time

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from causal_diffusion.render.tensorboard import EventFile, image_summary, scalar_summary, video_summary


def test_clips_become_an_animated_image(tmp_path):
    clips = np.random.default_rng(0).uniform(-1, 1, (4, 5, 8, 8, 1)).astype(np.float32)
    summary = video_summary("samples", clips, fps=10)
    assert isinstance(summary, Summary)
    (value,) = summary.value
    assert value.tag == "samples"
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as gif:
        assert gif.format == "GIF" and gif.n_frames == 5 and gif.info["duration"] == 100
        assert (value.image.width, value.image.height) == gif.size
        assert min(gif.size) >= 256

    file = EventFile(tmp_path)
    file.add(summary, 7)
    file.close()
    clip = [event for event in events_in(tmp_path) if event.summary.value]
    assert len(clip) == 1 and clip[0].step == 7 and clip[0].summary.value[0].tag == "samples"
    assert clip[0].summary.value[0].image.encoded_image_string.startswith(b"GIF89a")


def test_a_picture_becomes_a_png():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    (value,) = image_summary("sheet", pixels).value
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as picture:
        assert picture.format == "PNG" and np.array_equal(np.asarray(picture), pixels)
    assert (value.image.height, value.image.width) == (6, 9)


def events_in(folder):
    """The events of all files of a folder, in order, their checksums verified."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
            length = int.from_bytes(data[at : at + 8], "little")
            event = data[at + 12 : at + 12 + length]
            assert int.from_bytes(data[at + 8 : at + 12], "little") == masked_crc32c(data[at : at + 8])
            assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == masked_crc32c(event)
            found.append(Event.FromString(event))
            at += 16 + length
        assert at == len(data)
    return found


def test_scalars_come_back():
    (value,) = scalar_summary("loss", np.float32(0.25)).value
    assert value.tag == "loss" and value.simple_value == 0.25


def test_an_event_file_reads_back(tmp_path):
    before = time.time()
    file = EventFile(tmp_path / "new" / "folder")
    for step in (1, 2, 30):
        file.add(scalar_summary("loss", step / 10), step)
    file.flush()
    flushed = events_in(tmp_path / "new" / "folder")
    file.close()
    version, start, *scalars = events_in(tmp_path / "new" / "folder")
    assert [version, start, *scalars] == flushed
    assert version.file_version == "brain.Event:2"
    assert [(e.step, e.summary.value[0].tag) for e in scalars] == [(1, "loss"), (2, "loss"), (30, "loss")]
    np.testing.assert_allclose([e.summary.value[0].simple_value for e in scalars], [0.1, 0.2, 3.0], rtol=1e-6)
    assert all(before <= e.wall_time <= time.time() for e in scalars)
    assert start.session_log.status == SessionLog.START and start.step == 1


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    """TensorBoard drops what a folder holds from the step of a START event on, and shows what comes then."""
    first = EventFile(tmp_path)
    for step in range(1, 8):
        first.add(scalar_summary("loss", step), step)
    first.close()
    second = EventFile(tmp_path, start=5)
    second.add(scalar_summary("loss", 60.0), 6)
    second.close()
    assert len(list(tmp_path.iterdir())) == 2  # the same second, and still two files
    shown = {}
    for event in events_in(tmp_path):
        if event.session_log.status == SessionLog.START:
            shown = {step: value for step, value in shown.items() if step < event.step}
        for value in event.summary.value:
            shown[event.step] = value.simple_value
    assert shown == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 60}


def test_a_full_disk_reaches_the_caller_and_the_file_is_given_up(tmp_path):
    """A limit on file sizes stands for the full disk. Nothing is left to fail later, unseen."""
    file = EventFile(tmp_path)
    file.add(scalar_summary("loss", 1.0), 1)
    file.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(p.stat().st_size for p in tmp_path.iterdir()), hard))
    try:
        file.add(scalar_summary("loss", 2.0), 2)
        for _ in range(2):
            with pytest.raises(OSError) as error:
                file.flush()
            assert error.value.errno == errno.EFBIG
        with pytest.raises(OSError):
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()  # it is ended already
    assert [event.step for event in events_in(tmp_path)] == [0, 1, 1]

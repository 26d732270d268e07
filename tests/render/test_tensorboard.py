import io

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from causal_diffusion.render.tensorboard import image_summary, video_summary


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

    writer = SummaryWriter(str(tmp_path))
    writer.file_writer.add_summary(summary, 7)
    writer.close()
    (events,) = tmp_path.iterdir()
    data, found, at = events.read_bytes(), [], 0
    while at < len(data):       # records: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[at:at + 8], "little")
        found.append(Event.FromString(data[at + 12:at + 12 + length]))
        at += 16 + length
    clip = [e for e in found if len(e.summary.value) and e.summary.value[0].tag == "samples"]
    assert len(clip) == 1 and clip[0].step == 7
    assert clip[0].summary.value[0].image.encoded_image_string.startswith(b"GIF89a")


def test_a_picture_becomes_a_png():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    (value,) = image_summary("sheet", pixels).value
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as picture:
        assert picture.format == "PNG" and np.array_equal(np.asarray(picture), pixels)
    assert (value.image.height, value.image.width) == (6, 9)

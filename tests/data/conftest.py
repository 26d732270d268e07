"""Videos for the tests of the data room: small lossless ones of their own, and real footage."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def write_video():
    """write_video(path, frames uint8 [N, H, W, 3], fps, audio=False): a lossless Matroska or AVI file."""
    return _write_video


@pytest.fixture
def shared_videos() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CD_SHARED_DATA", beside)) / "video"
    if not folder.is_dir():
        pytest.skip("the shared footage is not here (CD_SHARED_DATA)")
    return folder


def _write_video(path, frames, fps, audio=False):
    import av

    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000) if audio else None  # first: video is stream 1
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for image in frames:
            image = np.ascontiguousarray(image)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())

"""A stream into a video file."""

import av
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.streaming.to_file import stream_to_file


def test_a_stream_becomes_a_video(pipeline, tmp_path, capsys):
    """Samples side by side, block by block, as many frames as were asked for."""
    pipe, out = pipeline("causal"), tmp_path / "clip.mp4"
    stream_to_file(pipe, out, seed=1, frames=5, batch=2, context=0, fps=7.0)
    with av.open(str(out)) as video:
        frames = list(video.decode(video=0))
        assert len(frames) == 5 and float(video.streams.video[0].average_rate) == 7.0
    said = capsys.readouterr().out
    assert str(out) in said and "2 x 5 frames after 0 given ones" in said


def test_no_frames_are_no_video(pipeline, tmp_path):
    with pytest.raises(UserError, match="^--frames is 0;"):
        stream_to_file(pipeline("causal"), tmp_path / "clip.mp4", frames=0)
    assert not list(tmp_path.iterdir())

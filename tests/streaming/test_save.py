"""Saved streams go on with the same bits, in this process and in another; damaged or foreign ones are refused."""

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from causal_diffusion.checkpoint import load_tree
from causal_diffusion.errors import CheckpointError
from causal_diffusion.streaming.pipeline import Pipeline

BOTH = pytest.mark.parametrize("name", ["pyramid", *(pytest.param(name, marks=pytest.mark.full) for name in (
    "teacher", "fused_rolling", "deep", "ahead"))])  # fmt: skip


@pytest.fixture
def saved(pipeline, inputs, tmp_path):
    """name -> (pipeline, file, what follows): a stream in mid-flow with actions still queued."""

    def saved(name, blocks=2):
        pipe = pipeline(name)
        stream = pipe.stream(seed=6, **inputs(pipe, 2, context=2 * pipe.rollout.block, frames=8))
        stream.update({"label": [2, 0]})
        stream.take(blocks)
        stream.save(tmp_path / "stream")
        return pipe, tmp_path / "stream", stream.take(5)

    return saved


@BOTH
def test_a_saved_stream_goes_on_with_the_same_bits(saved, name):
    pipe, path, ahead = saved(name)
    stream = pipe.resume(path)
    assert stream.seed == 6 and stream.batch == 2
    np.testing.assert_array_equal(stream.take(5), ahead)
    stream = pipe.resume(path)
    np.testing.assert_array_equal(np.concatenate([next(stream) for _ in range(5)], axis=1), ahead)
    stream.update({"label": 1}, when="in_flight", recache=True)  # and can do all that a stream can
    assert np.abs(next(stream) - ahead[:, : pipe.rollout.block]).max() > 1e-3


def test_the_held_action_is_saved_too(saved):
    pipe, path, ahead = saved("pyramid", blocks=9)  # the queue has run out
    np.testing.assert_array_equal(pipe.resume(path).take(5), ahead)


def test_a_stream_without_conditions_is_saved_too(pipeline, tmp_path):
    pipe = pipeline("causal")
    stream = pipe.stream(seed=0, batch=2)
    stream.take(4)
    stream.save(tmp_path / "stream")
    np.testing.assert_array_equal(pipe.resume(tmp_path / "stream").take(3), stream.take(3))


def test_the_stream_of_another_system_is_refused_by_name(saved, pipeline):
    pipe, path, _ = saved("teacher")
    with pytest.raises(CheckpointError, match=r"was saved with model\.depth = 2; this pipeline has 1"):
        pipeline("pyramid").resume(path)
    other = Pipeline({**dataclasses.asdict(pipe.config), "guidance": {"kind": "none"}}, pipe.params)
    with pytest.raises(CheckpointError, match=r"was saved with guidance\.kind = 'cfg'; this pipeline has 'none'"):
        other.resume(path)


def test_a_damaged_stream_is_refused(saved):
    pipe, path, _ = saved("pyramid")
    data = path.read_bytes()
    newest = np.asarray(load_tree(path)[0]["state/x"]).tobytes()
    for part in (b'"seed"', newest):  # of what is known of the stream, and of its frames
        damaged = bytearray(data)
        damaged[data.index(part) + len(part) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            pipe.resume(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        pipe.resume(path)
    with pytest.raises(CheckpointError):
        pipe.resume(path.with_name("absent"))


@pytest.mark.full
def test_another_process_goes_on_with_the_same_bits(saved, tmp_path):
    _, path, ahead = saved("pyramid")
    code = f"""
        import importlib.util, sys
        import jax, numpy as np
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 8)
        spec = importlib.util.spec_from_file_location("tiny", {str(Path(__file__).with_name('conftest.py'))!r})
        tiny = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tiny)
        np.save({str(tmp_path / "ahead.npy")!r}, tiny.make_pipeline("pyramid").resume({str(path)!r}).take(5))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "ahead.npy"), ahead)

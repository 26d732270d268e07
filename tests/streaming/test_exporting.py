"""A stream that was exported has the bits of the pipeline's, needs none of its code, and refuses what does not fit."""

import copy
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from causal_diffusion import exported
from causal_diffusion.config import override
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.exported import read_stream
from causal_diffusion.file_access import sealed
from causal_diffusion.streaming.exporting import export_stream
from causal_diffusion.streaming.pipeline import Pipeline


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The system 'teacher' with every condition, two samples and two blocks of context."""
    out = tmp_path_factory.mktemp("exported") / "teacher"
    export_stream(pipeline("teacher"), out, batch=2, context=4, tokens=3, platforms=("cpu", "cuda"))
    return out


@pytest.fixture(scope="module")
def programs(folder):
    return read_stream(folder)


def both(pipe, programs, given, seed=1):
    """The same stream of the pipeline and of the folder."""
    cond = dict(given["cond"])
    context = given["context"] if given["context"].shape[1] else None
    return pipe.stream(seed=seed, **given), programs.start(seed, context=context, **cond)


def test_it_has_the_bits_of_the_pipeline(pipeline, inputs, programs):
    """By next and by take, with queued and held actions, through a change of the condition."""
    pipe = pipeline("teacher")
    one, two = both(pipe, programs, inputs(pipe, 2, context=4, frames=6))
    for _ in range(4):
        np.testing.assert_array_equal(next(two), one.next())
    np.testing.assert_array_equal(two.take(5), one.take(5))
    new = {"label": 2, "text": np.full((2, 3, 5), 0.5, np.float32)}
    one.update(new)
    two.update(**new)
    for action in ([0.5, -1.0], np.ones((2, 2)), None):
        np.testing.assert_array_equal(two.next(action), one.next(action))


def test_without_conditions_it_is_the_null_one(pipeline, inputs, programs):
    pipe = pipeline("teacher")
    context = inputs(pipe, 2, context=4, frames=2)["context"]
    null = {"text": np.zeros((3, 5)), "text_mask": [True, False, False]}  # as many tokens as were exported
    wanted = pipe.stream(seed=3, batch=2, context=context, cond=null).take(2)
    np.testing.assert_array_equal(programs.start(3, context=context).take(2), wanted)


@pytest.mark.full
@pytest.mark.parametrize(("name", "context"), [
    ("pyramid", 0), ("pyramid", 2), ("prefix", 0), ("prefix", 4), ("rolling", 0), ("chunk", 0), ("ahead", 0),
    ("knot", 2), ("two_level", 2), ("fused_rolling", 0), ("int8", 1), ("registers", 0), ("first", 0), ("per_token", 1),
])
def test_every_kind_of_system(pipeline, inputs, tmp_path, name, context):
    """Blocks that wait in flight, a short first block, references, knots, every cache."""
    pipe = pipeline(name)
    export_stream(pipe, tmp_path, batch=2, context=context, tokens=3)
    one, two = both(pipe, read_stream(tmp_path), inputs(pipe, 2, context=context, frames=3))
    for blocks in (1, 1, 4, 1):
        np.testing.assert_array_equal(two.take(blocks), one.take(blocks))


@pytest.mark.full
def test_known_values_steer_it(config, random_params, tmp_path):
    from causal_diffusion.recipe import build

    small = config(**{
        "layout.kind": "block_causal", "layout.window": 3, "model.depth": 1, "schedule.steps": 4,
        "schedule.offset": "rolling", "schedule.in_flight": 2, "process.predict": "x0", "guidance.observe": "square",
    })  # fmt: skip
    pipe = Pipeline(small, random_params(build(small)))
    values = np.full((5, 4, 4, 1), np.nan, np.float32)
    values[[0, 3], 1] = 0.7
    export_stream(pipe, tmp_path)
    one, two = pipe.stream(seed=0, cond={"observed": values}), read_stream(tmp_path).start(0, observed=values)
    for _ in range(6):
        np.testing.assert_array_equal(two.next(), one.next())


CHILD = """
import sys
import numpy as np
from causal_diffusion.exported import read_stream

stream = read_stream(sys.argv[1]).start(seed=5)
np.save(sys.argv[2], stream.take(4))
print(sorted({"flax", "optax", "orbax", "grain", "ml_collections", "chex"} & set(sys.modules)),
      sorted(name for name in sys.modules if name.startswith("causal_diffusion.")))
"""


def test_it_needs_none_of_the_models_code(pipeline, tmp_path):
    """In another process."""
    pipe = pipeline("causal")
    wanted = pipe.stream(seed=5).take(4)
    said = export_stream(pipe, tmp_path / "out")
    assert "batch 1" in said and "cpu" in said
    command = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path / "out"), str(tmp_path / "frames.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    names = ("errors", "exported", "file_access", "frames", "jax_settings", "ranges", "seeds", "workers")
    alone = [f"causal_diffusion.{name}" for name in names]
    assert done.stdout == f"[] {alone}\n"
    np.testing.assert_array_equal(np.load(tmp_path / "frames.npy"), wanted)


def test_nothing_compiles_once_it_has_started(programs, inputs, pipeline, caplog):
    given = inputs(pipeline("teacher"), 2, context=4, frames=2)
    programs.start(0, context=given["context"]).next()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        stream = programs.start(1, context=given["context"], label=2)
        stream.take(4)
        stream.update(label=1)
        stream.next([0.0, 1.0])
    assert not [line for line in caplog.messages if "ompil" in line]


# What is refused.


@pytest.mark.parametrize(("options", "words"), [
    ({"batch": 0}, "batch is 0; it is at least 1"),
    ({"context": 3}, "context is 3 and a block has 2 frames: whole blocks, 2 would do"),
    ({"context": -1}, "context is -1"),
    ({"tokens": -1}, "tokens is -1; it is at least 0, try tokens = 0"),
    ({"batch": 1.5}, "batch is 1.5; it is an integer"),
    ({"platforms": ("cpu", "gpu")}, "platforms has 'gpu'; there are cpu, cuda, rocm, tpu"),
])  # fmt: skip
def test_mistakes_of_the_writer(pipeline, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        export_stream(pipeline("teacher"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_kernels_that_jax_does_not_export(pipeline, tmp_path):
    other = copy.copy(pipeline("causal"))
    other.recipe = other.recipe._replace(config=override(other.config, {"model.backend": "cudnn"}))
    with pytest.raises(UserError, match="model.backend is 'cudnn', .* 'auto' would do"):
        export_stream(other, tmp_path)


def test_without_flatbuffers(pipeline, tmp_path, folder, monkeypatch):
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    for go in (lambda: export_stream(pipeline("teacher"), tmp_path), lambda: read_stream(folder)):
        with pytest.raises(UserError, match=r"pip install 'causal_diffusion\[export\]'"):
            go()


@pytest.mark.parametrize(("given", "words"), [
    ({"context": None}, "4 frames of context: give 4"),
    ({"context": np.zeros((3, 4, 4, 1))}, r"context is \[3, 4, 4, 1\]; it is \[4, 4, 4, 1\] or \[2, 4, 4, 4, 1\]"),
    ({"context": np.full((4, 4, 4, 1), 127.0)}, "context has values from 127 to 127: floats of pictures lie in"),
    ({"context": np.full((4, 4, 4, 1), np.nan)}, r"context has a value that is not finite, at \[0, 0, 0, 0\]"),
    ({"context": np.zeros((4, 4, 4, 1), int)}, "context is int64.*; it is float in .* or uint8"),
    ({"action": np.full((2, 2), np.nan)}, "action has a value that is not finite"),
    ({"label": 3}, "label is 3; it is -1 .. 2"),
    ({"label": 1.5}, "label is 1.5; it is -1 .. 2"),
    ({"seed": -1}, "seed is -1; it is at least 0, try seed = 0"),
    ({"label": [0, 1, 2]}, "one for each of 2 samples"),
    ({"text": np.zeros((4, 5))}, r"text is \[4, 5\]; it is \[3, 5\]"),
    ({"observed": np.zeros((1, 4, 4, 1))}, "takes no 'observed'"),
    ({"action": np.zeros((2, 3))}, r"action is \[2, 3\]; it is \[2, 2\]"),
])  # fmt: skip
def test_mistakes_of_a_stream(programs, given, words):
    with pytest.raises(UserError, match=words):
        programs.start(**{"seed": 0, "context": np.zeros((4, 4, 4, 1)), **given})


@pytest.mark.parametrize(("name", "words"), [
    ("stream.json", "stream.json is damaged"), ("parameters.safetensors", "does not match its checksum"),
    ("full.bin", "does not match its checksum"),
])
def test_damage(folder, tmp_path, name, words):
    for path in folder.iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[: len(data) // 2] if path.name == name else data)
    with pytest.raises(CheckpointError, match=words):
        read_stream(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        read_stream(tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    ({"format": "other 2"}, "'other 2', not 'causal_diffusion stream 2'"),
    ({"platforms": ["tpu", "cuda"]}, "is for tpu, cuda and this device is cpu: .* --platforms=tpu,cuda,cpu"),
])
def test_another_format_or_platform(folder, tmp_path, change, words):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    meta = json.loads((folder / "stream.json").read_bytes()) | change
    (tmp_path / "stream.json").write_text(json.dumps(sealed(meta)))
    with pytest.raises(UserError, match=words):
        read_stream(tmp_path)

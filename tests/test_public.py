"""The public face: cheap to import, every name there, and one's own clips as training data."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.streaming.to_file import stream_to_file
from causal_diffusion.training import loop

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """On one device, and every program compiled once for all tests."""
    step, state, mesh = loop.compile_step, loop.sharded_state, make_mesh(devices=jax.devices()[:1])
    step_once = functools.cache(lambda recipe, mesh, spec: step(recipe, mesh, dict(spec)))
    state_once = functools.cache(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: mesh)
        patch.setattr(loop, "compile_step", lambda recipe, mesh, spec: step_once(recipe, mesh, tuple(spec.items())))
        patch.setattr(loop, "sharded_state", lambda *which: jax.tree.map(jnp.copy, state_once(*which)))
        yield


def test_importing_costs_nothing():
    code = """
import sys
import causal_diffusion
heavy = {"jax", "jaxlib", "flax", "numpy", "orbax", "grain", "ml_collections", "av", "sklearn"} & set(sys.modules)
print(sorted(heavy), [name for name in sys.modules if name.startswith("causal_diffusion.")])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")


def test_every_public_name_resolves_and_is_documented():
    assert {"Pipeline", "train", "load_config"} <= set(cd.__all__)
    for name in cd.__all__:
        value = getattr(cd, name)
        assert value is not None
        assert name == "__version__" or value.__doc__
    assert dir(cd) == sorted(cd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        cd.Pipelin  # noqa: B018


def test_loading_a_config_starts_no_backend():
    """A TPU or GPU is taken only when something is computed."""
    code = """
import causal_diffusion as cd
cd.freeze(cd.load_config("quickstart"))
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


T, TOKENS = 4, 3


def clips(count, frames=T, seed=0):
    """Grey clips that brighten by their action, with a class and two words of text."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, count)
    action = rng.uniform(-1, 1, (count, frames, 2)).astype(np.float32)
    video = rng.integers(0, 256, (count, frames, 8, 8, 1), dtype=np.uint8)
    text = rng.standard_normal((count, TOKENS, 6)).astype(np.float32)
    return ArraySource(video, label=label, action=action, text=text, text_mask=rng.random((count, TOKENS)) < 0.8)


@pytest.fixture(scope="module")
def own():
    config = cd.load_config("quickstart:tiny", {
        "name": "own", "data.source": "own", "data.frames": T, "data.height": 8, "data.width": 8, "data.classes": 5,
        "data.action_dim": 2, "model.classes": 5, "model.action": 2, "model.text": 6, "model.patch": (1, 4, 4),
        "model.width": 16, "model.depth": 1, "model.mlp": 32, "model.positions": "rotary",
        "layout.window": 3, "layout.sinks": 0, "layout.gap": 0, "guidance.kind": "cfg", "guidance.scale": 2.0,
        "train.batch": 8, "train.steps": 4, "train.warmup": 1, "log.every": 2, "log.evaluate": 0, "log.checkpoint": 4,
        "evaluate.clips": 4, "evaluate.context": 2, "evaluate.frames": 5,
    })
    return config


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own")
    return workdir, cd.train(own, workdir, source=clips(20), held_out=clips(6, frames=9, seed=1))


def test_own_clips_with_every_condition_train_and_are_evaluated(trained):
    workdir = trained[0]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    numbers = json.loads((workdir / "samples/evaluation.json").read_text())
    assert numbers["clips"] == 4 and len(numbers["psnr"]) == 5 and "recognised" not in numbers


def test_the_pipeline_streams_under_these_conditions(trained):
    workdir, pipeline = trained
    given = clips(4, seed=2)
    arrays = {name: np.stack([given[i][name] for i in range(4)]) for name in given[0]}
    context = arrays.pop("video")[:, :2]
    cond = arrays | {"context_action": arrays["action"][:, :2], "action": arrays["action"][:, 2:]}
    video = pipeline.generate(seed=1, frames=3, batch=4, cond=cond, context=context)
    assert video.shape == (4, 3, 8, 8, 1) and np.isfinite(video).all()
    again = cd.Pipeline.from_checkpoint(workdir)
    assert again.config == pipeline.config
    jax.tree.map(np.testing.assert_array_equal, again.params, pipeline.params)


def test_sampling_an_own_system_says_that_there_are_no_held_out_clips(trained, tmp_path):
    _, pipeline = trained
    with pytest.raises(cd.UserError, match="--context=0"):
        stream_to_file(pipeline, tmp_path / "clip.mp4", frames=2, batch=4)
    stream_to_file(pipeline, tmp_path / "clip.mp4", frames=2, batch=4, context=0)
    assert (tmp_path / "clip.mp4").stat().st_size > 500


@pytest.mark.parametrize(("change", "words"), [
    (dict(text=np.zeros((20, TOKENS, 5))), ("model.text is 6", "width 5")),
    (dict(text=None), ("model.text is 6", "no text")),
    (dict(action=np.zeros((20, T, 3))), ("action of a clip is (4, 3)", "(4, 2)")),
    (dict(action=None), ("action of a clip is missing",)),
    (dict(label=None), ("label of a clip is missing",)),
    (dict(video=np.zeros((20, T, 8, 12, 1))), ("video of clip 0 is (4, 8, 12, 1)", "(4, 8, 8, 1)")),
])
def test_wrong_shapes_are_refused_before_anything_is_written(own, tmp_path, change, words):
    arrays = dict(video=np.zeros((20, T, 8, 8, 1)), label=np.zeros(20, np.int32), action=np.zeros((20, T, 2)),
                  text=np.zeros((20, TOKENS, 6))) | change
    source = ArraySource(**{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(cd.UserError) as error:
        cd.train(own, tmp_path, source=source)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)
    assert not list(tmp_path.iterdir())


def test_without_held_out_clips_nothing_is_evaluated(own, trained, tmp_path):
    """And the parameters are the same: evaluation is no part of training."""
    pipeline = cd.train(own, tmp_path, source=clips(20))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and not (tmp_path / "samples").exists()
    jax.tree.map(np.testing.assert_array_equal, pipeline.params, trained[1].params)

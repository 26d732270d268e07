"""Rule 6: a run that was stopped and resumed is, bit for bit, the run that was not. And what it tells meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import to_json
from causal_diffusion.data.array_source import ArraySource
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.nn.layers import unstack_layers
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline
from causal_diffusion.training import evaluate, loop
from causal_diffusion.training.interrupt import Interrupted
from causal_diffusion.training.state import create

ROOT = Path(__file__).parents[2]
STOP = 7  # between the checkpoints of steps 4 and 8 and the lines of steps 6 and 9


class Killed(BaseException):
    """Stands for a death that nobody catches."""


def at_step(step, action):
    """A context in which ``action()`` happens when the batch of ``step`` is about to be used."""
    global_batch, patch = loop.global_batch, pytest.MonkeyPatch()

    def wrapped(mesh, batch):
        if batch["index"][0] // len(batch["index"]) + 1 == step:
            action()
        return global_batch(mesh, batch)

    patch.setattr(loop, "global_batch", wrapped)
    return patch


def stop_at(step, train, config, workdir, action, error):
    patch = at_step(step, action)
    try:
        with pytest.raises(error) as caught:
            train(config, workdir)
    finally:
        patch.undo()
    return caught.value


def die():
    raise Killed


def interrupt():
    signal.raise_signal(signal.SIGINT)


def read(config, workdir, step=None):
    """Everything in a checkpoint, on one device."""
    recipe = build(config)
    train = jax.eval_shape(lambda key: create(recipe, key), jax.random.key(0))
    like = {"train": train, "ema": jax.eval_shape(unstack_layers, train.ema)}
    return Checkpoints(workdir / "checkpoints").restore(like, step=step)


def assert_same(a, b):
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_same_run(config, workdir, reference, metrics=True):
    found, wanted = read(config, workdir), read(config, reference)
    assert found.step == wanted.step == config.train.steps
    assert_same((found.train, found.ema), (wanted.train, wanted.ema))
    assert found.data == wanted.data
    if metrics:
        assert (workdir / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def flip_largest(folder):
    path = max(folder.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def config(small):
    return small()


@pytest.fixture(scope="module")
def reference(config, train, tmp_path_factory):
    """The run that nothing disturbed: (workdir, pipeline)."""
    workdir = tmp_path_factory.mktemp("reference")
    return workdir, train(config, workdir)


@pytest.fixture(scope="module")
def interrupted(config, train, tmp_path_factory):
    """A run that Ctrl-C stopped in step 7: (workdir, error). Tests take a copy."""
    workdir = tmp_path_factory.mktemp("interrupted")
    return workdir, stop_at(STOP, train, config, workdir, interrupt, Interrupted)


@pytest.fixture
def stopped(interrupted, tmp_path):
    return shutil.copytree(interrupted[0], tmp_path / "stopped")


def test_what_a_run_leaves(config, reference):
    workdir, pipeline = reference
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert all(set(line) == {"step", "loss", "grad_norm", "param_norm", "lr", "skipped"} for line in lines)
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx([3e-3] * 4)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "8"]  # log.keep
    assert (workdir / "config.json").read_text() == to_json(config) + "\n"
    found = read(config, workdir)
    assert found.data == {"position": 12, "pending": []} and found.meta["config"] == json.loads(to_json(config))
    assert found.train.step == 12
    assert_same(found.ema, pipeline.params)
    assert_same(found.ema, unstack_layers(found.train.ema))
    assert read(config, workdir, 8).data == {"position": 8, "pending": read(config, workdir, 8).data["pending"]}
    assert len(read(config, workdir, 8).data["pending"]) == 2
    assert not (workdir / "samples").exists()


def test_the_pipeline_is_that_of_the_checkpoint(reference):
    workdir, pipeline = reference
    again = Pipeline.from_checkpoint(workdir)
    assert again.config == pipeline.config
    assert_same(again.params, pipeline.params)


def test_losses_are_the_means_of_their_steps(small, train, config, reference, tmp_path):
    """Logged every step, the losses average to those logged every third."""
    every = small("log.every=1")
    train(every, tmp_path)
    fine = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    coarse = [json.loads(line)["loss"] for line in (reference[0] / "metrics.jsonl").read_text().splitlines()]
    assert coarse == [float(np.mean(fine[i : i + 3])) for i in range(0, 12, 3)]
    assert_same(read(every, tmp_path).train, read(config, reference[0]).train)  # and logging changes nothing


def test_ctrl_c_saves_and_says_where(interrupted):
    workdir, error = interrupted
    assert str(error) == (
        f"interrupted after step {STOP}, which is saved in {workdir / 'checkpoints'}; the same command goes on from "
        "there")
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [4, STOP]


def test_interrupted_and_resumed(config, train, reference, stopped, capsys):
    pipeline = train(config, stopped)
    assert f"going on from step {STOP} of 12" in capsys.readouterr().out
    assert_same_run(config, stopped, reference[0])
    assert_same(pipeline.params, reference[1].params)


@pytest.mark.full
def test_evaluation_changes_nothing_and_is_not_repeated(small, train, reference, tmp_path, capsys, monkeypatch):
    """Held-out lines are in the record once, and the parameters are those of the run without. (What is streamed does
    not matter here: frames are copied.)"""
    def copy(pipeline, clips, frames=None):
        return np.repeat(clips.video[:, clips.context - 1 : clips.context], frames or clips.frames, axis=1)

    monkeypatch.setattr(evaluate, "stream_held_out", copy)
    monkeypatch.setattr(evaluate, "RECOGNISERS", {})
    config = small("evaluate.clips=2", "log.evaluate=6")
    train(config, tmp_path / "whole")
    stop_at(STOP, train, config, tmp_path / "parts", interrupt, Interrupted)
    train(config, tmp_path / "parts")
    assert_same_run(config, tmp_path / "parts", tmp_path / "whole")
    assert_same_run(config, tmp_path / "whole", reference[0], metrics=False)
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 6, 9, 12]
    assert set(lines[2]) == {"step", "held_out/loss", "held_out/next_frame_psnr", "held_out/last_frame_psnr"}
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    said = capsys.readouterr()
    assert said.err.count("held-out next-frame PSNR: model") + said.out.count("held-out next-frame PSNR: model") == 2
    for name in ("evaluation.json", "stream.mp4"):
        whole, parts = (tmp_path / run / "samples" / name for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.full
def test_died_twice_and_resumed(config, train, reference, tmp_path):
    """Once before the first checkpoint, once long after one: steps are repeated, and lines are not."""
    stop_at(3, train, config, tmp_path, die, Killed)
    stop_at(12, train, config, tmp_path, die, Killed)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3  # 3, 6, 9: one more than the checkpoint
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    train(config, tmp_path)
    assert_same_run(config, tmp_path, reference[0])


def test_killed_while_saving_and_resumed(config, train, reference, tmp_path):
    """kill -9 in a process of its own, with step 8 written and not yet sealed; eight devices there as here."""
    script = """
        import os, signal, sys
        from absl import flags
        from causal_diffusion.config import freeze
        from causal_diffusion.training.loop import train
        import json
        flags.FLAGS.mark_as_parsed()
        replace = os.replace
        def kill_at_8(source, target, *args, **kwargs):
            if str(target).endswith("/8/checksums.json"):
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(source, target, *args, **kwargs)
        os.replace = kill_at_8
        train(freeze(json.loads(sys.argv[1])), sys.argv[2])
    """
    code = "\n".join(line[8:] for line in script.splitlines())
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, to_json(config), str(tmp_path)], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "8"]
    assert not (tmp_path / "checkpoints/8/checksums.json").exists()
    train(config, tmp_path)
    assert_same_run(config, tmp_path, reference[0])


@pytest.mark.parametrize("overrides", [
    pytest.param(("train.accumulate=2", "model.layers=scan"), id="micro-batches, scanned", marks=pytest.mark.full),
    pytest.param(("mesh.fsdp=4",), id="fsdp", marks=pytest.mark.full),
])
def test_other_runs_resume_bit_for_bit_too(small, train, tmp_path, overrides):
    config = small(*overrides)
    train(config, tmp_path / "whole")
    stop_at(6, train, config, tmp_path / "parts", interrupt, Interrupted)
    stop_at(10, train, config, tmp_path / "parts", die, Killed)
    train(config, tmp_path / "parts")
    assert_same_run(config, tmp_path / "parts", tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(config, train, reference, tmp_path):
    workdir = shutil.copytree(reference[0], tmp_path / "again")
    pipeline = train(config, workdir)
    assert_same_run(config, workdir, reference[0])
    assert_same(pipeline.params, reference[1].params)


@pytest.mark.full
def test_a_damaged_checkpoint_falls_back_and_says_so(small, train, reference, stopped, capsys):
    flip_largest(stopped / "checkpoints" / str(STOP) / "train")
    config = small()
    train(config, stopped)
    said = capsys.readouterr().out
    assert f"checkpoint {STOP} is damaged (" in said and "does not match its checksum): going on from 4" in said
    assert_same_run(config, stopped, reference[0], metrics=False)


def test_all_checkpoints_damaged(small, train, stopped):
    for folder in (stopped / "checkpoints").iterdir():
        flip_largest(folder / "train")
    before = sorted(p for p in stopped.rglob("*") if "tensorboard" not in str(p))
    with pytest.raises(CheckpointError) as error:
        train(small(), stopped)
    words = f"no intact checkpoint in {stopped / 'checkpoints'}", "step 7: train/", "step 4: train/"
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    assert sorted(p for p in stopped.rglob("*") if "tensorboard" not in str(p)) == before


@pytest.mark.full
def test_only_half_a_checkpoint_starts_anew_and_says_so(small, train, reference, tmp_path, capsys):
    (tmp_path / "checkpoints/4.orbax-checkpoint-tmp/train").mkdir(parents=True)
    config = small()
    train(config, tmp_path)
    assert "no complete checkpoint" in capsys.readouterr().out
    assert_same_run(config, tmp_path, reference[0], metrics=False)


@pytest.mark.parametrize("mesh", [
    {}, pytest.param({"mesh.data": (-1, 2), "mesh.fsdp": (1, 4)}, marks=pytest.mark.full),
], ids=["same mesh", "other mesh"])
def test_elastic_keys_may_change_and_are_reported(small, train, reference, stopped, capsys, mesh):
    """More steps, other cadences, another mesh: allowed, told, and the loss goes on where it was."""
    changes = {"train.steps": (12, 14), "log.every": (3, 2), "log.keep": (2, 3)} | mesh
    config = small(*(f"{key}={new}" for key, (_, new) in changes.items()))
    train(config, stopped)
    said = capsys.readouterr().out.splitlines()
    for key, (old, new) in changes.items():
        assert f"changed since the checkpoint: {key} = {new} (was {old})" in said
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 8, 10, 12, 14]
    assert read(config, stopped).step == 14
    one = {line["step"]: line for line in map(json.loads, (reference[0] / "metrics.jsonl").read_text().splitlines())}
    assert lines[4]["param_norm"] == pytest.approx(one[12]["param_norm"], rel=1e-4)
    assert lines[4]["grad_norm"] == pytest.approx(one[12]["grad_norm"], rel=1e-2)


@pytest.mark.parametrize(("override", "old"), [
    ("data.frames=5", "4"), ("model.width=32", "16"), ("train.lr=0.01", "0.003"), ("seed=1", "0"),
    ("levels.context=0.1", "0.3"), ("train.batch=16", "8"),
])
def test_identity_keys_may_not(small, interrupted, monkeypatch, override, old):
    """Told before anything is compiled, read or written."""
    key, new = override.split("=")
    workdir, _ = interrupted
    for name in ("make_source", "compile_step", "Logger"):
        monkeypatch.setattr(loop, name, lambda *arguments: pytest.fail("too late"))
    with pytest.raises(CheckpointError) as error:
        loop.train(small(override), workdir)
    assert str(error.value) == (
        f"{key} is {new}, and the checkpoints in {workdir / 'checkpoints'} were made with {old}: set it back, or "
        "choose another --workdir")


def test_starting_from_another_run(small, train, reference, tmp_path, capsys):
    """The first step of the warm-up has a rate of zero, so after it both trees are the other run's averages."""
    config = small(f"train.init_from={reference[0]}")
    stop_at(1, train, config, tmp_path, interrupt, Interrupted)
    assert "parameters taken over:" in capsys.readouterr().out
    found = read(config, tmp_path)
    assert found.step == 1
    assert_same(found.ema, reference[1].params)
    assert_same(found.train.params, reference[1].params)
    train(config, tmp_path)  # going on, it does not start from the other run again
    assert "parameters taken over:" not in capsys.readouterr().out


def test_a_loss_that_explodes_ends_the_run_in_one_line(config, train, tmp_path, monkeypatch):
    global_batch = loop.global_batch
    broken = {"video": np.full((8, 4, 16, 16, 1), np.nan, np.float32)}
    monkeypatch.setattr(loop, "global_batch", lambda mesh, batch: global_batch(mesh, batch | broken))
    with pytest.raises(UserError, match=r"the loss is nan at step 1 \(its batch is in .*step_1.npz\): a smaller"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_that_is_a_file(config, tmp_path):
    (tmp_path / "file").write_text("x")
    for workdir in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UserError, match=f"workdir is {workdir}, and {tmp_path / 'file'} is a file"):
            loop.train(config, workdir)


def clips(count=12, frames=4, size=16, **conditions):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (count, frames, size, size, 1), dtype=np.uint8)
    return ArraySource(video, **conditions)


@pytest.mark.parametrize(("source", "words"), [
    (clips(size=8), ("video of clip 0 is (4, 8, 8, 1)", "(4, 16, 16, 1)")),
    (clips(frames=6), ("video of clip 0 is (6, 16, 16, 1)", "(4, 16, 16, 1)")),
    (clips(count=5), ("5 clips", "batch of 8")),
])
def test_own_clips_of_another_shape_are_refused(small, tmp_path, source, words):
    config = small("data.source=own", "model.classes=0")
    with pytest.raises(UserError) as error:
        loop.train(config, tmp_path, source=source)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir())


def test_own_clips_without_the_labels_that_the_config_states(small, tmp_path):
    with pytest.raises(UserError, match="label of a clip is missing"):
        loop.train(small("data.source=own", "data.classes=10"), tmp_path, source=clips())


def test_own_clips_have_to_be_handed_over(small, tmp_path):
    with pytest.raises(UserError, match="data.source is 'own': hand the clips over"):
        loop.train(small("data.source=own", "model.classes=0"), tmp_path)

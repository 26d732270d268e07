"""The command lines: what they do, and that every mistake is one line on stderr and exit code 2."""

import errno
import functools
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import causal_diffusion as cd
from causal_diffusion.cli import run, sample_main, train_main
from causal_diffusion.errors import CheckpointError, UserError
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.training import loop
from causal_diffusion.training.interrupt import Interrupted, Preempted

ROOT = Path(__file__).parents[1]
SMALL = {
    "data.frames": 4, "model.width": 16, "model.depth": 1, "model.mlp": 32, "train.steps": 4, "train.batch": 8,
    "train.warmup": 1, "evaluate.clips": 0, "evaluate.context": 2, "log.every": 2, "log.evaluate": 0,
    "log.checkpoint": 2,
}
TRAIN = ["--config=quickstart:tiny", *(f"--config.{key}={value}" for key, value in SMALL.items())]


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """On one device, and every program compiled once for all tests."""
    step, state, mesh = loop.compile_step, loop.sharded_state, make_mesh(devices=jax.devices()[:1])
    step_once = functools.cache(lambda recipe, mesh, spec: step(recipe, mesh, dict(spec)))
    state_once = functools.cache(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: mesh)
        patch.setattr(loop, "compile_step", lambda r, mesh, spec=None: step_once(r, mesh, tuple((spec or {}).items())))
        patch.setattr(loop, "sharded_state", lambda *which: jax.tree.map(jnp.copy, state_once(*which)))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir that train.py filled."""
    workdir = tmp_path_factory.mktemp("trained")
    train_main([*TRAIN, f"--workdir={workdir}"])
    return workdir


def fails(main, *arguments, code=2):
    """The one line that a mistake leaves on stderr, after its exit code."""
    stderr = io.StringIO()
    with redirect_stderr(stderr), pytest.raises(SystemExit) as exit:
        run(lambda: main(list(map(str, arguments))))
    assert exit.value.code == code
    lines = [line.strip() for line in re.split("[\r\n]+", stderr.getvalue())]
    lines = [line for line in lines if line and "%|" not in line]  # without progress bars
    assert len(lines) == 1, stderr.getvalue()
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


# run: which exceptions end in a line.


@pytest.mark.parametrize("error", [
    UserError("what is wrong"), CheckpointError("damaged"), OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large", "/x/y"), OSError(errno.EDQUOT, "Quota exceeded"),
    PermissionError(errno.EACCES, "Permission denied", "/x"), KeyboardInterrupt(),
])
def test_what_a_user_can_cause_is_one_line(error):
    def main(arguments):
        raise error

    line = fails(main)
    if isinstance(error, OSError):
        assert error.strerror in line and str(error.filename or "") in line and "the last checkpoint stands" in line
    elif isinstance(error, UserError):
        assert line == str(error)
    else:
        assert "interrupted" in line and "goes on from there" in line


@pytest.mark.parametrize(("error", "code"), [(Interrupted("stopped"), 2), (Preempted("taken away"), 75)])
def test_who_stopped_a_run_is_told_by_its_exit_code(error, code):
    def main(arguments):
        raise error

    assert fails(main, code=code) == str(error)


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.ECONNRESET, "reset"), RuntimeError()])
def test_what_is_a_bug_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)) as caught:
        run(main)
    assert caught.value is error


# train.py


@pytest.mark.parametrize(("arguments", "words"), [
    (["--config=quickstart", "--config.train.stepz=3"], ("'train.stepz'", "nearest is 'train.steps'")),
    (["--config=quickstart", "--config.steps=3"], ("'steps'", "the nearest is")),
    (["--config=quickstart", "--config.train.steps=many"], ("'train.steps'", "'many'", "takes int")),
    (["--config=quickstart", "--config.train.steps=1.5"], ("'train.steps'", "'1.5'", "takes int")),
    (["--config=quickstart", "--config.train.flip=3"], ("'train.flip'", "'3'", "takes bool")),
    (["--config=quickstart", "--config.model.patch=(1, 'a')"], ("'model.patch'", "takes int")),
    (["--config=quickstart"], ("--workdir is missing", "--workdir=runs/quickstart")),
    (["--config=quickstartt"], ("no config is named 'quickstartt'", "'quickstart'")),
    (["--config=quickstart:tinny"], ("no variant 'tinny'", "'tiny'")),
    (["--config=nowhere/mine.py"], ("there is no config file nowhere/mine.py",)),
    (["--config=quickstart", "--wrokdir=x"], ("unknown argument '--wrokdir=x'", "--workdir")),
    (["--config=quickstart", "stray"], ("unknown argument 'stray'",)),
    (["--config=quickstart", "--config.train.steps"], ("unknown argument '--config.train.steps'", "=value")),
    ([], ("--config",)),
    (["--config"], ("--config", "expected one argument")),
    (["--config=quickstart", "--workdir=x", "--config.model.channels=3"], ("model.channels is 3", "= 1 would do")),
    (["--config=quickstart:tiny", "--dry_run", "--config.train.decay=cosinus"], ("train.decay is 'cosinus'",)),
    (["--config=quickstart", "--dry_run", "--processes=2"], ("--processes is 2, and CD_COORDINATOR and CD_PROCESS",)),
    (["--config=quickstart", "--dry_run", "--processes=two"], ("--processes", "two")),
    (["--config=quickstart", "--dry_run", "--cluster=slrum"], ("--cluster is 'slrum'", "slurm")),
])
def test_mistakes_in_train(arguments, words):
    line = fails(train_main, *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("path", "words"), [
    ("", ("data.path is empty",)),
    ("{tmp}/none", ("data.path", "none", "does not exist")),
    ("{tmp}/empty", ("there is no video file in", "empty")),
    ("{tmp}/broken", ("broken",)),
    ("{tmp}/file.txt", ("is not a folder",)),
])
def test_missing_and_empty_video_folders(tmp_path, path, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.mp4").write_bytes(b"no video at all")
    (tmp_path / "file.txt").write_text("x")
    line = fails(train_main, "--config=video_folder:tiny", f"--workdir={tmp_path / 'run'}",
                 f"--config.data.path={path.format(tmp=tmp_path)}")
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    line = fails(train_main, *TRAIN, f"--workdir={tmp_path / 'file'}")
    assert str(tmp_path / "file") in line


def test_train_leaves_checkpoints_and_a_record(trained, capsys):
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"2", "4"}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert json.loads((trained / "config.json").read_text())["model"]["width"] == 16


def test_cd_train_does_what_train_py_does(trained, tmp_path):
    config = cd.load_config("quickstart:tiny", SMALL)
    pipeline = cd.train(config, workdir=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == (trained / "config.json").read_bytes()
    other = cd.Pipeline.from_checkpoint(trained)
    assert other.config == pipeline.config == cd.freeze(config)
    jax.tree.map(np.testing.assert_array_equal, pipeline.params, other.params)


def test_the_same_command_again_goes_on(trained, capsys):
    train_main([*TRAIN, f"--workdir={trained}"])
    assert "going on from step 4 of 4" in capsys.readouterr().out


def test_another_identity_is_refused_by_name(trained):
    line = fails(train_main, *TRAIN, "--config.model.width=32", f"--workdir={trained}")
    assert line == (f"model.width is 32, and the checkpoints in {trained / 'checkpoints'} were made with 16: set it "
                    "back, or choose another --workdir")


def test_a_disk_that_fills_while_logging(tmp_path, monkeypatch):
    """The record cannot be written: one line, no traceback, and nothing hangs."""
    def fail(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("causal_diffusion.training.logger.EventFile.flush", fail)
    line = fails(train_main, *TRAIN, f"--workdir={tmp_path}")
    assert line.startswith("cannot write: No space left on device; the last checkpoint stands")


def test_dry_run_prints_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "compile_step", lambda recipe, mesh, spec: compiled.append(recipe) or "step")
    monkeypatch.setattr(loop, "summary", lambda recipe, mesh, step: f"summary of {recipe.config.name}, {step}")
    compiled = []
    train_main([*TRAIN, "--dry_run"])
    assert capsys.readouterr().out == "summary of quickstart, step\n"
    assert compiled and not list(tmp_path.iterdir())


def test_mistakes_are_told_before_the_slow_imports(tmp_path):
    """From train.py itself, with its real exit code."""
    code = ("import sys, runpy, atexit; sys.argv = ['train.py', '--config=quickstart', '--config.train.stepz=3']\n"
            "atexit.register(lambda: print('orbax' in sys.modules))\nrunpy.run_path('train.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown config key 'train.stepz'") and done.stderr.count("\n") == 1
    assert done.stdout == "False\n"


# sample.py


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def test_sample_writes_a_clip(trained, tmp_path, capsys):
    out = tmp_path / "new" / "clip.mp4"
    sample_main([f"--checkpoint={trained}", f"--out={out}", "--frames=9", "--batch=4", "--seed=3"])
    frames = frames_of(out)
    assert len(frames) == 2 + 9  # evaluate.context frames are given
    assert frames[0].std() > 10
    said = capsys.readouterr().out
    assert str(out) in said and "4 x 9 frames after 2 given ones" in said and "frames/s" in said


@pytest.mark.full
def test_sample_from_nothing_with_labels_and_elastic_keys(trained, tmp_path):
    out = tmp_path / "clip.gif"
    arguments = [f"--checkpoint={trained / 'checkpoints'}", f"--out={out}", "--context=0", "--batch=2", "--frames=3"]
    sample_main([*arguments, "--label", "3", "7", "--fps=5", "--step=2", "--config.schedule.steps=1"])
    with av.open(str(out)) as container:
        assert len(list(container.decode(video=0))) == 3


@pytest.mark.parametrize(("arguments", "words"), [
    (["--checkpoint=nowhere"], ("no checkpoint in", "nowhere")),
    (["--out=clip.avi"], ("--out is clip.avi", ".mp4 or .gif")),
    (["--out=clip"], ("--out is clip", ".mp4 or .gif")),
    (["--label", "10"], ("cond['label']", "10", "0 .. 9")),
    (["--label", "1", "2", "3"], ("cond['label']", "4 samples")),
    (["--frame=7", "--lable=3"], ("unknown argument '--lable=3'", "--label")),
    (["--config.model.width=32"], ("model.width is 16", "cannot become 32")),
    (["--config.schedule.stepz=3"], ("'schedule.stepz'", "'schedule.steps'")),
    (["--frames=0"], ("--frames is 0", "at least 1")),
    (["--batch=0"], ("--batch is 0", "at least 1")),
    (["--context=-1"], ("--context is -1", "0")),
    (["--fps=-3"], ("--fps is -3", "it is positive", "try --fps = 10")),
    (["--fps=0"], ("--fps is 0", "it is positive", "try --fps = 10")),
    (["--step=3"], ("no step 3", "[2, 4]")),
    (["--frames=many"], ("--frames", "many")),
])
def test_mistakes_in_sample(trained, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    if not arguments[0].startswith("--checkpoint"):
        arguments = [*arguments, f"--checkpoint={trained}"]
    line = fails(sample_main, *arguments)
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


def test_sample_without_a_checkpoint():
    assert "--checkpoint" in fails(sample_main, "--out=clip.mp4")

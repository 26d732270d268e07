"""train.py as a process: killed at any moment, interrupted, on a full disk. All of it takes minutes: second tier."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import freeze, load_config
from causal_diffusion.recipe import build
from causal_diffusion.training.state import create
from tests.parallel.processes import KEPT

ROOT = Path(__file__).parents[2]
KEYS = {"train.steps": 60, "log.checkpoint": 3, "log.every": 5, "log.evaluate": 25, "evaluate.clips": 2}
OVERRIDES = [f"--config.{key}={value}" for key, value in KEYS.items()]

pytestmark = pytest.mark.full


def start(workdir, *arguments, before=""):
    """train.py on one device; ``before`` is Python that runs first, in the same process."""
    code = textwrap.dedent(before) + "\nimport runpy\nrunpy.run_path('train.py', run_name='__main__')\n"
    command = [sys.executable, "-c", code, "--config=quickstart:tiny", f"--workdir={workdir}", *OVERRIDES, *arguments]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": KEPT.name}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def only_error(err):
    """The one line on stderr besides progress bars."""
    lines = [line.strip() for line in re.split("[\r\n]+", err)]
    lines = [line for line in lines if line and "%|" not in line]
    assert len(lines) == 1, "\n".join(lines)
    return lines[0]


def everything(workdir):
    """The newest checkpoint's train state and average, as bytes."""
    recipe = build(freeze(load_config("quickstart:tiny", {"train.steps": 60})))
    train = jax.eval_shape(lambda key: create(recipe, key), jax.random.key(0))
    found = Checkpoints(workdir / "checkpoints").restore({"train": train, "ema": train.ema})
    leaves = jax.tree.leaves((found.train.params, found.train.ema, found.train.opt_state, found.ema))
    return found.step, [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    status, out, err = finish(start(workdir))
    assert status == 0, err
    assert "held-out next-frame PSNR: model" in out + err
    return workdir


def latest(workdir):
    return Checkpoints(workdir / "checkpoints").latest() or 0


def wait_for(process, ready):
    while not ready() and process.poll() is None:
        time.sleep(0.02)


def test_killed_at_random_moments(reference, tmp_path):
    """kill -9 at random moments of the steps, of saving too; then to the end: the same bits and the same record."""
    rng, done = np.random.default_rng(0), 0
    for _ in range(6):
        process = start(tmp_path)
        before = latest(tmp_path)
        wait_for(process, lambda before=before: latest(tmp_path) > before)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        status, _, _ = finish(process)
        if status == 0:
            break  # it was faster than the kill
        done += 1
    assert done >= 2
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    assert "going on from step" in out
    assert everything(tmp_path) == everything(reference)
    assert everything(tmp_path)[0] == 60
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 2, "interrupted"), (signal.SIGTERM, 75, "preempted")]
)
def test_interrupted(reference, tmp_path, number, code, word):
    process = start(tmp_path)
    wait_for(process, lambda: latest(tmp_path))
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == code
    line = only_error(err)
    step = latest(tmp_path)
    assert line == (f"error: {word} after step {step}, which is saved in {tmp_path / 'checkpoints'}; the same "
                    "command goes on from there")
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    assert f"going on from step {step} of 60" in out
    assert everything(tmp_path) == everything(reference)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


# A limit on file sizes stands for the full disk. It comes after the checkpoint of step 3.
FULL = """
    import resource
    from causal_diffusion.checkpoint import Checkpoints
    save = Checkpoints.save
    def save_and_fill(self, step, **items):
        save(self, step, **items)
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
    Checkpoints.save = save_and_fill
"""


def test_full_disk_while_saving(reference, tmp_path):
    """A line of the record still fits, a checkpoint does not."""
    status, _, err = finish(start(tmp_path, before=FULL.format(limit=50_000)))
    assert status == 2
    line = only_error(err)
    assert re.fullmatch(rf"error: cannot save step 6 to {tmp_path / 'checkpoints'}: File too large; the last complete "
                        "one is step 3; make room there or choose another place, then start again", line)
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    assert "going on from step 3 of 60" in out
    assert everything(tmp_path) == everything(reference)


def test_full_disk_while_logging(reference, tmp_path):
    """Nothing fits any more: the record fails first, and the run neither hangs nor tells it twice."""
    status, _, err = finish(start(tmp_path, before=FULL.format(limit=100)))
    assert status == 2
    line = only_error(err)
    assert line.startswith("error: cannot ") and "File too large" in line
    assert latest(tmp_path) == 3
    status, out, err = finish(start(tmp_path))
    assert status == 0, err
    assert everything(tmp_path) == everything(reference)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_no_space_from_the_start(tmp_path):
    before = """
        import os, resource
        os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nor do programs fit, which JAX would tell, too
        from causal_diffusion.training import loop
        begin = loop._begin
        def fill_and_begin(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
            return begin(*arguments)
        loop._begin = fill_and_begin
    """
    status, _, err = finish(start(tmp_path / "run", before=before))
    assert status == 2
    line = only_error(err)
    assert line.startswith("error: cannot write: File too large")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    status, _, err = finish(start(tmp_path / "run"))
    assert status == 2
    line = only_error(err)
    assert "Permission denied" in line

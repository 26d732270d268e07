"""A workdir belongs to one run at a time; what a resumed run says; exit codes after SIGTERM."""

import dataclasses
import os
import subprocess
import sys

import pytest

from causal_diffusion.config import freeze, load_config
from causal_diffusion.errors import UserError
from causal_diffusion.folder_lock import own_folder
from causal_diffusion.training.loop import resumed_note, train

SCRIPT = """
import atexit, os, signal
from causal_diffusion import cli
from causal_diffusion.training.interrupt import Preempted, interruptible

def main():
    with cli._leaving_at_sigterm():
        if {early}:
            os.kill(os.getpid(), signal.SIGTERM)
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            error = interrupted()
        raise error("preempted after step 3")

atexit.register(os.kill, os.getpid(), signal.SIGTERM)  # a late one
cli.run(main)
"""


def steps(count, **changes):
    config = freeze(load_config("quickstart:tiny"))
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=count, warmup=0, **changes))


def test_a_second_training_is_refused_before_it_touches_anything(tmp_path):
    with own_folder(tmp_path / "run", "training", "--workdir"):
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(UserError, match=f"in use: training by process {os.getpid()} on .* try another --workdir"):
            train(load_config("quickstart:tiny"), tmp_path / "run")
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(("now", "then", "at", "said"), [
    (steps(20), steps(20), 20, "nothing is left to train: step 20 of 20 is done; try train.steps = 40"),
    (steps(10), steps(20), 15, "nothing is left to train"),
    (steps(40), steps(20), 20, "restarts at"),
    (steps(40), steps(20), 10, "the learning rate decays"),
    (steps(40, decay="constant"), steps(20, decay="constant"), 10, None),
    (steps(20), steps(20), 10, None),
])  # fmt: skip
def test_what_a_resumed_run_says(now, then, at, said):
    note = resumed_note(now, then, at)
    assert note is None if said is None else said in note and "\n" not in note


@pytest.mark.parametrize("early", [False, True])
def test_every_sigterm_ends_in_75(tmp_path, early):
    """In the run, twice; before it, and while the process ends."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(early=early))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: preempted")

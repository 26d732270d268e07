"""Processes of their own: what a real file system and a real signal do to a checkpoint."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion import checkpoint
from causal_diffusion.checkpoint import Checkpoints, storage
from tests.checkpoint.trees import assert_same, at_once

PRELUDE = """
    import os, resource, signal, sys
    import jax, jax.numpy as jnp
    from causal_diffusion import checkpoint
    from causal_diffusion.errors import CheckpointError
    store = checkpoint.Checkpoints(sys.argv[1], keep=2, asynchronous=False)
    key = jax.random.key(0)
    def tree(step):
        return {"kernel": jax.random.normal(jax.random.fold_in(key, step), (1024, 1024))}
    def save(step):
        store.save(step, ema={"step": jnp.int32(step)}, train=tree(step), data={"batches": step}, meta={})
    like = {"ema": jax.eval_shape(lambda: {"step": jnp.int32(0)}), "train": jax.eval_shape(tree, 0)}
    """


def start(script: str, directory) -> subprocess.Popen:
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    root = os.path.dirname(os.path.dirname(os.path.dirname(checkpoint.__file__)))
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(directory)], text=True, cwd=root,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(script: str, directory) -> tuple[int, str, str]:
    process = start(script, directory)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def check_latest(directory) -> int:
    """Restores the newest intact step that PRELUDE's `save` wrote, and compares it bit for bit."""
    wanted = {"ema": {"step": jnp.int32(0)},
              "train": {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}
    found = Checkpoints(directory).restore(wanted)
    kernel = jax.random.normal(jax.random.fold_in(jax.random.key(0), found.step), (1024, 1024))
    assert_same(found.train, {"kernel": kernel})
    assert_same(found.ema, {"step": jnp.int32(found.step)})
    assert found.data == {"batches": found.step}
    return found.step


def assert_told_in_one_line(status, out, err, directory):
    """A script printed the error of step 2 and what is left, and nothing went to stderr."""
    assert status == 0, err
    message, left = out.splitlines()
    assert message.startswith(f"cannot save step 2 to {directory}: File too large; "
                              "the last complete one is step 1; make room")
    assert left == "['1']"
    assert err == ""


def test_full_disk_for_real(tmp_path):
    """A limit on file sizes stands for the full disk: tensorstore's own writes fail."""
    status, out, err = run("""
        save(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(2)
        except CheckpointError as error:
            print(error)
        print(sorted(os.listdir(store.directory)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save(2)
        """, tmp_path / "full")
    assert_told_in_one_line(status, out, err, tmp_path / "full")
    assert check_latest(tmp_path / "full") == 2


def test_a_disk_that_fills_up_while_orbax_writes(tmp_path):
    """At first there seems to be room; then a dozen writes fail in the background, and one line tells it."""
    status, out, err = run("""
        def many(step):
            return {str(i): jax.random.normal(jax.random.fold_in(key, step * 100 + i), (64, 256)) for i in range(24)}
        store.save(1, ema={"step": jnp.int32(1)}, train=many(1), meta={})
        from causal_diffusion.checkpoint import storage
        start = storage.Writing.__init__
        def limit_and_start(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            start(*arguments)
        storage.Writing.__init__ = limit_and_start
        try:
            store.save(2, ema={"step": jnp.int32(2)}, train=many(2), meta={})
        except CheckpointError as error:
            print(error)
        print(sorted(os.listdir(store.directory)))
        """, tmp_path / "full")
    assert_told_in_one_line(status, out, err, tmp_path / "full")


@pytest.mark.parametrize("text, heard", [
    ("Task exception was never retrieved\nfuture: <Task finished coro=<_serialize() at /lib/orbax/a.py:1>>", False),
    ("Future exception was never retrieved\nfuture: <Future finished exception=ValueError('Error writing \"2/0.0\" in "
     "OCDBT database at local file \"/runs/2.orbax-checkpoint-tmp/train.orbax-checkpoint-tmp/\": full')>", False),
    ("_GatheringFuture exception was never retrieved\nfuture: <_GatheringFuture finished exception=ValueError('Failed "
     "writing: \"/runs/2.orbax-checkpoint-tmp/d/1\": full')>", False),
    ("Task exception was never retrieved\nfuture: <Task finished coro=<mine() at /home/me/a.py:1>>", True),
    ("Future exception was never retrieved\nfuture: <Future finished exception=ValueError('mine')>", True),
])  # fmt: skip
def test_of_what_nobody_waits_for_only_that_of_others_is_heard(text, heard):
    """Such lines come when the garbage is collected, or not at all."""
    assert storage._nothing_of_orbax(logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)) is heard


def test_killed_while_orbax_writes(tmp_path):
    store = at_once(tmp_path)
    for _ in range(5):  # on a busy machine the signal may come too late
        process = start("save(1) if store.latest() is None else None; save(2)", tmp_path)
        while process.poll() is None and not any(tmp_path.glob("2.orbax-checkpoint-tmp/train*")):
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert check_latest(tmp_path) == max(store.steps())
        if store.steps() == [1]:
            break
        store._remove(2)
    assert store.steps() == [1]
    assert store.restore({}).skipped == ((2, "half-written, it has no checksums.json"),)
    store.save(2, ema={"step": jnp.int32(2)}, meta={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_killed_while_sealing(tmp_path):
    status, _, err = run("""
        save(1)
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        save(2)
        """, tmp_path)
    assert status == -signal.SIGKILL, err
    assert (tmp_path / "2" / "checksums.json.partial").exists()
    assert check_latest(tmp_path) == 1


@pytest.mark.full
def test_killed_at_any_moment(tmp_path):
    """Twelve kills, at random moments of a run that does nothing but save: one step is lost at most."""
    loop = """
        step = store.restore(like).step if store.latest() else 0
        print(step, flush=True)
        while True:
            step += 1
            save(step)
            print(step, flush=True)
        """
    delays = np.random.default_rng(0).uniform(0.2, 2.0, 12)
    last = 0
    for delay in delays:
        process = start(loop, tmp_path)
        try:
            assert int(process.stdout.readline()) >= last
            time.sleep(delay)
        finally:
            process.kill()
            out, err = process.communicate()
        assert err == ""
        said = max([last, *map(int, out.split())])
        if said:
            assert said <= check_latest(tmp_path) <= said + 1
        last = said
    assert last > 0

"""The fault drill: twenty faults befall two runs, which go on each time and end bit for bit as if nothing had been.

After every fault the newest intact checkpoint is compared with that of the same step of a run that nothing disturbed,
and in the end so are all parameters and the record. A fault befalls the process itself, by a real signal or a real
limit on file sizes, which stands for a full disk; bytes are changed on the disk between two starts.
"""

import json
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import override, to_json
from causal_diffusion.errors import CheckpointError
from causal_diffusion.recipe import build
from causal_diffusion.training.state import create
from tests.parallel import processes
from tests.training.conftest import SMALL

pytestmark = pytest.mark.full

EVERY = 3  # steps between checkpoints
LONGEST = 400.0  # seconds of one start, on a busy machine

# argv: the config, the workdir, and the fault or null: {"kind", "rank", and "call" or "save", counted from 1}.
SCRIPT = """
    import json, os, resource, signal, sys, threading, time
    from absl import flags
    from causal_diffusion.cli import run
    from causal_diffusion.config import freeze
    from causal_diffusion.parallel.distributed import initialise

    flags.FLAGS.mark_as_parsed()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))

    def before(owner, name, action, which):
        "Runs action() before the which-th call of owner.name."
        original, calls = getattr(owner, name), []

        def wrapped(*arguments, **options):
            calls.append(0)
            if len(calls) == which:
                action()
            return original(*arguments, **options)

        setattr(owner, name, wrapped)

    def arm(kind, call=0, save=0, delay=0.0, **_):
        import causal_diffusion.checkpoint.manager as manager
        from causal_diffusion.checkpoint import leaves, storage
        from causal_diffusion.training import loop

        times = []
        if kind in ("killed", "preempted"):
            number = signal.SIGKILL if kind == "killed" else signal.SIGTERM
            def soon():
                wait = delay * 3 * (time.perf_counter() - times[0]) / call  # within three steps and a save
                threading.Timer(wait, lambda: os.kill(os.getpid(), number)).start()
            before(loop, "global_batch", lambda: times.append(time.perf_counter()), 1)
            before(loop, "global_batch", soon, call)
        owner, name, action = {
            "while arrays are copied": (storage.Writing, "__init__", die),
            "while arrays are written": (storage.Writing, "finish", die),
            "before the manifest": (manager, "seal", die),
            "in the manifest": (leaves.os, "replace", die),
            "while old ones are removed": (manager, "remove_tree", die),
            "no room": (manager.Checkpoints, "_make_room", limit),
            "no room any more": (storage.Writing, "__init__", limit),
        }.get(kind, (None, None, None))
        if kind == "in the manifest":
            replace = os.replace
            def die_in_manifest(source, target, **options):
                if str(target).endswith("checksums.json"):
                    times.append(0)
                    if len(times) == save:
                        die()
                return replace(source, target, **options)
            os.replace = die_in_manifest
        elif owner is not None:
            before(owner, name, action, save)

    def main():
        initialise()
        import jax
        from causal_diffusion.training import loop
        fault = json.loads(sys.argv[3])
        if fault is not None and fault["rank"] == jax.process_index():
            arm(**fault)
        loop.train(freeze(json.loads(sys.argv[1])), sys.argv[2])

    run(main)
"""


class Fault(NamedTuple):
    """What happens to the disk before a start, and to the process after it; and how that has to end."""

    kind: str | None
    code: int = -signal.SIGKILL
    rank: int = 0
    disk: str | None = None  # 'flipped' or 'truncated'


KILLED, PREEMPTED, REFUSED = -signal.SIGKILL, 75, 2

ONE = [
    Fault("killed"),
    Fault("while arrays are copied"),
    Fault("while arrays are written"),
    Fault("killed", disk="flipped"),
    Fault("before the manifest"),
    Fault("in the manifest"),
    Fault("preempted", PREEMPTED, disk="truncated"),
    Fault("while old ones are removed"),
    Fault("no room", REFUSED),
    Fault("killed", disk="flipped"),
    Fault("no room any more", REFUSED),
    Fault("killed"),
]
TWO = [
    Fault("killed", rank=1),
    Fault("preempted", PREEMPTED, rank=1),
    Fault("while arrays are written", rank=1, disk="truncated"),
    Fault("no room any more", REFUSED, rank=1),
    Fault("before the manifest", rank=0),
]


def test_there_are_twenty():
    faults = [name for fault in ONE + TWO for name in (fault.kind, fault.disk) if name]
    assert len(faults) >= 20


class Run:
    """One run, its faults, and what it has to become."""

    def __init__(self, folder: Path, count: int, steps: int):
        keys = [f"train.steps={steps}", f"log.checkpoint={EVERY}", "log.every=7", f"mesh.fsdp={count}"]
        self.config, self.count = override(SMALL, keys), count
        self.reference, self.workdir = folder / "reference", folder / "run"
        train = jax.eval_shape(lambda key: create(build(self.config), key), jax.random.key(0))
        self._like = {"train": train, "ema": None}

    def start(self, workdir, keep: int, fault: Fault | None = None, **when):
        """Starts all processes, until they end or the one with the fault does: (its exit code, stdout, last words)."""
        config = override(self.config, [f"log.keep={keep}"])
        told = None if fault is None else {"kind": fault.kind, "rank": fault.rank} | when
        rank = 0 if fault is None else fault.rank
        with processes.started(SCRIPT, self.count, to_json(config), workdir, json.dumps(told), devices=1,
                               env={"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}) as running:  # fmt: skip
            if fault is not None and fault.code == KILLED:
                running[rank].wait(LONGEST)
                running.kill()  # the launcher ends the others, as schedulers do
                victim = running.finish()[rank]
                return victim.code, running.said(0), "\n".join(victim.lines())
            ended = running.finish(LONGEST)
        assert len({each.code for each in ended}) == 1, ended
        return ended[rank].code, ended[0].out, "\n".join(ended[0].lines())

    def folder(self, workdir=None):
        return (workdir or self.workdir) / "checkpoints"

    def latest(self):
        return Checkpoints(self.folder()).latest() or 0

    def read(self, workdir, step=None):
        found = Checkpoints(self.folder(workdir)).restore(self._like, step=step)
        leaves = jax.tree.leaves((found.train.params, found.train.ema, found.train.opt_state, found.ema))
        leaves += [jax.random.key_data(found.train.key), found.train.step]
        return found.step, [np.asarray(leaf).tobytes() for leaf in leaves], found.data

    def check(self):
        """What is newest and intact is what the undisturbed run had at that step, where it saved it, too."""
        if self.latest() and self.latest() % EVERY == 0:
            found = self.read(self.workdir)
            assert found == self.read(self.reference, found[0])

    def damage(self, how, rng):
        """Changes a file of the newest checkpoint, any file that training reads. Returns the step."""
        step = self.latest()
        folder = self.folder() / str(step)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and folder / "ema" not in path.parents]
        path = max(files, key=lambda each: each.stat().st_size) if how == "truncated" else rng.choice(files)
        content = bytearray(path.read_bytes())
        position = int(rng.integers(len(content)))
        if how == "flipped":
            content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content if how == "flipped" else content[:position])
        with pytest.raises(CheckpointError, match=rf"no intact checkpoint in .*: step {step}: "):
            self.read(self.workdir, step)
        return step


@pytest.mark.parametrize(("count", "steps", "faults"), [(1, 90, ONE), (2, 45, TWO)], ids=["one process", "two"])
def test_every_fault_is_survived(tmp_path, count, steps, faults):
    run, rng = Run(tmp_path, count, steps), np.random.default_rng(count)
    code, _, said = run.start(run.reference, keep=1000)
    assert code == 0, said
    for number, fault in enumerate(faults):
        damaged = run.damage(fault.disk, rng) if fault.disk else None
        before, when = run.latest(), {"call": int(rng.integers(4, 9)), "delay": rng.uniform()}
        code, out, said = run.start(run.workdir, 3, fault, **when, save=2)
        case = f"{number}: {fault}, {when}, from step {before}: {code}\n{out[-2000:]}\n{said}"
        assert code == fault.code, case
        if damaged is not None:
            assert f"checkpoint {damaged} is damaged (" in out, case
        elif before:
            assert f"going on from step {before} of {steps}" in out, case
        if fault.code == REFUSED:
            assert "error: cannot " in said and "File too large" in said, case  # a checkpoint, or the record behind it
        if fault.code == PREEMPTED:
            assert "preempted after step" in said, case
        assert run.latest() < steps, f"{case}\nthe run has ended before its faults"
        run.check()
    code, out, said = run.start(run.workdir, 3)
    assert code == 0, said
    assert run.read(run.workdir) == run.read(run.reference, steps)
    assert run.read(run.workdir)[0] == steps
    assert (run.workdir / "metrics.jsonl").read_bytes() == (run.reference / "metrics.jsonl").read_bytes()
    assert len(list(run.folder().iterdir())) == 3

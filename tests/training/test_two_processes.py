"""Two processes are one: the same losses, one record, one moment to stop; and either count goes on where the other was.

Each test starts processes of its own, joined over localhost. Minutes: second tier.
"""

import json
import signal
from collections import Counter

import jax
import numpy as np
import pytest

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import override
from causal_diffusion.recipe import build
from causal_diffusion.training.state import create
from tests.parallel.processes import run, started
from tests.training.conftest import SMALL

pytestmark = pytest.mark.full

STEPS, BATCH, CLIPS = 40, 8, 20  # 16 epochs, each of two and a half batches

# Every batch leaves (global sample index, clip) in the workdir when it is used; the clip's number is its first pixel.
TRAIN = f"""
    import json, sys, time
    from pathlib import Path
    import jax
    import numpy as np
    from causal_diffusion import cli
    from causal_diffusion.config import override
    from causal_diffusion.data.array_source import ArraySource
    from causal_diffusion.parallel import distributed
    from causal_diffusion.training import loop
    from tests.training.conftest import SMALL

    workdir, pause, global_batch = Path(sys.argv[1]), float(sys.argv[2]), loop.global_batch
    video = np.random.default_rng(0).integers(0, 256, ({CLIPS}, 4, 16, 16, 1), np.uint8)
    video[:, 0, 0, 0, 0] = np.arange({CLIPS})

    def noted(mesh, batch):
        clips = np.rint((batch["video"][:, 0, 0, 0, 0] + 1) * 127.5)
        with open(workdir / f"used.{{jax.process_index()}}", "a") as file:
            for sample, clip in zip(batch["index"], clips):
                file.write(f"{{sample}} {{int(clip)}}\\n")
        time.sleep(pause)
        return global_batch(mesh, batch)

    def main():
        distributed.initialise()
        loop.global_batch = noted
        workdir.mkdir(parents=True, exist_ok=True)
        keys = ["data.source=own", "data.classes=10", "train.steps={STEPS}", "log.every=1"]
        source = ArraySource(video, label=np.arange({CLIPS}) % 10)
        loop.train(override(SMALL, [*keys, *sys.argv[3:]]), workdir, source=source)
        distributed.barrier("the end of the run")

    cli.run(main)
"""
KEYS = ("log.checkpoint=100",)  # only at the end, and when it is stopped


def train(workdir, count, *keys):
    ended = run(TRAIN, count, workdir, 0, *KEYS, *keys, devices=8 // count)
    assert [e.code for e in ended] == [0] * count, ended
    return ended


def stop(workdir, count, number, *, told=-1, at=4):
    """A run to which one process in `count` brings a signal once `at` steps are recorded; the step it stopped after."""
    record = workdir / "metrics.jsonl"
    with started(TRAIN, count, workdir, 0.1, *KEYS, devices=8 // count) as processes:
        processes.wait_until(lambda: used(workdir) >= at * BATCH)
        processes[told].send_signal(number)
        ended = processes.finish()
    code, word = {signal.SIGTERM: (75, "preempted"), signal.SIGINT: (2, "interrupted")}[number]
    assert [e.code for e in ended] == [code] * count, ended
    step = Checkpoints(workdir / "checkpoints").latest()
    lines = [line for e in ended for line in e.err.splitlines() if line.startswith("error: ")]
    assert lines == [f"error: {word} after step {step}, which is saved in {workdir / 'checkpoints'}; the same command "
                     "goes on from there"]
    assert at <= step < STEPS and len(record.read_text().splitlines()) == step
    return step


def used(workdir):
    return sum(path.read_text().count("\n") for path in workdir.glob("used.*"))


def losses(workdir):
    return np.array([json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()])


def final(workdir):
    recipe = build(override(SMALL, [f"train.steps={STEPS}"]))
    like = jax.eval_shape(lambda key: create(recipe, key), jax.random.key(0))
    restored = Checkpoints(workdir / "checkpoints").restore({"train": like})
    assert restored.step == STEPS
    train = restored.train
    return [np.asarray(leaf) for leaf in jax.tree.leaves((train.params, train.ema, train.opt_state))]


def assert_every_sample_once(workdir):
    """All that was used, by whichever process, is samples 0 .. n-1, and each clip came once in every epoch."""
    pairs = [tuple(map(int, line.split())) for path in workdir.glob("used.*") for line in path.read_text().splitlines()]
    pairs.sort()
    assert [sample for sample, _ in pairs] == list(range(STEPS * BATCH))
    epochs = [clip for _, clip in pairs]
    for start in range(0, len(epochs), CLIPS):
        assert Counter(epochs[start : start + CLIPS]) == Counter(range(CLIPS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody stopped: of one process with eight devices, of two with four each."""
    folder = tmp_path_factory.mktemp("whole")
    for count in (1, 2):
        train(folder / str(count), count)
    return {count: folder / str(count) for count in (1, 2)}


def test_two_processes_have_the_losses_of_one(whole):
    one, two = losses(whole[1]), losses(whole[2])
    assert len(one) == len(two) == STEPS
    np.testing.assert_allclose(two[:5], one[:5], rtol=0, atol=1e-5)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-3)


def test_and_its_batches(whole):
    def pairs(workdir):
        return sorted(line for path in workdir.glob("used.*") for line in path.read_text().splitlines())

    assert pairs(whole[1]) == pairs(whole[2])
    assert {path.name for path in whole[2].glob("used.*")} == {"used.0", "used.1"}
    assert len((whole[2] / "used.1").read_text().splitlines()) == STEPS * BATCH // 2
    assert_every_sample_once(whole[1])
    assert_every_sample_once(whole[2])


@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_of_two_stops_both_and_either_count_goes_on(whole, tmp_path, told):
    """Told 0: two processes go on, to the same bits. Told 1: one process goes on, to the same numbers."""
    stop(tmp_path, 2, signal.SIGTERM, told=told)
    after = 2 - told
    train(tmp_path, after)
    assert_every_sample_once(tmp_path)
    if after == 2:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(final(tmp_path), final(whole[2]), strict=True))
        assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[2] / "metrics.jsonl").read_bytes()
    for a, b in zip(final(tmp_path), final(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * (1 + np.abs(b).max()))


def test_from_one_process_to_two(whole, tmp_path):
    stop(tmp_path, 1, signal.SIGTERM)
    train(tmp_path, 2)
    assert_every_sample_once(tmp_path)
    for a, b in zip(final(tmp_path), final(whole[2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * (1 + np.abs(b).max()))


def test_ctrl_c_in_one_of_two_stops_both(tmp_path):
    stop(tmp_path, 2, signal.SIGINT, told=1)


def test_a_process_that_fails_does_not_leave_the_other_waiting(tmp_path):
    """Its own line tells why; the other ends by itself, long before any time-out."""
    broken = TRAIN.replace("time.sleep(pause)", "assert not jax.process_index() or used_up(), 'no more'")
    broken = broken.replace("    def main", "    used_up = iter([True] * 3 + [False]).__next__\n\n    def main")
    zero, one = run(broken, 2, tmp_path, 0, *KEYS)
    assert one.code == 1 and "AssertionError: no more" in one.err
    assert zero.code not in (0, 75)


def test_parameters_that_no_process_has_are_whole_for_evaluation():
    script = """
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from causal_diffusion.parallel import distributed
        from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
        from causal_diffusion.training.kept import whole

        distributed.initialise()
        mesh, given = make_mesh(MeshConfig(1, 8)), np.arange(32.0).reshape(16, 2)
        spread = jax.make_array_from_callback(
            given.shape, NamedSharding(mesh, PartitionSpec("fsdp")), lambda index: given[index])
        copied = jax.device_put(given, NamedSharding(mesh, PartitionSpec()))
        assert not spread.is_fully_addressable
        for tree in ({"a": spread, "b": copied}, {"b": copied}):
            for leaf in jax.tree.leaves(whole(tree)):
                assert leaf.devices() == {jax.local_devices()[0]}
                np.testing.assert_array_equal(leaf, given)
        print("whole")
    """
    for ended in run(script, 2):
        assert ended.code == 0 and ended.out.endswith("whole\n"), ended


def test_evaluation_in_two_processes(tmp_path):
    """All evaluate alike, and it is written once."""
    keys = {"mesh.data": 1, "mesh.fsdp": 8, "train.steps": 4, "log.evaluate": 2, "log.every": 1, "log.checkpoint": 2,
            "data.frames": 4, "model.width": 48, "model.depth": 1, "model.mlp": 64, "train.batch": 8,
            "evaluate.clips": 2, "evaluate.frames": 6, "evaluate.context": 2, "train.warmup": 1}  # fmt: skip
    arguments = ["--config=quickstart:tiny", *(f"--config.{key}={value}" for key, value in keys.items())]
    script = """
        import sys, jax
        from causal_diffusion.cli import run, train_main
        run(lambda: train_main(sys.argv[1:]))
    """
    zero, one = run(script, 2, *arguments, f"--workdir={tmp_path}")
    assert (zero.code, one.code) == (0, 0), (zero.lines(), one.lines())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "held_out/loss" in line] == [2]
    assert list((tmp_path / "samples").iterdir())
    assert "fsdp 8" in zero.out and "fsdp" not in one.out

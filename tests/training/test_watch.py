"""Where the time of a run goes, by a clock that the tests turn; and traces of a real run."""

import gzip
import json

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event

from causal_diffusion.config import freeze
from causal_diffusion.cost.peaks import PEAKS
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.recipe import build
from causal_diffusion.run_config import LogConfig
from causal_diffusion.training import watch as watches
from causal_diffusion.training.report import peak_of
from causal_diffusion.training.watch import Watch, memory_peaks


class Clock:
    """Seconds that pass only when they are told to."""

    now = 1000.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def run(workdir, clock, start, stop, *, save=(), evaluate=(), every=3, startup=5.0, **options):
    """Steps of 2 s of which 0.5 s are a wait for data, saves of 4 s, evaluations of 10 s, and ``startup`` before."""
    began, shown = clock(), {}
    watch = Watch(workdir, start, LogConfig(every=every), batch=8, began=began, clock=clock, date=clock,
                  show=lambda step, values: shown.update({step: values}), **options)  # fmt: skip
    clock.pass_by(startup)
    try:
        for step in range(start + 1, stop + 1):
            with watch.step(step):
                with watch.waiting():
                    clock.pass_by(0.5)
                clock.pass_by(1.5)
            watch.tick(step, ())
            if step in evaluate:
                with watch.apart("evaluation", ()):
                    clock.pass_by(10.0)
            if step in save:
                with watch.apart("checkpoint", ()):
                    clock.pass_by(4.0)
    finally:
        watch.close()
    return shown


def lines(workdir):
    return [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]


def test_a_line_adds_up(tmp_path, clock):
    shown = run(tmp_path, clock, 0, 7, save=(4,), evaluate=(6,), flops=1e12, peak=1e12)
    header, three, before_save, six, seven = lines(tmp_path)
    assert header == {"step": 0, "start": 1000.0}
    assert {name: three[name] for name in ("step", "steps", "seconds", "step_time", "data_wait")} == {
        "step": 3, "steps": 3, "seconds": 6.0, "step_time": 2.0, "data_wait": 0.5}  # fmt: skip
    assert three["clips_per_second"] == 4.0 and three["mfu"] == 0.5
    assert three["goodput"] == pytest.approx(6 / 11) and three["checkpoint"] == three["evaluation"] == 0.0
    assert (before_save["step"], before_save["steps"], before_save["checkpoint"]) == (4, 1, 0.0)
    assert (six["step"], six["steps"], six["seconds"], six["checkpoint"]) == (6, 2, 4.0, 4.0)
    assert six["goodput"] == pytest.approx(12 / (5 + 12 + 4))
    assert (seven["step"], seven["steps"], seven["evaluation"]) == (7, 0, 10.0)  # told when the run ends
    assert set(shown) == {3, 4, 6}
    assert shown[3]["time/step_time"] == 2.0 and shown[3]["memory/peak_gib"] > 0.01


def test_steps_that_were_lost_do_not_count(tmp_path, clock):
    """Killed after step 8 with the checkpoint of step 4: steps 5 to 8 are done twice, an hour later."""
    run(tmp_path, clock, 0, 8, save=(4,))
    with (tmp_path / "timing.jsonl").open("a") as file:
        file.write('{"step": 8, "st')
    clock.pass_by(3600.0)
    run(tmp_path, clock, 4, 9)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 3, 4, 4, 6, 9]
    assert [line["start"] for line in found if "start" in line] == [1000.0, clock() - 5 * 2.0 - 5.0]
    assert found[-1]["goodput"] == pytest.approx(9 * 2.0 / (clock() - 1000.0), rel=1e-12)
    assert sum(line.get("seconds", 0.0) for line in found) == 9 * 2.0


def test_killed_before_the_first_checkpoint_the_time_counts_from_the_first_start(tmp_path, clock):
    run(tmp_path, clock, 0, 2)
    run(tmp_path, clock, 0, 3)
    assert [line["step"] for line in lines(tmp_path)] == [0, 0, 3]
    assert lines(tmp_path)[-1]["goodput"] == pytest.approx(6.0 / (5 + 4 + 5 + 6))


def test_a_complete_run_started_again_writes_nothing(tmp_path, clock):
    run(tmp_path, clock, 0, 3, save=(3,))
    before = (tmp_path / "timing.jsonl").read_bytes()
    watch = Watch(tmp_path, 3, LogConfig(every=3), batch=8, clock=clock, date=clock)
    with watch.apart("evaluation", ()):
        clock.pass_by(10.0)
    watch.close()
    assert (tmp_path / "timing.jsonl").read_bytes() == before


def test_without_a_peak_there_is_no_mfu(tmp_path, clock):
    run(tmp_path, clock, 0, 3, flops=1e12, peak=None)
    assert "mfu" not in lines(tmp_path)[-1]


def test_devices_are_not_waited_for_between_lines(tmp_path, clock, monkeypatch):
    waits = []
    monkeypatch.setattr(watches.jax, "block_until_ready", waits.append)
    run(tmp_path, clock, 0, 9, save=(4,))
    assert len(waits) == 4  # lines of steps 3, 6 and 9, and the checkpoint


def test_other_processes_write_nothing(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(watches.jax, "process_index", lambda: 1)
    run(tmp_path, clock, 0, 7, save=(4,))
    assert not list(tmp_path.iterdir())


class Device:
    def __init__(self, peak):
        self.peak = peak

    def memory_stats(self):
        return None if self.peak is None else {"bytes_in_use": 1, "peak_bytes_in_use": self.peak}


def test_memory_of_each_device_or_of_the_process(monkeypatch):
    assert set(memory_peaks()) == {"resident_peak"} and 2**25 < memory_peaks()["resident_peak"] < 2**40
    monkeypatch.setattr(watches.jax, "local_devices", lambda: [Device(7), Device(9)])
    assert memory_peaks() == {"memory_peak": [7, 9]}


@pytest.mark.parametrize(("dtype", "each"), [("bfloat16", 10.0), ("float32", 5.0)])
def test_the_peak_of_a_mesh_is_that_of_its_devices(small, monkeypatch, dtype, each):
    mesh, recipe = make_mesh(), build(small(f"model.dtype={dtype}"))
    assert peak_of(recipe, mesh) is None  # CPUs
    monkeypatch.setitem(PEAKS, jax.devices()[0].device_kind, PEAKS["TPU v4"]._replace(bf16=10.0, f32=5.0))
    assert peak_of(recipe, mesh) == 8 * each


@pytest.mark.parametrize("trace", ["(3,)", "(0,2)", "(3,-1)", "(1,2,3)"])
def test_a_trace_that_cannot_be(small, trace):
    with pytest.raises(UserError, match=r"log.trace is \(.*\).* try log.trace = \("):
        small(f"log.trace={trace}")


@pytest.mark.parametrize("key", ["every", "checkpoint", "keep"])
def test_a_cadence_of_nothing(key):
    with pytest.raises(UserError, match=rf"log.{key} is 0; it is at least 1"):
        freeze({"log": {key: 0}})


def test_a_run_and_its_trace(small, train, tmp_path, monkeypatch):
    """Steps 5 and 6 are traced, under their numbers; the record has every step's time, TensorBoard too."""
    monkeypatch.setitem(PEAKS, jax.devices()[0].device_kind, PEAKS["TPU v4"])
    config = small("log.trace=(5,2)", "train.steps=8")
    train(config, tmp_path)
    (trace,) = (tmp_path / "trace").rglob("*.trace.json.gz")
    assert _traced_steps(trace) == {5, 6}
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 3, 4, 6, 8, 8]
    assert sum(line.get("steps", 0) for line in found) == 8
    assert all(line["step_time"] > line["data_wait"] > 0 for line in found[1:-1])
    assert 0 < found[-1]["goodput"] < 1 and found[3]["checkpoint"] > 0 and found[-1]["checkpoint"] > 0
    assert all(0 < line["mfu"] < 1 for line in found[1:-1])
    assert "time/step_time" in _tags(tmp_path)


def _traced_steps(path):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}


def _tags(workdir):
    (path,) = (workdir / "tensorboard").iterdir()
    data, tags = path.read_bytes(), set()
    while data:
        size = int.from_bytes(data[:8], "little")
        tags |= {value.tag for value in Event.FromString(data[12 : 12 + size]).summary.value}
        data = data[16 + size :]
    return tags

"""Processes that find each other, wait for each other, and miss each other."""

import re

import jax
import pytest

from causal_diffusion.parallel import distributed
from causal_diffusion.parallel.cluster import ClusterConfig
from tests.parallel.processes import run

MEET = """
    import sys, time
    import jax
    from causal_diffusion.cli import run
    from causal_diffusion.parallel import distributed
    from causal_diffusion.parallel.cluster import ClusterConfig
    from causal_diffusion.parallel.mesh import make_mesh

    def main():
        distributed.initialise(ClusterConfig(timeout=float(sys.argv[1])))
        distributed.initialise(ClusterConfig(timeout=float(sys.argv[1])))  # does nothing
        for _ in range(2):
            distributed.barrier("same name")
        print("met", jax.process_count(), len(jax.devices()), distributed.is_writer(), flush=True)
        late = "late" in sys.argv
        if late and jax.process_index() == 1:
            time.sleep(30)
        distributed.barrier("the second", timeout=1.5 if late else 60)

    run(main)
"""


def test_alone_nothing_happens(monkeypatch):
    for name in ("CD_COORDINATOR", "CD_PROCESSES", "CD_PROCESS", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: pytest.fail("a cluster where there is none"))
    distributed.initialise(ClusterConfig())
    distributed.initialise()
    distributed.barrier("nobody else", timeout=0.0)
    assert distributed.is_writer() and distributed.coordination_client() is None


def test_two_processes_meet():
    zero, one = run(MEET, 2, 60, devices=2, timeout=120)
    assert (zero.code, one.code) == (0, 0), (zero, one)
    assert "met 2 4 True" in zero.out and "met 2 4 False" in one.out


@pytest.mark.full
def test_a_process_that_never_comes_is_named():
    zero, two = run(MEET, 3, 30, devices=1, only=(0, 2))
    assert (zero.code, two.code) == (2, 2)
    assert zero.lines() == two.lines()
    (line,) = zero.lines()
    assert re.fullmatch(r"error: process 1 of 3 \(numbered from 0\) never came to localhost:\d+ within 30 s: see their "
                        "output", line)  # fmt: skip


@pytest.mark.full
def test_a_process_that_is_late_at_a_barrier_is_named():
    zero, one = run(MEET, 2, 60, "late", devices=1)
    assert zero.code == 2 and one.code != 0
    assert zero.lines()[0] == ("error: process 1 of 2 (numbered from 0) never came to the barrier 'the second' within "
                               "1.5 s; see their output")


@pytest.mark.full
def test_half_a_cluster_is_one_line_of_train_py():
    script = "import runpy; runpy.run_path('train.py', run_name='__main__')"
    (ended,) = run(script, 1, "--config=quickstart:tiny", "--dry_run", env={"CD_PROCESSES": "4"})
    assert ended.code == 2
    assert ended.err.startswith("error: CD_PROCESSES is '4', and CD_COORDINATOR and CD_PROCESS are not set: ")
    assert ended.err.count("\n") == 1

"""The benchmark of asynchronous saves: that it runs, and what its line says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_checkpoint", ROOT / "benchmarks" / "checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line(benchmark):
    found = {"stall": 0.02, "save": 0.98, "share": 0.0204, "step": 0.02}
    assert benchmark.line(2, 200, found) == (
        "2 processes, 200 MB: stall 0.0200 s, save 0.980 s, share 2.04%, step 0.0200 s, with step 4.00%")  # fmt: skip


@pytest.mark.full
def test_it_runs(tmp_path):
    command = [sys.executable, "benchmarks/checkpoint.py", "--megabytes=2", "--saves=2", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "2 MB" in line]
    assert [line.split(",")[0] for line in lines] == ["1 process", "2 processes"]
    for line in lines:
        stall, save = (float(number) for number in re.findall(r"(?:stall|save) ([\d.]+) s", line))
        assert 0 < stall < save
    assert not list(tmp_path.iterdir())

"""The benchmark of the video VAE: its statistics, and that it runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_vae", ROOT / "benchmarks/vae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_paired(benchmark):
    """A machine that slows down twentyfold on the way changes no ratio."""
    ours = np.geomspace(1.0, 20.0, 9)
    np.testing.assert_allclose(benchmark.median_ratio(1.5 * ours, ours), [1.5] * 3)


def test_the_interval_of_a_median_covers_the_truth(benchmark):
    rng, covered = np.random.default_rng(0), []
    for _ in range(100):
        ours = rng.lognormal(0.0, 0.5, 15)
        ratio, low, high = benchmark.median_ratio(1.2 * ours * rng.lognormal(0.0, 0.2, 15), ours)
        assert low <= ratio <= high
        covered.append(low <= 1.2 <= high)
    assert np.mean(covered) >= 0.85


@pytest.mark.oracle
def test_it_runs_from_the_command_line(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    file = tmp_path / "vae.json"
    command = [sys.executable, ROOT / "benchmarks/vae.py", "4x5x16", "--pairs=2", "--piece=1", f"--json={file}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    head, *lines = map(str.split, done.stdout.splitlines())
    assert head[0] == "size" and [row[:2] for row in lines] == [["4x5x16", "encode"], ["4x5x16", "decode"]]
    for result in map(json.loads, file.read_text().splitlines()):
        assert result["difference"] < 1e-4 and len(result["ours_seconds"]) == 2 and result["piece"] == 1
        assert result["theirs_peak_bytes"] > result["theirs_rise_bytes"] > 0 < result["ours_rise_bytes"]

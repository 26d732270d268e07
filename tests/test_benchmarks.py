"""The benchmarks of streaming: their statistics, and that they run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import differences, freeze, load_config, override
from causal_diffusion.recipe import build

ROOT = Path(__file__).parents[1]


def benchmark(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def streaming():
    return benchmark("streaming")


@pytest.fixture(scope="module")
def policies():
    return benchmark("policies")


def test_the_slope_of_a_line_is_exact_and_its_interval_a_point(streaming):
    x = np.arange(10.0, 400.0, 8.0)
    np.testing.assert_allclose(streaming.slope(x, 3.0 - 0.25 * x), [-0.25] * 3, rtol=1e-9)


def test_the_interval_of_a_slope_covers_the_truth_although_neighbours_are_alike(streaming):
    """Residuals that are sums over runs of 5: an interval for independent ones would miss far more often."""
    rng, x, covered = np.random.default_rng(0), np.arange(250.0), []
    for _ in range(100):
        noise = np.convolve(rng.standard_normal(254), np.ones(5), mode="valid")
        _, low, high = streaming.slope(x, 0.01 * x + noise)
        covered.append(low <= 0.01 <= high)
    assert np.mean(covered) >= 0.8


def test_compilations_are_counted_by_name(streaming):
    def doubled(x):
        return 2 * x

    f, short, long = jax.jit(doubled), jnp.ones(3), jnp.ones(4)
    with streaming.compilations() as names:
        f(short), f(short), f(long)
    f(jnp.ones(5))
    assert names == ["doubled", "doubled"]


@pytest.mark.full
def test_streaming_runs_from_the_command_line(tmp_path):
    file = tmp_path / "streaming.json"
    command = [sys.executable, ROOT / "benchmarks/streaming.py", "quickstart:tiny", "--blocks=100", f"--json={file}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    head, line = done.stdout.splitlines()
    assert head.startswith("config") and line.startswith("quickstart:tiny")
    (result,) = map(json.loads, file.read_text().splitlines())
    assert result["programs"] == {"init_state": 1, "filling": 1, "full": 1} and result["compiled_later"] == []
    assert result["blocks"] >= 100 and result["live_bytes_grown"] == 0
    # Two steps and the commit; keys and values, 2 layers, 2 branches, 4 + 4 slots of 4 tokens of 32 floats.
    assert result["passes"] == 3 and result["branches"] == 2 and set(result["look_ahead"].values()) == {0}
    assert result["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * 32 * 4


@pytest.mark.parametrize("model", ["quickstart", "causal", "no_sinks"])
def test_every_policy_is_a_config(policies, model):
    """And one that a stream of these parameters may have: nothing that training fixed is changed but what is seen."""
    config, seen = freeze(load_config("quickstart", policies.MODELS[model])), {"window", "sinks", "gap"}
    for changes in policies.policies(model).values():
        identity, _ = differences(config, build(override(config, changes)).config)
        assert set(identity) <= {f"layout.{name}" for name in seen}
    assert {policies.PLAIN, *policies.DRAWN} <= set(policies.POLICIES) and set(policies.MODELS) >= {model}


def test_gains_are_paired(policies):
    """Two policies that differ in one clip of four: the error of the gain is that of four numbers 0 0 0 1."""
    plain = np.zeros((4, 6), bool)
    plain[:2] = True
    better = plain.copy()
    better[2, 3:] = True
    results = {
        name: {
            "kind": "exact", "recognised": seen, "psnr": np.zeros((4, 6)), "motion": np.full((4, 6), 1.5),
            "true_motion": np.full((4, 6), 2.0),
        }
        for name, seen in ((policies.PLAIN, plain), ("better", better))
    }  # fmt: skip
    summed = policies.summary(results, length=3)
    assert summed["better"]["held"][0] == 0.75 and summed["better"]["recognised"] == [0.5] * 3 + [0.75] * 3
    assert summed["better"]["motion"] == 0.75
    np.testing.assert_allclose(summed["better"]["gain"], [0.25, np.std([0, 0, 0, 1], ddof=1) / 2])


def test_motion_is_the_way_of_the_centre(policies):
    """A square that goes one pixel down and three quarters of one to the right every frame, and one that stands."""
    video = np.full((2, 9, 20, 20, 1), -1.0)
    for t in range(9):
        whole, part = divmod(3 * t, 4)
        video[0, t, t : t + 4, whole : whole + 4] += 2 * (1 - part / 4) * 0.5
        video[0, t, t : t + 4, whole + 1 : whole + 5] += 2 * part / 4 * 0.5
        video[1, t, 5:9, 5:9] = 1.0
    way = policies.motion(video)
    assert way.shape == (2, 9 - policies.LAG)
    np.testing.assert_allclose(way[0], 1.25 * policies.LAG, rtol=1e-2)
    np.testing.assert_allclose(way[1], 0.0, atol=1e-9)

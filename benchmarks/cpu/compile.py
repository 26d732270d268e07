"""How often and for how long something is compiled: along a stream, and at the first and the second start of training.

The two starts run the same command line in processes of their own, with an empty folder for the persistent cache and
then with what the first one left there; the workdir is emptied in between.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import Figure
from benchmarks.streaming import PROGRAMS, compilations, example_condition
from benchmarks.systems import config_hash, random_pipeline
from causal_diffusion.config import freeze, load_config

ROOT = Path(__file__).parents[2]
CONFIGS = {"full": "quickstart", "tiny": "quickstart:tiny"}
BLOCKS = {"full": 100, "tiny": 12}
FEW = ("--config.train.steps=20", "--config.train.warmup=5", "--config.evaluate.clips=4", "--config.evaluate.frames=8")


def start(config: str, folder: Path) -> dict:
    """What ``counted_start`` writes of ``train.py`` with a workdir and a cache in ``folder``."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = ["train.py", f"--config={config}", f"--workdir={folder / 'run'}", *FEW]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    counted = folder / "counted.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cpu.counted_start", str(counted), *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(counted.read_text())


def run(pairs: int, size: str) -> dict:
    """``pairs`` is not used: what is counted does not vary, and a start takes its time."""
    del pairs
    config = freeze(load_config(CONFIGS[size]))
    with compilations() as names:
        pipe = random_pipeline(config)
        stream = pipe.stream(seed=0, cond=example_condition(pipe))
        stream.next()
        first = len(names)
        for _ in range(BLOCKS[size] - 1):
            stream.next()
    step = [name for name in names if name in PROGRAMS and name != "init_state"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        cold, warm = (start(CONFIGS[size], folder) for _ in range(2))
    ratio = warm["compile_seconds"] / cold["compile_seconds"]
    whole = warm["seconds"] / cold["seconds"]
    figures = [
        Figure("programs of a stream's step", len(step), "", asked=("value", "<=", 2)),
        Figure(f"compilations in blocks 2 to {BLOCKS[size]}", len(names) - first, "", asked=("value", "<=", 0)),
        Figure("training: first start, compiling", cold["compile_seconds"], "s", asked=("value", "<=", 30.0)),
        Figure("training: second start, compiling / first", 100 * ratio, "%", asked=("value", "<=", 100 / 3)),
        Figure("training: second start, whole command / first", 100 * whole, "%"),
        Figure("training: first start, whole command", cold["seconds"], "s"),
    ]
    return {"figures": figures, "config": config_hash(config), "programs": names, "starts": [cold, warm]}

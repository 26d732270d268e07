"""Runs a script as a command line would, and writes how long its compilations took.

    python -m benchmarks.cpu.counted_start counts.json train.py --config=configs/quickstart.py ...

``compile_seconds`` are those that XLA took, or that reading a program from the persistent cache took in its place;
``programs`` how many there were; ``seconds`` from the start of Python to the end of the script.
"""

import atexit
import json
import runpy
import sys
import time
from pathlib import Path

import jax

from benchmarks.streaming import COMPILED


def main(file: str, script: str, *arguments: str) -> None:
    """Counts, whatever way the script ends."""
    begun, seconds = time.perf_counter(), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **about: seconds.append(took) if event == COMPILED else None
    )

    def write():
        counted = {"compile_seconds": sum(seconds), "programs": len(seconds), "seconds": time.perf_counter() - begun}
        Path(file).write_text(json.dumps(counted))

    atexit.register(write)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Starts several processes of a script as one run, with time-outs, and leaves none behind."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
KEPT = tempfile.TemporaryDirectory()  # the programs that such processes compile: the next ones find them
NOISE = re.compile(r"^\[Gloo\]|%\||^[IW]\d{4} |^I0000|^W0000|absl::InitializeLog")  # and progress bars


class Ended(NamedTuple):
    """How a process ended. Its exit code (negative: a signal), and what it wrote."""

    code: int
    out: str
    err: str

    def lines(self) -> list[str]:
        """stderr, without what libraries log and without progress bars."""
        lines = (line.strip() for line in re.split("[\r\n]+", self.err))
        return [line for line in lines if line and not NOISE.search(line)]


class Processes:
    """Those of one run; see `started`."""

    def __init__(self, folder):
        self._folder, self._running = folder, []

    def add(self, command, env) -> None:
        i = len(self._running)
        with open(self._folder / f"{i}.out", "w") as out, open(self._folder / f"{i}.err", "w") as err:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err, start_new_session=True)
        self._running.append(process)

    def __getitem__(self, i) -> subprocess.Popen:
        return self._running[i]

    def said(self, i: int) -> str:
        """What process i has written to stdout so far."""
        return (self._folder / f"{i}.out").read_text()

    def wait_until(self, ready, timeout: float = 300.0) -> None:
        """Returns when `ready()` is true; fails when a process ends before, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not ready():
            ended = [i for i, process in enumerate(self._running) if process.poll() is not None]
            assert not ended, f"process {ended[0]} ended: {self._read(ended[0])}"
            assert time.monotonic() < deadline, f"nothing came within {timeout} s: {self._read(0)}"
            time.sleep(0.02)

    def finish(self, timeout: float = 500.0) -> list[Ended]:
        """How all of them ended, within `timeout` seconds from now."""
        deadline = time.monotonic() + timeout
        for i, process in enumerate(self._running):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process {i} still runs after {timeout} s: {self._read(i)}") from None
        return [self._read(i) for i in range(len(self._running))]

    def kill(self) -> None:
        """Ends every process, with those it has started."""
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _read(self, i) -> Ended:
        err = (self._folder / f"{i}.err").read_text(errors="replace")
        return Ended(self._running[i].poll(), self.said(i), err)


@contextlib.contextmanager
def started(script: str, count: int, *arguments, devices: int = 4, only=None, env=None):
    """Runs Python source in `count` processes that know of each other, with `devices` CPU devices each.

    One process is alone, as on a laptop. `only`: those that really start, all by default. `arguments`: sys.argv[1:].
    `env`: what the environment has besides.
    """
    base = {name: value for name, value in os.environ.items() if not name.startswith(("CD_", "SLURM_", "XLA_", "JAX_"))}
    base |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    base |= {"JAX_COMPILATION_CACHE_DIR": KEPT.name} | (env or {})
    coordinator = f"localhost:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        try:
            for i in range(count) if only is None else only:
                own = {"CD_COORDINATOR": coordinator, "CD_PROCESSES": str(count), "CD_PROCESS": str(i)}
                command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
                processes.add(command, base | (own if count > 1 else {}))
            yield processes
        finally:
            processes.kill()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def run(script: str, count: int, *arguments, timeout: float = 500.0, **options) -> list[Ended]:
    """The same, to the end."""
    with started(script, count, *arguments, **options) as processes:
        return processes.finish(timeout)


TRAIN_PY = "import runpy; runpy.run_path('train.py', run_name='__main__')"

"""Where the time of a run goes: ``timing.jsonl``, TensorBoard and, for chosen steps, a profiler trace.

``metrics.jsonl`` is a function of config and seed; what a clock says is not, so it has a file of its own. Its lines
follow one another in time, one at every ``log.every`` steps and one before every checkpoint and evaluation::

    {"step": 0, "start": 1767225600.0}                       a process begins (seconds since 1970) after step 0
    {"step": 20, "steps": 20, "seconds": 2.4, ...}           20 steps took 2.4 s

    seconds         wall time of these steps, in which the host waited for data and devices worked. Compilation,
                    evaluation and checkpoints are not in it
    step_time       seconds / steps
    data_wait       seconds per step in which the host waited for the next batch. While it waits, devices work on the
                    steps that it has already asked for: this is at least the time that they lose
    clips_per_second
    checkpoint      seconds in which checkpoints stopped the run, since the last line; evaluation: likewise
    goodput         share of the wall time since the first start of the run that went into steps that count. What was
                    done again after a restart counts once; queueing, compiling and saving do not count
    mfu             model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): FLOPs of the step by
                    ``report.training_flops``, over step_time x devices x peak. Of a transformer these are matrix
                    products alone, attention as its mask shows it: hidden pairs and what remat computes again earn
                    nothing. Only where ``cost.peaks`` knows the device
    memory_peak     high-water mark of each device of this process, bytes; resident_peak: that of the process, where
                    devices tell none (CPU)

A run that goes on from a checkpoint cuts the file back to it, as ``metrics.jsonl``. Nothing here waits for a device
between two lines: a step is only asked for, and at a line its metrics are there already.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from causal_diffusion.parallel.distributed import is_writer
from causal_diffusion.run_config import LogConfig
from causal_diffusion.training.records import cut_back, read_records


class Watch:
    """Times a run, on process 0; elsewhere nothing is written.

    Args:
        workdir: folder of the run; the trace goes to ``trace`` in it.
        start: steps done so far.
        log: cadence, and which steps are traced.
        batch: clips per step, over all devices.
        flops: of one step, over all devices; peak: FLOP/s of all devices together. None of either: no MFU.
        began: when this process began, as ``clock`` tells it.
        show: called with (step, {name: number}) for TensorBoard; say: with a message.
        clock: seconds, of any origin; never set back, so that no duration is negative. date: seconds since 1970.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        log: LogConfig,
        *,
        batch: int,
        flops: float | None = None,
        peak: float | None = None,
        began: float | None = None,
        show: Callable[[int, dict], None] = lambda step, values: None,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        date: Callable[[], float] = time.time,
    ):
        self._log, self._batch, self._show, self._say, self._clock = log, batch, show, say, clock
        self._peak_steps = peak / flops if peak and flops else None  # steps per second at peak
        self._trace, self._tracing = Path(workdir) / "trace", False
        self._path, self._writes = Path(workdir) / "timing.jsonl", is_writer()
        self._step = self._written = start
        self._since, self._waited, self._apart, self._header = None, 0.0, {}, None
        if not self._writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        began = clock() if began is None else began
        now = date() - max(0.0, clock() - began)  # the date at which this process began
        cut_back(self._path, start)
        lines = read_records(self._path)
        first = next((line["start"] for line in lines if _is_number(line.get("start"))), now)
        # The first start of the run, as this clock would have told it. A date that was set back since costs nothing.
        self._first = began - max(0.0, now - first)
        self._counted = sum(line["seconds"] for line in lines if _is_number(line.get("seconds")))
        self._header = {"step": start, "start": now}

    @contextlib.contextmanager
    def step(self, step: int):
        """Around everything of a step, from its batch to its metrics; a trace shows it under its number."""
        if self._since is None:
            self._since = self._clock()
        if self._header is not None:
            self._write(self._header)
            self._header = None
        with contextlib.ExitStack() as stack:
            if self._writes and self._is_traced(step):
                if not self._tracing:
                    self._switch_trace(on=True)
                stack.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))
            yield
        self._step = step

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for data."""
        before = self._clock()
        yield
        self._waited += self._clock() - before

    def tick(self, step: int, metrics) -> None:
        """After the step's metrics were recorded: ends a trace, and writes a line if it is time."""
        if self._tracing and not self._is_traced(step + 1):
            jax.block_until_ready(metrics)
            self._switch_trace(on=False)
        if step % self._log.every == 0:
            self._line(metrics)

    @contextlib.contextmanager
    def apart(self, name: str, metrics):
        """Around what stops the steps: 'checkpoint' or 'evaluation'. First waits for the last step's metrics."""
        self._line(metrics)
        before = self._clock()
        try:
            yield
        finally:
            after = self._clock()
            self._apart[name] = self._apart.get(name, 0.0) + after - before
            self._since = after

    def close(self) -> None:
        """Ends a trace, and writes what stopped the run after its last line."""
        if self._tracing:
            self._switch_trace(on=False)
        if self._writes and self._apart and self._header is None:  # a run that did no step leaves no trace of itself
            self._write(self._values(0, 0.0))

    def _is_traced(self, step):
        first, count = self._log.trace or (0, 0)
        return first <= step < first + count

    def _switch_trace(self, on):
        """Starts or ends the trace; the seconds of that are not the steps'."""
        before = self._clock()
        if on:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python would be an event
            jax.profiler.start_trace(self._trace, profiler_options=options)
        else:
            jax.profiler.stop_trace()
            self._say(f"the trace is in {self._trace}: TensorBoard's profile plugin and Perfetto show it")
        self._tracing = on
        self._since += self._clock() - before

    def _line(self, metrics):
        """Writes what happened since the last line, once the devices are done with it."""
        steps = self._step - self._written
        if not steps:
            return
        jax.block_until_ready(metrics)
        now = self._clock()
        values = self._values(steps, now - self._since)
        self._since, self._written = now, self._step
        if self._writes:
            self._write(values)
            numbers = {f"time/{name}": value for name, value in values.items() if isinstance(value, float)}
            memory = values.get("memory_peak", [values.get("resident_peak")])
            self._show(self._step, numbers | {"memory/peak_gib": max(memory) / 2**30})

    def _values(self, steps, seconds):
        """The numbers of a line; what they are made of starts anew."""
        values = {"step": self._step, "steps": steps, "seconds": seconds}
        if steps:
            each = max(seconds, 1e-9) / steps
            values |= {"step_time": each, "data_wait": self._waited / steps, "clips_per_second": self._batch / each}
        values |= {name: self._apart.get(name, 0.0) for name in ("checkpoint", "evaluation")}
        if self._writes:
            self._counted += seconds
            values["goodput"] = self._counted / max(self._clock() - self._first, 1e-9)
        if steps and self._peak_steps:
            values["mfu"] = 1.0 / (each * self._peak_steps)
        self._waited, self._apart = 0.0, {}
        return values | memory_peaks()

    def _write(self, values):
        with self._path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def memory_peaks() -> dict:
    """{'memory_peak': bytes of each device of this process}, or {'resident_peak': bytes} where devices tell none."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stat and "peak_bytes_in_use" in stat for stat in stats):
        return {"memory_peak": [stat["peak_bytes_in_use"] for stat in stats]}
    import resource  # Unix; there are no accelerators elsewhere

    unit = 1 if sys.platform == "darwin" else 1024
    return {"resident_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

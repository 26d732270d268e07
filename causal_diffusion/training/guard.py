"""The guard: no update from a loss or a gradient that is not a number, nor, if asked for, from a spike.

On the device, inside the step, ``judged`` decides, and ``state.apply_gradients`` leaves parameters, averages and
optimizer as they were where

    the loss or the norm g of the gradient is not finite                                    train.guard 'skip' or 'stop'
    g > train.spike * median(the finite norms of the last 64 steps)                         train.spike > 0

and counts the step all the same, so that data and noise go on. The norms are part of the train state: a run that was
resumed decides as one that was not. Norms of skipped steps are among them, so that gradients that have grown for good
are let through after 32 steps. Until more than half of the 64 are known, nothing is a spike. (A state without
train.spike has no such leaf, and is that of older checkpoints.)

On the host, ``FaultWatch`` reads a few steps late what was decided, so that no device waits for it, writes what
happened to the workdir, and ends the run with train.guard 'stop'. All processes read the same numbers the same number
of steps late: they end together, before the next checkpoint.
"""

import collections
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint.leaves import replacing
from causal_diffusion.errors import UserError
from causal_diffusion.parallel.distributed import is_writer
from causal_diffusion.parallel.mesh import gathered
from causal_diffusion.run_config import TrainConfig

WINDOW = 64  # steps whose norms are known


def no_norms():
    """The norms before the first step: infinity, which no spike exceeds."""
    return jnp.full(WINDOW, jnp.inf, jnp.float32)


def judged(config: TrainConfig, state, loss, norm):
    """Whether the update is to be made.

    Args:
        state: the TrainState before it.
        loss, norm: float32 [], of the batch and of its gradient.

    Returns:
        (good, norms, metrics): bool [], the norms of the state afterwards, and {'skipped': 1.0 or 0.0}, with
        train.spike also 'grad_median'. With train.guard 'off' good is None, and there are no metrics.
    """
    if config.guard == "off":
        return None, state.norms, {}
    good, norms, metrics = jnp.isfinite(loss) & jnp.isfinite(norm), state.norms, {}
    if config.spike:
        median, at = jnp.median(norms), state.step % WINDOW
        norms = norms.at[at].set(jnp.where(good, norm, norms[at]))
        good = good & ~(norm > config.spike * median)
        metrics["grad_median"] = median
    return good, norms, metrics | {"skipped": 1.0 - good.astype(jnp.float32)}


class FaultWatch:
    """Reads what the guard decided; called alike by all processes, after every step.

    Args:
        guard: train.guard; with 'off' nothing is watched.
        workdir: batches that were skipped go to its folder ``faults``, as ``step_N.npz``.
        every: log.every; after so many steps metrics are waited for anyhow, so that nothing is late.
        say: prints a line; on the writer only.
    """

    LAG = 2  # steps that may be under way when one is looked at, and batches that are kept alive for it
    FILES = 4  # in the folder, so that a bad run does not fill the disk
    IN_A_ROW = 100  # skipped steps after which the run ends all the same

    def __init__(self, guard: str, workdir: Path, every: int, say=print):
        self._guard, self._folder, self._every, self._say = guard, Path(workdir) / "faults", every, say
        self._queue = collections.deque()
        self._skipped = 0  # in a row
        self._writes = is_writer()

    def watch(self, step: int, batch: dict, metrics: dict) -> None:
        """Takes note of step number ``step`` and looks at the one ``LAG`` steps before.

        Args:
            batch, metrics: as they went into and came out of the compiled step; kept by reference.

        Raises:
            UserError: with train.guard 'stop' at a loss or gradient that is not finite; with 'skip' after
                ``IN_A_ROW`` skipped steps in a row.
        """
        if self._guard == "off":
            return
        metrics["skipped"].copy_to_host_async()
        self._queue.append((step, batch, metrics))
        while len(self._queue) > (0 if step % self._every == 0 else self.LAG):
            self._look(*self._queue.popleft())

    def settle(self) -> None:
        """Looks at all steps so far, and waits for them: before a checkpoint, and at the end. Raises as ``watch``."""
        while self._queue:
            self._look(*self._queue.popleft())

    def _look(self, step, batch, metrics):
        if not float(metrics["skipped"]):
            self._skipped = 0
            return
        self._skipped += 1
        numbers = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        what = _what_happened(numbers)
        where = self._write(step, batch, numbers)
        hint = "a smaller train.lr or train.clip would do"
        if self._guard == "stop" and not _finite(numbers):
            raise UserError(f"{what} at step {step}{where}: {hint}, or train.guard = 'skip'")
        if self._skipped >= self.IN_A_ROW:
            raise UserError(f"{what} at step {step}{where}: {self._skipped} steps in a row were skipped, {hint}")
        if self._writes:
            self._say(f"step {step:,} is skipped: {what}{where}")

    def _write(self, step, batch, numbers) -> str:
        """Saves a batch; where to, as the end of a sentence. All processes hand over their rows, one writes."""
        whole = {f"batch/{name}": _readable(rows) for name, rows in batch.items()}
        if not self._writes:
            return ""
        file = self._folder / f"step_{step}.npz"
        known = sorted(self._folder.glob("step_*.npz"))
        if len(known) >= self.FILES and file not in known:
            return f" ({self._folder} is full: {len(known)} batches)"
        arrays = {"step": np.int64(step)} | whole | {f"metrics/{name}": value for name, value in numbers.items()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as out:
                np.savez(out, **arrays)
        except OSError as error:  # a full disk must not end what 'skip' keeps going
            return f" (its batch is lost: {file} cannot be written, {error.strerror})"
        return f" (its batch is in {file})"


def _finite(numbers):
    return bool(np.isfinite(numbers["loss"]) and np.isfinite(numbers["grad_norm"]))


def _what_happened(numbers):
    if not np.isfinite(numbers["loss"]):
        return f"the loss is {numbers['loss']}"
    if not np.isfinite(numbers["grad_norm"]):
        return f"the gradient norm is {numbers['grad_norm']}"
    return f"the gradient norm is {numbers['grad_norm']:.3g}, and its recent median {numbers['grad_median']:.3g}"


def _readable(rows):
    """A batch's array whole on the host, in a dtype that numpy itself reads."""
    rows = np.asarray(gathered(rows))
    return rows if rows.dtype.kind in "biuf" else rows.astype(np.float32)

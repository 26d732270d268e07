"""The record of a run: a progress bar, ``metrics.jsonl``, and TensorBoard. What a clock says: ``watch``.

``metrics.jsonl`` has one line per ``log.every`` steps: the mean loss of these steps and the other metrics of the
last. It is cut back to the checkpoint when a run is resumed (``records``), and the losses pending at a checkpoint are
saved with it, so the file of a run that was killed and resumed is byte for byte that of one that was not.
"""

import contextlib
import json
import os
from pathlib import Path

import jax
import numpy as np
from tqdm.auto import tqdm

from causal_diffusion.errors import UserError
from causal_diffusion.lasting_output import lasting
from causal_diffusion.parallel.distributed import is_writer
from causal_diffusion.render.tensorboard import EventFile, image_summary, scalar_summary, video_summary
from causal_diffusion.training.records import cut_back


class Logger:
    """Writes on process 0 only; elsewhere every call does nothing but keep the pending losses."""

    def __init__(self, workdir: Path, steps: int, start: int, every: int, pending: list[float]):
        self._every, self._start = every, start
        self._losses = list(pending)
        self._device_losses = []
        self._writes = is_writer()
        if self._writes:
            workdir.mkdir(parents=True, exist_ok=True)
            self._path = workdir / "metrics.jsonl"
            damaged = cut_back(self._path, start)
            self._file = self._path.open("a")
            self._board = EventFile(workdir / "tensorboard", start)
            self._bar = tqdm(
                total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05, file=lasting("stderr")
            )
            if damaged:
                self.write(f"{self._path} has {damaged} damaged lines: they stay, and readers skip them")

    def step(self, step: int, metrics: dict) -> None:
        """Records the metrics (device arrays) of the step that ended as number ``step``."""
        self._device_losses.append(metrics["loss"])  # fetched later: waiting for every step would idle the device
        if self._writes:
            self._bar.update(1)
        if step % self._every:
            return
        losses = self.pending()
        self._losses, self._device_losses = [], []
        values = {name: float(v) for name, v in jax.device_get(metrics).items() if np.ndim(v) == 0}
        if "skipped" in metrics:  # what is not finite is the guard's business, and no JSON
            losses = [loss for loss in losses if np.isfinite(loss)]
            values = {name: value for name, value in values.items() if np.isfinite(value)}
        loss = float(np.mean(losses)) if losses else None
        if loss is not None:
            values["loss"] = loss
            if not np.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {step}: a smaller train.lr or train.clip would do")
        self.scalars(step, values)
        if self._writes and losses:
            self._bar.set_postfix_str(f"loss {loss:.4f}")

    def pending(self) -> list[float]:
        """Losses since the last line."""
        self._losses += [float(x) for x in jax.device_get(self._device_losses)]
        self._device_losses = []
        return list(self._losses)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A line of the record, and the same in TensorBoard."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self.show(step, values)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Numbers in TensorBoard alone."""
        if self._writes:
            for name, value in values.items():
                self._board.add(scalar_summary(name, value), step)

    def video(self, step: int, tag: str, frames, fps: float) -> None:
        """A playable clip, [B, T, H, W, C], side by side."""
        if self._writes:
            self._board.add(video_summary(tag, frames, fps), step)

    def image(self, step: int, tag: str, pixels) -> None:
        """A picture, uint8 [H, W, 3]."""
        if self._writes:
            self._board.add(image_summary(tag, pixels), step)

    def write(self, text: str) -> None:
        """A message that does not disturb the bar."""
        if self._writes:
            self._bar.write(text, file=lasting("stdout"))

    def flush(self) -> None:
        """Puts everything on disk: called before a checkpoint, which must not know more than the record."""
        if self._writes:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Ends the record; on a full disk too, where each file has to be given up by itself."""
        if self._writes:
            with contextlib.ExitStack() as last:
                for part in (self._board, self._file, self._bar):
                    last.callback(part.close)
                self.flush()

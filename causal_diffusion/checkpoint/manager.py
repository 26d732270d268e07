"""Checkpoints that are never silently wrong: save, verify, and restore any pytree onto any mesh.

A checkpoint is a folder ``<directory>/<step>/``, written by orbax, with up to four items,

    ema     averaged weights, all that inference needs                  pytree of arrays
    train   parameters, optimizer, keys: what exact resuming needs      pytree of arrays
    data    where the data stands                                       JSON
    meta    the config and whatever else names the model                JSON

and, written last, ``checksums.json``: size and sha256 of every file, shape and dtype of every leaf, and a
digest of itself. Orbax alone restores a flipped byte, casts a dtype and takes a half-written folder for a
checkpoint, all without a word. So here a folder without ``checksums.json`` is half-written, files are
verified before they are read, and leaves are compared with the wanted ones before anything is restored.

*Damage* (a checkpoint that cannot be trusted): restoring walks back to the newest intact one and reports what
it skipped. *Mismatch* (another model's leaf, shape or dtype): refused at once, as an older one would not fit
either. A directory belongs to its :class:`Checkpoints`, which removes old and half-written steps from it.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from causal_diffusion.checkpoint.leaves import compare, flatten, nonempty, reason_of, sharding_of, specs
from causal_diffusion.checkpoint.manifest import DOCUMENTS, MANIFEST, TREES, Damage, read_manifest, seal, verify
from causal_diffusion.errors import CheckpointError

log = logging.getLogger(__name__)

_STEP_FOLDER = re.compile(r"(0|[1-9]\d*)(\.orbax-checkpoint-tmp.*)?")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What was read. `ema` and `train` are None unless asked for; `skipped`: (step, reason), newest first."""

    step: int
    ema: Any = None
    train: Any = None
    data: dict | None = None
    meta: dict | None = None
    skipped: tuple[tuple[int, str], ...] = ()


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Nothing is created or held open between calls, so readers may look at the directory of a running job.
    Every method is called by all processes of a job alike; they share the file system.

    Args:
      directory: folder of the checkpoints; made by the first save.
      keep: how many complete checkpoints to keep. Damaged and half-written ones do not count.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = Path(os.path.abspath(directory))
        self.keep = keep
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. Restoring shows whether they are still intact."""
        return sorted(step for step in self._folders() if (self._folder(step) / MANIFEST).is_file())

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, *, ema: Any, meta: dict, train: Any = None, data: dict | None = None) -> None:
        """Writes a checkpoint; when this returns, it is complete, checksummed and flushed to disk.

        A damaged or half-written checkpoint of the same step is replaced. Older ones beyond `keep` are
        removed once the new one is complete: a process killed at any moment loses at most what it is writing.

        Args:
          step: training step, >= 0.
          ema, train: pytrees of jax or numpy arrays, typed PRNG keys included, under any sharding.
          data, meta: JSON; they come back as JSON reads them (a tuple as a list).
            `train` and `data` may be None: the item is left out, as in a checkpoint for inference alone.

        Raises:
          CheckpointError: the files cannot be written (a full disk), or `step` already holds an intact
            checkpoint. Older checkpoints are then as they were, and nothing of the new one is left.
        """
        trees = {name: flatten(tree)[0] for name, tree in zip(TREES, (ema, train), strict=True)
                 if tree is not None}
        documents = {name: value for name, value in zip(DOCUMENTS, (data, meta), strict=True)
                     if value is not None}
        items: dict[str, Any] = {name: ocp.args.JsonSave(value) for name, value in documents.items()}
        items |= {name: ocp.args.StandardSave(stored) for name, leaves in trees.items()
                  if (stored := nonempty(leaves))}
        contents = {name: specs(leaves) for name, leaves in trees.items()} | dict.fromkeys(documents)
        json.dumps(documents)  # what JSON cannot hold is the caller's mistake: found before a byte is written
        try:
            _on_first_process(lambda: self._make_room(step))
            _on_first_process(lambda: self._check_space(trees))
            with _manager(self.directory) as manager:
                # Without `force`, orbax declines any step below the newest (which may be a damaged one).
                if not manager.save(step, args=ocp.args.Composite(**items), force=True):
                    raise RuntimeError("orbax declined to save")
            _on_first_process(lambda: seal(self._folder(step), step, contents))
        except CheckpointError:
            raise
        except Exception as error:
            if jax.process_index() == 0:
                self._remove(step)
            last = self.latest()
            left = "no checkpoint is there" if last is None else f"the last complete one is step {last}"
            raise CheckpointError(f"cannot save step {step} to {self.directory}: {reason_of(error)}; {left}; "
                                  "make room there or choose another place, then start again") from error
        _on_first_process(lambda: self._retire(step))

    def restore(self, like: dict[str, Any], *, step: int | None = None) -> Restored:
        """Reads the newest intact checkpoint, or exactly `step`.

        Args:
          like: the wanted trees, ``{"ema": tree, "train": tree}`` or one of them: pytrees of
            `jax.ShapeDtypeStruct` with the shardings to restore to, on any mesh (without one: one device).
            A tree that is not named is neither read nor verified; data and meta always are.
          step: this step and no other; None walks back from the newest to the first intact one.

        Raises:
          CheckpointError: there is no checkpoint, none is intact (each is named with what is wrong), or a
            leaf's path, shape or dtype differs from `like` (the first is named).
        """
        if not set(like) <= set(TREES):
            raise ValueError(f"a checkpoint's trees are {TREES}, not {tuple(like)}")
        present = self._folders()
        if not present:
            raise CheckpointError(f"no checkpoint in {self.directory}: expected folders named by their step")
        if step is not None and step not in present:
            raise CheckpointError(f"no step {step} in {self.directory}: it holds {sorted(present)}")
        skipped: list[tuple[int, str]] = []
        for candidate in sorted(present, reverse=True) if step is None else [step]:
            try:
                found = self._restore(candidate, like)
            except Damage as damage:
                skipped.append((candidate, str(damage)))
                if damage.proven:
                    self._damaged.add(candidate)
            else:
                return dataclasses.replace(found, skipped=tuple(skipped))
        reasons = "; ".join(f"step {candidate}: {reason}" for candidate, reason in skipped)
        raise CheckpointError(f"no intact checkpoint in {self.directory}: {reasons}")

    def _restore(self, step: int, like: dict[str, Any]) -> Restored:
        folder = self._folder(step)
        content = read_manifest(folder)
        wanted = {name: flatten(tree) for name, tree in like.items()}
        for name, (leaves, _) in wanted.items():
            if name not in content["items"]:
                raise CheckpointError(f"{folder} has no item {name}: it holds {', '.join(content['items'])}")
            compare(f"{folder}, item {name}", saved=content["items"][name], wanted=specs(leaves))
        documents = [name for name in DOCUMENTS if name in content["items"]]
        verify(folder, content["files"], (*wanted, *documents))
        items: dict[str, Any] = {name: ocp.args.JsonRestore() for name in documents}
        for name, (leaves, _) in wanted.items():
            targets = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
                       for path, leaf in nonempty(leaves).items()}
            if targets:
                items[name] = ocp.args.StandardRestore(targets)
        try:
            with _manager(self.directory) as manager:
                read = manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the device is at fault, not the file: an older checkpoint would meet the same
        except Exception as error:
            raise Damage(f"orbax cannot read it: {reason_of(error)}", proven=False) from error
        trees = {}
        for name, (leaves, structure) in wanted.items():
            trees[name] = jax.tree.unflatten(structure, [
                read[name][path] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=sharding_of(leaf))
                for path, leaf in leaves.items()])
        return Restored(step, **trees, **{name: read[name] for name in documents})

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _folders(self) -> dict[int, list[Path]]:
        """Step -> its folders: the checkpoint itself, and what a save that was cut off left behind."""
        found: dict[int, list[Path]] = {}
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            if (match := _STEP_FOLDER.fullmatch(path.name)) and path.is_dir():
                found.setdefault(int(match[1]), []).append(path)
        return found

    def _make_room(self, step: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = self._folder(step)
        if folder.exists():
            with contextlib.suppress(Damage):  # damage is precisely what may be replaced
                verify(folder, read_manifest(folder)["files"])
                raise CheckpointError(f"{folder} holds an intact checkpoint: move it away or save elsewhere")
        self._remove(step)

    def _check_space(self, trees: dict[str, dict[str, Any]]) -> None:
        """Takes the room that a checkpoint needs and gives it back: OSError where there is not enough.

        Orbax finds a full disk in the middle, in a dozen threads that each print what befell them.
        """
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        size = sum(leaf.nbytes for leaves in trees.values() for leaf in leaves.values())
        with tempfile.TemporaryFile(dir=self.directory) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size + 2**16)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot tell
                    raise

    def _remove(self, step: int) -> None:
        for path in self._folders().get(step, ()):
            with contextlib.suppress(OSError):
                (path / MANIFEST).unlink()  # first: a removal that is cut off leaves a half-written folder
            shutil.rmtree(path, ignore_errors=True)

    def _retire(self, newest: int) -> None:
        """Removes what `newest`, complete, makes dispensable; nothing later, which may be another branch."""
        self._damaged.discard(newest)
        intact = [step for step in self.steps() if step <= newest and step not in self._damaged]
        for step in self._folders():
            if step <= newest and step not in intact[-self.keep:]:
                self._remove(step)


def read_meta(directory: str | os.PathLike, step: int | None = None) -> Restored:
    """Reads step, meta and data alone, verified: enough to build the model that the weights belong to."""
    return Checkpoints(directory).restore({}, step=step)


def folder_of(path: str | os.PathLike) -> Path:
    """Where the checkpoints of a run are: in its workdir, or the folder itself."""
    path = Path(path)
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def beside(directory: Path, name: str) -> Path:
    """A folder of the workdir that a folder of checkpoints is in."""
    return directory.parent / name if directory.name == "checkpoints" else directory / name


def read_ema(directory: str | os.PathLike, init, step: int | None = None):
    """The averaged weights of the newest intact checkpoint, whole on the first device; newer damaged ones are logged.

    Args:
      init: key -> fresh weights, the shapes of those wanted.
      step: a certain checkpoint instead of the newest.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.eval_shape(init, jax.random.key(0))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), like)
    restored = Checkpoints(directory).restore({"ema": like}, step=step)
    for skipped, reason in restored.skipped:
        log.warning("checkpoint %d is damaged (%s): using %d", skipped, reason, restored.step)
    return restored.ema


def _on_first_process(work) -> None:
    """Runs `work` on process 0 alone; all processes leave together, and all fail if it failed."""
    failure = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(failure is not None))
        if failed and failure is None:
            failure = CheckpointError("process 0 could not write the checkpoint: see its message")
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _manager(directory: Path):
    """An orbax manager for one operation, so that nothing it remembers is out of date. Retention is ours.

    Its log is muted: orbax logs a traceback of all that it raises, and warns of folders that we report.
    """
    logger = logging.getLogger("absl")

    def not_orbax(record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger.addFilter(not_orbax)
    try:
        with ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(
                max_to_keep=None, create=False, enable_async_checkpointing=False)) as manager:
            yield manager
    except BaseException:
        for thread in threading.enumerate():  # the others write on, into a folder that is about to be removed
            if type(thread).__module__.startswith("orbax."):
                threading.Thread.join(thread, timeout=60)
        raise
    finally:
        logger.removeFilter(not_orbax)

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

A save goes on in the background::

    save()       waits for the last one | makes room, copies the arrays to the host | returns
    thread                                orbax writes | checksums | manifest | old ones are removed

*Damage* (a checkpoint that cannot be trusted): restoring walks back to the newest intact one and reports what
it skipped. *Mismatch* (another model's leaf, shape or dtype): refused at once, as an older one would not fit
either. *Unreadable* (the system cannot read it now, see ``file_access``): retried, then the operation stops; no other
step is taken instead and nothing is removed. A directory belongs to its :class:`Checkpoints`, which removes old and
half-written steps from it; of a step that is a link only the link is removed.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint import storage
from causal_diffusion.checkpoint.agreement import Agreement
from causal_diffusion.checkpoint.leaves import compare, flatten, nonempty, of_specs, reason_of, sharding_of, specs
from causal_diffusion.checkpoint.manifest import DOCUMENTS, MANIFEST, TREES, Damage, read_manifest, seal, verify
from causal_diffusion.checkpoint.paths import absolute, check_space, is_local, remove_tree
from causal_diffusion.errors import CheckpointError, UnreadableError
from causal_diffusion.file_access import is_dir, is_file, is_transient, list_folder, retried

log = logging.getLogger(__name__)

_STEP_FOLDER = re.compile(r"(0|[1-9]\d*)(\.orbax-checkpoint-tmp.*)?")
_PATIENCE = 30.0  # seconds
_numbers = itertools.count()  # of the operations of this process, so that each has a name of its own


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

    Nothing is created or held open but by a save, so readers may look at the directory of a running job.
    Every method is called by all processes of a job alike; they share the file system.

    Args:
      directory: folder of the checkpoints; made by the first save. Any path that etils.epath understands.
      keep: how many complete checkpoints to keep, the newest. Damaged and half-written ones do not count.
      keep_every: steps that are multiples of it are kept besides; 0: none.
      asynchronous: whether `save` returns as soon as the arrays are copied, and goes on in the background.
      alone: whether this process acts for itself, and the others of the job do not take part.

    Attributes:
      stalls: of every finished save, (seconds for which `save` held its caller up, seconds that it took in all).
        Until the arrays themselves are computed no clock runs.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3, keep_every: int = 0,
                 asynchronous: bool = True, alone: bool = False):  # fmt: skip
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        if keep_every < 0:
            raise ValueError(f"keep_every must be at least 0, not {keep_every}")
        self.directory = absolute(directory)
        self.keep, self.keep_every, self.alone = keep, keep_every, alone
        self.stalls: list[tuple[float, float]] = []
        self._asynchronous = asynchronous
        self._damaged: set[int] = set()
        self._saving: _Saving | None = None
        self._past: list[Agreement] = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Waits for a save that is under way. What went wrong with it is raised unless something else was."""
        try:
            self.wait()
        except CheckpointError as late:
            if error is None:
                raise
            error.add_note(str(late))

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. Restoring shows whether they are still intact.

        Raises:
          UnreadableError: the directory or a folder in it cannot be read now.
        """
        return sorted(step for step in self._folders() if is_file(self._folder(step) / MANIFEST))

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, *, ema: Any, meta: dict, train: Any = None, data: dict | None = None) -> None:
        """Writes a checkpoint. When this returns the arrays may be donated; `wait` returns when it is complete.

        The save before is waited for first. Complete means: checksummed, and on a local disk flushed. A damaged or
        half-written checkpoint of the same step is replaced. Older ones beyond `keep` are removed once the new one is
        complete: a process killed at any moment loses at most what it is writing.

        Args:
          step: training step, >= 0.
          ema, train: pytrees of jax or numpy arrays, typed PRNG keys included, under any sharding.
          data, meta: JSON; they come back as JSON reads them (a tuple as a list).
            `train` and `data` may be None: the item is left out, as in a checkpoint for inference alone.

        Raises:
          CheckpointError: the files cannot be written (a full disk), those of the save before could not, or `step`
            already holds an intact checkpoint. Older checkpoints are then as they were, and nothing of the new one is
            left.
        """
        trees = {name: flatten(tree)[0] for name, tree in zip(TREES, (ema, train), strict=True)
                 if tree is not None}
        documents = {name: value for name, value in zip(DOCUMENTS, (data, meta), strict=True)
                     if value is not None}
        documents = json.loads(json.dumps(documents))  # a copy, and what JSON cannot hold is found here
        contents = {name: specs(leaves) for name, leaves in trees.items()} | dict.fromkeys(documents)
        began = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - began
        jax.block_until_ready(trees)
        began = time.perf_counter()
        agreement = self._agreement(f"save of step {step}")
        try:
            agreement.first(lambda: self._make_room(step, trees))
            writing = storage.Writing(
                self._folder(step),
                {name: (storage.TREE, {path: _own(leaf) for path, leaf in stored.items()})
                 for name, leaves in trees.items() if (stored := nonempty(leaves))}
                | {name: (storage.DOCUMENT, value) for name, value in documents.items()},
                None if self.alone else agreement.wait,
            )  # fmt: skip
        except Exception as error:
            # Others may wait for this process where only devices meet: it must not wait for them for long.
            raise self._give_up(step, error, agreement, patience=_PATIENCE) from error
        self._saving = saving = _Saving()

        def finish():
            try:
                writing.finish()
                seal(self._folder(step), step, contents, agreement)
                agreement.first(lambda: self._retire_if_readable(step))
                self.stalls.append((waited + blocked, waited + time.perf_counter() - began))
            except BaseException as error:
                saving.error = error
                if isinstance(error, Exception):
                    saving.error = self._give_up(step, error, agreement)

        saving.thread = threading.Thread(target=finish, name=f"save of step {step}")
        blocked = time.perf_counter() - began
        saving.thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is complete. Raises CheckpointError where it failed, once."""
        if (saving := self._saving) is None:
            return
        saving.thread.join()
        self._saving = None
        if saving.error is not None:
            raise saving.error

    def restore(self, like: dict[str, Any], *, step: int | None = None) -> Restored:
        """Reads the newest intact checkpoint, or exactly `step`. A save that is under way is waited for.

        Args:
          like: the wanted trees, ``{"ema": tree, "train": tree}`` or one of them: pytrees of
            `jax.ShapeDtypeStruct` with the shardings to restore to, on any mesh (without one: one device). None
            takes a tree as it is, {"path/of/leaf": array}.
            A tree that is not named is neither read nor verified; data and meta always are.
          step: this step and no other; None walks back from the newest to the first intact one.

        Raises:
          CheckpointError: there is no checkpoint, none is intact (each is named with what is wrong), or a
            leaf's path, shape or dtype differs from `like` (the first is named).
          UnreadableError: a file cannot be read now, which says nothing about it. No older step is taken instead.
        """
        if not set(like) <= set(TREES):
            raise ValueError(f"a checkpoint's trees are {TREES}, not {tuple(like)}")
        self.wait()
        agreement = self._agreement("restore")
        try:
            present = agreement.first(lambda: sorted(self._folders(), reverse=True))
        except UnreadableError as error:
            agreement.fail(reason_of(error))
            raise
        if not present:
            raise CheckpointError(f"no checkpoint in {self.directory}: expected folders named by their step")
        if step is not None and step not in present:
            raise CheckpointError(f"no step {step} in {self.directory}: it holds {present[::-1]}")
        skipped: list[tuple[int, str]] = []
        for candidate in present if step is None else [step]:
            try:
                found = self._restore(candidate, like, agreement)
            except Damage as damage:
                skipped.append((candidate, str(damage)))
                if damage.proven:
                    self._damaged.add(candidate)
            else:
                return dataclasses.replace(found, skipped=tuple(skipped))
        reasons = "; ".join(f"step {candidate}: {reason}" for candidate, reason in skipped)
        raise CheckpointError(f"no intact checkpoint in {self.directory}: {reasons}")

    def _restore(self, step: int, like: dict[str, Any], agreement: Agreement) -> Restored:
        folder = self._folder(step)
        wanted = {name: flatten(tree) for name, tree in like.items() if tree is not None}

        def check():
            content = read_manifest(folder)
            for name in like:
                if name not in content["items"]:
                    raise CheckpointError(f"{folder} has no item {name}: it holds {', '.join(content['items'])}")
                if name not in wanted:
                    wanted[name] = flatten(of_specs(content["items"][name]))
                leaves, _ = wanted[name]
                compare(f"{folder}, item {name}", saved=content["items"][name], wanted=specs(leaves))
            documents = [name for name in DOCUMENTS if name in content["items"]]
            verify(folder, content["files"], (*wanted, *documents), share=(agreement.index, agreement.count))
            return documents

        documents = _alike(check, agreement)
        items: dict[str, Any] = {name: (storage.DOCUMENT, None) for name in documents}
        for name, (leaves, _) in wanted.items():
            targets = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
                       for path, leaf in nonempty(leaves).items()}
            if targets:
                items[name] = (storage.TREE, targets)

        def load():
            try:
                return retried(folder, lambda: storage.read(folder, items))
            except (MemoryError, jax.errors.JaxRuntimeError, UnreadableError):
                raise  # not the file is at fault: an older checkpoint would meet the same
            except Exception as error:
                raise Damage(f"orbax cannot read it: {reason_of(error)}", proven=False) from error

        read = _alike(load, agreement)
        trees = {}
        for name, (leaves, structure) in wanted.items():
            trees[name] = jax.tree.unflatten(structure, [
                read[name][path] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=sharding_of(leaf))
                for path, leaf in leaves.items()])
        return Restored(step, **trees, **{name: read[name] for name in documents})

    def _agreement(self, what: str) -> Agreement:
        if len(self._past) > 1:  # all processes have met in the one after it
            self._past.pop(0).forget()
        self._past.append(Agreement(what if self.alone else f"{next(_numbers)}, {what}", alone=self.alone))
        return self._past[-1]

    def _give_up(self, step: int, error: Exception, agreement: Agreement, patience: float | None = None):
        """Tells the other processes, removes what is half-written, and returns the CheckpointError that says so."""
        agreement.fail(reason_of(error), patience)
        if isinstance(error, _Occupied):
            return error
        try:
            steps = self.steps()
        except UnreadableError:  # whether the step is complete is not known, so that nothing is removed
            return CheckpointError(f"cannot save step {step} to {self.directory}: {reason_of(error)}")
        if agreement.index == 0 and step not in steps:
            self._remove(step)
        if isinstance(error, UnreadableError):
            return CheckpointError(f"cannot save step {step} to {self.directory}: {reason_of(error)}")
        left = f"the last complete one is step {steps[-1]}" if steps else "no checkpoint is there"
        return CheckpointError(f"cannot save step {step} to {self.directory}: {reason_of(error)}; {left}; "
                               "make room there or choose another place, then start again")

    def _folder(self, step: int):
        return self.directory / str(step)

    def _folders(self) -> dict[int, list]:
        """Step -> its folders: the checkpoint itself, and what a save that was cut off left behind."""
        found: dict[int, list] = {}
        for path in list_folder(self.directory) if is_dir(self.directory) else ():
            if (match := _STEP_FOLDER.fullmatch(path.name)) is None:
                continue
            if is_dir(path):
                found.setdefault(int(match[1]), []).append(path)
            elif is_local(path) and path.is_symlink() and not path.exists():
                raise UnreadableError(f"{path} leads to {os.readlink(path)}, which is not there now: mount its disk, "
                                      "or remove the link to do without this step")  # fmt: skip
        return found

    def _make_room(self, step: int, trees: dict[str, dict[str, Any]]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        folder = self._folder(step)
        if is_dir(folder):
            with contextlib.suppress(Damage):  # damage is precisely what may be replaced
                verify(folder, read_manifest(folder)["files"])
                raise _Occupied(f"{folder} holds an intact checkpoint: move it away or save elsewhere")
        self._remove(step)
        if is_local(self.directory):
            check_space(self.directory, sum(leaf.nbytes for leaves in trees.values() for leaf in leaves.values()))

    def _remove(self, step: int) -> None:
        for path in self._folders().get(step, ()):
            remove_tree(path, first=MANIFEST)  # so that a removal that is cut off leaves a half-written folder

    def _retire_if_readable(self, newest: int) -> None:
        """The new step is complete: that old ones cannot be removed is no reason to give it up."""
        try:
            self._retire(newest)
        except (OSError, UnreadableError) as error:
            if isinstance(error, OSError) and not is_transient(error):
                raise
            log.warning("no old checkpoints are removed after step %d: %s", newest, reason_of(error))

    def _retire(self, newest: int) -> None:
        """Removes what `newest`, complete, makes dispensable; nothing later, which may be another branch."""
        self._damaged.discard(newest)
        intact = [step for step in self.steps() if step <= newest and step not in self._damaged]
        kept = {*intact[-self.keep :], *(step for step in intact if self.keep_every and step % self.keep_every == 0)}
        for step in self._folders():
            if step <= newest and step not in kept:
                self._remove(step)


class _Occupied(CheckpointError):
    """There is an intact checkpoint where one is to be written."""


@dataclasses.dataclass
class _Saving:
    """A save in the background, and what became of it."""

    thread: threading.Thread | None = None
    error: BaseException | None = None


def _alike(work, agreement: Agreement):
    """The result of `work`, done on every process. What is damaged for one of them is damaged for all."""
    try:
        result, damage = work(), None
    except Damage as error:
        result, damage = None, [str(error), error.proven]
    except BaseException as error:
        agreement.fail(reason_of(error))
        raise
    for each in agreement.gather(damage):
        if each is not None:
            raise Damage(each[0], proven=each[1])
    return result


def _own(leaf):
    """An array that its caller cannot change."""
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

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

:func:`save_tree` and :func:`load_tree` keep one small pytree in one file, as safely.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from causal_diffusion.errors import CheckpointError

TREES = ("ema", "train")
DOCUMENTS = ("data", "meta")
MANIFEST = "checksums.json"
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
        trees = {name: _flatten(tree)[0] for name, tree in zip(TREES, (ema, train), strict=True)
                 if tree is not None}
        documents = {name: value for name, value in zip(DOCUMENTS, (data, meta), strict=True)
                     if value is not None}
        items: dict[str, Any] = {name: ocp.args.JsonSave(value) for name, value in documents.items()}
        items |= {name: ocp.args.StandardSave(stored) for name, leaves in trees.items()
                  if (stored := _nonempty(leaves))}
        contents = {name: _specs(leaves) for name, leaves in trees.items()} | dict.fromkeys(documents)
        json.dumps(documents)  # what JSON cannot hold is the caller's mistake: found before a byte is written
        try:
            _on_first_process(lambda: self._make_room(step))
            with _manager(self.directory) as manager:
                # Without `force`, orbax declines any step below the newest (which may be a damaged one).
                if not manager.save(step, args=ocp.args.Composite(**items), force=True):
                    raise RuntimeError("orbax declined to save")
            _on_first_process(lambda: _seal(self._folder(step), step, contents))
        except CheckpointError:
            raise
        except Exception as error:
            if jax.process_index() == 0:
                self._remove(step)
            last = self.latest()
            left = "no checkpoint is there" if last is None else f"the last complete one is step {last}"
            raise CheckpointError(f"cannot save step {step} to {self.directory}: {_reason(error)}; {left}; "
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
            except _Damage as damage:
                skipped.append((candidate, str(damage)))
                if damage.proven:
                    self._damaged.add(candidate)
            else:
                return dataclasses.replace(found, skipped=tuple(skipped))
        reasons = "; ".join(f"step {candidate}: {reason}" for candidate, reason in skipped)
        raise CheckpointError(f"no intact checkpoint in {self.directory}: {reasons}")

    def _restore(self, step: int, like: dict[str, Any]) -> Restored:
        folder = self._folder(step)
        content = _read_manifest(folder)
        wanted = {name: _flatten(tree) for name, tree in like.items()}
        for name, (leaves, _) in wanted.items():
            if name not in content["items"]:
                raise CheckpointError(f"{folder} has no item {name}: it holds {', '.join(content['items'])}")
            _compare(f"{folder}, item {name}", saved=content["items"][name], wanted=_specs(leaves))
        documents = [name for name in DOCUMENTS if name in content["items"]]
        _verify(folder, content["files"], (*wanted, *documents))
        items: dict[str, Any] = {name: ocp.args.JsonRestore() for name in documents}
        for name, (leaves, _) in wanted.items():
            targets = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
                       for path, leaf in _nonempty(leaves).items()}
            if targets:
                items[name] = ocp.args.StandardRestore(targets)
        try:
            with _manager(self.directory) as manager:
                read = manager.restore(step, args=ocp.args.Composite(**items))
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the device is at fault, not the file: an older checkpoint would meet the same
        except Exception as error:
            raise _Damage(f"orbax cannot read it: {_reason(error)}", proven=False) from error
        trees = {}
        for name, (leaves, structure) in wanted.items():
            trees[name] = jax.tree.unflatten(structure, [
                read[name][path] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype, device=_sharding(leaf))
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
            with contextlib.suppress(_Damage):  # damage is precisely what may be replaced
                _verify(folder, _read_manifest(folder)["files"])
                raise CheckpointError(f"{folder} holds an intact checkpoint: move it away or save elsewhere")
        self._remove(step)

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


def save_tree(path: str | os.PathLike, tree: Any, meta: dict) -> None:
    """Writes one pytree of arrays and a JSON `meta` to the file `path` (best named .npz), all or nothing.

    For small trees of one process, such as a streaming session: leaves are gathered to the host. Typed PRNG
    keys are kept as their data, dtypes unknown to numpy (bfloat16) as integers of the same width.

    Raises:
      CheckpointError: the file cannot be written. One that was there before then still is.
    """
    leaves, arrays, keys = _flatten(tree)[0], {}, {}
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        arrays[f"leaf/{name}"] = array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
    header = json.dumps({"format": 1, "leaves": _specs(leaves), "keys": keys, "meta": meta})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    try:
        with _replacing(Path(path)) as file:
            np.savez(file, **arrays, sha256=_sha256_of(arrays))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {_reason(error)}") from error


def load_tree(path: str | os.PathLike, like: Any = None) -> tuple[Any, dict]:
    """Reads (tree, meta) from a file of :func:`save_tree`, verified.

    Args:
      path: the file.
      like: pytree of arrays or `jax.ShapeDtypeStruct` with the wanted structure, shapes, dtypes and, where
        given, shardings. Without it the tree comes flat, {"path/of/leaf": array}.

    Raises:
      CheckpointError: the file is missing or damaged, or holds another tree than `like`.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        intact = np.array_equal(arrays.pop("sha256"), _sha256_of(arrays))
    except Exception as error:  # a damaged zip file fails in a dozen ways
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    header = json.loads(arrays["header"].tobytes())
    wanted, structure = _flatten(like) if like is not None else ({}, None)
    if like is not None:
        _compare(str(path), saved=header["leaves"], wanted=_specs(wanted))
    leaves = {}
    for name, spec in header["leaves"].items():
        leaf = arrays[f"leaf/{name}"]
        if name in header["keys"]:
            leaf = jax.random.wrap_key_data(jnp.asarray(leaf), impl=header["keys"][name])
        else:
            leaf = leaf.view(jnp.dtype(spec.partition("[")[0]))
        leaves[name] = jax.device_put(leaf, getattr(wanted.get(name), "sharding", None))
    tree = leaves if like is None else jax.tree.unflatten(structure, [leaves[name] for name in wanted])
    return tree, header["meta"]


def _sha256_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)


class _Damage(Exception):
    """A checkpoint that cannot be trusted, and why. `proven`: its bytes are not those that were written."""

    def __init__(self, message: str, *, proven: bool = True):
        super().__init__(message)
        self.proven = proven


def _flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """Pytree -> ({"path/of/leaf": leaf}, structure). The containers along the path leave no trace in it.

    Raises:
      ValueError: a leaf is not an array, has a dtype that JAX would read back as another (int64 without x64:
        host integers belong in JSON), or shares its path with another leaf.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys, simple=True, separator="/") or "value"
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(f"leaf {path} is a {type(leaf).__name__}: checkpoints hold arrays")
        if isinstance(leaf.dtype, np.dtype) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            raise ValueError(f"leaf {path} is {leaf.dtype}: JAX would read it back as another dtype")
        if path in named:
            raise ValueError(f"two leaves are named {path}")
        named[path] = leaf
    return named, structure


def _nonempty(leaves: dict[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if leaf.size}  # orbax refuses arrays of no elements


def _specs(leaves: dict[str, Any]) -> dict[str, str]:
    """{path: dtype and shape}, such as {"params/kernel": "float32[64, 256]"}."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}


def _compare(where: str, *, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises CheckpointError naming the first leaf whose presence, dtype or shape differs."""
    for path in (*wanted, *saved):
        if saved.get(path) != wanted.get(path):
            raise CheckpointError(
                f"{where}: leaf {path} is {saved.get(path, 'absent')} in the checkpoint but "
                f"{wanted.get(path, 'absent')} in the model: use the config that it was saved with")


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    """The leaf's sharding, or the first device where it has none."""
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _reason(error: BaseException) -> str:
    """An exception in a few words: what the operating system said, where it did (tensorstore quotes it)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _replacing(path: Path):
    """A file to write that takes `path`'s place whole and flushed to disk, or leaves it as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Makes what was created or renamed in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    finally:
        logger.removeFilter(not_orbax)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size_and_sha256(path: Path, flush: bool = False) -> list:
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _seal(folder: Path, step: int, items: dict[str, Any]) -> None:
    """Flushes all files of a written step to disk, then writes its manifest: from here on it is complete."""
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = pool.map(functools.partial(_size_and_sha256, flush=True), files)
        named = {path.relative_to(folder).as_posix(): each for path, each in zip(files, sums, strict=True)}
    for path in (*(path for path in paths if path.is_dir()), folder, folder.parent):
        _flush_folder(path)
    content = {"format": 1, "step": step, "files": named, "items": items}
    with _replacing(folder / MANIFEST) as file:
        file.write(json.dumps({"sha256": _digest(content), "content": content}, indent=1).encode())


def _read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content, intact = manifest["content"], manifest["sha256"] == _digest(manifest["content"])
    except FileNotFoundError:
        raise _Damage(f"half-written, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damage(f"{MANIFEST} cannot be read") from error
    if not intact:
        raise _Damage(f"{MANIFEST} does not match its own checksum")
    if str(content["step"]) != folder.name:
        raise _Damage(f"its folder was renamed: it is step {content['step']}")
    return content


def _verify(folder: Path, files: dict[str, list], items: tuple[str, ...] = TREES + DOCUMENTS) -> None:
    """Compares the files of `items`, and those of no item, with the manifest's. Raises _Damage."""

    def check(name: str) -> None:
        try:
            size, digest = _size_and_sha256(folder / name)
        except OSError as error:
            raise _Damage(f"{name} cannot be read: {_reason(error)}") from error
        if size != files[name][0]:
            raise _Damage(f"{name} has {size:,} bytes instead of {files[name][0]:,}")
        if digest != files[name][1]:
            raise _Damage(f"{name} does not match its checksum")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(check, [name for name in files if "/" not in name or name.split("/")[0] in items]))

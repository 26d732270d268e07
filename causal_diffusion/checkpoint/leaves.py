"""A pytree as named leaves, what is compared of them, and files that are written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from causal_diffusion.errors import CheckpointError
from causal_diffusion.file_access import check_replaceable, create, errno_of


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
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


def nonempty(leaves: dict[str, Any]) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves.items() if leaf.size}  # orbax refuses arrays of no elements


def specs(leaves: dict[str, Any]) -> dict[str, str]:
    """{path: dtype and shape}, such as {"params/kernel": "float32[64, 256]"}."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves.items()}


def of_specs(specs: dict[str, str]) -> dict[str, jax.ShapeDtypeStruct]:
    """What `specs` was made of.

    Raises:
      ValueError: a leaf holds keys, whose kind their name does not tell.
    """
    leaves = {}
    for path, spec in specs.items():
        dtype, _, shape = spec.partition("[")
        if dtype.startswith("key<"):
            raise ValueError(f"leaf {path} is {spec}: say what kind of key is wanted")
        leaves[path] = jax.ShapeDtypeStruct(json.loads(f"[{shape}"), jax.numpy.dtype(dtype))
    return leaves


def compare(where: str, *, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises CheckpointError naming the first leaf whose presence, dtype or shape differs."""
    for path in (*wanted, *saved):
        if saved.get(path) != wanted.get(path):
            raise CheckpointError(
                f"{where}: leaf {path} is {saved.get(path, 'absent')} in the checkpoint but "
                f"{wanted.get(path, 'absent')} in the model: use the config that it was saved with")


def sharding_of(leaf: Any) -> jax.sharding.Sharding:
    """The leaf's sharding, or the first device where it has none."""
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def reason_of(error: BaseException) -> str:
    """An exception in a few words: what the operating system said, where it did (tensorstore quotes it)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if code := errno_of(error):
        return os.strerror(code)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def replacing(path: Path):
    """A file to write that takes `path`'s place whole and flushed to disk, or leaves it as it was.

    Where `path` is a link, the file takes the link's place, and what it leads to is left as it is.

    Raises:
      NotAFileError: a folder, a FIFO or a device is there.
    """
    check_replaceable(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with create(partial) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        flush_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Makes what was created or renamed in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

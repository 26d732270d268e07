"""One small pytree in one file: an exact .npz with a checksum of its content, without pickles."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint.archives import check_archive
from causal_diffusion.checkpoint.leaves import compare, flatten, reason_of, replacing, specs
from causal_diffusion.errors import CheckpointError, UnreadableError
from causal_diffusion.file_access import open_file, parse_json, retried


def save_tree(path: str | os.PathLike, tree: Any, meta: dict) -> None:
    """Writes one pytree of arrays and a JSON `meta` to the file `path` (best named .npz), all or nothing.

    For small trees of one process, such as a streaming session: leaves are gathered to the host. Typed PRNG
    keys are kept as their data, dtypes unknown to numpy (bfloat16) as integers of the same width.

    Raises:
      CheckpointError: the file cannot be written. One that was there before then still is.
    """
    leaves, arrays, keys = flatten(tree)[0], {}, {}
    for name, leaf in leaves.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        arrays[f"leaf/{name}"] = array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
    header = json.dumps({"format": 1, "leaves": specs(leaves), "keys": keys, "meta": meta})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    try:
        with replacing(Path(path).expanduser()) as file:
            np.savez(file, **arrays, sha256=_sha256_of(arrays))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {reason_of(error)}") from error


def load_tree(path: str | os.PathLike, like: Any = None) -> tuple[Any, dict]:
    """Reads (tree, meta) from a file of :func:`save_tree`, verified.

    Args:
      path: the file.
      like: pytree of arrays or `jax.ShapeDtypeStruct` with the wanted structure, shapes, dtypes and, where
        given, shardings. Without it the tree comes flat, {"path/of/leaf": array}.

    Raises:
      CheckpointError: the file is missing or damaged, or holds another tree than `like`.
      UnreadableError: it cannot be read now.
    """
    path = Path(path).expanduser()

    def read():
        with open_file(path) as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    try:
        check_archive(path)
        arrays = retried(path, read)
        intact = np.array_equal(arrays.pop("sha256"), _sha256_of(arrays))
    except UnreadableError:
        raise
    except Exception as error:  # a damaged zip file fails in a dozen ways
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    header = parse_json(arrays["header"].tobytes())
    wanted, structure = flatten(like) if like is not None else ({}, None)
    if like is not None:
        compare(str(path), saved=header["leaves"], wanted=specs(wanted))
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

"""Named arrays in one .safetensors file, for other programs and for keeps, with a digest of their content.

Any reader of the format reads it. Metadata of the format are strings; ours hold ``sha256``, over name, dtype, shape and
bytes of every array in the order of the names, which `read_weights` compares.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from causal_diffusion.checkpoint.leaves import flush_folder, reason_of
from causal_diffusion.errors import CheckpointError

DIGEST = "sha256"


def write_weights(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a file, all or nothing.

    Args:
      path: of the file, best named .safetensors. One that is there is replaced.
      arrays: {name: array}, of any dtype that the format has.
      metadata: what else the file says.

    Raises:
      CheckpointError: the file cannot be written. One that was there before then still is.
    """
    path = Path(path).expanduser()
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, partial, metadata=dict(metadata) | {DIGEST: _digest(arrays)})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads ({name: array}, metadata) of a file of :func:`write_weights`, verified.

    Raises:
      CheckpointError: the file is missing or damaged, or somebody else wrote it.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
        arrays = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from error
    if DIGEST not in metadata:
        raise CheckpointError(f"{path} has no checksum: another program wrote it")
    if metadata.pop(DIGEST) != _digest(arrays):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return arrays, metadata


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

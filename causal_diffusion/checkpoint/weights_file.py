"""Named arrays in one .safetensors file, for other programs and for keeps, with digests of their content.

Any reader of the format reads it. Metadata of the format are strings; beside the writer's own they hold

    sha256            over name, dtype, shape and bytes of every array in the order of the names
    manifest_sha256   over all other metadata, ``sha256`` included: with it every byte that counts is covered
    schema            2; files of schema 1 have neither this key nor ``manifest_sha256``, and are read with a warning
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from causal_diffusion.checkpoint.leaves import flush_folder, reason_of
from causal_diffusion.checkpoint.safetensors_file import DTYPES, read_header, read_tensor
from causal_diffusion.errors import CheckpointError, UnreadableError
from causal_diffusion.file_access import check_replaceable, create, open_file, retried

log = logging.getLogger(__name__)

DIGEST, MANIFEST_DIGEST, SCHEMA = "sha256", "manifest_sha256", "schema"
VERSION = "2"


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
    metadata = dict(metadata) | {DIGEST: _digest(arrays), SCHEMA: VERSION}
    metadata[MANIFEST_DIGEST] = _digest_of_texts(metadata)
    partial = path.with_name(f"{path.name}.partial")
    try:
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        create(partial).close()  # not through a link: the library opens what is there
        save_file(arrays, partial, metadata=metadata)
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
      UnreadableError: it cannot be read now.
    """
    path = Path(path).expanduser()

    def read():
        with open_file(path) as file:
            metadata, tensors = read_header(file)
            if unknown := next((tensor for tensor in tensors.values() if tensor.dtype not in DTYPES), None):
                raise ValueError(f"it has the dtype {unknown.dtype}")
            return metadata, {name: read_tensor(file, tensor) for name, tensor in tensors.items()}

    try:
        metadata, arrays = retried(path, read)
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {reason_of(error)}") from error
    if DIGEST not in metadata:
        raise CheckpointError(f"{path} has no checksum: another program wrote it")
    damaged = CheckpointError(f"{path} is damaged: its content does not match its checksum")
    if SCHEMA in metadata or MANIFEST_DIGEST in metadata:
        if metadata.pop(MANIFEST_DIGEST, None) != _digest_of_texts(metadata):
            raise damaged
        metadata.pop(SCHEMA, None)
    else:
        log.warning("%s is of schema version 1, whose checksum does not cover its metadata: export it again", path)
    if metadata.pop(DIGEST) != _digest(arrays):
        raise damaged
    return arrays, metadata


def _digest_of_texts(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

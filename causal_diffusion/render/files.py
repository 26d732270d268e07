"""Results go to disk whole or not at all: bytes to a neighbouring name first, then one rename."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from causal_diffusion.errors import UserError


def write_bytes(path, data: bytes) -> Path:
    """Write a file, making its folder where needed. Errors of the file system become one `UserError`."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot write {path}: {reason}; choose a writable folder with room") from error
    return path


def png_bytes(pixels) -> bytes:
    """A uint8 picture [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path, pixels) -> Path:
    """Write a uint8 picture [H, W, 3]; returns the path. Raises UserError where it cannot be written."""
    return write_bytes(path, png_bytes(pixels))

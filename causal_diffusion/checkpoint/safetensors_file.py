"""The layout of a .safetensors file, read without a library that lacks dtypes: float8 and bfloat16 are there.

    8 bytes, N | a JSON object of N bytes | data

    {"__metadata__": {text: text}, name: {"dtype": "F16", "shape": [2, 3], "data_offsets": [from, to]}, ...}

Offsets count from the first byte of the data. Tensors lie one after the other, without gaps, to the end of the file,
so that a file that is cut off or has bytes too many is known from its header.
"""

import math
import os
import struct
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from causal_diffusion.file_access import parse_json

HEADER = 10**8  # bytes that a header may have, as the format's own reader allows
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Tensor(NamedTuple):
    """Where a tensor lies: ``at`` counts from the start of the file, both in bytes."""

    dtype: str  # as the file names it
    shape: tuple[int, ...]
    at: int
    bytes: int


def read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, {name: Tensor}) of an open file, compared with the file's size.

    Raises:
      ValueError: it is no such file, or cut off.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    if len(head) < 8:
        raise ValueError(f"it has {size} bytes: it is cut off")
    (length,) = struct.unpack("<Q", head)
    if length > HEADER:
        raise ValueError("it does not begin as a .safetensors file does")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"it is cut off in its header, which has {length:,} bytes")
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: _tensor(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({_first_line(error)})") from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].at, item[1].bytes)):
        if tensor.at != end:
            raise ValueError(f"its header is damaged ({name} does not follow the tensor before it)")
        end += tensor.bytes
    if end > size:
        raise ValueError(f"it is cut off: it has {size:,} bytes, and {end:,} by its header")
    if end < size:
        raise ValueError(f"it has {size:,} bytes, and {end:,} by its header: it is damaged")
    return metadata, tensors


def _tensor(entry, start):
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, begin, end)
    if not all(type(n) is int and n >= 0 for n in numbers) or end < begin:
        raise ValueError("negative sizes")
    if dtype in DTYPES and math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize != end - begin:
        raise ValueError(f"{dtype} {list(shape)} in {end - begin} bytes")
    return Tensor(dtype, shape, start + begin, end - begin)


def read_tensor(file: BinaryIO, tensor: Tensor) -> np.ndarray:
    """The array of a tensor whose dtype is in ``DTYPES``.

    Raises:
      ValueError: the file is shorter by now.
    """
    file.seek(tensor.at)
    data = bytearray(tensor.bytes)
    if file.readinto(data) != tensor.bytes:
        raise ValueError("it is cut off")
    return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)


def _first_line(error):
    return str(error).partition("\n")[0] or type(error).__name__

"""Reads a `.npy` file."""

from pathlib import Path

import numpy as np

from causal_diffusion.file_access import open_file, retried


def read_array(path: Path) -> np.ndarray:
    """The array of real numbers in a `.npy` file.

    Raises:
        OSError: it is absent or no file. UnreadableError: it cannot be read now.
        ValueError, EOFError: its content is damaged, or no array of numbers.
    """

    def read():
        with open_file(path) as file:
            return np.load(file, allow_pickle=False)

    array = retried(path, read)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is no array of numbers")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"its dtype is {array.dtype}")
    return array

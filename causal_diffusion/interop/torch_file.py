"""Files that torch wrote (.pth, .pt, .bin, .tar): pickles, read by torch's restricted reader.

It makes tensors, numbers, strings and containers of them, and runs nothing. Since torch 1.6 such a file is a zip
archive with a checksum of every tensor, which torch itself does not compare; here that is done first.
"""

import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from causal_diffusion.checkpoint.archives import check_archive, starts_as_archive
from causal_diffusion.checkpoint.foreign import check_pointer, named_arrays
from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import open_file, retried

log = logging.getLogger(__name__)


def read_torch(path: Path):
    """(the torch module, what the file holds: tensors, numbers, strings, and dicts and lists of them).

    Raises:
        UserError: torch is not installed, the file is damaged or no such file, or it holds anything else.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs torch: pip install 'causal_diffusion[interop]'; .safetensors do not") from error
    check_pointer(path)
    _check_sums(path)

    def load():
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore")  # pickles of another protocol than torch's are read, or refused, as well
            return torch.load(file, map_location="cpu", weights_only=True)

    try:
        return torch, retried(path, load)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" but {named[1]}" if named else ""
        raise UserError(
            f"{path} holds not only tensors{what}: what else a pickle holds could run code, so it is refused, and "
            "nothing of it was run; a .safetensors file would do"
        ) from error
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error


def _check_sums(path):
    def head():
        with open_file(path) as file:
            return file.read(8)

    if starts_as_archive(retried(path, head)):
        try:
            check_archive(path)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read {path}: {reason_of(error)}; download it again") from error
    else:
        log.warning("%s is of torch's format without checksums: damage in it cannot be found", path)


def read_torch_arrays(path: Path, *anchors: str) -> dict[str, np.ndarray]:
    """{name: array} of a file with the tensors of one network, which may lie in it as 'state_dict' or the like.

    Args:
        anchors: names that tell the network wanted, where there are several.

    Raises:
        UserError: as ``read_torch``; or the file holds no tensors by name, or something else beside them.
    """
    torch, content = read_torch(path)
    tensors = named_arrays(path, content, lambda value: isinstance(value, torch.Tensor), anchors)
    return {name: as_array(path, name, tensor) for name, tensor in tensors.items()}


def as_array(path, name: str, tensor: Any) -> np.ndarray:
    """A tensor as an array of its dtype, or float32 where NumPy lacks it. UserError: it is sparse or quantised."""
    try:
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # exact
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        kind = f"{tensor.dtype}, {tensor.layout}"
        raise UserError(f"{path}: {name} is a tensor of {kind}, which is not read: try the float32, float16 or "
                        "bfloat16 weights of this model") from error  # fmt: skip

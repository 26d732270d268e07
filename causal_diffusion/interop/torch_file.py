"""Files that torch wrote (.pth, .pt, .tar): pickles, read by torch's restricted reader.

It makes tensors, numbers, strings and containers of them, and runs nothing.
"""

import pickle
import re
import warnings
from pathlib import Path

from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.errors import UserError


def read_torch(path: Path):
    """(the torch module, what the file holds: tensors, numbers, strings, and dicts and lists of them).

    Raises:
        UserError: torch is not installed, the file is damaged, or it holds anything else.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs torch: pip install 'causal_diffusion[interop]'; .safetensors do not") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickles of another protocol than torch's are read, or refused, as well
            return torch, torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" but {named[1]}" if named else ""
        raise UserError(
            f"{path} holds not only tensors{what}: what else a pickle holds could run code, so it is refused, and "
            "nothing of it was run; a .safetensors file would do"
        ) from error
    except Exception as error:  # a damaged file fails in a dozen ways
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error

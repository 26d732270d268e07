"""Weights that other programs wrote: found, checked and read, in one way for every importer.

    weights = open_weights("Wan2.1/vae", stem="diffusion_pytorch_model")
    weights = weights.within("encoder.conv_in.weight")       # without a prefix that stands before every name
    weights.shapes["encoder.conv_in.weight"], weights["encoder.conv_in.weight"]           # float32, checked

A folder holds ``STEM.safetensors``, or shards that ``STEM.safetensors.index.json`` lists, or one variant of either
(``STEM.fp16.safetensors``, ``STEM.safetensors.index.fp16.json``). A single file is .safetensors, .npz, or a pickle of
torch's, which is read by whatever the caller gives for it.

Values pass as they are, and become float32: float16, bfloat16, float32, float64, and float8 without scales. Refused by
the name of the tensor: integers and booleans where numbers of a network are wanted, float8 with scales beside it, and
values that are not finite. Refused by the name of the file: what is cut off, what does not match its checksum, a
pointer of git-lfs or a page of HTML in the file's place.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from causal_diffusion.checkpoint.archives import check_archive, starts_as_archive
from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.checkpoint.safetensors_file import DTYPES, Tensor, read_header, read_tensor
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import is_dir, is_file, open_file, retried
from causal_diffusion.text_files import read_json

log = logging.getLogger(__name__)

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
FLOAT8 = ("F8_E4M3", "F8_E5M2")
FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")
# How float8 with scales names them, beside NAME.weight.
SCALES = ("{}.scale_weight", "{}.weight_scale", "{}.weight_scale_inv")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named arrays of one file or of several.

    Attributes:
        path: what they were opened from, for messages.
        shapes: {name: shape}.
        files: names of the files in a folder; of a single file its own.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    files: tuple[str, ...]
    read: Callable[[str], np.ndarray]  # name -> array of any dtype

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> np.ndarray:
        """The array as finite float32.

        Raises:
            UserError: it has another kind of numbers, or one that is not finite.
        """
        return as_float32(self.path, name, self.read(name))

    def within(self, *anchors: str) -> "Weights":
        """The arrays without what stands before every name of the network ('vae.', 'module.', ...), and only they.

        Args:
            anchors: names of which the network has one; none of them present: the weights as they are.

        Raises:
            UserError: there are several such networks side by side.
        """
        if any(anchor in self.shapes for anchor in anchors):
            return self
        found = {name.removesuffix(anchor) for name in self.shapes for anchor in anchors if name.endswith(f".{anchor}")}
        if not found:
            return self
        if len(found) > 1:
            names = ", ".join(sorted(found))
            raise UserError(f"{self.path} holds several networks, named {names}: try a file with one")
        (prefix,) = found
        names = {name.removeprefix(prefix): name for name in self.shapes if name.startswith(prefix)}
        others = len(self.shapes) - len(names)
        log.info("%s: names are read without %r; %d others are left where they are", self.path, prefix, others)
        shapes = {name: self.shapes[full] for name, full in names.items()}
        return Weights(self.path, shapes, self.files, lambda name: self.read(names[name]))


def as_float32(path, name: str, value: Any) -> np.ndarray:
    """A parameter's array as float32. UserError, with its name: integers, booleans, or a value that is not finite."""
    value = np.asarray(value)
    if value.dtype.name not in FLOATS:
        raise UserError(f"{path}: {name} is {value.dtype.name}, and parameters are floating-point numbers: try the "
                        "float32, float16 or bfloat16 weights of this model")  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        value = value.astype(np.float32)
    if not (finite := np.isfinite(value)).all():
        where = [int(i) for i in np.argwhere(~finite)[0]]
        raise UserError(f"{path}: {name}{where} is {value[tuple(where)]}, which is not finite: the weights are damaged "
                        "or their training diverged; try another copy")  # fmt: skip
    return value


def open_weights(path, *, stem: str = "model", read_pickle: Callable[[Path], Mapping[str, Any]] | None = None,
                 convert: str = "") -> Weights:  # fmt: skip
    """The weights of a folder or of a file.

    Args:
        path: of either.
        stem: what the file in a folder is called without its endings.
        read_pickle: reads a pickle of torch's as {name: array}; None: pickles are refused.
        convert: how a pickle is converted, for the message that refuses one.

    Raises:
        UserError: nothing is there, or it cannot be used; the message says what to do.
        UnreadableError: the system cannot read it now.
    """
    path = Path(path).expanduser()
    if is_dir(path):
        return _of_folder(path, stem, read_pickle, convert)
    if not is_file(path):
        check_present(path)
    return _of_file(path, read_pickle, convert)


def check_present(path: Path) -> None:
    """UserError that says why no file can be opened there: nothing is, or something that is no file."""
    if not path.exists() and not path.is_symlink():
        parent = next((p for p in path.parents if p.is_dir()), path.parent)
        there = ", ".join(sorted(p.name for p in parent.iterdir())[:5]) if parent.is_dir() else ""
        raise UserError(f"there is no {path}: {parent} holds {there or 'nothing'}")
    try:
        with open_file(path):
            pass
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error


def _of_folder(folder, stem, read_pickle, convert):
    plain, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if is_file(folder / plain):
        return _of_file(folder / plain, read_pickle, convert)
    if is_file(folder / index):
        return _of_index(folder / index)
    whole = re.compile(rf"{re.escape(stem)}\.(?!index\b)[\w-]+\.safetensors")
    sharded = re.compile(rf"{re.escape(stem)}\.safetensors\.index\.[\w-]+\.json|{re.escape(stem)}\.[\w-]+\.safetensors"
                         r"\.index\.json")  # fmt: skip
    shard = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
    names = sorted(p.name for p in retried(folder, lambda: list(folder.iterdir())))
    variants = [n for n in names if sharded.fullmatch(n) or (whole.fullmatch(n) and not shard.fullmatch(n))]
    if len(variants) > 1:
        raise UserError(f"{folder} has no {plain} and {len(variants)} variants, {', '.join(variants)}: try the path of "
                        "one of them")  # fmt: skip
    if variants:
        log.info("%s has no %s: %s is read", folder, plain, variants[0])
        return _of_variant(folder / variants[0], read_pickle, convert)
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if read_pickle is not None and f"{stem}.bin" in pickles:
        return _of_file(folder / f"{stem}.bin", read_pickle, convert)
    if pickles:
        raise UserError(f"{folder} has {pickles[0]}, a pickle, and no {plain}: "
                        + (convert or f"try {folder / pickles[0]}"))  # fmt: skip
    there = ", ".join(names[:5]) or "nothing"
    raise UserError(f"cannot read {folder / plain}: {folder} has no {plain}, it holds {there}; try a folder with that "
                    f"file, or with shards and {index}")  # fmt: skip


def _of_variant(path, read_pickle, convert):
    return _of_index(path) if path.suffix == ".json" else _of_file(path, read_pickle, convert)


def _of_index(index):
    folder = index.parent
    try:
        where = read_json(index)["weight_map"]
        shards = sorted(set(where.values()))
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ValueError("its weight_map names no files of its folder")
    except UnreadableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        check_pointer(index)
        raise UserError(f"cannot read {index}: {reason_of(error)}") from error
    parts = {}
    for shard in shards:
        if not is_file(folder / shard):
            raise UserError(f"{index.name} lists {shard}, which is not in {folder}: download it")
        parts[shard] = _of_file(folder / shard, None, "")
    for name, shard in where.items():
        if name not in parts[shard]:
            raise UserError(f"{index.name} lists {name} in {shard}, which does not have it: download both again")
    shapes = {name: shape for part in parts.values() for name, shape in part.shapes.items()}
    of = {name: part for part in parts.values() for name in part.shapes}
    if len(of) != sum(len(part.shapes) for part in parts.values()):
        raise UserError(f"two of the shards that {index} lists hold the same tensor: download them again")
    return Weights(folder, shapes, tuple(shards), lambda name: of[name].read(name))


def check_pointer(path: Path) -> None:
    """UserError where a file holds a git-lfs pointer, a page of HTML or nothing in place of what was to be downloaded.

    Kind and readability of the file are found out here, too.
    """
    head = _head(path)
    if not head:
        raise UserError(f"cannot read {path}: it is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        size = re.search(rb"size (\d+)", head)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise UserError(f"{path} is a git-lfs pointer to a file{of}, not the file itself: try `git lfs pull` in "
                        f"{path.parent}, or download the file")  # fmt: skip
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not the file that was to be downloaded: download it again")


def _head(path):
    def read():
        with open_file(path) as file:
            return file.read(512)

    try:
        return retried(path, read)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error


def _of_file(path, read_pickle, convert):
    check_pointer(path)
    if path.suffix in PICKLES:
        if read_pickle is None:
            convert = convert or "try a .safetensors file"
            raise UserError(f"{path} is a pickle, and pickles are not read here: {convert}")
        return of_arrays(path, read_pickle(path))
    if path.suffix == ".npz":
        return of_arrays(path, read_npz(path))
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is neither .safetensors nor .npz{'' if read_pickle is None else ' nor .pth'}: name a "
                        "file of weights")  # fmt: skip
    return _of_safetensors(path)


def of_arrays(path: Path, arrays: Mapping[str, Any]) -> Weights:
    """Arrays that were read already, as ``open_weights`` gives them."""
    return Weights(path, {name: tuple(a.shape) for name, a in arrays.items()}, (path.name,), arrays.__getitem__)


def _of_safetensors(path):
    try:
        tensors = retried(path, functools.partial(_tensors, path))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        head = _head(path)
        pickled = starts_as_archive(head) or head.startswith(b"\x80")
        hint = "it is a pickle; try naming it .pth" if pickled else f"{reason_of(error)}; download it again"
        raise UserError(f"cannot read {path}: {hint}") from error

    if coarse := sum(tensor.dtype in FLOAT8 for tensor in tensors.values()):
        for name, tensor in tensors.items():
            _check_scales(path, name, tensor, tensors)
        log.warning("%s: %d tensors are float8, which has 3 or 4 bits of precision", path, coarse)

    def read(name):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise UserError(f"{path}: {name} is {tensor.dtype}, and parameters are floating-point numbers: try the "
                            "float32, float16 or bfloat16 weights of this model")  # fmt: skip
        try:
            return retried(path, functools.partial(_array, path, tensor))
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error

    return Weights(path, {name: tensor.shape for name, tensor in tensors.items()}, (path.name,), read)


def _tensors(path) -> dict[str, Tensor]:
    with open_file(path) as file:
        return read_header(file)[1]


def _array(path, tensor):
    with open_file(path) as file:
        return read_tensor(file, tensor)


def _check_scales(path, name, tensor, tensors):
    if tensor.dtype not in FLOAT8:
        return
    scales = ["scaled_fp8", *(scale.format(name.removesuffix(".weight")) for scale in SCALES)]
    if found := next((scale for scale in scales if scale in tensors), None):
        raise UserError(f"{path}: {name} is {DTYPES[tensor.dtype].__name__} with scales beside it ({found}), which are "
                        "not read: try the float32, float16 or bfloat16 weights of this model")  # fmt: skip


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of an .npz archive, compared with its checksums; nothing is unpickled.

    Raises:
        UserError: it is damaged, or holds more than arrays.
    """

    def read():
        with open_file(path) as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    try:
        check_archive(path)
        return retried(path, read)
    except UserError:
        raise
    except Exception as error:  # what is in the archive may be anything
        raise UserError(f"{path} is no readable .npz file of arrays: {reason_of(error)}") from error


def named_arrays(path, content: Any, is_array: Callable[[Any], bool], anchors: Iterable[str] = ()) -> dict[str, Any]:
    """The arrays by name of what a pickle holds: a dict of them, or one that lies in it as 'state_dict' or the like.

    Raises:
        UserError: there is none, several could be meant, or something else lies beside the arrays.
    """
    if isinstance(content, Mapping) and not any(map(is_array, content.values())):
        inner = {key: value for key, value in content.items() if isinstance(value, Mapping) and value
                 and all(map(is_array, value.values()))}  # fmt: skip
        anchors = tuple(anchors)
        if len(inner) > 1 and anchors:
            inner = {key: value for key, value in inner.items() if any(str(n).endswith(anchors) for n in value)}
        if len(inner) > 1:
            raise UserError(f"{path} holds several networks, named {', '.join(map(str, inner))}: try a file with one")
        if inner:
            ((_, content),) = inner.items()
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: the file is a {type(content).__name__}; tensors by name, and nothing else, would do")
    for key, value in content.items():
        if not is_array(value):
            raise UserError(f"{path}: {key} is a {type(value).__name__}; tensors by name, and nothing else, would do")
    return dict(content)

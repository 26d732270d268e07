"""Folders of frozen text encoders, as ``transformers`` writes them, and their weights as our parameters.

    config.json
    model.safetensors                     or shards that model.safetensors.index.json lists, or a variant of either
    tokenizer.json                        see tokenizer.py

A folder is given by its path, or by the name of a model that the user's hub cache holds, 'org/model',
'org/model/folder inside' and either with '@revision' behind it. Nothing is downloaded. The cache is $HF_HUB_CACHE, or
hub/ in $HF_HOME, or hub/ in ~/.cache/huggingface:

    models--org--model/refs/main                     the name of a snapshot
    models--org--model/snapshots/REV/config.json     links to what is in blobs/
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint import foreign
from causal_diffusion.checkpoint.foreign import Weights
from causal_diffusion.checkpoint.leaves import reason_of
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import is_dir, is_file, size_and_sha256
from causal_diffusion.nn.text.layers import Names
from causal_diffusion.seeds import random_key
from causal_diffusion.text_files import read_json, read_text

STEM = "model"
CONFIG, WEIGHTS = "config.json", f"{STEM}.safetensors"
NAME = re.compile(r"(?P<model>[\w.-]+(?:/[\w.-]+)?)(?P<inside>(?:/[\w.-]+)*)(?:@(?P<revision>[\w./-]+))?")


def find(path: str | os.PathLike) -> Path:
    """The folder of an encoder, from its path or its name in the hub cache.

    Raises:
        UserError: there is neither.
    """
    folder = Path(path).expanduser()
    if is_dir(folder):
        return folder
    name = NAME.fullmatch(str(path))
    if name is None or ".." in str(path) or str(path).startswith("."):
        raise UserError(f"there is no folder {path}: give one that holds {CONFIG}, {WEIGHTS} and tokenizer.json")
    cache = hub_cache()
    model = cache / f"models--{name['model'].replace('/', '--')}"
    if not model.is_dir():
        raise UserError(f"{path} is no folder, and {name['model']} is not in the hub cache {cache}: download it there")
    folder = _snapshot(model, name["revision"]) / name["inside"].lstrip("/")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of {path} in the hub cache: download the whole model")
    return folder


def hub_cache() -> Path:
    """Where downloaded models are, as the environment says."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(caches) / "huggingface").expanduser() / "hub"


def _snapshot(model, revision):
    """The snapshot of a revision (a branch, a tag, a commit); without one of main, or the only one."""
    snapshots = model / "snapshots"
    found = sorted(p.name for p in snapshots.iterdir() if p.is_dir()) if snapshots.is_dir() else []
    reference = model / "refs" / (revision or "main")
    if is_file(reference):
        commit = read_text(reference).strip()
        if commit in found:
            return snapshots / commit
        raise UserError(f"{reference} names the snapshot {commit}, which is not in {snapshots}: download the model")
    if revision in found:
        return snapshots / revision
    if revision is None and len(found) == 1:
        return snapshots / found[0]
    said = f"no revision {revision}" if revision else "no refs/main"
    would = f"one of {', '.join(found)} behind an '@' would do" if found else "download the model"
    raise UserError(f"{model} has {said}: {would}")


def read_config(folder: Path) -> dict:
    """The content of config.json.

    Raises:
        UserError: it is missing, or no JSON object.
    """
    path = folder / CONFIG
    try:
        said = read_json(path)
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; the folder of a text encoder has one") from error
    if not isinstance(said, dict):
        raise UserError(f"{path} holds a {type(said).__name__}; an object with a model_type would do")
    return said


def open_weights(folder: Path) -> Weights:
    """The weights of a folder: safetensors, shards of them, or a variant.

    Raises:
        UserError: there are none (a folder that has only pickles is told how to convert them), or one cannot be read.
    """
    convert = (f"convert it once, where torch is installed, by transformers.AutoModel.from_pretrained({str(folder)!r})"
               f".save_pretrained({str(folder)!r})")  # fmt: skip
    return foreign.open_weights(folder, stem=STEM, convert=convert)


def load(folder: Path, module: nn.Module, names: Names) -> dict:
    """The parameters of ``module`` from the folder's files, float32.

    What the files hold beside them (a decoder, a tower for images, a head) is left where it is.

    Raises:
        UserError: as ``open_weights``; a key is missing, has another shape or other numbers than finite floating-point
            ones, or is of a layer that the module has not.
    """
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, random_key(0), ids, jax.ShapeDtypeStruct((1, 2), bool))["params"]
    leaves = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes).items()}
    words = next(path for path in leaves if path[0] == next(iter(names.table)))
    given = open_weights(folder).within(*(prefix + key for prefix in names.prefixes for key in names.keys(words)))
    theirs = _assigned(folder, names, leaves, given.shapes)
    params = {path: _to_ours(folder, key, path, given[key], leaves[path]) for path, key in theirs.items()}
    return flax.traverse_util.unflatten_dict(params)


def _assigned(folder, names, leaves, files):
    """{our path: the key that the files have for it}."""
    words = next(path for path in leaves if path[0] == next(iter(names.table)))
    prefixes = [p for p in names.prefixes if any(p + key in files for key in names.keys(words))]
    if not prefixes:
        wanted = " or ".join(prefix + key for prefix in names.prefixes for key in names.keys(words))
        raise UserError(f"the weights in {folder} have no {wanted}: they are of another network")
    theirs = {}
    for path in leaves:
        candidates = [prefixes[0] + key for key in names.keys(path)]
        candidates += [_old(key) for key in candidates]
        found = next((key for key in candidates if key in files), None)
        if found is None:
            raise UserError(f"the weights in {folder} have no {candidates[0]}: they are not what {CONFIG} says")
        theirs[path] = found
    taken = set(theirs.values())
    for key in sorted(files):
        if key.startswith(prefixes[0] + names.layers) and key not in taken:
            raise UserError(f"the weights in {folder} have {key}, for which {CONFIG} has no place")
    return theirs


def _old(key):
    """The key as files of BERT's first years have it, which call a norm's parameters as TensorFlow does."""
    return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _to_ours(folder, key, path, value, shape):
    if path[-1] == "kernel":
        value = value.T
    if value.shape != shape:
        given, would = value.shape, shape
        if path[-1] == "kernel":
            given, would = given[::-1], would[::-1]
        raise UserError(f"{folder}: {key} has the shape {given}; {would}, as {CONFIG} says, would do")
    return jnp.asarray(np.ascontiguousarray(value))


def digests(folder: Path) -> dict[str, str]:
    """{weight file: SHA-256 of its content}; the hub cache's own name of a file where that is its SHA-256."""
    found = {}
    for name in open_weights(folder).files:
        path = folder / name
        real = path.resolve()
        stored = real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", real.name)
        found[name] = real.name if stored else digest(path)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return size_and_sha256(path)[1]
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error


def checked_config(folder: Path, said: Mapping, read):
    """``read(said)``, with ValueError told as a UserError that names the file."""
    try:
        return read(said)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: {reason_of(error)}") from error

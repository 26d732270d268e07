"""Where checkpoints are: a local folder, or whatever etils.epath understands (``gs://bucket/run``, ``s3://...``).

Local paths are pathlib's: what is written there takes its place whole and is flushed to disk. An object store does both
by itself, object by object, and has no folders to flush.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from causal_diffusion.checkpoint.leaves import replacing

_SCHEME = re.compile(r"(gs|s3|az|hf):/+")  # one slash where pathlib has seen it


def as_path(place: str | os.PathLike) -> Path | epath.Path:
    """A pathlib path, or an epath of an object store. A leading ``~`` is the user's home."""
    text = os.fspath(place)
    if (match := _SCHEME.match(text)) is not None:
        return epath.Path(f"{match[1]}://{text[match.end():]}")
    return Path(text).expanduser()


def absolute(place: str | os.PathLike) -> Path | epath.Path:
    path = as_path(place)
    return Path(os.path.abspath(path)) if is_local(path) else path


def local_part(place: str | os.PathLike) -> Path:
    """Where the files of a run lie that an object store cannot grow: the same path without its bucket."""
    path = as_path(place)
    if is_local(path):
        return path
    _, _, inside = str(path).partition("://")
    bucket, _, name = inside.strip("/").partition("/")
    return Path(name or bucket)


def is_local(path) -> bool:
    return isinstance(path, Path)


def files_in(folder) -> Iterator:
    """Every file below a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_in(path)
        else:
            yield path


def write_whole(path, content: bytes) -> None:
    """A file that is there whole or not at all, and on a local disk to stay."""
    if is_local(path):
        with replacing(path) as file:
            file.write(content)
    else:
        path.write_bytes(content)


def remove_tree(folder) -> None:
    """Removes a folder as far as that is possible."""
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        folder.rmtree()
    except OSError:
        pass

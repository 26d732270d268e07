"""Where checkpoints are: a local folder, or whatever etils.epath understands (``gs://bucket/run``, ``s3://...``).

Local paths are pathlib's: what is written there takes its place whole and is flushed to disk. An object store does both
by itself, object by object, and has no folders to flush.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from causal_diffusion.checkpoint.leaves import replacing
from causal_diffusion.file_access import is_dir, list_folder

_AT_ONCE = 2**26  # bytes of room that are tried before a save
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
    for path in list_folder(folder):
        if is_dir(path):
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


def remove_tree(folder, first: str | None = None) -> None:
    """Removes a folder as far as that is possible. Of a link only the link is removed.

    Args:
        first: a file of it that is removed before all others.
    """
    if is_local(folder) and folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.unlink()
        return
    if first is not None:
        with contextlib.suppress(OSError):
            (folder / first).unlink()
    if is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        folder.rmtree()
    except OSError:
        pass

def check_space(directory: Path, size: int) -> None:
    """Raises OSError where there is no room for so many bytes, as far as that can be told at once.

    What the disk has free is asked for; limits on files and quotas show when some room is taken, and given back. Orbax
    finds a full disk in the middle, in a dozen threads.
    """
    size += 2**16
    if hasattr(os, "statvfs"):
        disk = os.statvfs(directory)
        if 0 < disk.f_blocks and disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, min(size, _AT_ONCE))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that cannot tell
                raise

"""The video files below a folder, and an account of what else lies there.

A file is a video if FFmpeg finds one in it, whatever its ending. Links to files and folders are followed, each file and
folder is visited once, and what is hidden (a name that begins with a dot) is left out.
"""

import logging
import os
import stat
from pathlib import Path

from causal_diffusion.data.clip_list import CLIP_LIST, printable

log = logging.getLogger(__name__)

_HIDDEN, _COMPANION = "hidden", "of other kinds, by their endings"
_NAMED = 5  # files that a message names

# Files that nobody takes for videos: they are not opened.
_COMPANIONS = {
    ".ass", ".bmp", ".cfg", ".csv", ".db", ".gz", ".h5", ".hdf5", ".html", ".ini", ".jpeg", ".jpg", ".json", ".jsonl",
    ".log", ".md", ".nfo", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl", ".pt", ".pth", ".py", ".safetensors",
    ".sh", ".srt", ".tar", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip


class Unused:
    """Files that are not used, by reason."""

    def __init__(self):
        self._names: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    @property
    def ordinary(self) -> bool:
        """Whether they are only of kinds that lie in any folder."""
        return set(self._names) <= {_HIDDEN, _COMPANION}

    def add(self, reason: str, name: str) -> None:
        self._names.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        parts = []
        for reason, names in sorted(self._names.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            count = f"{len(names)} files" if len(names) > 1 else "1 file"
            parts.append(f"{count}: {reason} ({', '.join(map(printable, names[:_NAMED]))}{more})")
        return "; ".join(parts)


def find_files(folder: Path) -> tuple[list[str], Unused]:
    """Files below the folder that may be videos, relative to it with '/', in order; and what is left out."""
    unused = Unused()
    files: dict[str, tuple[int, int]] = {}
    _walk(folder, "", {_identity(folder.stat())}, files, unused)
    first: dict[tuple[int, int], str] = {}
    # A file that is found under several names is used under one, or two splits could share it: one that is no link.
    for name in sorted(files, key=lambda name: (_linked(folder, name), name)):
        same = first.setdefault(files[name], name)
        if same != name:
            unused.add(f"the same file as {printable(same)}", name)
    return sorted(first.values()), unused


def _walk(folder: Path, prefix: str, seen: set, files: dict, unused: Unused) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        unused.add(f"folder that cannot be read ({error.strerror})", prefix or ".")
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            unused.add(_HIDDEN, name)
            continue
        try:
            state = entry.stat()
        except OSError as error:
            unused.add("broken link" if entry.is_symlink() else f"unreadable ({error.strerror})", name)
            continue
        if stat.S_ISDIR(state.st_mode):
            if _identity(state) in seen:
                unused.add("folder that is used under another name", name)
                continue
            seen.add(_identity(state))
            _walk(folder / entry.name, name + "/", seen, files, unused)
        elif not stat.S_ISREG(state.st_mode):
            unused.add("neither a file nor a folder", name)
        elif name == CLIP_LIST:
            continue
        elif os.path.splitext(entry.name)[1].lower() in _COMPANIONS:
            unused.add(_COMPANION, name)
        elif state.st_size == 0:
            unused.add("empty", name)
        else:
            files[name] = _identity(state)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _linked(folder: Path, name: str) -> bool:
    """Whether a link is on the way to the file."""
    path = folder / name
    return any(part.is_symlink() for part in (path, *path.parents) if part != folder and folder in part.parents)

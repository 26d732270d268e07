"""The files below a folder, and an account of those that are not used.

Links to files and folders are followed, each file and folder is visited once, and what is hidden (a name that begins
with a dot) is left out.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from causal_diffusion.file_access import retried

HIDDEN = "hidden"
_NAMED = 5  # files that a message names
_OF_OTHERS = (PermissionError,)  # what somebody else owns is left out, as lost+found of a disk is


def printable(name: str) -> str:
    """A file's name for a message: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


class Unused:
    """Files that are not used, by reason.

    Args:
        ordinary: reasons that hold for files of any folder.

    Attributes:
        lost: (reason, name) of what may have been wanted, and cannot be had: broken links, FIFOs.
    """

    def __init__(self, *ordinary: str):
        self._names: dict[str, list[str]] = {}
        self._ordinary = {HIDDEN, *ordinary}
        self.lost: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._names)

    @property
    def ordinary(self) -> bool:
        """Whether they are only of kinds that lie in any folder."""
        return set(self._names) <= self._ordinary

    def add(self, reason: str, name: str, lost: bool = False) -> None:
        self._names.setdefault(reason, []).append(name)
        if lost:
            self.lost.append((reason, name))

    def __str__(self) -> str:
        parts = []
        for reason, names in sorted(self._names.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            count = f"{len(names)} files" if len(names) > 1 else "1 file"
            parts.append(f"{count}: {reason} ({', '.join(map(printable, names[:_NAMED]))}{more})")
        return "; ".join(parts)


def files_below(folder: Path, unused: Unused, skip: Callable[[str, int], str]) -> list[str]:
    """The files below a folder, relative to it with '/', in order.

    Args:
        unused: gets what is left out.
        skip: (name, bytes) -> why such a file is left out, or ''.

    Raises:
        UnreadableError: a folder cannot be listed now, so that it is not known which files there are.
    """
    files: dict[str, tuple[int, int]] = {}
    _walk(folder, "", {_identity(folder.stat())}, files, unused, skip)
    first: dict[tuple[int, int], str] = {}
    # A file that is found under several names is used under one, or two splits could share it: one that is no link.
    for name in sorted(files, key=lambda name: (_linked(folder, name), name)):
        same = first.setdefault(files[name], name)
        if same != name:
            unused.add(f"the same file as {printable(same)}", name)
    return sorted(first.values())


def _walk(folder: Path, prefix: str, seen: set, files: dict, unused: Unused, skip) -> None:
    try:
        entries = retried(folder, lambda: list(os.scandir(folder)), _OF_OTHERS)
    except OSError as error:
        unused.add(f"folder that cannot be read ({error.strerror})", prefix or ".", lost=True)
        return
    entries.sort(key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith("."):
            unused.add(HIDDEN, name)
            continue
        try:
            state = retried(entry.path, entry.stat, _OF_OTHERS)
        except OSError as error:
            why = "broken link" if entry.is_symlink() else f"unreadable ({error.strerror})"
            unused.add(why, name, lost=True)
            continue
        if stat.S_ISDIR(state.st_mode):
            if _identity(state) in seen:
                unused.add("folder that is used under another name", name)
                continue
            seen.add(_identity(state))
            _walk(folder / entry.name, name + "/", seen, files, unused, skip)
        elif not stat.S_ISREG(state.st_mode):
            unused.add("neither a file nor a folder", name, lost=True)
        elif why := skip(name, state.st_size):
            unused.add(why, name)
        else:
            files[name] = _identity(state)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _linked(folder: Path, name: str) -> bool:
    """Whether a link is on the way to the file."""
    path = folder / name
    return any(part.is_symlink() for part in (path, *path.parents) if part != folder and folder in part.parents)

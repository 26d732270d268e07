"""One process writes to a folder at a time: a lock file says which, and a crashed process does not keep it.

The file ``owner.lock`` in the folder holds JSON: host, process id, start time and what runs there. Its owner

    holds the kernel's lock of the folder (flock), which ends with the process, however that ends
    touches the file every ``HEARTBEAT`` seconds, for other hosts of a shared file system, to which flock may not reach

A second process of the same host is refused by the first rule. Where the owner named in the file is of another host,
the file is watched for ``PATIENCE`` seconds: if it is touched, its owner lives, and the folder is refused; if not, the
lock is stale and taken over. Of several processes of one run only one writes, and that one takes the lock.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from causal_diffusion.errors import UserError
from causal_diffusion.file_access import SMALL, create, open_file, parse_json

log = logging.getLogger(__name__)

FILE = "owner.lock"
HEARTBEAT = 5.0  # seconds
PATIENCE = 20.0  # seconds
ABANDONED = 3600.0  # seconds without a heartbeat after which the file is not watched any more


class FolderLock:
    """The lock of a folder that this process owns; made by ``own_folder``."""

    def __init__(self, folder: Path, path: Path, descriptor: int, owner: dict, made: list[Path]):
        self.folder, self.path, self.owner = folder, path, owner
        self._descriptor, self._made, self._end = descriptor, made, threading.Event()
        partial = path.with_name(f"{path.name}.partial")
        with create(partial) as file:
            file.write(json.dumps(owner).encode())
        os.replace(partial, path)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="folder lock")
        self._thread.start()

    def check(self) -> None:
        """UserError where another process has taken the folder over, as after a pause of this one."""
        try:
            other = _owner(_bytes(self.path))
        except OSError:  # a file system that does not answer proves nothing
            return
        if other is not None and other != self.owner:
            raise UserError(f"{self.folder} belongs to another process by now ({_words(other)}): this one stops; "
                            "try another folder")  # fmt: skip

    def release(self) -> None:
        """Gives the folder back. One that it made and that is empty is removed."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _owner(_bytes(self.path)) == self.owner:
                self.path.unlink()
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()
        os.close(self._descriptor)

    def _beat(self):
        while not self._end.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def own_folder(folder, doing: str, option: str, file: str = FILE):
    """Makes a folder and owns it inside a ``with`` statement; yields its ``FolderLock``.

    Args:
        doing: what this process does there, such as 'training'.
        option: of the command line that names the folder, such as '--workdir'.
        file: where the owner is named, inside the folder.

    Raises:
        UserError: another process owns it, or it cannot be a folder.
    """
    try:
        lock = _acquire(Path(folder), Path(folder) / file, doing, option)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{option}: {str(folder)[:200]!r} cannot be used ({reason}): choose another, or make it "
                        "writable") from error  # fmt: skip
    try:
        yield lock
    finally:
        lock.release()


def _acquire(folder, path, doing, option) -> FolderLock:
    me = dict(host=socket.gethostname(), process=os.getpid(), doing=doing,
              since=datetime.now(UTC).isoformat(timespec="seconds"), run=os.urandom(8).hex())  # fmt: skip
    while True:
        made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{option}: {folder} cannot be a folder, a file is in its place: choose another") from None
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            locked, owner = _flock(descriptor), _read(path)
            if locked is False:
                raise UserError(_refusal(folder, owner, option))
            if not _same_file(descriptor, folder):  # its owner has just removed it
                os.close(descriptor)
                continue
            if owner is not None and _lives(owner, path, me["host"], kernel_knows=bool(locked)):
                raise UserError(_refusal(folder, owner, option))
            if owner is not None:
                log.warning("%s: the lock of %s is stale and is taken over", folder, _words(owner))
            return FolderLock(folder, path, descriptor, me, made)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise


def _flock(descriptor) -> bool | None:
    """Whether the kernel's lock is ours now; None: this file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lives(owner, path, host, kernel_knows) -> bool:
    """Whether the owner that the file names still runs."""
    if owner["host"] == host:
        if kernel_knows:  # and would not have given the lock
            return False
        return _runs(owner["process"])
    before = _touched(path)
    if before is None or time.time() - before / 1e9 > ABANDONED:
        return False
    log.warning("the owner of this folder is on another host (%s): watching its lock for %.0f s", _words(owner),
                PATIENCE)  # fmt: skip
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        if _touched(path) not in (before, None):
            return True
    return False


def _touched(path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _same_file(descriptor, path) -> bool:
    here = os.fstat(descriptor)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _read(path) -> dict | None:
    try:
        return _owner(_bytes(path))
    except OSError:
        return None


def _bytes(path) -> bytes:
    with open_file(path, SMALL) as file:
        return file.read()


def _owner(text: bytes) -> dict | None:
    """Whom a lock file names; None: it is empty or damaged, so that the kernel's lock alone counts."""
    try:
        owner = parse_json(text)
    except ValueError:
        return None
    known = isinstance(owner, dict) and isinstance(owner.get("host"), str) and type(owner.get("process")) is int
    return owner if known else None


def _words(owner) -> str:
    if owner is None:
        return "another process"
    doing, since = owner.get("doing", "work"), owner.get("since", "unknown")
    return f"{doing} by process {owner['process']} on {owner['host']} since {since}"


def _refusal(folder, owner, option) -> str:
    return f"{folder} is in use: {_words(owner)}; wait for it, end it, or try another {option}"

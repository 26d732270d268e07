"""Opens files for reading, and files to be written, with the checks that every caller needs.

Of a file that cannot be read there are three kinds, and a caller answers each in another way:

    absent        no such file, or a link that leads nowhere          FileNotFoundError, NotADirectoryError
    no file       a directory, FIFO, socket or device in its place,   NotAFileError
                  or more bytes than a file of its kind can have
    unreadable    the system cannot read it now: EIO, EMFILE,         tried again after each of ``WAITS``, then
                  ESTALE, EACCES and what else is no fault of it      UnreadableError

An unreadable file is never a damaged one: what it holds is not known, so that nothing may be removed, replaced or
skipped because of it. Kind and size are compared before anything is read: a FIFO would block, and a sparse file of a
terabyte would fill the memory.

Paths are local, or whatever offers ``open`` and ``stat`` as ``pathlib.Path`` does (a bucket).
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from causal_diffusion.errors import UnreadableError

Result = TypeVar("Result")

WAITS = (0.1, 0.3, 1.0, 2.0)  # seconds before each further attempt
SMALL = 2**28  # bytes that a text or JSON file may have

# What these say is true of the file or of the disk, and stays true however often it is tried.
_FINAL = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS,
    errno.EOPNOTSUPP, errno.ENOSYS,
}  # fmt: skip
_REMEDIES = {
    errno.EMFILE: "try `ulimit -n 65536` in the shell that starts it",
    errno.ENFILE: "try `sysctl fs.file-max`, or close programs on this machine",
    errno.EACCES: "try `chmod u+r` on the file and `chmod u+x` on its folders, as their owner",
    errno.EPERM: "try `chmod u+r` on the file and `chmod u+x` on its folders, as their owner",
    errno.ESTALE: "try again when the network file system is mounted anew",
}
_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class NotAFileError(OSError):
    """Something else than a file of the expected kind is in its place; ``strerror`` says what."""

    def __init__(self, path, what: str):
        super().__init__(errno.EINVAL, what, os.fspath(path))


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error; tensorstore quotes it in its text. None: it is no error of the system."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return int(code[1])
    return None


def is_transient(error: BaseException) -> bool:
    """Whether an error says nothing about the file: the same read may succeed later."""
    return (code := errno_of(error)) is not None and code not in _FINAL


def retried(path, work: Callable[[], Result], passed_on: tuple[type[Exception], ...] = ()) -> Result:
    """The result of ``work``, which reads ``path``; it is called again while the system cannot read.

    Args:
      passed_on: errors that the caller answers himself, without a second attempt.

    Raises:
      UnreadableError: it still cannot after the last of ``WAITS``. What else ``work`` raises is passed on.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except Exception as error:
            if isinstance(error, passed_on) or not is_transient(error):
                raise
            if wait is None:
                raise unreadable(path, error) from error
        time.sleep(wait)
    raise AssertionError


def unreadable(path, error: BaseException) -> UnreadableError:
    """The error that says so, with a remedy."""
    code = errno_of(error)
    remedy = _REMEDIES.get(code, "try again when its disk or file system answers")
    reason = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
    return UnreadableError(
        f"cannot read {path} now: {reason} in {len(WAITS) + 1} attempts; "
        f"it is not known to be damaged and is left as it is; {remedy}"
    )


def check_file(path, most: int | None = None) -> int:
    """The size in bytes of a regular file, which a link may lead to; nothing is opened.

    Raises:
      NotAFileError: another kind of thing, or more than ``most`` bytes.
    """
    found = Path(path).stat()
    return _checked(path, found, most)


def _checked(path, found, most):
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no file")
        raise NotAFileError(path, f"it is {kind}, not a file")
    if most is not None and found.st_size > most:
        raise NotAFileError(path, f"it has {found.st_size:,} bytes, and such a file has {most:,} at most")
    return found.st_size


def open_file(path, most: int | None = None) -> BinaryIO:
    """Opens a regular file for reading, once; see ``retried`` and ``check_file``."""
    path = Path(path) if isinstance(path, str) else path
    if not isinstance(path, Path):
        return path.open("rb")
    check_file(path, most)
    file = open(path, "rb", opener=_never_waiting)
    try:
        _checked(path, os.fstat(file.fileno()), most)
    except BaseException:
        file.close()
        raise
    return file


def _never_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # should a FIFO have taken the file's place meanwhile


def read_bytes(path, most: int | None = SMALL) -> bytes:
    """The content of a file of ``most`` bytes, None being any number.

    Raises:
      FileNotFoundError, NotAFileError, UnreadableError: see the module's docstring.
    """

    def read():
        with open_file(path, most) as file:
            return file.read()

    return retried(path, read)


def size_and_sha256(path, size: int | None = None, flush: bool = False) -> tuple[int, str]:
    """(bytes, hexadecimal SHA-256) of a file, read in pieces.

    Args:
      size: its bytes as far as they are known; of a file of another size nothing is read, and the digest is ''.
      flush: also sees that the content is on the disk.
    """

    def read():
        if size is not None and isinstance(path, Path) and (there := check_file(path)) != size:
            return there, ""
        digest, count, piece = hashlib.sha256(), 0, memoryview(bytearray(2**20))
        with open_file(path) as file:
            if flush and isinstance(path, Path):
                os.fsync(file.fileno())
            while got := file.readinto(piece):
                digest.update(piece[:got])
                count += got
        return count, digest.hexdigest()

    return retried(path, read)


def is_file(path) -> bool:
    """Whether a file is there. UnreadableError where that cannot be found out, which ``Path.is_file`` may call no."""
    return _is(path, stat.S_ISREG, "is_file")


def is_dir(path) -> bool:
    """Whether a folder is there. UnreadableError where that cannot be found out."""
    return _is(path, stat.S_ISDIR, "is_dir")


def _is(path, kind, elsewhere):
    if not isinstance(path, Path):
        return getattr(path, elsewhere)()

    def look():
        try:
            return kind(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    return retried(path, look)


def list_folder(path) -> list:
    """The paths in a folder. UnreadableError where they cannot be listed now."""
    return retried(path, lambda: list(path.iterdir()))


def create(path: Path) -> BinaryIO:
    """A new file to be written. A link that is in its place is removed, and what it leads to is left as it is."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return open(path, "xb")


def check_replaceable(path: Path) -> None:
    """NotAFileError where something else than a file is at ``path``, as /dev/null: a rename would replace it."""
    with contextlib.suppress(FileNotFoundError):
        check_file(path)


# JSON, and objects with a digest of themselves.


def parse_json(text: str | bytes) -> Any:
    """What JSON says. ValueError: it is no JSON, or nested so deeply that only an attack is."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


DIGEST = "json_digest"  # without a digit, of which one that changes is always found


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object but for its own digest, whatever the order of keys and the spaces between them."""
    content = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON object with its digest under ``DIGEST``; as JSON reads it back, a tuple being a list."""
    content = json.loads(json.dumps(content))
    return content | {DIGEST: digest_of(content)}


def unsealed(content: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """(the object without its digest, whether it had one; those of earlier schema versions have none).

    Raises:
      ValueError: it has one, of another content.
    """
    if DIGEST not in content:
        return content, False
    if content[DIGEST] != digest_of(content):
        raise ValueError("its content does not match its checksum")
    return {key: value for key, value in content.items() if key != DIGEST}, True

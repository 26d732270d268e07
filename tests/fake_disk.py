"""A disk that fails: chosen paths raise an error of the system wherever they are opened, listed or looked at."""

import builtins
import errno
import io
import os

from causal_diffusion import file_access

TRANSIENT = [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES]
IDS = [errno.errorcode[code] for code in TRANSIENT]


class Disk:
    """``fail`` makes calls on paths that end so fail; ``heal`` ends it. ``failed``: how many calls have."""

    def __init__(self):
        self._ending, self._code, self._left, self._calls, self.failed = None, 0, 0, (), 0

    def fail(self, ending: str, code: int, times: float = float("inf"), calls=("open", "stat", "list")):
        self._ending, self._code, self._left, self._calls, self.failed = ending, code, times, calls, 0

    def heal(self):
        self._ending = None

    def check(self, call, path):
        named = isinstance(path, (str, os.PathLike)) and self._ending and os.fspath(path).endswith(self._ending)
        if named and call in self._calls and self._left > 0:
            self._left, self.failed = self._left - 1, self.failed + 1
            raise OSError(self._code, os.strerror(self._code), os.fspath(path))


def failing_disk(monkeypatch) -> Disk:
    """A disk in the place of this machine's, until ``monkeypatch`` is undone. It fails when it is asked to."""
    monkeypatch.setattr(file_access, "WAITS", (0.0, 0.0, 0.0))
    disk = Disk()
    places = {(builtins, "open"): "open", (io, "open"): "open", (os, "open"): "open", (os, "stat"): "stat",
              (os, "listdir"): "list", (os, "scandir"): "list"}  # fmt: skip
    for (module, name), call in places.items():
        real = getattr(module, name)

        def checked(path=".", *args, real=real, call=call, **options):
            disk.check(call, path)
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, checked)
    return disk

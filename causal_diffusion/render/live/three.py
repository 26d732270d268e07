"""Finds three.js, the library that draws the page, in its npm package. It is never part of this package."""

import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from causal_diffusion.errors import UserError

log = logging.getLogger(__name__)

VERSION = "0.187.0"
FILES = ("three.module.js", "three.core.js")  # the first imports the second
LICENCE = "LICENSE"
_CHECKOUT = Path(__file__).parents[3]
_PATIENCE = 120  # seconds


def find_three(folder=None) -> Path:
    """The folder that holds ``FILES``.

    It is looked for in ``folder``, else $CAUSAL_DIFFUSION_THREE, else node_modules/three/build under the working
    directory and under the checkout, else the user's cache folder. Else npm, where it is on the path, fetches it into
    the cache, once.

    Raises:
        UserError: it is not where it was said to be, or nowhere and npm is no help.
    """
    for said, by in ((folder, "--three"), (os.environ.get("CAUSAL_DIFFUSION_THREE"), "CAUSAL_DIFFUSION_THREE")):
        if said:
            found = _in(Path(said).expanduser())
            if found is None:
                raise UserError(f"{by} is {said}: it holds no {' and '.join(FILES)}; the folder build of npm's package "
                                "'three' does")  # fmt: skip
            return found
    cached = cache_folder()
    for place in (Path.cwd(), _CHECKOUT):
        found = _in(place / "node_modules" / "three")
        if found is not None:
            return found
    return _in(cached) or _fetched(cached)


def cache_folder() -> Path:
    """Where the files are kept for the next time."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "causal_diffusion" / f"three-{VERSION}"


def _in(folder):
    """The folder of the files, it or its build/; None: they are not there."""
    return next((f for f in (folder, folder / "build") if all((f / name).is_file() for name in FILES)), None)


def _fetched(folder):
    advice = f"fetch it once with 'npm pack three@{VERSION}', unpack it, and say --three=FOLDER/package/build"
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"the page draws with three.js, which is not here, and npm is not on the path: {advice}")
    log.info("fetching three.js %s with npm into %s", VERSION, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            command = [npm, "pack", f"three@{VERSION}", "--silent", "--pack-destination", work]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, cwd=work)
            packed = list(Path(work).glob("three-*.tgz"))
            if done.returncode or len(packed) != 1:
                said = (done.stderr.strip().splitlines() or ["no file came"])[-1]
                raise UserError(f"npm could not fetch three.js ({said}): {advice}")
            ready = Path(work) / "ready"
            _unpack(packed[0], ready)
            if not folder.exists():  # else another process was faster
                ready.rename(folder)
    except subprocess.TimeoutExpired:
        raise UserError(f"npm did not fetch three.js within {_PATIENCE} s: {advice}") from None
    except (OSError, tarfile.TarError, KeyError) as error:
        if _in(folder):
            return _in(folder)
        reason = str(error).partition("\n")[0]
        raise UserError(f"three.js could not be kept in {folder} ({reason}): {advice}") from error
    return _in(folder)


def _unpack(packed, folder):
    folder.mkdir()
    with tarfile.open(packed) as archive:
        for name in [*(f"package/build/{name}" for name in FILES), f"package/{LICENCE}"]:
            (folder / Path(name).name).write_bytes(archive.extractfile(name).read())

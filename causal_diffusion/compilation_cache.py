"""The persistent compilation cache: what was compiled once is read from disk at the next start.

Only the entry points switch it on (``cli.run``); an import never does. Programs are kept in the folder that the
environment variable JAX_COMPILATION_CACHE_DIR names ('' or 'off': nowhere), else in a folder of the user's::

    $XDG_CACHE_HOME (else ~/.cache) / causal_diffusion / xla-0.10.2-0f3c5a7b91de /
        jit_train_step-<key>-cache      one compiled program; the key is JAX's: program, options, XLA flags, devices,
                                        and the folder itself, so that one that was moved is as good as empty
        checked.json                    which of them were found whole

A folder belongs to one version of JAX and Python and one kind of processor, since a program that was compiled for
instructions which this one lacks would end the process. JAX_ENABLE_COMPILATION_CACHE and the thresholds
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS and JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES, where they are set, hold;
else all programs are kept.

JAX writes an entry in place, and never again where one is. So a process that is killed in the middle leaves half a
program, and each later start compiles that program anew, with a warning, for good. ``tidy`` therefore removes what is
not whole before the start. An entry that breaks afterwards (another process is just writing it, a disk is full) is
a warning and a compilation: JAX's compression by zlib carries a checksum, and broken data are never run. (With the
package zstandard JAX compresses by that, without a checksum of its own: a cut is still found, a flipped bit is not.)

JAX can limit the size of its cache, for which it needs the package filelock and a second file per entry; where a kill
parts the two, jax 0.10 writes nothing more. ``tidy`` keeps the user's own folder within ``LIMIT`` instead.

Of several processes JAX lets the first write, and all of them read. On GPUs they compile together, each trying out its
share of the kernels, and wait for each other: one that found its program while the others did not would be waited for
in vain. So they use a cache only where the variable names a folder, which all of them must see.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import sys
import zlib
from pathlib import Path

import jax

from causal_diffusion.file_access import parse_json

log = logging.getLogger(__name__)

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
OFF = ("", "off")
LIMIT = 4 * 2**30  # bytes, of all of the user's folders together
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # such data begin with it
SUFFIX = "-cache"  # of JAX's entries
CHECKED = "checked.json"
EAGER = {  # every program is worth keeping: reading the smallest one takes a tenth of compiling it
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def switch_on() -> None:
    """From now on programs are read from disk and kept there; before anything is compiled.

    Where that cannot be, nothing is kept, and a line in the log says so.
    """
    named = os.environ.get(VARIABLE)
    if named in OFF:
        return _switch_off()
    if named is not None and "://" in named:  # a bucket: an entry is there whole or not at all
        return _use(named)
    try:
        folder = Path(named).expanduser() if named is not None else _own_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run
        tidy(folder)
        if named is None:
            shrink(folder.parent, LIMIT)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        log.warning("compiled programs are not kept: %s; %s can name another folder", error, VARIABLE)
        return _switch_off()
    _use(str(folder))


def only_if_shared() -> None:
    """Of several processes: switches it off unless the user named a folder; see the module's docstring."""
    if VARIABLE not in os.environ:
        _switch_off()


def tidy(folder: Path) -> None:
    """Removes entries that are not whole. Those found whole before, and not changed since, are not read again."""
    record, checked = folder / CHECKED, {}
    try:
        before = dict(parse_json(record.read_bytes()))
    except (OSError, ValueError, TypeError):
        before = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            stat = path.stat()
            now = [stat.st_size, stat.st_mtime_ns]
            if before.get(path.name) == now or _whole(path):
                checked[path.name] = now
            else:
                log.info("%s is not whole: it is compiled again", path)
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removed it
            continue
    if checked != before:
        with contextlib.suppress(OSError):  # without it the next start reads all of them again
            partial = folder / f"{CHECKED}.{os.getpid()}"
            partial.write_text(json.dumps(checked))
            os.replace(partial, record)


def shrink(parent: Path, limit: int) -> None:
    """Removes the entries that were not used for longest until those of all folders have at most ``limit`` bytes."""
    entries = []
    for path in parent.glob(f"xla-*/*{SUFFIX}"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    size = sum(entry[1] for entry in entries)
    for _, own, path in sorted(entries):
        if size <= limit:
            break
        path.unlink(missing_ok=True)
        size -= own


def _whole(path: Path) -> bool:
    data = path.read_bytes()
    unpack, broken = zlib.decompress, zlib.error
    if data[:4] == ZSTANDARD:
        module = _zstandard()
        unpack, broken = module.decompress, module.ZstdError
    try:
        unpack(data)
    except broken:
        return False
    return True


def _zstandard():
    """Python's own module, from 3.14 on, or the package: JAX writes such entries only where one of them is."""
    try:
        return importlib.import_module("compression.zstd")
    except ModuleNotFoundError:
        return importlib.import_module("zstandard")


def _own_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    base = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    facts = (platform.machine(), _processor(), *sys.version_info[:2], jax.__version__)
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return base / "causal_diffusion" / f"xla-{jax.__version__}-{digest}"


def _processor() -> str:
    """What tells the instructions of the first processor, on Linux; else its name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):  # x86, ARM
                    return line
    except OSError:
        pass
    return platform.processor()


def _use(folder: str) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    for key, value in EAGER.items():
        if key.upper() not in os.environ:
            jax.config.update(key, value)


def _switch_off() -> None:
    jax.config.update("jax_compilation_cache_dir", None)

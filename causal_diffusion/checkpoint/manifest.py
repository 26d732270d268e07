"""The manifest of a checkpoint: written last, it says what every file must be.

Size and sha256 of every file, shape and dtype of every leaf, and a digest of itself.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from causal_diffusion.checkpoint.leaves import flush_folder, reason_of, replacing

TREES = ("ema", "train")
DOCUMENTS = ("data", "meta")
MANIFEST = "checksums.json"



class Damage(Exception):
    """A checkpoint that cannot be trusted, and why. `proven`: its bytes are not those that were written."""

    def __init__(self, message: str, *, proven: bool = True):
        super().__init__(message)
        self.proven = proven


def seal(folder: Path, step: int, items: dict[str, Any]) -> None:
    """Flushes all files of a written step to disk, then writes its manifest: from here on it is complete."""
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if path.is_file()]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = pool.map(functools.partial(_size_and_sha256, flush=True), files)
        named = {path.relative_to(folder).as_posix(): each for path, each in zip(files, sums, strict=True)}
    for path in (*(path for path in paths if path.is_dir()), folder, folder.parent):
        flush_folder(path)
    content = {"format": 1, "step": step, "files": named, "items": items}
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps({"sha256": _digest(content), "content": content}, indent=1).encode())


def read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        content, intact = manifest["content"], manifest["sha256"] == _digest(manifest["content"])
    except FileNotFoundError:
        raise Damage(f"half-written, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damage(f"{MANIFEST} cannot be read") from error
    if not intact:
        raise Damage(f"{MANIFEST} does not match its own checksum")
    if str(content["step"]) != folder.name:
        raise Damage(f"its folder was renamed: it is step {content['step']}")
    return content


def verify(folder: Path, files: dict[str, list], items: tuple[str, ...] = TREES + DOCUMENTS) -> None:
    """Compares the files of `items`, and those of no item, with the manifest's. Raises Damage."""

    def check(name: str) -> None:
        try:
            size, digest = _size_and_sha256(folder / name)
        except OSError as error:
            raise Damage(f"{name} cannot be read: {reason_of(error)}") from error
        if size != files[name][0]:
            raise Damage(f"{name} has {size:,} bytes instead of {files[name][0]:,}")
        if digest != files[name][1]:
            raise Damage(f"{name} does not match its checksum")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(check, [name for name in files if "/" not in name or name.split("/")[0] in items]))


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size_and_sha256(path: Path, flush: bool = False) -> list:
    with open(path, "rb") as file:
        if flush:
            os.fsync(file.fileno())
        return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]

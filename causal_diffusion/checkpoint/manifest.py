"""The manifest of a checkpoint: written last, it says what every file must be.

Size and sha256 of every file, shape and dtype of every leaf, and a digest of itself. Where several processes write or
restore a checkpoint, each reads its share of the files.
"""

import concurrent.futures
import hashlib
import json
from typing import Any

from causal_diffusion.checkpoint.agreement import Agreement
from causal_diffusion.checkpoint.leaves import flush_folder, reason_of
from causal_diffusion.checkpoint.paths import files_in, is_local, write_whole
from causal_diffusion.errors import UnreadableError
from causal_diffusion.file_access import parse_json, read_bytes, size_and_sha256

TREES = ("ema", "train")
DOCUMENTS = ("data", "meta")
MANIFEST = "checksums.json"


class Damage(Exception):
    """A checkpoint that cannot be trusted, and why. `proven`: its bytes are not those that were written.

    A file that cannot be read now is no damage: that is an ``UnreadableError``.
    """

    def __init__(self, message: str, *, proven: bool = True):
        super().__init__(message)
        self.proven = proven


def seal(folder, step: int, items: dict[str, Any], agreement: Agreement) -> None:
    """Flushes all files of a written step to disk, then writes its manifest: from here on it is complete."""
    names = agreement.first(lambda: sorted(path.relative_to(folder).as_posix() for path in files_in(folder)))
    share = names[agreement.index :: agreement.count]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = pool.map(_size_and_sha256, [folder / name for name in share])
        sums = dict(zip(share, sums, strict=True))
    sums = {name: each for part in agreement.gather(sums) for name, each in part.items()}

    def write():
        if is_local(folder):
            inside = {parent for name in names for parent in (folder / name).parents if parent.is_relative_to(folder)}
            for path in (*inside, folder, folder.parent):
                flush_folder(path)
        content = {"format": 1, "step": step, "files": {name: sums[name] for name in names}, "items": items}
        manifest = {"sha256": _digest(content), "content": content}
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    agreement.first(write)


def read_manifest(folder) -> dict:
    try:
        manifest = parse_json(read_bytes(folder / MANIFEST))
        content, intact = manifest["content"], manifest["sha256"] == _digest(manifest["content"])
    except FileNotFoundError:
        raise Damage(f"half-written, it has no {MANIFEST}") from None
    except UnreadableError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damage(f"{MANIFEST} cannot be read: {reason_of(error)}") from error
    if not intact:
        raise Damage(f"{MANIFEST} does not match its own checksum")
    if str(content["step"]) != folder.name:
        raise Damage(f"its folder was renamed: it is step {content['step']}")
    return content


def verify(folder, files: dict[str, list], items: tuple[str, ...] = TREES + DOCUMENTS, *, share=(0, 1)) -> None:
    """Compares the files of `items`, and those of no item, with the manifest's: their sizes, then their content.

    Args:
      share: (i, n): the i-th of every n of them.

    Raises:
      Damage: a file is missing or differs. UnreadableError: one cannot be read now.
    """

    def check(name: str) -> None:
        try:
            size, digest = size_and_sha256(folder / name, files[name][0])
        except OSError as error:
            raise Damage(f"{name} cannot be read: {reason_of(error)}") from error
        if size != files[name][0]:
            raise Damage(f"{name} has {size:,} bytes instead of {files[name][0]:,}")
        if digest != files[name][1]:
            raise Damage(f"{name} does not match its checksum")

    names = [name for name in files if "/" not in name or name.split("/")[0] in items]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(check, names[share[0] :: share[1]]))


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _size_and_sha256(path) -> list:
    return list(size_and_sha256(path, flush=True))

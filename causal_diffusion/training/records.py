"""JSON records of a run, one line each: ``metrics.jsonl`` and ``timing.jsonl``.

A record is appended to while the run goes on. Where a run goes on from a checkpoint, the lines after it are removed,
since these steps are done again; nothing else is ever removed. A line that is damaged (a full disk, a crash of the
machine) stays where it is, is skipped by readers, and costs none of the lines around it.
"""

import os
from pathlib import Path

from causal_diffusion.checkpoint.leaves import replacing
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import NotAFileError, parse_json, read_bytes


def read_records(path: Path) -> list[dict]:
    """The intact lines of a record, in order: each has an integer 'step'. A file that is not there has none."""
    return [record for line in _content(path).splitlines() if (record := _record(line)) is not None]


def cut_back(path: Path, step: int) -> int:
    """Removes the lines of a record after ``step``, and what follows its last line that counts.

    Returns:
        How many damaged lines are left in it.
    """
    content = _content(path)
    lines = content.splitlines(keepends=True)
    records = [_record(line) for line in lines]
    last = max((i for i, record in enumerate(records) if record is not None and record["step"] <= step), default=-1)
    head = [(line, record) for line, record in zip(lines[: last + 1], records[: last + 1], strict=True)
            if record is None or record["step"] <= step]  # fmt: skip
    kept = b"".join(line for line, _ in head)
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    if kept != content:
        if content.startswith(kept) and not path.is_symlink():  # what a link leads to is left as it is
            with path.open("rb+") as file:  # in place: whoever follows the file goes on seeing it
                file.truncate(len(kept))
                os.fsync(file.fileno())
        else:
            with replacing(path) as file:
                file.write(kept)
    return sum(record is None for _, record in head)


def _content(path: Path) -> bytes:
    """Of a record; nothing where there is no file.

    Raises:
        UnreadableError: it cannot be read now. UserError: something else than a file is there.
    """
    try:
        return read_bytes(path, None)
    except FileNotFoundError:
        return b""
    except NotAFileError as error:
        raise UserError(f"cannot keep a record in {path}: {error.strerror}; move it away, or try another "
                        "--workdir") from error  # fmt: skip


def _record(line: bytes) -> dict | None:
    """What a line says; None where it is damaged."""
    try:
        record = parse_json(line)
    except ValueError:  # no UTF-8, or no JSON
        return None
    intact = isinstance(record, dict) and type(record.get("step")) is int
    return record if intact else None

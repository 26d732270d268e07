"""Records in array_record shards: the same bytes from every run, whole or absent, and nothing is ever unpickled.

A record is a dict whose values are strings or arrays. As bytes it is

    length of the header, uint32 | header, JSON in UTF-8, padded with spaces | the arrays, one after the other

all little-endian; the header tells each array's dtype and shape. Records are stored uncompressed, each in a chunk of
its own, so that one can be read without the others; a chunk carries a checksum that every read verifies.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from causal_diffusion.errors import UserError
from causal_diffusion.file_access import (
    check_file,
    create,
    parse_json,
    read_bytes,
    retried,
    sealed,
    size_and_sha256,
    unsealed,
)

log = logging.getLogger(__name__)

MOST_JSON = 2**32  # bytes: the captions of all clips are in it
DTYPES = ("<f4", "<f2", "<i4", "|u1", "|b1")
WRITING = "group_size:1,uncompressed"
READING = "readahead_buffer_size:0,max_parallelism:0"
OPEN_FILES = 128  # shards that a reader keeps open


class Shard(NamedTuple):
    """What a complete shard is: its file's name, size and sha256, and how many records it holds."""

    file: str
    records: int
    bytes: int
    sha256: str


def pack(record: dict) -> bytes:
    """{key: str or array} -> bytes, the same for equal records. ValueError: a dtype that is not in DTYPES."""
    text = {key: value for key, value in record.items() if isinstance(value, str)}
    arrays = {key: _little_endian(key, value) for key, value in record.items() if key not in text}
    specs = [[key, array.dtype.str, array.shape] for key, array in arrays.items()]
    header = json.dumps({"arrays": specs, "text": text}, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-(4 + len(header)) % 8)  # so that the arrays lie aligned
    return b"".join([struct.pack("<I", len(header)), header, *(array.tobytes() for array in arrays.values())])


def unpack(data: bytes) -> dict:
    """The inverse of ``pack``; the arrays are read-only. ValueError: these bytes are no record."""
    try:
        (length,) = struct.unpack_from("<I", data)
        header = parse_json(data[4 : 4 + length])
        record, at = dict(header["text"]), 4 + length
        for key, dtype, shape in header["arrays"]:
            if dtype not in DTYPES:
                raise ValueError(f"its dtype {dtype!r} is none of {', '.join(DTYPES)}")
            array = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
            record[key], at = array, at + array.nbytes
    except (struct.error, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a record: {error!r}") from error
    if at != len(data):
        raise ValueError(f"not a record: {len(data) - at} bytes too many")
    return record


def shard_name(stem: str, index: int, count: int) -> str:
    """'latents-00003-of-00012.array_record'."""
    return f"{stem}-{index:05d}-of-{count:05d}.array_record"


def write_shard(path: Path, records: Iterable[dict], work: Path) -> Shard:
    """Writes a shard that stands at ``path`` whole and flushed to disk, or not at all.

    Args:
        path: of the shard; what is there is replaced.
        records: any number of them, none too.
        work: folder on the same file system, for the file while it is being written.

    Raises:
        UserError: the disk takes no more.
    """
    partial, count = work / f"{path.name}.partial", 0
    with _disk_errors(path):
        create(partial).close()  # not through a link
        writer = ArrayRecordWriter(str(partial), WRITING)
        for record in records:
            writer.write(pack(record))
            count += 1
        writer.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
            shard = Shard(path.name, count, os.fstat(file.fileno()).st_size, _digest(file))
        os.replace(partial, path)
        _flush_folder(path.parent)
    return shard


def write_json(path: Path, value, work: Path) -> None:
    """A JSON object, one key per line, that stands at ``path`` whole and flushed to disk, or not at all.

    It carries its own digest, which ``read_json`` compares.
    """
    value = sealed(value)
    lines = (f" {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items())
    partial = work / f"{path.name}.partial"
    with _disk_errors(path):
        with create(partial) as file:
            file.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)


def read_json(path: Path) -> dict:
    """The object of a file of ``write_json``. Of an earlier version, without a digest, a warning says so.

    Raises:
        ValueError: it is no JSON object, or does not match its digest.
        FileNotFoundError, NotAFileError, UnreadableError: see ``file_access``.
    """
    content = parse_json(read_bytes(path, MOST_JSON))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    content, has_digest = unsealed(content)
    if not has_digest:
        log.warning("%s is of schema version 1, without a checksum of itself", path)
    return content


def damage_of(folder: Path, shard: Shard, contents: bool = True) -> str:
    """Why the file is not what was written, in a few words; '' if it is. ``contents``: reads all of it.

    Raises:
        UnreadableError: it cannot be read now, so that nothing is known of it.
    """
    path = folder / shard.file
    try:
        size = retried(path, lambda: check_file(path))
        if size != shard.bytes:
            return f"has {size:,} bytes instead of {shard.bytes:,}"
        if contents and size_and_sha256(path)[1] != shard.sha256:
            return "does not match its checksum"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


class Records:
    """Random access to the records of some shards, by their number over all of them.

    Safe to share between threads, and with other processes: files are opened when first read, and again after
    pickling.
    """

    def __init__(self, folder: Path, shards: list[Shard]):
        self._folder, self._shards = folder, shards
        self._first = np.cumsum([0, *(shard.records for shard in shards)])
        self._open = functools.lru_cache(OPEN_FILES)(self._reader)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, i: int) -> dict:
        """Record i, see ``unpack``. UserError: its shard is damaged."""
        i = range(len(self))[i]
        s = int(np.searchsorted(self._first, i, side="right")) - 1
        try:
            (data,) = self._open(s).read([i - int(self._first[s])])
            return unpack(data)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].partition(";")[0]
            raise UserError(f"{self._folder / self._shards[s].file} is damaged: {reason}") from error

    def __getstate__(self):
        return self._folder, self._shards

    def __setstate__(self, state):
        self.__init__(*state)

    def _reader(self, s):
        return ArrayRecordReader(str(self._folder / self._shards[s].file), READING)


def check_shards(folder: Path, shards: list[Shard], again: str, most: int) -> None:
    """UserError at the first shard that is missing or damaged.

    Args:
        again: how to make it again, for the message.
        most: bytes up to which the contents are read too. Of larger sets only the sizes are compared, and each
            record's own checksum when it is read.
    """
    contents = sum(shard.bytes for shard in shards) <= most
    with ThreadPoolExecutor(8) as pool:
        for shard, damage in zip(shards, pool.map(lambda s: damage_of(folder, s, contents), shards), strict=True):
            if damage:
                raise UserError(f"{folder / shard.file} {damage}: {again}")


def _little_endian(key, value):
    array = np.asarray(value)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
    if array.dtype.str not in DTYPES:
        raise ValueError(f"{key} has the dtype {array.dtype.str}; a record takes {', '.join(DTYPES)}")
    return array


def _digest(file):
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _disk_errors(path):
    """Array_record tells the system's errors as RuntimeErrors, by their text alone."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
        for code in full:
            if os.strerror(code) in str(error):
                raise UserError(f"cannot write {path}: {os.strerror(code)}; make room and start again, what is "
                                "complete is kept") from error
        raise


def _flush_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

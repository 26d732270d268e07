"""Shards: records survive the way there and back, bytes do not depend on the run, and damage never passes for data."""

import hashlib
import json
import os
import pickle
import resource
import signal
import threading

import numpy as np
import pytest

from causal_diffusion.data.record_shards import (
    DTYPES,
    Records,
    check_shards,
    damage_of,
    pack,
    shard_name,
    unpack,
    write_json,
    write_shard,
)
from causal_diffusion.errors import UserError


def record(i):
    rng = np.random.default_rng(i)
    return {
        "name": f"clip {i}", "caption": "ein Mann läuft\n“quoted” \u2028" * (i % 3),
        "latents": rng.standard_normal((i % 4, 2, 3)).astype(np.float32), "half": np.float16([i, -0.0, np.inf]),
        "label": np.int32(i), "mask": np.array([True, False]), "none": np.zeros((0, 5), np.uint8),
    }  # fmt: skip


def same(a, b):
    assert list(a) == list(b)
    for key, value in a.items():
        if isinstance(value, str):
            assert b[key] == value
        else:
            assert b[key].dtype == np.asarray(value).dtype and b[key].shape == np.shape(value)
            assert b[key].tobytes() == np.asarray(value).tobytes()


def ordered(record):
    """As ``unpack`` returns it: text first."""
    return dict(sorted(record.items(), key=lambda item: not isinstance(item[1], str)))


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 0 and 3 records in a folder."""
    made, i = [], 0
    for s, n in enumerate((5, 0, 3)):
        path = tmp_path / shard_name("x", s, 3)
        made.append(write_shard(path, [record(i + j) for j in range(n)], tmp_path))
        i += n
    return tmp_path, made


def test_records_come_back(shards):
    folder, made = shards
    records = Records(folder, made)
    assert len(records) == 8
    for i in range(8):
        same(ordered(record(i)), records[i])
    same(ordered(record(7)), records[-1])
    with pytest.raises(IndexError):
        records[8]
    assert sorted(path.name for path in folder.iterdir()) == [f"x-0000{s}-of-00003.array_record" for s in range(3)]


@pytest.mark.parametrize("i", range(4))
def test_a_record_is_its_bytes(i):
    data = pack(record(i))
    same(ordered(record(i)), unpack(data))
    assert pack(record(i)) == data != pack(record(i + 1))
    flipped = {key: np.asfortranarray(x) if hasattr(x, "ndim") and x.ndim > 1 else x for key, x in record(i).items()}
    assert pack(flipped) == data
    big = {key: x.astype(x.dtype.newbyteorder(">")) if hasattr(x, "astype") else x for key, x in record(i).items()}
    assert pack(big) == data


def test_only_plain_numbers_are_packed_and_unpacked():
    for value in (np.array(["a"]), np.array([{}]), np.float64(1), np.complex64(1), 3):
        with pytest.raises(ValueError, match="x has the dtype .*; a record takes <f4"):
            pack({"x": value})
    pickled = pack({"x": np.zeros(2, np.float32)}).replace(b"<f4", b"|O8")
    with pytest.raises(ValueError, match="is none of <f4"):
        unpack(pickled)
    assert all(np.dtype(name).hasobject is False for name in DTYPES)


def test_bytes_that_are_no_record_are_refused():
    data = pack(record(1))
    for bad in (b"", b"\x01", data[:-1], data + b"\0", b"\xff" * 40, data[:4] + b"[]" + data[6:], pickle.dumps({})):
        with pytest.raises(ValueError):
            unpack(bad)


def test_two_runs_write_the_same_bytes(tmp_path):
    made = []
    for run in ("a", "b"):
        folder = tmp_path / run
        folder.mkdir()
        made.append(write_shard(folder / "x", (record(i) for i in range(200)), folder))
    assert made[0] == made[1]
    data = (tmp_path / "a/x").read_bytes()
    assert data == (tmp_path / "b/x").read_bytes()
    assert made[0] == ("x", 200, len(data), hashlib.sha256(data).hexdigest())


def test_a_failing_write_leaves_what_was_there(shards):
    folder, made = shards
    path = folder / made[0].file

    def records():
        yield record(0)
        raise KeyError("the source failed")

    with pytest.raises(KeyError):
        write_shard(path, records(), folder)
    assert damage_of(folder, made[0]) == ""
    write_json(folder / "m.json", {"a": 1}, folder)
    written = (folder / "m.json").read_bytes()
    with pytest.raises(TypeError):
        write_json(folder / "m.json", {"a": object()}, folder)
    assert (folder / "m.json").read_bytes() == written and json.loads(written)["a"] == 1


def test_a_full_disk_is_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(UserError, match="^cannot write .*/x: File too large; make room and start again") as error:
            write_shard(tmp_path / "x", [{"a": np.zeros(100_000, np.float32)}], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value) and not (tmp_path / "x").exists()


# Damage.


def test_every_flipped_byte_is_found_or_does_not_matter(shards):
    """Also without sums over whole files: a record never comes back with other numbers."""
    folder, made = shards
    path = folder / made[0].file
    data, found = path.read_bytes(), 0
    for at in (*range(0, 2000, 7), *range(2000, len(data), 1999)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            records = Records(folder, made)
            for i in range(5):
                same(ordered(record(i)), records[i])
        except UserError as error:
            assert str(error).startswith(f"{path} is damaged: ") and "\n" not in str(error)
            found += 1
    assert found > 100


def test_damage_is_named(shards):
    folder, made = shards
    check = lambda most=10**9: check_shards(folder, made, "make it again", most)  # noqa: E731
    check()
    path = folder / made[2].file
    data = path.read_bytes()
    path.write_bytes(data[:-70000])
    with pytest.raises(UserError, match="x-00002-of-00003.array_record has 61,072 bytes instead of 131,072: make it"):
        check()
    path.write_bytes(data[:100] + b"?" + data[101:])
    with pytest.raises(UserError, match="x-00002-of-00003.array_record does not match its checksum: make it again"):
        check()
    check(most=100)  # sizes only
    path.write_bytes(data)
    check()
    path.unlink()
    with pytest.raises(UserError, match="x-00002-of-00003.array_record is missing: make it again"):
        check(most=100)


# Readers.


def test_threads_may_share_a_reader(shards):
    folder, made = shards
    records, wrong = Records(folder, made), []
    expected = [records[i]["latents"].tobytes() for i in range(8)]

    def read(seed):
        for i in np.random.default_rng(seed).integers(8, size=400):
            if records[int(i)]["latents"].tobytes() != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reader_is_pickled_and_does_not_keep_all_files_open(tmp_path):
    made = [write_shard(tmp_path / f"x{s}", [record(s)], tmp_path) for s in range(131)]
    records = Records(tmp_path, made)
    before = len(os.listdir("/proc/self/fd"))
    for i in range(131):
        same(ordered(record(i)), records[i])
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    again = pickle.loads(pickle.dumps(records))
    same(records[77], again[77])

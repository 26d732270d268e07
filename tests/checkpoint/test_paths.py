"""Places that are no local folders: fsspec's memory stands for a bucket, and a toy for orbax, which writes arrays.

What tensorstore does in a bucket is not tested here; manifest, checksums, walking back and retention are.
"""

import json
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from causal_diffusion.checkpoint import Checkpoints, beside, folder_of, read_meta, storage
from causal_diffusion.checkpoint.paths import (
    absolute,
    as_path,
    files_in,
    is_local,
    local_part,
    remove_tree,
    write_whole,
)
from causal_diffusion.errors import CheckpointError

LIKE = {"ema": {"a": jax.ShapeDtypeStruct((3, 2), jnp.float32)}}


@pytest.mark.parametrize(("place", "wanted"), [
    ("gs://bucket/run", "gs://bucket/run"), ("gs:/bucket/run", "gs://bucket/run"), ("s3://b/x/y", "s3://b/x/y"),
    (Path("gs://bucket/run"), "gs://bucket/run"), (epath.Path("gs://bucket/run"), "gs://bucket/run"),
    (Path("gs://bucket/run") / "checkpoints", "gs://bucket/run/checkpoints"),
])  # fmt: skip
def test_a_bucket_is_known_however_it_is_written(place, wanted):
    for path in (as_path(place), absolute(place)):
        assert str(path) == wanted and not is_local(path)
    assert str(Checkpoints(place).directory) == wanted


@pytest.mark.parametrize("place", ["runs/a", Path("runs/a"), epath.Path("runs/a"), "gsx/a", "./gs:/a"])
def test_everything_else_is_local(place):
    assert is_local(as_path(place)) and type(as_path(place)) is type(Path())
    assert absolute(place) == Path.cwd() / str(place)


@pytest.mark.parametrize(("place", "wanted"), [
    ("gs://bucket/runs/one", "runs/one"), ("gs://bucket", "bucket"), ("runs/one", "runs/one"), ("/a/b", "/a/b"),
])  # fmt: skip
def test_what_grows_lies_on_a_disk(place, wanted):
    assert local_part(place) == Path(wanted)


@pytest.fixture
def bucket(monkeypatch):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(epath.backend.fsspec_backend), "fs", lambda self, path: memory)

    class Writing:
        """Writes what orbax would, in plain files, in place and without a rename, as orbax does in a bucket."""

        def __init__(self, folder, items, barrier):
            self._folder = folder
            self._files = {}
            for name, (kind, value) in items.items():
                if kind == storage.DOCUMENT:
                    self._files[f"{name}/metadata"] = json.dumps(value).encode()
                else:
                    self._files |= {f"{name}/d/{path}": np.asarray(leaf).tobytes() for path, leaf in value.items()}

        def finish(self):
            for name, content in self._files.items():
                (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self._folder / name).write_bytes(content)

    def read(folder, items):
        found = {}
        for name, (kind, wanted) in items.items():
            if kind == storage.DOCUMENT:
                found[name] = json.loads((folder / name / "metadata").read_bytes())
            else:
                found[name] = {path: jnp.asarray(np.frombuffer((folder / name / "d" / path).read_bytes(), leaf.dtype)
                                                 .reshape(leaf.shape)) for path, leaf in wanted.items()}  # fmt: skip
        return found

    monkeypatch.setattr(storage, "Writing", Writing)
    monkeypatch.setattr(storage, "read", read)
    yield "gs://bucket/run"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def save(store, step):
    store.save(step, ema={"a": jnp.full((3, 2), step, jnp.float32)}, data={"position": step}, meta={"config": {}})
    store.wait()


def test_save_restore_and_retention(bucket):
    store = Checkpoints(f"{bucket}/checkpoints", keep=2, keep_every=4)
    assert store.latest() is None
    with pytest.raises(CheckpointError, match="no checkpoint in gs://bucket/run/checkpoints"):
        store.restore(LIKE)
    for step in range(1, 8):
        save(store, step)
    assert store.steps() == [4, 6, 7]
    found = store.restore(LIKE)
    assert (found.step, found.data, found.skipped) == (7, {"position": 7}, ())
    np.testing.assert_array_equal(found.ema["a"], np.full((3, 2), 7.0))
    assert read_meta(folder_of(bucket)).step == 7
    assert str(beside(folder_of(bucket), "text")) == f"{bucket}/text"
    with pytest.raises(CheckpointError, match="gs://bucket/run/checkpoints/7 holds an intact checkpoint"):
        save(store, 7)


def test_damage_is_found_and_walked_back_from(bucket):
    store = Checkpoints(bucket)
    for step in (1, 2, 3):
        save(store, step)
    (store.directory / "3" / "checksums.json").unlink()
    file = store.directory / "2" / "ema" / "d" / "a"
    intact = file.read_bytes()
    for content, words in [(intact[:-1], "has 23 bytes instead of 24"),
                           (b"\1" + intact[1:], "ema/d/a does not match its checksum")]:  # fmt: skip
        file.write_bytes(content)
        found = store.restore(LIKE)
        assert found.step == 1
        assert [step for step, _ in found.skipped] == [3, 2]
        assert "half-written" in found.skipped[0][1] and words in found.skipped[1][1]
    save(store, 3)  # the run is here again
    assert store.restore(LIKE).step == 3


def test_files_and_folders(bucket, tmp_path):
    for folder in (as_path(bucket), tmp_path):
        for name in ("a", "b/c", "b/d/e"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(folder / name, name.encode())
        assert sorted(path.relative_to(folder).as_posix() for path in files_in(folder)) == ["a", "b/c", "b/d/e"]
        write_whole(folder / "a", b"new")
        assert (folder / "a").read_bytes() == b"new"
        remove_tree(folder / "b")
        remove_tree(folder / "b")
        assert [path.name for path in files_in(folder)] == ["a"]

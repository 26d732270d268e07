"""What is no file is refused unread, what cannot be read now is tried again, and links are not written through."""

import errno
import json
import os

import numpy as np
import pytest

from causal_diffusion import exported, file_access
from causal_diffusion.checkpoint import load_tree, save_tree
from causal_diffusion.checkpoint.foreign import open_weights
from causal_diffusion.checkpoint.paths import remove_tree, write_whole
from causal_diffusion.checkpoint.weights_file import read_weights, write_weights
from causal_diffusion.data.latents import read_meta
from causal_diffusion.data.record_shards import Shard, damage_of, read_json, write_json
from causal_diffusion.errors import CheckpointError, UnreadableError, UserError
from causal_diffusion.nn.text.words import Vocabulary
from tests.fake_disk import IDS, TRANSIENT


def make(folder):
    """A file of every kind that is read in one go: {name: how it is read}."""
    arrays = {"a": np.ones(3, np.float32)}
    save_tree(folder / "tree.npz", arrays, {"seed": 3})
    write_weights(folder / "weights.safetensors", arrays, {"config": "{}"})
    Vocabulary(("walk", "run")).save(folder)
    write_json(folder / "meta.json", {"format": 1, "mean": [0.5]}, folder)
    (folder / "stream.json").write_text("{}")
    return {
        "tree.npz": lambda: load_tree(folder / "tree.npz"),
        "weights.safetensors": lambda: read_weights(folder / "weights.safetensors"),
        "words.json": lambda: Vocabulary.load(folder),
        "meta.json": lambda: read_meta(folder),
        "stream.json": lambda: exported.read_stream(folder),
    }


READERS = ("tree.npz", "weights.safetensors", "words.json", "meta.json", "stream.json")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_every_reader_tries_again_then_says_so(tmp_path, disk, code, name):
    read = make(tmp_path)[name]
    before = (tmp_path / name).read_bytes()
    if name != "stream.json":
        wanted = repr(read())
        disk.fail(name, code, times=2)
        assert repr(read()) == wanted and disk.failed == 2
    disk.fail(name, code)
    with pytest.raises(UnreadableError, match=f"{name} now: .*{errno.errorcode[code]}.* 4 attempts.*try"):
        read()
    disk.heal()
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_a_shard_that_cannot_be_read_is_not_made_again(tmp_path, disk, code):
    (tmp_path / "a").write_bytes(b"abc")
    shard = Shard("a", 1, *file_access.size_and_sha256(tmp_path / "a"))
    assert damage_of(tmp_path, shard) == ""
    disk.fail("/a", code)
    with pytest.raises(UnreadableError):
        damage_of(tmp_path, shard)
    disk.fail("/a", errno.ENOENT)
    assert damage_of(tmp_path, shard) == "is missing"


@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_weights_of_others_are_tried_again(tmp_path, disk, code):
    make(tmp_path)
    disk.fail("weights.safetensors", code, times=3)
    assert open_weights(tmp_path / "weights.safetensors")["a"].sum() == 3
    disk.fail("weights.safetensors", code)
    with pytest.raises(UnreadableError):
        open_weights(tmp_path / "weights.safetensors")


def test_no_more_files_than_the_system_allows(tmp_path, monkeypatch):
    """EMFILE for real: files are opened until there are no more, and one is closed while the reader waits."""
    (tmp_path / "a").write_bytes(b"abc")
    import resource
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
        with pytest.raises(OSError):
            while True:
                held.append(os.open(tmp_path / "a", os.O_RDONLY))
        monkeypatch.setattr(file_access.time, "sleep", lambda wait: held and os.close(held.pop()))
        assert file_access.read_bytes(tmp_path / "a") == b"abc"
        held.append(os.open(tmp_path / "a", os.O_RDONLY))
        monkeypatch.setattr(file_access.time, "sleep", lambda wait: None)
        with pytest.raises(UnreadableError, match="EMFILE.*try `ulimit -n"):
            file_access.read_bytes(tmp_path / "a")
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def put_sparse(path):
    path.touch()
    os.truncate(path, 2**42)


KINDS = {
    "FIFO": os.mkfifo, "directory": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path),
    "bytes": put_sparse,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith("json")])
def test_what_is_no_file_is_refused_before_it_is_read(tmp_path, kind, name):
    read = make(tmp_path)[name]
    (tmp_path / name).unlink()
    KINDS[kind](tmp_path / name)
    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    with pytest.raises(file_access.NotAFileError, match=kind):
        file_access.read_bytes(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tree.npz", "weights.safetensors"])
def test_binary_files_likewise(tmp_path, kind, name):
    read = make(tmp_path)[name]
    (tmp_path / name).unlink()
    KINDS[kind](tmp_path / name)
    with pytest.raises(CheckpointError):
        read()


def test_links_are_replaced_and_not_written_through(tmp_path):
    precious, path = tmp_path / "precious", tmp_path / "out"
    precious.write_text("precious")
    for link in (path, tmp_path / "out.partial"):
        link.symlink_to(precious)
    write_whole(path, b"new")
    assert (path.read_bytes(), path.is_symlink(), precious.read_text()) == (b"new", False, "precious")
    (tmp_path / "w.safetensors.partial").symlink_to(precious)
    write_weights(tmp_path / "w.safetensors", {}, {})
    (tmp_path / "m.json.partial").symlink_to(precious)
    write_json(tmp_path / "m.json", {"a": 1}, tmp_path)
    assert precious.read_text() == "precious" and read_json(tmp_path / "m.json") == {"a": 1}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove_tree(tmp_path / "link", first="kept")
    assert (tmp_path / "folder" / "kept").exists() and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("kind", ["FIFO", "directory", "device"])
def test_what_is_no_file_is_not_replaced(tmp_path, kind):
    KINDS[kind](tmp_path / "out")
    with pytest.raises(OSError, match=kind):
        write_whole(tmp_path / "out", b"new")
    with pytest.raises(CheckpointError, match=kind):
        write_weights(tmp_path / "out", {}, {})


@pytest.mark.parametrize("name", ["words.json", "meta.json", "weights.safetensors", "tree.npz"])
def test_every_digit_of_what_is_written_is_covered(tmp_path, name):
    """Another digit anywhere, and the file is refused or reads as it did."""
    read = make(tmp_path)[name]
    wanted, content = repr(read()), (tmp_path / name).read_bytes()
    for place, byte in enumerate(content):
        if chr(byte).isdigit():
            other = b"%d" % ((byte - 47) % 10)
            (tmp_path / name).write_bytes(content[:place] + other + content[place + 1 :])
            try:
                assert repr(read()) == wanted
            except UserError as refused:
                assert "\n" not in str(refused)


def test_what_was_written_without_a_digest_is_read_with_a_warning(tmp_path, caplog):
    make(tmp_path)
    for name, words in (("meta.json", "schema version 1"), ("words.json", "format 1")):
        content = json.loads((tmp_path / name).read_text())
        del content[file_access.DIGEST]
        (tmp_path / name).write_text(json.dumps(content | {"format": 1}))
        assert read_meta(tmp_path) if name == "meta.json" else Vocabulary.load(tmp_path)
        assert f"{tmp_path / name} is of {words}" in caplog.text

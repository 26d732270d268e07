"""Unreadable is not damaged: whatever the disk answers, no intact step is passed over, replaced or removed."""

import errno
import os
import shutil

import orbax.checkpoint as ocp
import pytest

from causal_diffusion.checkpoint import read_meta
from causal_diffusion.checkpoint.readers import folder_of
from causal_diffusion.errors import CheckpointError, UnreadableError
from tests.checkpoint.trees import LIKE, META, at_once, check_step, flip, make_ema, save, saved_steps
from tests.fake_disk import IDS, TRANSIENT

EMA = {"ema": LIKE["ema"]}
# Every one of them in the tests that save nothing, which are fast.
SOME = [errno.EIO, *(pytest.param(code, marks=pytest.mark.full) for code in TRANSIENT if code != errno.EIO)]
PLACES = {"manifest": "200/checksums.json", "item": "200/meta/metadata", "file of no item": "200/_CHECKPOINT_METADATA",
          "folder of steps": "/checkpoints", "folder of a step": "/checkpoints/200"}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_steps(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def store(saved, tmp_path):
    return at_once(shutil.copytree(saved, tmp_path / "checkpoints"), keep=1)


def content(store):
    return {path: path.read_bytes() for path in store.directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_a_step_that_cannot_be_read_now_stops_the_restore(store, disk, code, place):
    before = content(store)
    disk.fail(PLACES[place], code)
    for step in (None, 200):
        with pytest.raises(UnreadableError) as error:
            store.restore(EMA, step=step)
        message = str(error.value)
        assert "\n" not in message and PLACES[place] in message and errno.errorcode[code] in message
        assert "in 4 attempts" in message and "try" in message
    disk.heal()
    assert content(store) == before
    assert store.restore(EMA).step == 200 and store.restore(EMA).skipped == ()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_what_can_be_read_a_moment_later_is_read(store, disk, code, place):
    disk.fail(PLACES[place], code, times=2)
    found = store.restore(EMA)
    assert disk.failed == 2 and (found.step, found.skipped) == (200, ())


@pytest.mark.parametrize("code", SOME)
def test_a_save_after_it_removes_nothing_that_is_intact(store, disk, code):
    """The step could not be read when the run began again: it is there after the next save, as any other."""
    disk.fail("200/checksums.json", code)
    with pytest.raises(UnreadableError):
        store.restore(EMA)
    disk.heal()
    store.keep = 2
    store.save(150, ema=make_ema(150), meta=META)  # what the run would save had it gone on from 100
    assert store.steps() == [100, 150, 200] and store.restore(EMA).step == 200


@pytest.mark.parametrize("code", SOME)
def test_a_new_step_is_kept_where_old_ones_cannot_be_looked_at(store, disk, code, caplog):
    """Else a disk that fails for a second while old steps are removed would take the new one, too."""
    retire = store._retire

    def failing(step):
        disk.fail("100/checksums.json", code)
        retire(step)

    store._retire = failing
    store.save(300, ema=make_ema(300), meta=META)
    disk.heal()
    assert store.steps() == [100, 200, 300] and "no old checkpoints are removed after step 300" in caplog.text


@pytest.mark.parametrize("code", SOME)
def test_a_step_that_cannot_be_read_is_not_written_over(store, disk, code):
    before = content(store)
    disk.fail("200/meta/metadata", code, calls=("open",))
    with pytest.raises(CheckpointError, match="cannot save step 200 .*cannot read .*200/meta/metadata"):
        save(store, 200)
    disk.fail("200/checksums.json", code)
    with pytest.raises(CheckpointError, match="cannot save step 200"):
        save(store, 200)
    disk.heal()
    assert content(store) == before


@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_tensorstore_that_cannot_read_is_asked_again_then_stops(store, disk, code, monkeypatch):
    restore, left = ocp.Checkpointer.restore, [2]

    def fail(self, folder, **options):
        if left[0]:
            left[0] -= 1
            raise ValueError(f"DATA_LOSS: Error reading [os_error_code='{code}']\nmore")
        return restore(self, folder, **options)

    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    assert store.restore(EMA).step == 200
    left[0] = 100
    with pytest.raises(UnreadableError, match=f"200 now: .*{errno.errorcode[code]}"):
        store.restore(EMA)


def test_absent_is_still_damage_and_an_error_of_the_disk_is_none(store, disk):
    disk.fail("200/checksums.json", errno.ENOENT)
    found = store.restore(EMA)
    assert found.step == 100 and "half-written" in found.skipped[0][1]
    disk.fail("200/meta/metadata", errno.ENOSPC)  # says nothing of the content, but stays so
    with pytest.raises(CheckpointError):
        store.restore(EMA, step=200)


# What is no file.


def put_fifo(path):
    path.unlink()
    os.mkfifo(path)


def put_folder(path):
    path.unlink()
    path.mkdir()


def put_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def put_sparse(path):
    with open(path, "r+b") as file:
        file.truncate(2**42)


KINDS = {put_fifo: "it is a FIFO", put_folder: "it is a directory", put_device: "it is a device",
         put_sparse: "4,398,046,511,104 bytes"}  # fmt: skip


@pytest.mark.parametrize("put", KINDS)
@pytest.mark.parametrize("name", ["checksums.json", "meta/metadata", "_CHECKPOINT_METADATA"])
def test_what_is_no_file_is_found_before_it_is_read(store, put, name):
    """A FIFO would block for ever, a device never end, and a sparse file fill the memory."""
    put(store.directory / "200" / name)
    found = store.restore(EMA)
    assert found.step == 100 and KINDS[put] in found.skipped[0][1]


# Links.


def test_of_a_linked_step_only_the_link_is_removed(store, tmp_path):
    away = tmp_path / "away"
    (store.directory / "100").rename(away)
    (store.directory / "100").symlink_to(away)
    before = {path: path.read_bytes() for path in away.rglob("*") if path.is_file()}
    assert store.steps() == [100, 200]
    save(store, 300)  # keep = 1: 100 and 200 go
    assert sorted(path.name for path in store.directory.iterdir()) == ["300"]
    assert {path: path.read_bytes() for path in away.rglob("*") if path.is_file()} == before


def test_a_damaged_linked_step_is_not_written_through(store, tmp_path):
    away = tmp_path / "away"
    (store.directory / "200").rename(away)
    (store.directory / "200").symlink_to(away)
    flip(away / "meta" / "metadata", 3)
    before = {path: path.read_bytes() for path in away.rglob("*") if path.is_file()}
    assert store.restore(EMA).step == 100
    save(store, 200)
    assert not (store.directory / "200").is_symlink()
    check_step(store.restore(LIKE), 200)
    assert {path: path.read_bytes() for path in away.rglob("*") if path.is_file()} == before


def test_a_link_that_leads_nowhere_stops_the_restore(store, tmp_path):
    away = tmp_path / "away"
    (store.directory / "200").rename(away)
    (store.directory / "200").symlink_to(away)
    away.rename(tmp_path / "unmounted")
    for use in (lambda: store.restore(EMA), lambda: read_meta(store.directory), store.latest, lambda: save(store, 300)):
        with pytest.raises(CheckpointError, match="200 leads to .*away, which is not there now: mount"):
            use()
    (tmp_path / "unmounted").rename(away)
    assert store.restore(EMA).step == 200


def test_linked_files_of_a_step_are_left_where_they_are(store, tmp_path):
    kept = tmp_path / "kept"
    file = store.directory / "100" / "meta" / "metadata"
    file.rename(kept)
    file.symlink_to(kept)
    before = kept.read_bytes()
    save(store, 300)
    assert not (store.directory / "100").exists() and kept.read_bytes() == before


@pytest.mark.parametrize("code", TRANSIENT, ids=IDS)
def test_readers_without_a_run_stop_likewise(store, disk, code):
    disk.fail("200/meta/metadata", code)
    with pytest.raises(UnreadableError):
        read_meta(folder_of(store.directory.parent))
    disk.fail("/checkpoints", code)
    with pytest.raises(UnreadableError):
        folder_of(store.directory.parent)

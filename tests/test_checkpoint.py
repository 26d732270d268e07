"""Architecture section 5, rule 10: a damaged, truncated or mismatched checkpoint is never silently used."""

import errno
import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from causal_diffusion.checkpoint import Checkpoints, manager, manifest, read_meta, storage
from causal_diffusion.errors import CheckpointError
from tests.checkpoint.trees import (
    LIKE,
    META,
    assert_same,
    at_once,
    check_step,
    flip,
    like,
    make_ema,
    make_tree,
    save,
    saved_steps,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 100 and 200, saved once. Tests that change anything take a copy."""
    return saved_steps(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def store(saved, tmp_path):
    return at_once(shutil.copytree(saved, tmp_path / "moved"))


def test_round_trip(store):
    assert store.steps() == [100, 200]
    assert store.latest() == 200
    restored = store.restore(LIKE)
    check_step(restored, 200)
    assert restored.skipped == ()
    check_step(store.restore(LIKE, step=100), 100)


def test_key_streams_continue(store):
    restored = store.restore(LIKE).train["mixed"]
    wanted = make_tree(200)["mixed"]
    for one, other in ((restored.keys[3], wanted.keys[3]), (restored.fast_key, wanted.fast_key)):
        np.testing.assert_array_equal(jax.random.normal(one, (5,)), jax.random.normal(other, (5,)))


def test_inference_reads_ema_and_meta_alone(store):
    shutil.rmtree(store.directory / "200" / "train")
    restored = store.restore({"ema": LIKE["ema"]})
    assert (restored.step, restored.train, restored.meta, restored.skipped) == (200, None, META, ())
    assert_same(restored.ema, make_ema(200))


def test_read_meta_needs_no_model(store):
    found = read_meta(store.directory)
    assert (found.step, found.meta, found.data, found.ema) == (200, META, {"batches": 200}, None)
    assert read_meta(store.directory, 100).step == 100
    flip(store.directory / "200" / "meta" / "metadata", 5)
    found = read_meta(store.directory)
    assert (found.step, [step for step, _ in found.skipped]) == (100, [200])


def test_checkpoint_for_inference_alone(tmp_path):
    store = at_once(tmp_path)
    store.save(0, ema=make_ema(), meta=META)
    restored = store.restore({"ema": LIKE["ema"]})
    assert_same(restored.ema, make_ema())
    assert (restored.step, restored.data) == (0, None)
    with pytest.raises(CheckpointError, match="no item train: it holds ema, meta"):
        store.restore(LIKE)


def test_looking_creates_nothing(tmp_path):
    store = at_once(tmp_path / "none")
    assert (store.latest(), store.steps()) == (None, [])
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path / 'none'}"):
        store.restore(LIKE)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_meta(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_directory_are_left_alone(store):
    (store.directory / "notes.txt").write_text("x")
    (store.directory / "best").mkdir()
    (store.directory / "007").mkdir()
    save(store, 300)
    assert {"notes.txt", "best", "007"} < {path.name for path in store.directory.iterdir()}
    assert store.steps() == [100, 200, 300]


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4), (1, 2), (1, 1)], ids=str)
def test_restores_on_any_mesh(tmp_path, saved, shape):
    def mesh_of(shape):
        devices = np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def placed_on(mesh):
        return lambda leaf: NamedSharding(
            mesh, P(None, "fsdp") if leaf.shape == (8, 16) else P("data") if leaf.shape == (16,) else P())

    everywhere = placed_on(mesh_of((2, 4)))
    tree = make_tree(100)
    split = jax.device_put(tree, jax.tree.map(everywhere, tree))
    assert len(split["params"]["block_0"]["kernel"].addressable_shards) == 8
    store = at_once(tmp_path)
    store.save(1, ema=make_ema(), train=split, meta=META)
    target = placed_on(mesh_of(shape))
    train = store.restore({"train": like(tree, target)}).train
    assert_same(train, tree)
    placed = jax.device_put(tree, jax.tree.map(target, tree))
    for found, wanted in zip(jax.tree.leaves(train), jax.tree.leaves(placed), strict=True):
        assert found.sharding == wanted.sharding


def test_one_flipped_byte_in_any_file_is_found(store):
    """Each file of the step in turn, in the middle: data, metadata, manifest, of every item and of none."""
    folder = store.directory / "200"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    assert {path.relative_to(folder).parts[0] for path in paths} >= {
        "ema", "train", "data", "meta", "checksums.json", "_CHECKPOINT_METADATA"}
    for path in paths:
        intact = path.read_bytes()
        flip(path, len(intact) // 2)
        name = path.relative_to(folder)
        with pytest.raises(CheckpointError, match=rf"step 200: {name} (cannot be read|does not match)"):
            store.restore(LIKE, step=200)
        path.write_bytes(intact)
    check_step(store.restore(LIKE), 200)


def test_one_flipped_byte_anywhere_in_the_manifest_is_found(store):
    path = store.directory / "200" / "checksums.json"
    intact = path.read_bytes()
    for position in np.random.default_rng(0).choice(len(intact), 60, replace=False):
        flip(path, position)
        with pytest.raises(CheckpointError, match="step 200: checksums.json"):
            store.restore({}, step=200)
        path.write_bytes(intact)


DAMAGE = {
    "flipped": (lambda folder, data: flip(data, 9), "does not match its checksum"),
    "truncated": (lambda folder, data: os.truncate(data, 10), "has 10 bytes instead of"),
    "emptied": (lambda folder, data: os.truncate(data, 0), "has 0 bytes instead of"),
    "missing": (lambda folder, data: data.unlink(), "cannot be read: No such file or directory"),
    "no manifest": (lambda folder, data: (folder / "checksums.json").unlink(), "half-written"),
    "empty folder": (lambda folder, data: shutil.rmtree(folder) or folder.mkdir(), "half-written"),
    "cut off": (lambda folder, data: folder.rename(f"{folder}.orbax-checkpoint-tmp"), "half-written"),
    "another step": (lambda folder, data: shutil.copytree(folder.parent / "100", folder, dirs_exist_ok=True),
                     "renamed: it is step 100"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_walks_back_and_says_so_then_replaces(store, kind):
    damage, words = DAMAGE[kind]
    folder = store.directory / "200"
    damage(folder, max((folder / "train").rglob("*"), key=lambda path: path.stat().st_size * path.is_file()))
    restored = store.restore(LIKE)
    check_step(restored, 100)
    ((step, reason),) = restored.skipped
    assert step == 200 and words in reason and "\n" not in reason
    with pytest.raises(CheckpointError, match=words):
        store.restore(LIKE, step=200)
    save(store, 150)  # an older step than the damaged one
    save(store, 200)  # the run is here again
    restored = store.restore(LIKE)
    check_step(restored, 200)
    assert restored.skipped == ()
    assert sorted(path.name for path in store.directory.iterdir()) == ["100", "150", "200"]


def test_none_intact_names_each(store):
    (store.directory / "100" / "checksums.json").unlink()
    flip(store.directory / "200" / "_CHECKPOINT_METADATA", 3)
    with pytest.raises(CheckpointError) as error:
        store.restore(LIKE)
    message = str(error.value)
    assert "\n" not in message and str(store.directory) in message
    assert "step 200: _CHECKPOINT_METADATA does not match" in message and "step 100: half-written" in message


def test_unknown_step_lists_the_known(store):
    with pytest.raises(CheckpointError, match=r"no step 150 in .*\[100, 200\]"):
        store.restore(LIKE, step=150)


def test_orbax_failing_on_intact_bytes_walks_back_but_is_never_removed(store, monkeypatch):
    restore = ocp.Checkpointer.restore

    def fail_at_200(self, folder, **options):
        if folder.name == "200":
            raise ValueError("NOT_FOUND: something\nlong")
        return restore(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", fail_at_200)
        restored = store.restore(LIKE)
    assert restored.skipped == ((200, "orbax cannot read it: NOT_FOUND: something"),)
    save(store, 300)
    check_step(store.restore(LIKE, step=200), 200)


@pytest.mark.parametrize(("kernel", "words"), [
    (jax.ShapeDtypeStruct((8, 32), jnp.float32), r"float32\[8, 32\]"),
    (jax.ShapeDtypeStruct((8, 16), jnp.bfloat16), r"bfloat16\[8, 16\]"),
    (jax.ShapeDtypeStruct((16, 8), jnp.float32), r"float32\[16, 8\]"),
])
def test_another_shape_or_dtype_is_refused_at_once(store, kernel, words):
    """Without a look at step 100, which belongs to the same model."""
    saved = r"200, item ema: leaf block_0/kernel is float32\[8, 16\] in the checkpoint"
    with pytest.raises(CheckpointError, match=rf"{saved} but {words} in the model"):
        store.restore({"ema": {"block_0": {"kernel": kernel}}})


def test_another_structure_is_refused_at_once(store):
    kernel = LIKE["ema"]["block_0"]["kernel"]
    with pytest.raises(CheckpointError, match=r"leaf block_1/kernel is absent in the checkpoint but float32"):
        store.restore({"ema": {"block_0": {"kernel": kernel}, "block_1": {"kernel": kernel}}})
    with pytest.raises(CheckpointError, match=r"kernel is float32\[8, 16\] in the checkpoint but absent"):
        store.restore({"ema": {}})
    mixed = LIKE["train"]["mixed"]
    other_key = LIKE["train"] | {"mixed": mixed._replace(fast_key=like(jax.random.key(0)))}
    with pytest.raises(CheckpointError, match=r"leaf mixed/fast_key is key<rbg>\[\] .* key<fry>\[\]"):
        store.restore({"train": other_key})


def test_what_cannot_come_back_is_refused_before_anything_is_written(tmp_path):
    store = at_once(tmp_path / "new")
    for ema, words in [({"a": 1.5}, "leaf a is a float"), ({"n": {"b": np.arange(3)}}, "leaf n/b is int64"),
                       ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "two leaves are named a/b")]:
        with pytest.raises(ValueError, match=words):
            store.save(1, ema=ema, meta={})
    with pytest.raises(TypeError, match="JSON"):
        store.save(1, ema=make_ema(), meta={"array": jnp.ones(1)})
    with pytest.raises(ValueError, match="trees are"):
        store.restore({"params": {}})
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)
    assert not store.directory.exists()


def test_an_intact_step_is_not_overwritten(store):
    with pytest.raises(CheckpointError, match="200 holds an intact checkpoint"):
        store.save(200, ema=make_ema(7), train=make_tree(7), meta=META)
    check_step(store.restore(LIKE), 200)


def test_keeps_the_newest_and_counts_only_intact_ones(tmp_path):
    store = at_once(tmp_path, keep=2)
    for step in (1, 2, 3, 5):
        store.save(step, ema=make_ema(step), meta={})
    assert store.steps() == [3, 5]
    (tmp_path / "4").mkdir()
    (tmp_path / "6.orbax-checkpoint-tmp").mkdir()
    flip(tmp_path / "5" / "_CHECKPOINT_METADATA", 3)
    assert [step for step, _ in store.restore({"ema": LIKE["ema"]}).skipped] == [6, 5, 4]
    store.save(7, ema=make_ema(7), meta={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "7"]


def test_old_ones_go_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    """Stop at each stage in turn: the one checkpoint that is kept is there until the next is sealed."""
    store = at_once(tmp_path, keep=1)
    store.save(1, ema=make_ema(1), meta={})
    for stage in ((manager, "seal"), (manager, "read_manifest"), (manifest, "flush_folder")):
        with monkeypatch.context() as patch:
            patch.setattr(*stage, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            (tmp_path / "2").mkdir(exist_ok=True)
            with pytest.raises(KeyboardInterrupt):
                store.save(2, ema=make_ema(2), meta={})
        restored = store.restore({"ema": LIKE["ema"]})
        assert_same(restored.ema, make_ema(1))
    store.save(2, ema=make_ema(2), meta={})
    assert store.steps() == [2]


@pytest.mark.parametrize("failure", [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ValueError("RESOURCE_EXHAUSTED: Error writing ...: No space left on device [os_error_code='28']\nmore"),
], ids=["files", "tensorstore"])
@pytest.mark.parametrize("stage", ["orbax", "background", "flush", "manifest"])
def test_full_disk_in_one_line(store, monkeypatch, stage, failure):
    def fail(*args, **options):
        raise failure

    target, name = {"orbax": (ocp.AsyncCheckpointer, "save"),
                    "background": (ocp.AsyncCheckpointer, "wait_until_finished"),
                    "flush": (manifest, "_size_and_sha256"), "manifest": (os, "replace")}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(CheckpointError) as error:
            save(store, 300)
    assert str(error.value) == (
        f"cannot save step 300 to {store.directory}: No space left on device; "
        "the last complete one is step 200; make room there or choose another place, then start again")
    assert sorted(path.name for path in store.directory.iterdir()) == ["100", "200"]
    save(store, 300)
    check_step(store.restore(LIKE), 300)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints: Not a directory; no checkpoint is there"):
        at_once(tmp_path / "file" / "checkpoints").save(1, ema=make_ema(), meta={})


def test_only_orbax_is_silenced_and_only_meanwhile(store, caplog):
    with storage.muted():
        logging.getLogger("absl").warning("from elsewhere")
    assert caplog.messages == ["from elsewhere"]
    assert logging.getLogger("absl").filters == []


def test_manifest_is_readable_by_people(saved):
    content = json.loads((saved / "200" / "checksums.json").read_text())["content"]
    assert content["items"]["ema"] == {"block_0/kernel": "float32[8, 16]"}
    assert content["items"]["train"]["opt/0/mu/kernel"] == "float32[8, 16]"
    assert content["items"]["meta"] is None

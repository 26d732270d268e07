"""Architecture section 5, rule 10: a damaged, truncated or mismatched checkpoint is never silently used."""

import errno
import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from causal_diffusion import checkpoint
from causal_diffusion.checkpoint import Checkpoints, load_tree, manager, manifest, read_meta, save_tree, storage
from causal_diffusion.errors import CheckpointError

at_once = functools.partial(Checkpoints, asynchronous=False)
META = {"config": {"width": 16, "name": "tiny", "levels": [0.5, 1.0]}, "note": "ä"}


class Mixed(NamedTuple):
    """Every kind of leaf in every kind of container."""

    half: jax.Array
    keys: jax.Array
    fast_key: jax.Array
    rest: tuple
    nothing: None = None


@functools.cache
def make_tree(seed: int = 0) -> dict:
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (8, 16))
    return {
        "params": {"block_0": {"kernel": kernel, "bias": jnp.arange(16.0)}},
        "opt": optax.adamw(1e-3).init({"kernel": kernel}),
        "mixed": Mixed(half=jnp.asarray([1 / 3, jnp.nan, jnp.inf], jnp.bfloat16),
                       keys=jax.random.split(key, 4),
                       fast_key=jax.random.key(seed, impl="rbg"),
                       rest=(np.asarray([[True], [False]]), jnp.zeros((0, 3)), jnp.uint8(7), {})),
        "step": jnp.int32(seed),
    }


def make_ema(seed: int = 0) -> dict:
    return {"block_0": {"kernel": jnp.full((8, 16), seed + 0.1)}}


def like(tree, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    place = sharding if callable(sharding) else lambda leaf: sharding
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), tree)


LIKE = {"ema": like(make_ema()), "train": like(make_tree())}


def assert_same(found, wanted):
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save(store: Checkpoints, step: int) -> None:
    store.save(step, ema=make_ema(step), train=make_tree(step), data={"batches": step}, meta=META)


def check_step(restored, step: int) -> None:
    assert restored.step == step
    assert_same(restored.ema, make_ema(step))
    assert_same(restored.train, make_tree(step))
    assert restored.data == {"batches": step}
    assert restored.meta == META


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 100 and 200, saved once. Tests that change anything take a copy."""
    store = at_once(tmp_path_factory.mktemp("saved") / "checkpoints")
    save(store, 100)
    save(store, 200)
    return store.directory


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


# Processes of their own: what a real file system and a real signal do.

PRELUDE = """
    import os, resource, signal, sys
    import jax, jax.numpy as jnp
    from causal_diffusion import checkpoint
    from causal_diffusion.errors import CheckpointError
    store = checkpoint.Checkpoints(sys.argv[1], keep=2, asynchronous=False)
    key = jax.random.key(0)
    def tree(step):
        return {"kernel": jax.random.normal(jax.random.fold_in(key, step), (1024, 1024))}
    def save(step):
        store.save(step, ema={"step": jnp.int32(step)}, train=tree(step), data={"batches": step}, meta={})
    like = {"ema": jax.eval_shape(lambda: {"step": jnp.int32(0)}), "train": jax.eval_shape(tree, 0)}
    """


def start(script: str, directory) -> subprocess.Popen:
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    root = os.path.dirname(os.path.dirname(os.path.dirname(checkpoint.__file__)))
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(directory)], text=True, cwd=root,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(script: str, directory) -> tuple[int, str, str]:
    process = start(script, directory)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def check_latest(directory) -> int:
    """Restores the newest intact step that PRELUDE's `save` wrote, and compares it bit for bit."""
    wanted = {"ema": {"step": jnp.int32(0)},
              "train": {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}}
    found = Checkpoints(directory).restore(wanted)
    kernel = jax.random.normal(jax.random.fold_in(jax.random.key(0), found.step), (1024, 1024))
    assert_same(found.train, {"kernel": kernel})
    assert_same(found.ema, {"step": jnp.int32(found.step)})
    assert found.data == {"batches": found.step}
    return found.step


def test_full_disk_for_real(tmp_path):
    """A limit on file sizes stands for the full disk: tensorstore's own writes fail."""
    status, out, err = run("""
        save(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(2)
        except CheckpointError as error:
            print(error)
        print(sorted(os.listdir(store.directory)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save(2)
        """, tmp_path / "full")
    assert status == 0, err
    message, left = out.splitlines()
    assert message.startswith(f"cannot save step 2 to {tmp_path / 'full'}: File too large; "
                              "the last complete one is step 1; make room")
    assert left == "['1']"
    assert err == ""
    assert check_latest(tmp_path / "full") == 2


def test_a_disk_that_fills_up_while_orbax_writes(tmp_path):
    """At first there seems to be room; then a dozen writes fail in the background, and one line tells it."""
    status, out, err = run("""
        def many(step):
            return {str(i): jax.random.normal(jax.random.fold_in(key, step * 100 + i), (64, 256)) for i in range(24)}
        store.save(1, ema={"step": jnp.int32(1)}, train=many(1), meta={})
        from causal_diffusion.checkpoint import storage
        start = storage.Writing.__init__
        def limit_and_start(*arguments):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            start(*arguments)
        storage.Writing.__init__ = limit_and_start
        try:
            store.save(2, ema={"step": jnp.int32(2)}, train=many(2), meta={})
        except CheckpointError as error:
            print(error)
        print(sorted(os.listdir(store.directory)))
        """, tmp_path / "full")
    assert status == 0, err
    message, left = out.splitlines()
    assert message.startswith(f"cannot save step 2 to {tmp_path / 'full'}: File too large; "
                              "the last complete one is step 1; make room")
    assert left == "['1']"
    assert err == ""


def test_killed_while_orbax_writes(tmp_path):
    store = at_once(tmp_path)
    for _ in range(5):  # on a busy machine the signal may come too late
        process = start("save(1) if store.latest() is None else None; save(2)", tmp_path)
        while process.poll() is None and not any(tmp_path.glob("2.orbax-checkpoint-tmp/train*")):
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert check_latest(tmp_path) == max(store.steps())
        if store.steps() == [1]:
            break
        store._remove(2)
    assert store.steps() == [1]
    assert store.restore({}).skipped == ((2, "half-written, it has no checksums.json"),)
    store.save(2, ema={"step": jnp.int32(2)}, meta={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_killed_while_sealing(tmp_path):
    status, _, err = run("""
        save(1)
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        save(2)
        """, tmp_path)
    assert status == -signal.SIGKILL, err
    assert (tmp_path / "2" / "checksums.json.partial").exists()
    assert check_latest(tmp_path) == 1


@pytest.mark.full
def test_killed_at_any_moment(tmp_path):
    """Twelve kills, at random moments of a run that does nothing but save: one step is lost at most."""
    loop = """
        step = store.restore(like).step if store.latest() else 0
        print(step, flush=True)
        while True:
            step += 1
            save(step)
            print(step, flush=True)
        """
    delays = np.random.default_rng(0).uniform(0.2, 2.0, 12)
    last = 0
    for delay in delays:
        process = start(loop, tmp_path)
        try:
            assert int(process.stdout.readline()) >= last
            time.sleep(delay)
        finally:
            process.kill()
            out, err = process.communicate()
        assert err == ""
        said = max([last, *map(int, out.split())])
        if said:
            assert said <= check_latest(tmp_path) <= said + 1
        last = said
    assert last > 0


# One tree in one file.


def test_tree_round_trip(tmp_path):
    path = tmp_path / "session.npz"
    tree = make_tree(3)
    save_tree(path, tree, META)
    found, meta = load_tree(path, like(tree))
    assert_same(found, tree)
    assert meta == META
    flat, meta = load_tree(path)
    assert_same(flat["mixed/half"], tree["mixed"].half)
    assert_same(flat["mixed/fast_key"], tree["mixed"].fast_key)
    assert len(flat) == len(jax.tree.leaves(tree))
    assert [each.name for each in tmp_path.iterdir()] == ["session.npz"]


def test_tree_lands_where_like_says(tmp_path):
    save_tree(tmp_path / "a", {"x": jnp.arange(8.0), "y": jnp.ones(2), "file": jnp.ones(1)}, {})
    target = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
    spec = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=target)
    tree, _ = load_tree(tmp_path / "a", {"x": spec, "y": np.ones(2, np.float32), "file": jnp.ones(1)})
    assert tree["x"].sharding == target
    assert tree["y"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_tree_flipped_anywhere_is_found_or_harmless(tmp_path):
    """Some bytes of a zip file (dates, say) carry nothing; no flip may ever change what is read."""
    path = tmp_path / "session.npz"
    tree = {"kernel": jnp.arange(40.0), "half": jnp.ones(3, jnp.bfloat16), "key": jax.random.key(1)}
    save_tree(path, tree, META)
    intact = path.read_bytes()
    found = 0
    for position in range(0, len(intact), 5):
        flip(path, position)
        try:
            again, meta = load_tree(path, tree)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
        else:
            assert_same(again, tree)
            assert meta == META
        path.write_bytes(intact)
    assert found > len(intact) // 5 * 0.5


@pytest.mark.parametrize("content", [b"", b"not a zip file", None])
def test_tree_that_is_no_tree(tmp_path, content):
    path = tmp_path / "session.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"cannot read {path}"):
        load_tree(path, {})


def test_tree_cut_off(tmp_path):
    path = tmp_path / "session.npz"
    save_tree(path, make_tree(), META)
    os.truncate(path, path.stat().st_size - 30)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tree(path)


def test_tree_of_another_model_names_the_leaf(tmp_path):
    save_tree(tmp_path / "a", {"x": jnp.ones(3)}, {})
    for wanted, words in [({"x": jnp.ones(4)}, r"leaf x is float32\[3\] .* float32\[4\]"),
                          ({"x": jnp.ones(3, jnp.int32)}, r"leaf x is float32\[3\] .* int32\[3\]"),
                          ({"z": jnp.ones(3)}, r"leaf z is absent .* float32\[3\]")]:
        with pytest.raises(CheckpointError, match=words):
            load_tree(tmp_path / "a", wanted)


def test_tree_on_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "session.npz"
    save_tree(path, {"x": jnp.ones(3)}, {})

    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(CheckpointError, match=f"cannot write {path}: No space left on device"):
            save_tree(path, {"x": jnp.zeros(3)}, {})
    assert [each.name for each in tmp_path.iterdir()] == ["session.npz"]
    assert_same(load_tree(path)[0], {"x": jnp.ones(3)})


def test_manifest_is_readable_by_people(saved):
    content = json.loads((saved / "200" / "checksums.json").read_text())["content"]
    assert content["items"]["ema"] == {"block_0/kernel": "float32[8, 16]"}
    assert content["items"]["train"]["opt/0/mu/kernel"] == "float32[8, 16]"
    assert content["items"]["meta"] is None

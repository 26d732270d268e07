"""A save goes on in the background: what is saved is what was there, and what goes wrong is told, once and in order."""

import errno
import logging
import os
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from causal_diffusion.checkpoint import Checkpoints, manager, manifest
from causal_diffusion.errors import CheckpointError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tree(step):
    return {"a": jnp.full((4, 6), step, jnp.float32), "step": jnp.int32(step)}


LIKE = {"ema": jax.eval_shape(tree, 0)}


def check(store, step):
    found = store.restore(LIKE, step=step)
    np.testing.assert_array_equal(found.ema["a"], np.full((4, 6), step))


@pytest.fixture
def gate(monkeypatch):
    """Holds the background back before it seals, until it is set."""
    gate, seal = threading.Event(), manager.seal

    def wait_and_seal(*arguments):
        assert gate.wait(30)
        return seal(*arguments)

    monkeypatch.setattr(manager, "seal", wait_and_seal)
    yield gate
    gate.set()


def test_save_returns_before_the_checkpoint_is_complete(tmp_path, gate):
    store = Checkpoints(tmp_path)
    store.save(1, ema=tree(1), meta={})
    assert store.latest() is None and Checkpoints(tmp_path).steps() == [] and store.stalls == []
    gate.set()
    store.wait()
    store.wait()
    assert store.latest() == 1
    check(store, 1)
    ((blocked, took),) = store.stalls
    assert 0 < blocked < took


def test_at_once_where_asked_for(tmp_path):
    store = Checkpoints(tmp_path, asynchronous=False)
    store.save(1, ema=tree(1), meta={})
    assert Checkpoints(tmp_path).latest() == 1 and len(store.stalls) == 1


def test_the_next_save_and_a_restore_wait_for_the_last(tmp_path, gate):
    store = Checkpoints(tmp_path)
    store.save(1, ema=tree(1), meta={})
    threading.Timer(0.3, gate.set).start()
    began = time.perf_counter()
    store.save(2, ema=tree(2), meta={})
    assert time.perf_counter() - began > 0.2
    assert store.restore(LIKE).step == 2
    assert store.steps() == [1, 2]
    assert store.stalls[1][0] > 0.2  # waiting for the one before is a stall, too


@pytest.mark.parametrize("spec", [P(), P("data"), P("data", "fsdp")], ids=str)
def test_arrays_may_be_donated_at_once(tmp_path, gate, spec):
    """The step runs on, in place, while the files of an earlier one are written."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    target = NamedSharding(mesh, spec)
    state = jax.device_put({"a": jnp.zeros((64, 64)), "key": jax.random.key(0)},
                           {"a": target, "key": NamedSharding(mesh, P())})  # fmt: skip

    @jax.jit
    def add(a):
        return a + 1.0

    step = jax.jit(lambda s: {"a": add(s["a"]), "key": jax.random.fold_in(s["key"], 1)}, donate_argnums=0)
    store, host = Checkpoints(tmp_path), np.zeros(3, np.float32)
    for number in range(1, 4):
        before = state
        state = step(state)
        assert before["a"].is_deleted()
        store.save(number, ema={"host": host}, train=state, meta={})
        for _ in range(5):
            state = step(state)
        jax.block_until_ready(state)
        host += 1.0
        gate.set()
    store.wait()
    like = {"train": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state),
            "ema": {"host": jax.ShapeDtypeStruct((3,), jnp.float32)}}  # fmt: skip
    for number in range(1, 4):
        found = store.restore(like, step=number)
        np.testing.assert_array_equal(found.train["a"], np.full((64, 64), 6.0 * (number - 1) + 1.0))
        np.testing.assert_array_equal(found.ema["host"], np.full(3, number - 1.0))


def test_documents_are_taken_as_they_are(tmp_path, gate):
    store, data = Checkpoints(tmp_path), {"pending": [1.0]}
    store.save(1, ema=tree(1), data=data, meta={})
    data["pending"].append(2.0)
    gate.set()
    assert store.restore({}).data == {"pending": [1.0]}


@pytest.mark.parametrize("when", ["next save", "wait", "end", "restore"])
def test_a_failure_in_the_background_is_told_once(tmp_path, monkeypatch, when):
    store = Checkpoints(tmp_path)
    store.save(1, ema=tree(1), meta={})
    store.wait()

    def fail(*arguments, **options):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "_size_and_sha256", fail)
        store.save(2, ema=tree(2), meta={})
        store._saving.thread.join()
    words = (f"cannot save step 2 to {tmp_path}: No space left on device; the last complete one is step 1; make room "
             "there or choose another place, then start again")  # fmt: skip
    with pytest.raises(CheckpointError) as error:
        if when == "end":
            with store:
                pass
        else:
            {"next save": lambda: store.save(3, ema=tree(3), meta={}), "wait": store.wait,
             "restore": lambda: store.restore(LIKE)}[when]()  # fmt: skip
    assert str(error.value) == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    store.wait()
    store.save(3, ema=tree(3), meta={})
    store.wait()
    check(store, 3)
    assert len(store.stalls) == 2


def test_another_error_goes_first_and_takes_the_late_one_along(tmp_path, monkeypatch):
    def fail(*arguments):
        raise FULL

    monkeypatch.setattr(manager, "seal", fail)
    with pytest.raises(ZeroDivisionError) as error, Checkpoints(tmp_path) as store:
        store.save(1, ema=tree(1), meta={})
        raise ZeroDivisionError
    assert "cannot save step 1" in error.value.__notes__[0]


def test_nothing_that_goes_wrong_is_lost(tmp_path, monkeypatch):
    """Not even what goes wrong while something else does."""
    def fail(*arguments, **options):
        raise FULL

    store = Checkpoints(tmp_path)
    monkeypatch.setattr(manager, "seal", fail)
    monkeypatch.setattr(Checkpoints, "_give_up", fail)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    store.save(1, ema=tree(1), meta={})
    with pytest.raises(OSError, match="No space left"):
        store.wait()


def test_what_fails_after_the_manifest_costs_no_checkpoint(tmp_path, monkeypatch):
    """Old ones may be gone by then: the new one, complete, must stay."""
    store = Checkpoints(tmp_path, keep=1)
    store.save(1, ema=tree(1), meta={})
    store.wait()
    retire = Checkpoints._retire

    def retire_and_fail(self, newest):
        retire(self, newest)
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_retire", retire_and_fail)
        store.save(2, ema=tree(2), meta={})
        with pytest.raises(CheckpointError, match="the last complete one is step 2"):
            store.wait()
    check(store, 2)


@pytest.mark.parametrize(("keep", "every", "wanted"), [(1, 0, [9]), (2, 4, [4, 8, 9]), (1, 3, [3, 6, 9]),
                                                       (3, 1, list(range(1, 10)))])  # fmt: skip
def test_retention(tmp_path, keep, every, wanted):
    store = Checkpoints(tmp_path, keep=keep, keep_every=every)
    for step in range(1, 10):
        store.save(step, ema={"step": jnp.int32(step)}, meta={})
    store.wait()
    assert store.steps() == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in wanted]


def test_keep_every_is_at_least_zero(tmp_path):
    with pytest.raises(ValueError, match="keep_every must be at least 0, not -1"):
        Checkpoints(tmp_path, keep_every=-1)


def test_no_thread_is_left_and_nobody_is_silenced(tmp_path):
    hook = sys.unraisablehook
    store, before = Checkpoints(tmp_path), threading.active_count()
    store.save(1, ema=tree(1), meta={})
    store.wait()
    assert not [thread for thread in threading.enumerate() if "save" in thread.name]
    assert threading.active_count() <= before + 2  # of pools that libraries keep
    assert logging.getLogger("absl").filters == []
    assert sys.unraisablehook == hook

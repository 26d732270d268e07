"""One tree in one file."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from causal_diffusion.checkpoint import load_tree, save_tree
from causal_diffusion.errors import CheckpointError
from tests.checkpoint.trees import META, assert_same, flip, like, make_tree


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

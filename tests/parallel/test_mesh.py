"""Meshes of every shape eight devices allow, and the batch on them."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    check_batch,
    global_batch,
    make_mesh,
    replicated,
)


@pytest.mark.parametrize(("data", "fsdp", "shape"), [
    (-1, 1, (8, 1)), (1, -1, (1, 8)), (2, -1, (2, 4)), (-1, 2, (4, 2)), (4, 2, (4, 2)), (8, -1, (8, 1)),
])
def test_shape(data, fsdp, shape):
    mesh = make_mesh(MeshConfig(data, fsdp))
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_one_device_is_a_mesh_of_one():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.devices.shape == (1, 1)
    batch = global_batch(mesh, {"video": np.ones((3, 2, 4, 4, 1), np.float32)})
    assert batch["video"].shape == (3, 2, 4, 4, 1)


@pytest.mark.parametrize(("config", "words"), [
    (MeshConfig(3, 2), ("data=3", "fsdp=2", "6", "8")),
    (MeshConfig(-1, 3), ("data=-1", "fsdp=3", "3", "8")),
    (MeshConfig(16, -1), ("data=16", "16", "8")),
    (MeshConfig(-1, -1), ("data=-1", "fsdp=-1", "one")),
    (MeshConfig(0, 8), ("data=0", "1 or more")),
    (MeshConfig(-2, 4), ("data=-2", "1 or more")),
])
def test_impossible_sizes_are_named(config, words):
    with pytest.raises(UserError) as error:
        make_mesh(config)
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(2, 4), MeshConfig(1, 8)])
def test_batch_is_split_over_all_devices_in_order(config):
    mesh = make_mesh(config)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    labels = np.arange(16, dtype=np.int32)
    batch = global_batch(mesh, {"video": rows, "label": labels})
    assert batch["video"].sharding == batch_sharding(mesh)
    np.testing.assert_array_equal(batch["video"], rows)
    np.testing.assert_array_equal(batch["label"], labels)
    assert batch["label"].dtype == np.int32
    for position, device in enumerate(mesh.devices.flat):
        (shard,) = [each for each in batch["video"].addressable_shards if each.device == device]
        np.testing.assert_array_equal(shard.data, rows[2 * position : 2 * position + 2])


def test_uneven_batch_is_named():
    mesh = make_mesh(MeshConfig(4, 2))
    with pytest.raises(UserError, match=r"batch 12 .* over 8 devices.*multiple of 8, such as 16"):
        global_batch(mesh, {"video": np.zeros((12, 1), np.float32)})
    with pytest.raises(UserError, match=r"train.batch 3 .*such as 8"):
        check_batch(mesh, 3, name="train.batch")
    check_batch(mesh, 24)


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="'label': 4"):
        global_batch(make_mesh(), {"video": np.zeros((8, 1)), "label": np.zeros(4)})


def test_replicated():
    array = jax.device_put(np.ones(3), replicated(make_mesh()))
    assert array.sharding.spec == PartitionSpec()
    assert array.is_fully_replicated and len(array.addressable_shards) == 8

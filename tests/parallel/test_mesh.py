"""Meshes of every shape eight devices allow, and the batch on them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, PartitionSpec

from causal_diffusion.errors import UserError
from causal_diffusion.parallel.mesh import (
    MeshConfig,
    arrange,
    batch_part,
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
    assert mesh.axis_names == ("data", "fsdp", "context", "tensor")
    assert mesh.devices.shape == (*shape, 1, 1)
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(("sizes", "shape"), [
    ((-1, 2, 2, 1), (2, 2, 2, 1)), ((2, 1, -1, 2), (2, 1, 2, 2)), ((1, 2, 2, -1), (1, 2, 2, 2)),
    ((1, 1, 8, 1), (1, 1, 8, 1)),
])
def test_four_axes_with_neighbours_on_the_last(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert mesh.devices.shape == shape and set(mesh.axis_types) == {AxisType.Auto}
    assert list(mesh.devices.flat) == jax.devices()


@dataclasses.dataclass(frozen=True)
class Fake:
    """As much of a device as an arrangement asks for."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"


def fakes(groups, each, attribute="process_index"):
    fields = [{"process_index": group, attribute: group} for group in range(groups) for _ in range(each)]
    return [Fake(i, **f) for i, f in enumerate(fields)]


def spans(arranged, attribute):
    """How many groups lie along each axis."""
    groups = np.vectorize(lambda d: getattr(d, attribute))(arranged)
    return tuple(len(set(np.moveaxis(groups, axis, 0)[:, 0, 0, 0])) for axis in range(4))


@pytest.mark.parametrize("attribute", ["process_index", "slice_index"])
@pytest.mark.parametrize(("groups", "each", "shape", "across"), [
    (2, 4, (2, 2, 2, 1), (2, 1, 1, 1)), (4, 8, (2, 16, 1, 1), (2, 2, 1, 1)), (4, 8, (4, 2, 2, 2), (4, 1, 1, 1)),
    (2, 4, (1, 8, 1, 1), (1, 2, 1, 1)), (2, 4, (1, 1, 4, 2), (1, 1, 2, 1)), (3, 4, (6, 1, 1, 2), (3, 1, 1, 1)),
    (8, 2, (2, 2, 2, 2), (2, 2, 2, 1)), (2, 2, (1, 1, 1, 4), (1, 1, 1, 2)),
])
def test_the_first_axes_span_groups(attribute, groups, each, shape, across):
    arranged = arrange(shape, fakes(groups, each, attribute))
    assert arranged.shape == shape and {d.id for d in arranged.flat} == set(range(groups * each))
    assert spans(arranged, attribute) == across


def test_groups_of_different_sizes_are_named():
    devices = fakes(2, 4)[:-1] + [Fake(7, 0)]
    with pytest.raises(UserError, match=r"the 8 devices lie in groups of \[3, 5\]"):
        arrange((8, 1, 1, 1), devices)


def test_hosts_of_one_tpu_slice_are_one_group(monkeypatch):
    devices, asked = [Fake(i, i // 4, 0, "tpu") for i in range(8)], []
    monkeypatch.setattr(mesh_utils, "create_device_mesh", lambda shape, devices, **_: asked.append((shape, devices)))
    arrange((2, 2, 2, 1), devices)
    assert asked == [((2, 2, 2, 1), devices)]


@dataclasses.dataclass(frozen=True)
class FakeMesh:
    devices: np.ndarray

    @property
    def shape(self):
        return dict(zip(("data", "fsdp", "context", "tensor"), self.devices.shape, strict=True))


@pytest.mark.parametrize(("shape", "parts"), [
    ((2, 2, 2, 1), [0, 1]), ((1, 8, 1, 1), [0, 1]), ((1, 1, 4, 2), [0, 0]), ((1, 1, 1, 8), [0, 0]),
    ((1, 2, 4, 1), [0, 1]),
])
def test_processes_that_share_rows_feed_the_same_part(monkeypatch, shape, parts):
    mesh = FakeMesh(arrange(shape, fakes(2, 4)))
    found = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(batch_part(mesh))
    assert found == [(part, len(set(parts))) for part in parts]


def test_rows_shared_in_part_are_refused():
    mesh = FakeMesh(arrange((2, 1, 6, 1), fakes(1, 12)))
    for device in range(12):  # three processes of four devices, two groups of six that share rows
        mesh.devices.reshape(-1)[device] = Fake(device, device // 4)
    with pytest.raises(UserError, match="some would share a part of their rows"):
        batch_part(mesh)


def test_one_device_is_a_mesh_of_one():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert mesh.devices.shape == (1, 1, 1, 1) and batch_part(mesh) == (0, 1)
    batch = global_batch(mesh, {"video": np.ones((3, 2, 4, 4, 1), np.float32)})
    assert batch["video"].shape == (3, 2, 4, 4, 1)


@pytest.mark.parametrize(("sizes", "words"), [
    ((3, 2), ("data=3", "fsdp=2", "6", "8")),
    ((-1, 3), ("data=-1", "fsdp=3", "3", "8")),
    ((16, -1), ("data=16", "16", "8")),
    ((-1, -1), ("data=-1", "fsdp=-1", "one")),
    ((0, 8), ("data=0", "1 or more")),
    ((-2, 4), ("mesh.data is -2", "try mesh.data = -1")),
])
def test_impossible_sizes_are_named(sizes, words):
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(*sizes))
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

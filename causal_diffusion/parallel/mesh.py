"""The device mesh, and how a batch lies on it.

Axes, in order, and what each one splits:

    data      the batch; parameters are repeated
    fsdp      the batch and the parameters (fully sharded data parallelism, ZeRO stage 3)
    context   the frames of a clip; parameters are repeated          (``context``)
    tensor    the heads and the width of the MLPs, and with them the parameters       (``rules``)

The later an axis, the more often its devices talk. So where devices come in groups with a slow network between them
(the slices of a TPU job; elsewhere the processes), the first axes span the groups: ``data`` as far as its size allows,
then ``fsdp``, ``context``, ``tensor``. With 4 groups of 8 devices, data=2 fsdp=16 spans them 2 x 2 and leaves fsdp 8
wide inside each.

One device is a mesh of one: the same code runs on a laptop and on a pod. All axes are Auto: the compiler places what is
not placed by hand. `jax.make_mesh` would make them Explicit.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from causal_diffusion.errors import UserError
from causal_diffusion.ranges import Range, check_numbers

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each axis, in devices. One may be -1: whatever the others leave.

    Raises:
      UserError: a size is neither positive nor -1, or two are -1.
    """

    data: int = -1  # copies of the parameters, each with its share of the batch
    fsdp: int = 1  # devices that share parameters and batch
    context: int = 1  # devices that share the frames of a clip
    tensor: int = 1  # devices that share the heads and the MLP

    def __post_init__(self):
        check_numbers(self, "mesh", UserError, **dict.fromkeys(AXES, Range(-1, 2**20)))
        odd = [axis for axis in AXES if getattr(self, axis) == 0]
        odd += [axis for axis in AXES if getattr(self, axis) == -1][1:]
        if odd:
            raise UserError(f"mesh {self.sizes}: a size must be 1 or more, and one of them may be -1 (whatever is "
                            f"left), try mesh.{odd[0]} = 1")  # fmt: skip

    @property
    def sizes(self) -> str:
        """'data=2, fsdp=4, ...', for messages."""
        return ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` (default: all devices on `data`) over `devices` (default: all of the job's).

    Raises:
      UserError: the sizes do not multiply to the number of devices, or groups of devices differ in size.
    """
    config = config or MeshConfig()
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    asked = f"mesh {config.sizes}"
    free = [axis for axis, size in sizes.items() if size == -1]
    given = math.prod(size for axis, size in sizes.items() if axis not in free)
    if free and len(devices) % given:
        raise UserError(f"{asked}: {given} does not divide the number of devices, {len(devices)}; mesh.{free[0]} = -1 "
                        f"with the others {math.gcd(given, len(devices))} in all would do")
    if not free and given != len(devices):
        raise UserError(f"{asked}: the sizes make {given}, but there are {len(devices)} devices; mesh.data = -1 takes "
                        "what the others leave")
    shape = tuple(len(devices) // given if axis in free else size for axis, size in sizes.items())
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as an array of `shape`, neighbours on the last axes; groups are spanned by the first ones.

    Raises:
      UserError: groups of devices differ in size.
    """
    groups, attribute = _groups(devices)
    if len(groups) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if len(set(groups.values())) > 1:
        raise UserError(f"the {len(devices)} devices lie in groups of {sorted(groups.values())}: a mesh needs as many "
                        "in each slice or process")
    across, left = [], len(groups)
    for size in shape:
        across.append(math.gcd(size, left))
        left //= across[-1]
    inside = [size // outer for size, outer in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inside, across, devices, process_is_granule=attribute == "process_index", allow_split_physical_axes=True
    )


def _groups(devices):
    """({group: number of its devices}, the attribute that tells them apart)."""
    attribute = "slice_index"
    if len({getattr(device, attribute, 0) for device in devices}) == 1 and devices[0].platform != "tpu":
        attribute = "process_index"  # a TPU slice is one fast network, whatever the number of its hosts
    of = [getattr(device, attribute, 0) for device in devices]
    return {group: of.count(group) for group in sorted(set(of))}, attribute


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch: split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def check_batch(mesh: Mesh, batch: int, *, name: str = "batch") -> None:
    """Raises UserError unless a global batch of this size splits evenly; `name` is what the user calls it."""
    parts = batch_parts(mesh)
    if batch < 1 or batch % parts:
        shape = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        near = max(parts, round(batch / parts) * parts)
        raise UserError(f"{name} {batch} cannot be split over {parts} devices ({shape}): "
                        f"it must be a multiple of {parts}, such as {near}")


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of a global batch this process feeds, and of how many: (index, count).

    Processes whose devices share rows, as where `context` or `tensor` spans processes, feed the same part.

    Raises:
      UserError: devices of two processes share some rows and not others.
    """
    rows = np.arange(batch_parts(mesh))
    rows = np.broadcast_to(rows.reshape(*mesh.devices.shape[:2], 1, 1), mesh.devices.shape)
    own: dict[int, set[int]] = {}
    for device, row in zip(mesh.devices.flat, rows.flat, strict=True):
        own.setdefault(device.process_index, set()).add(int(row))
    parts = sorted({tuple(sorted(part)) for part in own.values()})
    if sum(map(len, parts)) != rows.max() + 1 or len(set(map(len, parts))) > 1:
        shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise UserError(f"mesh {shape} over {len(own)} processes: some would share a part of their rows; context x "
                        "tensor must divide the devices of a process, or be a multiple of them")
    return parts.index(tuple(sorted(own[jax.process_index()]))), len(parts)


def gathered(tree: Any) -> Any:
    """Arrays whole in the memory of the host, numpy, on each process. Called by all processes alike."""
    def whole(array):
        if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def global_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """This process's rows -> the global batch on the mesh.

    Args:
      mesh: the mesh.
      batch: numpy arrays [rows of this process, ...], as many rows in each array and on each process: the part of
        the global batch that `batch_part` says.

    Raises:
      UserError: the global batch does not split evenly over the devices.
    """
    rows = {name: len(array) for name, array in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"the arrays of a batch must have as many rows each, not {rows}")
    check_batch(mesh, next(iter(rows.values())) * batch_part(mesh)[1])
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

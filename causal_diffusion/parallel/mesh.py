"""The device mesh, and how a batch lies on it.

Axes, in order: `data` splits the batch and repeats the parameters; `fsdp` splits both. So the batch is split
over all devices, and each `fsdp` group holds one copy of the parameters (fully sharded data parallelism, ZeRO
stage 3). One device is a mesh of one: the same code runs on a laptop and on a pod.

All axes are Auto: the compiler places what is not placed by hand. `jax.make_mesh` would make them Explicit.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from causal_diffusion.errors import UserError

AXES = ("data", "fsdp")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each axis, in devices. One may be -1: whatever the others leave."""

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` (default: all devices on `data`) over `devices` (default: all of the job's).

    Raises:
      UserError: a size is neither positive nor -1, two are -1, or the sizes do not multiply to the number of
        devices.
    """
    config = config or MeshConfig()
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    asked = "mesh " + ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for axis, size in sizes.items() if axis not in free):
        raise UserError(f"{asked}: a size must be 1 or more, and one of them may be -1 (whatever is left)")
    given = math.prod(size for axis, size in sizes.items() if axis not in free)
    if free and len(devices) % given:
        raise UserError(f"{asked}: {given} does not divide the number of devices, {len(devices)}")
    if not free and given != len(devices):
        raise UserError(f"{asked}: the sizes make {given}, but there are {len(devices)} devices")
    shape = tuple(len(devices) // given if axis in free else size for axis, size in sizes.items())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the batch: split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch: int, *, name: str = "batch") -> None:
    """Raises UserError unless a global batch of this size splits evenly; `name` is what the user calls it."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch < 1 or batch % parts:
        shape = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        near = max(parts, round(batch / parts) * parts)
        raise UserError(f"{name} {batch} cannot be split over {parts} devices ({shape}): "
                        f"it must be a multiple of {parts}, such as {near}")


def global_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """This process's rows -> the global batch on the mesh.

    Args:
      mesh: the mesh.
      batch: numpy arrays [rows of this process, ...], as many rows in each array and on each process. The
        global batch is the rows of process 0, then those of process 1, and so on.

    Raises:
      UserError: the global batch does not split evenly over the devices.
    """
    rows = {name: len(array) for name, array in batch.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"the arrays of a batch must have as many rows each, not {rows}")
    check_batch(mesh, next(iter(rows.values())) * jax.process_count())
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

"""Which device holds which part of a parameter.

Two steps, in order, per leaf of a pytree:

1. **A rule**: the first whose pattern, a regular expression, matches the end of the leaf's path (whole path
   components: ``embedding`` matches ``params/class/embedding``). A rule names a mesh axis, several, or None
   per dimension, aligned to the *last* dimensions: the axis that a layer scan puts in front stays whole.
2. **By size**: a leaf of `min_size` elements or more has its largest dimension that `fsdp` divides split over
   `fsdp` (the last of equals); all others are replicated.

A whole train state may be given. The path of an optimizer moment ends with its parameter's, and its shape is
the same, so both lie alike. Scalars are replicated.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = tuple[str | tuple[str, ...] | None, ...]

# Tables of classes and positions are small and looked up by row: split, they would cost a collective for each
# look-up. (A text encoder's vocabulary is large: give it rules of its own.) For kernels, size decides.
RULES: tuple[tuple[str, Axes], ...] = (
    ("embedding", ()),
)


def param_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Axes]] = RULES,
                    min_size: int = 2**18) -> Any:
    """The sharding of each leaf.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`: parameters, or a whole train state.
      mesh: a mesh; without an axis `fsdp`, step 2 replicates.
      rules: (pattern, axes of the last dimensions), first match wins.
      min_size: elements from which on a leaf is split by size: below, the traffic costs more than the memory.

    Returns:
      The same structure, of `jax.sharding.NamedSharding`.

    Raises:
      ValueError: a rule names an axis twice or one the mesh lacks, has more axes than the leaf dimensions, or
        splits a dimension unevenly. The message names the leaf.
    """
    def shard(keys, leaf) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        axes = next((axes for pattern, axes in rules if re.search(rf"(?:^|/)(?:{pattern})$", path)), None)
        if not leaf.shape:
            spec = PartitionSpec()
        elif axes is None:
            spec = _by_size(leaf.shape, mesh.shape.get("fsdp", 1), min_size)
        else:
            spec = _by_rule(path, leaf.shape, axes, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(shard, tree)


def _by_size(shape: tuple[int, ...], parts: int, min_size: int) -> PartitionSpec:
    divisible = [dim for dim, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < min_size or not divisible:
        return PartitionSpec()
    widest = max(divisible, key=lambda dim: (shape[dim], dim))
    return PartitionSpec(*(None,) * widest, "fsdp")


def _by_rule(path: str, shape: tuple[int, ...], axes: Axes, mesh: Mesh) -> PartitionSpec:
    if len(axes) > len(shape):
        raise ValueError(f"{path} has shape {shape}: its sharding rule {axes} has more dimensions")
    spec = (None,) * (len(shape) - len(axes)) + axes
    named = [(entry,) if isinstance(entry, str) else entry or () for entry in spec]
    used = [axis for group in named for axis in group]
    if len(set(used)) < len(used) or not set(used) <= set(mesh.axis_names):
        raise ValueError(f"{path}: its sharding rule {axes} must name axes of {mesh.axis_names}, each once")
    for size, group in zip(shape, named, strict=True):
        if size % (parts := math.prod(mesh.shape[axis] for axis in group)):
            raise ValueError(f"{path} has shape {shape}: its sharding rule {axes} splits {size} in {parts}")
    return PartitionSpec(*spec) if used else PartitionSpec()


class Placement(NamedTuple):
    """One leaf's row in the table of parameters."""

    path: str
    shape: tuple[int, ...]
    spec: str  # axes per dimension, such as "(None, 'fsdp')"; "replicated" if every device holds it whole
    bytes_per_device: int


def describe(tree: Any, shardings: Any) -> list[Placement]:
    """One row per leaf of `tree`, in its order: where it lies and what it costs each device."""
    rows = []
    for (keys, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings),
                                      strict=True):
        size = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        spec = "replicated" if sharding.is_fully_replicated else str(tuple(sharding.spec))
        rows.append(Placement(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf.shape, spec, size))
    return rows

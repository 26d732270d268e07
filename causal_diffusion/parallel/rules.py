"""Which device holds which part of a parameter.

Two tables, a few lines each: `RULES` gives the dimensions of a leaf names, `AXES` gives each name a mesh axis. Then,
per leaf of a pytree:

1. **A rule**: the first whose pattern, a regular expression, matches the end of the leaf's path (whole path
   components: ``embedding`` matches ``params/class/embedding``). It names the *last* dimensions: the axis that a layer
   scan puts in front stays whole.
2. **By size**: a leaf of `min_size` elements or more has the largest dimension that is left over and that `fsdp`
   divides split over `fsdp` (the last of equals). A rule without any name keeps its leaf whole.

Axes of size 1 split nothing and are left out. A whole train state may be given. The path of an optimizer moment ends
with its parameter's, and its shape is the same, so both lie alike. Scalars are replicated.

Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053): the first of two Linears is split by what comes
out, the second by what goes in, so that between them every device has heads, or a part of the MLP, to itself::

    q, k, v, mlp_in     kernel [D, heads | mlp]   bias [heads | mlp]
    o, mlp_out          kernel [heads | mlp, D]   bias [D]              one sum over `tensor` behind each
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Names = tuple[str | tuple[str, ...] | None, ...]

# Tables of classes and positions are small and looked up by row: split, they would cost a collective for each
# look-up. (A text encoder's vocabulary is large: give it rules of its own.) Only a transformer's blocks have names;
# autoencoders and judges are split by size alone, and `tensor` repeats them.
BLOCK = r"block(?:s|_\d+)/"
RULES: tuple[tuple[str, Names], ...] = (
    ("embedding", ()),
    (BLOCK + r"(?:\w+_)?attention/[qkv]/kernel", (None, "heads")),
    (BLOCK + r"(?:\w+_)?attention/[qkv]/bias", ("heads",)),
    (BLOCK + r"(?:\w+_)?attention/o/kernel", ("heads", None)),
    (BLOCK + r"(?:time_)?mlp_in/kernel", (None, "mlp")),
    (BLOCK + r"(?:time_)?mlp_in/bias", ("mlp",)),
    (BLOCK + r"(?:time_)?mlp_out/kernel", ("mlp", None)),
)

AXES: Mapping[str, str | tuple[str, ...]] = {"heads": "tensor", "mlp": "tensor"}


def param_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Names]] = RULES,
                    min_size: int = 2**18) -> Any:
    """The sharding of each leaf.

    Args:
      tree: pytree of arrays or `jax.ShapeDtypeStruct`: parameters, or a whole train state.
      mesh: a mesh, concrete or abstract; axes that it lacks split nothing, but a rule may not name them.
      rules: (pattern, names of the last dimensions), first match wins. A name is a key of `AXES`, a mesh axis, several
        of these, or None.
      min_size: elements from which on a leaf is split by size: below, the traffic costs more than the memory.

    Returns:
      The same structure, of `jax.sharding.NamedSharding`.

    Raises:
      ValueError: a rule names an axis twice or one the mesh lacks, has more names than the leaf dimensions, or
        splits a dimension unevenly. The message names the leaf.
    """
    def shard(keys, leaf) -> NamedSharding:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        names = next((names for pattern, names in rules if re.search(rf"(?:^|/)(?:{pattern})$", path)), None)
        groups = [()] * len(leaf.shape)
        if leaf.shape and names is not None:
            groups = _by_rule(path, leaf.shape, names, mesh)
        if names is None or any(names):
            stacked = len(leaf.shape) - len(names) if names else 0
            groups = _by_size(leaf.shape, groups, mesh.shape.get("fsdp", 1), min_size, stacked)
        return NamedSharding(mesh, _spec(groups))

    return jax.tree_util.tree_map_with_path(shard, tree)


def _by_size(shape, groups, parts, min_size, stacked):
    """`groups`, the axes of each dimension, with `fsdp` added where the leaf is large and not on it yet.

    The first `stacked` dimensions, which a rule did not name, are those of a layer scan: split, every layer would have
    to be fetched from the one device that holds it.
    """
    open_to = [dim for dim, size in enumerate(shape) if dim >= stacked and size % parts == 0 and not groups[dim]]
    if parts == 1 or math.prod(shape) < min_size or not open_to or any("fsdp" in group for group in groups):
        return groups
    widest = max(open_to, key=lambda dim: (shape[dim], dim))
    return [("fsdp",) if dim == widest else group for dim, group in enumerate(groups)]


def _by_rule(path: str, shape: tuple[int, ...], names: Names, mesh: Mesh):
    """The axes of each dimension, those of size 1 left out."""
    if len(names) > len(shape):
        raise ValueError(f"{path} has shape {shape}: its sharding rule {names} has more dimensions")
    groups = [_axes(name) for name in (None,) * (len(shape) - len(names)) + tuple(names)]
    used = [axis for group in groups for axis in group]
    if len(set(used)) < len(used) or not set(used) <= set(mesh.axis_names):
        raise ValueError(f"{path}: its sharding rule {names} must name axes of {mesh.axis_names}, each once, or "
                         f"{', '.join(AXES)}")
    for size, group in zip(shape, groups, strict=True):
        if size % (parts := math.prod(mesh.shape[axis] for axis in group)):
            raise ValueError(f"{path} has shape {shape}: its sharding rule {names} splits {size} in {parts}")
    return [tuple(axis for axis in group if mesh.shape[axis] > 1) for group in groups]


def _axes(name) -> tuple[str, ...]:
    """A name, several or None -> mesh axes."""
    if isinstance(name, tuple):
        return tuple(axis for each in name for axis in _axes(each))
    axes = AXES.get(name, name)
    return (axes,) if isinstance(axes, str) else axes or ()


def _spec(groups) -> PartitionSpec:
    """Without the dimensions at the end that nothing splits."""
    last = max((dim + 1 for dim, group in enumerate(groups) if group), default=0)
    return PartitionSpec(*(group[0] if len(group) == 1 else tuple(group) or None for group in groups[:last]))


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

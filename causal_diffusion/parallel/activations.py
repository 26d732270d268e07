"""Which device holds which part of what flows through a network.

Tokens are [B, T, N, D], T frames of N tokens, heads [B, T, N, H, K]. On a mesh they lie as `AXES` says: samples over
`data` and `fsdp`, frames over `context`, heads and the hidden width of an MLP over `tensor`. The tokens of a frame stay
together, always: where they are split and then flattened with the frames, XLA's partitioner gives wrong gradients
without a word (tests/parallel/test_trap.py).

`constrain` is a hint to the compiler about the mesh that is set (`jax.set_mesh`). Where none is, or where it does not
have the axes, the network is what it is without.
"""

import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec

AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "frames": ("context",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "all heads": ("tensor", "context"),  # of all frames, see `attended`
}


def mesh_axis(axis: str) -> int:
    """Devices along an axis of the mesh that is set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get(axis, 1)


def constrain(x, *names: str | None):
    """`x` with its dimensions placed: a key of `AXES` for each, None for one that stays whole.

    Names for the first dimensions will do. A dimension that its axes do not divide stays whole, too. Does nothing where
    no mesh is set, where it has none of the axes, and to None.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if x is None or mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(x.shape, names, mesh))


def spec_of(shape, names, mesh) -> PartitionSpec:
    """Where `constrain` places an array of a shape."""
    spec = []
    for size, name in zip(shape, names, strict=False):
        axes = tuple(axis for axis in AXES.get(name, ()) if mesh.shape.get(axis, 1) > 1)
        spec.append(axes if axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None)
    return PartitionSpec(*spec)


def parts(shape, *names: str | None) -> int:
    """Into how many parts `constrain` would cut an array of a shape."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    split = ((axes,) if isinstance(axes, str) else axes or () for axes in spec_of(shape, names, mesh))
    return math.prod(mesh.shape[axis] for axes in split for axis in axes)


def tokens(x):
    """Tokens [B, T, N, D], or what there is of each frame, [B, T, ...]: whole frames are split over `context`."""
    return constrain(x, "batch", "frames")


def attended(queries, keys, values):
    """Lists of queries, keys and values, each [B, T, N, H, K], placed for attention along frames.

    Every query needs the keys of all frames. Where heads divide, each device of `context` gets all frames of a part of
    the heads, in one exchange of all with all (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509); then every
    device has as much to do as the others. Else it keeps its queries, and gathers all keys and values.
    """
    heads = _axes_of(queries[0].shape[3])
    asking, seen = ("batch", "frames" if heads == "heads" else None, None, heads), ("batch", None, None, heads)
    return tuple([constrain(x, *place) for x in xs]
                 for xs, place in ((queries, asking), (keys, seen), (values, seen)))


def attended_by_head(x):
    """Keys or values [B, H, T, N, K], placed as ``attended`` places those of every frame."""
    return constrain(x, "batch", _axes_of(x.shape[1]))


def _axes_of(heads: int) -> str:
    """What heads are to ``AXES`` while they attend."""
    return "all heads" if mesh_axis("context") > 1 and not frames_stay_split(heads) else "heads"


def frames_stay_split(heads: int) -> bool:
    """Whether queries of ``heads`` heads are split over ``context`` by frame while they attend; see ``attended``."""
    shards = mesh_axis("context")
    return shards > 1 and heads % (shards * mesh_axis("tensor")) != 0


def by_frame(x):
    """Heads [B, T, N, H, K] of every frame where its tokens are."""
    return constrain(x, "batch", "frames", None, "heads")

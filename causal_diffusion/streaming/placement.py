"""A stream on a mesh: samples over ``data`` and ``fsdp``, heads over ``tensor``, what is cached with them.

    state, conditions, decoder      [B or BG, ...]              (batch)
    keys, values, queries           [BG, W, N, H, K]            (batch, whole, whole, tensor)
    keys, values, heads first       [BG, H, W, N, K]            (batch, tensor)

Slots are never split: they move in time, heads do not. Guidance branches lie innermost in BG, so a device has all
branches of its samples. What an axis does not divide is whole on each of its devices. Parameters lie as in training.
"""

import functools
import logging

import jax

from causal_diffusion.compatibility.mesh import check_attention, check_heads
from causal_diffusion.nn.vae import Codec
from causal_diffusion.parallel.activations import constrain, spec_of
from causal_diffusion.parallel.mesh import BATCH_AXES, MeshConfig, batch_parts, make_mesh, replicated
from causal_diffusion.parallel.rules import param_shardings

log = logging.getLogger(__name__)


def as_mesh(mesh, model):
    """A mesh, a MeshConfig or None -> a mesh or None.

    UserError where the heads of ``model`` do not divide, or its attention does not run there.
    """
    if isinstance(mesh, MeshConfig):
        mesh = make_mesh(mesh)
    check_attention(model, jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)
    if mesh is not None:
        check_heads(model, mesh)
    return mesh


def placing(mesh):
    """Shapes of parameters -> their shardings, for ``read_ema``; None without a mesh."""
    return None if mesh is None else functools.partial(param_shardings, mesh=mesh)


def put_params(params, codec: Codec | None, mesh):
    """(parameters as in training, an autoencoder with its own on every device)."""
    if mesh is None:
        return params, codec
    params = jax.device_put(params, param_shardings(params, mesh))
    return params, None if codec is None else codec._replace(params=jax.device_put(codec.params, replicated(mesh)))


def put(tree, mesh, ahead: int = 0):
    """Arrays of a stream to where they lie; ``ahead``: how many axes stand in front of their batch."""
    if mesh is None:
        return tree

    def place(keys, leaf):
        names = (None,) * ahead + _names(keys, leaf)
        return jax.device_put(leaf, jax.NamedSharding(mesh, spec_of(leaf.shape, names, mesh)))

    return jax.tree_util.tree_map_with_path(place, tree)


def compiled(function, mesh, *, first=None, donate=()):
    """``jax.jit(function)``; on a mesh what comes out is placed.

    ``first``: of a tuple that comes out, the number of parts that are of the stream; the others have an axis in front
    of the batch. None: all of it is.
    """
    if mesh is None:
        return jax.jit(function, donate_argnums=donate)

    def placed(*args):
        out = function(*args)
        if first is None:
            return _constrained(out)
        rest = jax.tree.map(lambda a: constrain(a, None, "batch"), tuple(out[first:]))
        return (*map(_constrained, out[:first]), *rest)

    placed.__name__ = function.__name__
    return _OnMesh(jax.jit(placed, donate_argnums=donate), mesh)


class _OnMesh:
    """A jitted function under a mesh."""

    def __init__(self, program, mesh):
        self._program, self._mesh = program, mesh

    def __call__(self, *args):
        with jax.set_mesh(self._mesh):
            return self._program(*args)

    def lower(self, *args):
        """As ``jax.jit``'s."""
        with jax.set_mesh(self._mesh):
            return self._program.lower(*args)


def say_if_whole(batch: int, mesh) -> None:
    """Logs a line where the batch does not divide."""
    parts = 1 if mesh is None else batch_parts(mesh)
    if batch % parts:
        shape = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH_AXES)
        log.warning("a batch of %d does not divide over %s devices: each of them holds and computes all of it; a "
                    "multiple of %d would be split", batch, shape, parts)  # fmt: skip


def _constrained(tree):
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: constrain(leaf, *_names(keys, leaf)), tree)


def _names(keys, leaf):
    """What the dimensions of a leaf of a stream's state or condition are, for ``activations``."""
    inside = {getattr(key, "name", None) for key in keys}
    if leaf.ndim == 5 and inside & {"caches", "keys", "values"}:
        return ("batch", "heads") if "array" in inside else ("batch", None, None, "heads")  # of a HeadsFirst
    return ("batch",) if leaf.ndim else ()

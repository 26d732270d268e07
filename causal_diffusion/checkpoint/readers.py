"""What reads the checkpoints of a run without being part of it. Every process reads for itself."""

import logging
import os

import jax

from causal_diffusion.checkpoint.manager import Checkpoints, Restored
from causal_diffusion.checkpoint.paths import as_path
from causal_diffusion.file_access import is_dir
from causal_diffusion.seeds import random_key

log = logging.getLogger(__name__)


def read_meta(directory: str | os.PathLike, step: int | None = None) -> Restored:
    """Reads step, meta and data alone, verified: enough to build the model that the weights belong to."""
    return Checkpoints(directory, alone=True).restore({}, step=step)


def folder_of(path: str | os.PathLike):
    """Where the checkpoints of a run are: in its workdir, or the folder itself."""
    path = as_path(path)
    return path / "checkpoints" if is_dir(path / "checkpoints") else path


def beside(directory, name: str):
    """A folder of the workdir that a folder of checkpoints is in."""
    return directory.parent / name if directory.name == "checkpoints" else directory / name


def read_ema(directory: str | os.PathLike, init, step: int | None = None, place=None):
    """The averaged weights of the newest intact checkpoint; newer damaged ones are logged.

    Args:
      init: key -> fresh weights, the shapes of those wanted.
      step: a certain checkpoint instead of the newest.
      place: shapes -> their shardings, so that no device holds more than its part; None: whole on the first device.
    """
    like = jax.eval_shape(init, random_key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda a: device, like) if place is None else place(like)
    like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings)
    restored = Checkpoints(directory, alone=True).restore({"ema": like}, step=step)
    for skipped, reason in restored.skipped:
        log.warning("checkpoint %d is damaged (%s): using %d", skipped, reason, restored.step)
    return restored.ema

"""A small VAE in Wan's form, what it means that weights came back, and a pickle with code."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig

SMALL = VAE(
    VAEConfig("video", video=VideoVAEConfig(base=4, latent=2, multipliers=(1, 2), time_down=(True,), blocks=1)),
    mean=(0.5, -1.0), std=(2.0, 0.25),
)  # fmt: skip


def same_tree(a, b):
    """Two trees of float32 arrays have the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)

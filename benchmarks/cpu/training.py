"""A training step of teacher forcing, AdamW and all, against PyTorch with a dense mask and our own dense attention."""

import functools

import jax
import numpy as np

from benchmarks import paired
from benchmarks.systems import OWN, backend, network, random_params, squares, system
from causal_diffusion.nn.embedders import patchify
from causal_diffusion.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from causal_diffusion.training.state import abstract_state, sharded_state
from causal_diffusion.training.step import compile_step

TRAIN = OWN | {
    "layout.kind": "teacher_forcing", "layout.block": 1, "levels.kind": "independent", "levels.density": "uniform",
    "model.dtype": "float32", "train.decay": "constant", "train.warmup": 0, "train.lr": 1e-4, "train.batch": 2,
}  # fmt: skip
SIZES = {
    "full": system(TRAIN, squares(8, 4), network(256, 6, 4), {"data.frames": 16}),
    "tiny": system(TRAIN, squares(2, 2), network(16, 2, 2), {"data.frames": 4}),
}


class Ours:
    """Our training step, compiled, and the state that it is at."""

    def __init__(self, config, params=None):
        self.recipe, mesh = build(config), make_mesh(MeshConfig(), jax.devices()[:1])
        self.step_fn = compile_step(self.recipe, mesh)
        self.state = sharded_state(self.recipe, mesh, 0)
        if params is not None:
            shardings = abstract_state(self.recipe, mesh)[1]
            both = {name: jax.device_put(params, getattr(shardings, name)) for name in ("params", "ema")}
            self.state = jax.tree.map(jax.numpy.copy, self.state)
            self.state = self.state.__class__(**(vars(self.state) | both))
        shape = (config.train.batch, self.recipe.frames, *self.recipe.frame_shape)
        video = np.random.default_rng(0).standard_normal(shape, np.float32)
        batch = {"video": video, "index": np.arange(len(video), dtype=np.int32)}
        self.batch = jax.device_put(batch, batch_sharding(mesh))

    def step(self):
        """One update; returns the loss."""
        self.state, metrics = self.step_fn(self.state, self.batch)
        return float(metrics["loss"])


def draws(recipe, batch, key):
    """Levels [B, T] and noise like the clips, as ``diffusion_loss`` draws them."""

    def one(index):
        keys = jax.random.split(jax.random.fold_in(key, index), 6)
        level = recipe.levels.sample(keys[0], recipe.frames)[0]
        return level, jax.random.normal(keys[1], batch["video"].shape[1:])

    return jax.vmap(one)(batch["index"])

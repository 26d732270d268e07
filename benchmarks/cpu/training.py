"""A training step of teacher forcing, AdamW and all, against PyTorch with a dense mask and our own dense attention."""

import dataclasses
import functools

import jax
import numpy as np

from benchmarks import paired
from benchmarks.rows import Figure
from benchmarks.systems import OWN, backend, config_hash, network, random_params, squares, system
from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.cost import training_cost
from causal_diffusion.data.pipeline import batch_spec
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
            self.state = dataclasses.replace(self.state, **both)
        rng, batch = np.random.default_rng(0), {}
        for name, leaf in batch_spec(clip_shapes(config), config.train.batch).items():
            batch[name] = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        batch["index"] = np.arange(config.train.batch, dtype=np.int32)
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


def checked(recipe, ours: Ours, peer, params) -> float:
    """The largest difference of a gradient's leaf from the peer's, as a share of it; Unequal above 1e-4."""
    import torch

    from benchmarks.peers.training import gradients

    key = ours.state.key
    level, noise = jax.jit(functools.partial(draws, recipe))(ours.batch, key)
    tokens = functools.partial(as_tokens, recipe)
    loss = peer.loss(tokens(ours.batch["video"]), torch.from_numpy(np.array(level)), tokens(noise))
    loss.backward()
    theirs = gradients(peer.network)
    value, mine = jax.jit(jax.value_and_grad(lambda p: diffusion_loss(recipe, p, ours.batch, key)[0]))(params)
    paired.difference(value, loss.detach().numpy(), "the loss")
    whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(theirs)))

    def apart(mine, theirs):
        return float(np.linalg.norm(mine - theirs) / (np.linalg.norm(theirs) + 1e-3 * whole))

    worst = max(jax.tree.leaves(jax.tree.map(apart, mine, theirs)))
    if not worst <= 1e-4:
        raise paired.Unequal(f"a gradient differs by {worst:.1e} of its norm, more than 1e-4")
    return worst


def as_tokens(recipe, x):
    """Data [B, T, *space, C] as a tensor of tokens."""
    import torch

    return torch.from_numpy(np.array(patchify(x, recipe.model.config.patch)))


def run(pairs: int, size: str) -> dict:
    """d = 256, 6 layers, 16 blocks of 64 tokens, two clips."""
    from benchmarks.peers.training import Trainer

    config = backend(SIZES[size], "blockwise")
    recipe = build(config)
    params = random_params(recipe)
    ours, own_dense = Ours(config, params), Ours(backend(config, "reference"), params)
    peer = Trainer(recipe, params)
    difference = checked(recipe, ours, peer, params)
    x0 = as_tokens(recipe, ours.batch["video"])
    sides = {"ours": ours.step, "PyTorch, dense mask": lambda: peer.step(x0), "our dense": own_dense.step}
    for step in sides.values():
        step()
    seconds = paired.interleave(sides, pairs, lead_in=0)
    figures = [
        Figure.of("PyTorch, dense mask / ours", paired.ratio(seconds, "PyTorch, dense mask"), asked=("low", ">=", 1.0)),
        Figure.of("our dense / ours", paired.ratio(seconds, "our dense"), asked=("value", ">=", 2.0)),
        *(Figure(f"{name}, a step", 1e3 * float(np.median(times)), "ms") for name, times in seconds.items()),
    ]
    flops = training_cost(recipe).flops
    return {"figures": figures, "config": config_hash(config), "flops": flops, "difference": difference}

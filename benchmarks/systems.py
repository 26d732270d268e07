"""The systems that are measured, as configs: a full size each, and a tiny one at which the same code runs in a test."""

import hashlib

import jax
import numpy as np

from causal_diffusion.config import Config, override, to_json
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

OWN = {"data.source": "own", "process.path": "linear", "process.predict": "velocity", "evaluate.clips": 0}
STREAM = OWN | {
    "layout.kind": "teacher_forcing", "layout.block": 1, "schedule.offset": "autoregressive", "solver.kind": "euler",
    "cache.kind": "kv", "cache.commit": "separate", "model.dtype": "float32",
}  # fmt: skip


def squares(side: int, channels: int) -> dict:
    """Frames of side x side tokens, each of 2 x 2 ``channels`` numbers."""
    return {
        "data.height": 2 * side, "data.width": 2 * side, "data.channels": channels,
        "model.channels": channels, "model.patch": (1, 2, 2),
    }  # fmt: skip


def network(width: int, depth: int, heads: int) -> dict:
    """Sizes of a transformer with a feed-forward four times as wide."""
    return {"model.width": width, "model.depth": depth, "model.heads": heads, "model.mlp": 4 * width}


def system(*changes: dict) -> Config:
    """A config: the defaults, and what each of ``changes`` changes."""
    merged = {}
    for change in changes:
        merged |= change
    return override(Config(), merged)


def backend(config: Config, name: str) -> Config:
    """The same with another attention."""
    return override(config, {"model.backend": name})


def config_hash(config: Config) -> str:
    """Eight hexadecimal digits that name a config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:8]


def random_params(recipe, seed: int = 0):
    """Parameters none of which is zero, in canonical form, float32: products keep the size of what goes in."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        value = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return value / np.float32(np.sqrt(leaf.shape[-2]))
        return np.float32(path[-1].key == "scale") + np.float32(0.1) * value

    shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_pipeline(config: Config) -> Pipeline:
    """A pipeline with ``random_params``."""
    return Pipeline(config, random_params(build(config)))

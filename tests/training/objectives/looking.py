"""The objective, looked at through a network that notes what it is shown and answers what it is told to."""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.config import freeze
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import diffusion_loss

B, T = 6, 4
SOME, MANY = 64, 2000
CONTEXT = dict(levels=dict(context=0.3))


def recipe_of(**sections):
    sections = {name: dict(values) for name, values in sections.items()}
    data = dict(source="own", frames=T, height=4, width=4, channels=1, classes=5, action_dim=2)
    model = dict(width=8, depth=1, heads=2, mlp=8, patch=(1, 4, 4), channels=1, classes=5, action=2, text=3)
    sections["data"] = data | sections.get("data", {})
    sections["model"] = model | sections.get("model", {})
    sections["train"] = dict(drop=0.0) | sections.get("train", {})
    sections["evaluate"] = dict(clips=0)
    return build(freeze(sections))


def batch_of(size=B, seed=0, frames=T):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.uniform(-1, 1, (size, frames, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, 5, size).astype(np.int32),
        "action": rng.standard_normal((size, frames, 2)).astype(np.float32),
        "text": rng.standard_normal((size, 2, 3)).astype(np.float32) + 5.0,
        "text_mask": rng.random((size, 2)) < 0.5,
        "index": np.arange(size, dtype=np.int32) + 100,
    }


class Network:
    """Stands in for the transformer: ``answer(stream)`` is its output for each stream."""

    def __init__(self, recipe, answer=lambda name, stream: jnp.zeros_like(stream.x)):
        self.config, self.answer, self.seen = recipe.model.config, answer, None

    def apply(self, variables, streams, condition, mask, prefix_mask=None):
        self.seen, self.prefix_mask = (streams, condition, mask), prefix_mask
        return {name: self.answer(name, stream) for name, stream in streams.items()}, None


def look(recipe, batch, key=7, answer=None, compiled=False):
    """(streams, condition, mask, loss, metrics) of one call.

    One operation at a time, as most of these were compiled by the test before; ``compiled`` is quicker for a rare one.
    """
    network = Network(recipe, answer) if answer else Network(recipe)

    def run(batch):
        loss, metrics = diffusion_loss(recipe._replace(model=network), {}, batch, jax.random.key(key))
        streams, condition, mask = network.seen
        return list(streams.values()), condition, mask, loss, metrics

    streams, *rest = (jax.jit(run) if compiled else run)(batch)
    return dict(zip(network.seen[0], streams, strict=True)), *rest


def beside(t):
    return np.asarray(t)[..., None, None, None]


def noise_in(stream, x0):
    """eps of x_t = (1 - t) x0 + t eps."""
    t = beside(stream.t)
    return (np.asarray(stream.x) - (1 - t) * x0) / t


def one_block_context(**levels):
    """A single stream in which some frames of every clip are shown as context: independent levels, half of them."""
    return recipe_of(layout=dict(kind="block_causal"), levels=dict(clean=0.5, **levels))

"""Whole streams against an oracle that keeps no cache: it recomputes everything that a block can see, at every step.

The oracle shares with the library the network, the layout's predicate and the schedule's matrix and times, each
of which has tests of its own, and nothing of ``streaming`` or ``cache``.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import CLEAN, NOISY, Ids
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, stream, condition, mask):
    return model.apply({"params": params}, {"all": stream}, condition, mask)[0]["all"]


class Oracle:
    """Frames of a whole stream as one NumPy array, committed ones and ones in flight alike."""

    def __init__(self, pipe, seed, batch, cond, context, frames):
        self.recipe, self.params, self.batch = pipe.recipe, pipe.params, batch
        self.block, self.context = self.recipe.layout.block, context.shape[1]
        self.blocks = -(-frames // self.block)
        total = self.context + self.blocks * self.block
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(batch)]
        self.start, self.dirt = (
            np.concatenate([self.noise(keys, b, use) for b in range(total // self.block)], axis=1) for use in (0, 1)
        )
        self.x = self.start.copy()
        self.x[:, : self.context] = context
        self.cond, self.action = cond, None
        if self.recipe.model.config.action:
            self.action = np.concatenate([cond["context_action"], cond["action"]], axis=1)[:, :total]

    def noise(self, keys, block, use):
        """A block's noise, from the sample's key, the block's index in time and what it is for."""
        shape = (self.block, *self.recipe.frame_shape)
        return np.stack(
            [jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, block), use), shape) for key in keys]
        )

    def condition(self, branch):
        """What a guidance branch is told of class and text."""
        model, none = self.recipe.model.config, Condition()
        if not model.classes:
            return none
        label = np.asarray(self.cond["label"])[:, None]
        text = self.cond["text"][:, None]
        return Condition(
            label=jnp.asarray(np.full_like(label, -1) if "label" in branch.drop else label),
            text=jnp.asarray(np.zeros_like(text) if "text" in branch.drop else text),
            text_mask=jnp.asarray(self.cond["text_mask"][:, None]),
        )

    def predict(self, live, level, clean):
        """Mixed network output for every frame, given the frames in flight, their times, and what is clean.

        Args:
            live, clean: bool [T]; frames that are neither do not exist yet.
            level: float [T], times of live frames.
        """
        recipe, T = self.recipe, self.x.shape[1]
        frame = np.arange(T)
        commit = np.where(frame < recipe.layout.sinks, 0.0, recipe.cache.commit_level)  # sinks stay clean
        noised = (1 - commit)[:, None, None, None] * self.x + commit[:, None, None, None] * self.dirt
        x = np.where(clean[:, None, None, None], noised, self.x)
        ids = Ids(np.where(clean, CLEAN, NOISY), np.where(clean | live, frame, -1))
        mask = recipe.layout.visible(ids, ids) | (np.eye(T, dtype=bool) & ~(clean | live))
        t = np.where(clean, commit, level)
        out = 0
        for branch in recipe.guidance.branches():
            told = None if self.action is None else np.broadcast_to("action" not in branch.drop, (self.batch, T))
            stream = Stream(
                x=jnp.asarray(x, jnp.float32),
                t=jnp.asarray(np.broadcast_to(t, (self.batch, T)), jnp.float32),
                frame=jnp.asarray(np.broadcast_to(frame, (self.batch, T)), jnp.int32),
                action=None if self.action is None else jnp.asarray(self.action),
                action_given=None if told is None else jnp.asarray(told),
            )
            one = forward(recipe.model, self.params, stream, self.condition(branch), jnp.asarray(mask))
            out = out + branch.weight * np.asarray(one, np.float64)
        return out

    def velocity(self, out, t):
        """dx/dt on the linear path, where x = (1 - t) x0 + t eps."""
        return {
            "velocity": lambda: out,
            "x0": lambda: (self.x - out) / t,
            "noise": lambda: (out - self.x) / (1 - t),
        }[self.recipe.process.predict]()

    def run(self):
        """All new frames, row by row of the schedule's matrix."""
        levels = self.recipe.schedule.matrix(self.blocks)
        times = self.recipe.schedule.times()
        given = np.zeros((len(levels), self.context), int)
        levels = np.concatenate([given, np.repeat(levels, self.block, axis=1)], axis=1)
        for now, then in zip(levels[:-1], levels[1:], strict=True):
            live = then < now
            t, s = times[now], times[then]
            out = self.predict(live, t, clean=now == 0)
            wide = np.where(live, t, 0.5)[:, None, None, None]
            moved = self.x + (s - t)[:, None, None, None] * self.velocity(out, wide)
            self.x = np.where(live[:, None, None, None], moved, self.x).astype(np.float32)
        return self.x[:, self.context :]


@pytest.mark.parametrize(
    "name", ["teacher", "pyramid", "rolling", "causal", pytest.param("uneven", marks=pytest.mark.full)]
)
def test_streams_equal_the_oracle_without_a_cache(pipeline, inputs, name):
    """More than three windows long, from given frames or from none, under every condition that the system takes."""
    pipe = pipeline(name)
    layout = pipe.recipe.layout
    frames = 3 * layout.window + 2 * layout.block
    given = inputs(pipe, batch=2, context=0 if name == "causal" else 2 * layout.block, frames=frames)
    streamed = pipe.generate(seed=5, frames=frames, **given)
    expected = Oracle(pipe, 5, frames=frames, **given).run()
    assert streamed.shape == expected.shape
    largest = np.abs(expected).max(axis=(0, 2, 3, 4))
    assert (largest > 0.1).all() and (largest < 100).all()  # it neither dies nor explodes
    error = np.abs(streamed - expected).max(axis=(0, 2, 3, 4)) / largest.max()
    assert error.max() < 1e-5, error

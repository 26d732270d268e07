"""How the frames of a stream are shown to the network: fresh noise, and finished frames at the level that they keep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion.diffusion.guidance import Branch
from causal_diffusion.recipe import Recipe

Array = Any


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pure functions of a recipe.

    recipe: with unrolled layers, see ``Recipe.streaming``.
    full: whether every sample's ring is full whenever they run (``visible``), so that masks need not be traced.
    """

    recipe: Recipe
    full: bool = False

    @property
    def block(self) -> int:
        """Frames per block."""
        return self.recipe.layout.block

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The guidance branches, G of them."""
        return self.recipe.guidance.branches()

    def noise(self, keys, frame, use, blocks, visit=0):
        """Noise of ``blocks`` blocks from frame ``frame`` [B] on, [B, blocks b, ...], for ``use``.

        ``visit`` int [blocks] tells apart draws of the same block for the same use.
        """
        b = self.block

        def one(key, block, visit):
            key = jax.random.fold_in(jax.random.fold_in(key, block), use)
            return jax.random.normal(jax.random.fold_in(key, visit), (b, *self.recipe.frame_shape))

        visit = jnp.broadcast_to(jnp.asarray(visit), (blocks,))
        index = self.recipe.layout.block_of(frame)[:, None] + jnp.arange(blocks, dtype=jnp.int32)
        noise = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, 0, None))(keys, index, visit)
        return noise.reshape(len(keys), blocks * b, *self.recipe.frame_shape)

    def _shown_at(self, frame):
        """(level at which committed frames are shown, level that the network is told), float32 like ``frame``."""
        cache, layout = self.recipe.cache, self.recipe.layout
        # Sinks stay clean, as in training.
        level = jnp.where(frame < layout.sinks - layout.pad, 0.0, cache.commit_level)
        if cache.commit_label == "fixed":
            return level, jnp.full_like(level, cache.commit_label_at)
        return level, self.recipe.process.label(level)

    @property
    def _noised(self) -> bool:
        """Whether finished frames are ever shown with noise."""
        cache, keeps_nothing = self.recipe.cache, self.recipe.cache.kind == "none"
        by_level = cache.commit_level > 0.0 or any(branch.level > 0.0 for branch in self.branches)
        return by_level or keeps_nothing and any(branch.past >= 0 for branch in self.branches)

    def _branch_levels(self, frame, branches, start=None):
        """As ``_shown_at``, of every branch: both [B, G, T]. Frames before ``start`` - past are hidden by noise."""
        base, base_told = self._shown_at(frame)
        levels, told = [], []
        for branch in branches:
            level = base
            if branch.level:
                level = jnp.maximum(level, branch.level)
            if start is not None and branch.past >= 0:
                level = jnp.where(frame < start[:, None] - branch.past, 1.0, level)
            levels.append(level)
            told.append(jnp.where(level > base, self.recipe.process.label(level), base_told))
        return jnp.stack(levels, axis=1), jnp.stack(told, axis=1)

    def _show(self, frames_x, noise, level):
        """Finished frames [B, T, ...] as every branch sees them at its level [B, G, T]: [B, G, T, ...]."""
        x, eps = (jnp.broadcast_to(a[:, None], (*level.shape[:2], *a.shape[1:])) for a in (frames_x, noise))
        if not self._noised:
            return x
        process, cache = self.recipe.process, self.recipe.cache
        shown = process.show(x, eps, level, cache.commit_data)
        # What guidance hides, it hides by noise, whatever is done to the past else.
        usual = (level <= cache.commit_level).reshape(level.shape + (1,) * (x.ndim - level.ndim))
        return shown if cache.commit_data == "noised" else jnp.where(usual, shown, process.corrupt(x, eps, level))

    def _shown(self, state, branches):
        """The remembered frames as every branch sees them: (x [B, G, W, ...], levels and labels [B, G, W])."""
        start = state.frame if self.recipe.cache.kind == "none" else None
        level, told = self._branch_levels(state.slots.frame, branches, start)
        latents = state.memory["latents"]
        return self._show(latents, state.memory.get("noise", jnp.zeros_like(latents)), level), level, told

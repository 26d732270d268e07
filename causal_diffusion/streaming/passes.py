"""Passes of the network over a stream: predicting blocks in flight, and committing finished ones to the cache.

The past is read from keys and values (cache kind 'kv'), or, with kind 'none', the remembered frames run through the
network beside the blocks in flight every time, under the condition of the oldest of these. Leading axes called BG are
batch x guidance branches, branches innermost.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from causal_diffusion import cache as caching
from causal_diffusion.diffusion.guidance import Branch
from causal_diffusion.layout import CLEAN, Ids
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import EncodedCondition, Stream
from causal_diffusion.recipe import Recipe
from causal_diffusion.streaming.state import Action, State

Array = Any

ENTER, COMMIT, RISE, STEP = range(4)  # what noise is for; a block's draws for each never meet


@dataclasses.dataclass(frozen=True)
class Passes:
    """Pure functions of a recipe. ``params`` are canonical (unrolled) parameters throughout."""

    recipe: Recipe  # with unrolled layers, see Recipe.streaming

    @property
    def block(self) -> int:
        """Frames per block."""
        return self.recipe.layout.block

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The guidance branches, G of them."""
        return self.recipe.guidance.branches()

    @property
    def one_past(self) -> bool:
        """Whether the past looks the same to all branches, so that they share a cache.

        It does where clean frames are not modulated and nothing else tells them of a condition (ACDiT).
        """
        model = self.recipe.model.config
        told = model.modulate_clean or model.text or model.label_tokens
        return not told and all(branch.level == 0.0 for branch in self.branches)

    def encode_condition(self, params, condition: Condition) -> EncodedCondition:
        """[B, 1, ...] -> all branches, [BG, 1, ...]. Once per change of the condition."""
        branches = self.branches

        def across(field, value, hide):
            hidden = [hide(value) if field in branch.drop else value for branch in branches]
            return jnp.stack(hidden, axis=1).reshape(-1, *value.shape[1:])

        label, text, mask = condition.label, condition.text, condition.text_mask
        condition = Condition(
            label=None if label is None else across("label", label, lambda x: jnp.full_like(x, -1)),
            text=None if text is None else across("text", text, jnp.zeros_like),
            text_mask=None if mask is None else across("", mask, None),
        )
        model = self.recipe.model
        return model.apply({"params": params}, condition, method=model.encode_condition)

    def predict(self, params, state: State, x, t, told, frame, role, condition, action: Action | None, branches=None):
        """The network on own frames and the past.

        Args:
            x: [B, T, *space, C] at levels t [B, T], of which the network is told ``told``; or, where branches differ,
                all three with an axis G behind B.
            frame: int32 [B, T]; role: of all of them.
            condition: [BG, F, ...], F a divisor of the own blocks; action: of the own frames.
            branches: None is all of them.

        Returns:
            (out [B, G, T, ...], kv per layer, each [BG, T, ...]).
        """
        recipe, layout, G = self.recipe, self.recipe.layout, len(branches or self.branches)
        branches, B, T = branches or self.branches, x.shape[0], frame.shape[1]
        own = Ids.of(jnp.full_like(frame, role), frame, 0, layout.stages(t if t.ndim == 2 else t[:, 0]))
        if t.ndim == 2:
            x, t, told = (jnp.broadcast_to(a[:, None], (B, G, *a.shape[1:])) for a in (x, t, told))
        x = recipe.process.network_input(x, t)
        past = Ids.of(CLEAN, state.slots.frame, 0, layout.last_stage)
        seen = Ids(*(jnp.concatenate(pair, axis=-1) for pair in zip(past, own, strict=True)))
        caches, W = state.caches, 0
        if recipe.cache.kind == "none":
            # The past has no cache: it stands before the own frames and is computed with them.
            caches, own, W = None, seen, past.frame.shape[1]
            shown, level, label = self._shown(state, branches)
            x = jnp.concatenate([recipe.process.network_input(shown, level), x], axis=2)
            told, frame = jnp.concatenate([label, told], axis=2), seen.frame
            condition = self._also_of_the_past(condition, W // self.block, T // self.block)
            if action is not None:
                memory = Action(state.memory["action"], state.memory["action_given"])
                action = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), memory, action)
        elif caches is not None and self.one_past and G > 1:
            caches = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), caches)

        def flat(a):
            return a.reshape(B * G, *a.shape[2:])

        def branched(a):
            return jnp.repeat(a, G, axis=0)

        given = None
        if action is not None:
            shown = jnp.array(["action" not in branch.drop for branch in branches])
            given = (action.given[:, None] & shown[None, :, None]).reshape(B * G, -1)
        stream = Stream(
            x=flat(x),
            # The label is rounded here. Merged with the embedding's arithmetic it would differ from program to
            # program in its last bit, which the highest of the embedding's frequencies show.
            t=flat(jax.lax.optimization_barrier(told)),
            frame=branched(jnp.maximum(frame, 0)),
            action=None if action is None else branched(action.value),
            action_given=given,
            clean=branched(own.role == CLEAN),
        )
        mask, prefix_mask = layout.visible(own, seen), None
        mask = flat(jnp.stack([self._without_past(mask, own, seen, branch) for branch in branches], axis=1))
        if recipe.model.config.prefix:
            prefix_mask = branched(layout.prefix_visible(own, seen, recipe.model.config.prefix))
        streams = {"own": stream}
        out, kv = recipe.model.apply({"params": params}, streams, condition, mask, caches, prefix_mask=prefix_mask)
        out = out["own"][:, W:]
        return out.reshape(B, G, *out.shape[1:]), kv

    def commit(self, params, state: State, condition, block, frame, action: Action | None) -> State:
        """Puts clean frames [B, b, ...] with indices ``frame`` [B, b] (EMPTY: nothing to commit) in the cache."""
        recipe, slots = self.recipe, state.slots

        def put(buffer, new):
            return caching.write(buffer, new, slots, frame)

        memory, caches = {"latents": block}, state.caches
        if "noise" in state.memory:
            memory["noise"] = self.noise(state.keys, frame[:, 0], COMMIT, 1)
        if action is not None:
            memory |= {"action": action.value, "action_given": action.given}
        if recipe.cache.kind == "kv":
            branches, condition = self._committing(condition)
            level, told = self._branch_levels(frame, branches)
            noise = self.noise(state.keys, frame[:, 0], COMMIT, 1) if self._noised else jnp.zeros_like(block)
            shown = self._show(block, noise, level)
            _, kv = self.predict(params, state, shown, level, told, frame, CLEAN, condition, action, branches)
            caches = jax.tree.map(put, caches, kv)
        return dataclasses.replace(
            state,
            caches=caches,
            slots=caching.commit(slots, frame),
            memory={name: put(state.memory[name], new) for name, new in memory.items()},
        )

    def remember(self, params, state, condition, frames_x, frame, action):
        """Commits frames [B, T, ...] with indices ``frame`` [B, T] block by block; ``condition`` [BG, 1 or n, ...]."""
        B, T = frame.shape
        if T == 0:
            return state
        if state.action is not None and action is None:
            action = Action(jnp.zeros((B, T, self.recipe.model.config.action)), jnp.zeros((B, T), bool))

        def blocks(a, size):
            return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

        def body(state, block):
            (x, frame, action), own = block
            return self.commit(params, state, condition if own is None else own, x, frame, action), None

        own = None
        if any(a.shape[1] > 1 for a in jax.tree.leaves(condition)):
            own = jax.tree.map(lambda a: blocks(a, 1), condition)
        given = jax.tree.map(lambda a: blocks(a, self.block), (frames_x, frame, action))
        state, _ = jax.lax.scan(body, state, (given, own))
        return state

    def empty_caches(self, params, state, condition, slots):
        """Zeros for what every layer keeps of ``slots`` frames."""
        if self.recipe.cache.kind == "none":
            return ()
        recipe, b = self.recipe, self.block
        none = dataclasses.replace(state.slots, frame=state.slots.frame[:, :0])
        blank, B = dataclasses.replace(state, caches=None, slots=none), state.keys.shape[0]

        def block(params, condition):
            zeros = jnp.zeros((B, b))
            action = None
            if state.action is not None:
                action = Action(jnp.zeros((B, b, recipe.model.config.action)), jnp.zeros((B, b), bool))
            x = jnp.zeros((B, b, *recipe.frame_shape))
            frame = jnp.broadcast_to(jnp.arange(b, dtype=jnp.int32), (B, b))
            branches, condition = self._committing(condition)
            return self.predict(params, blank, x, zeros, zeros, frame, CLEAN, condition, action, branches)[1]

        dtype = None if recipe.cache.dtype == "compute" else jnp.dtype(recipe.cache.dtype)
        shapes = jax.eval_shape(block, params, condition)
        return jax.tree.map(lambda a: jnp.zeros((a.shape[0], slots, *a.shape[2:]), dtype or a.dtype), shapes)

    def noise(self, keys, frame, use, blocks, visit=0):
        """Noise of ``blocks`` blocks from frame ``frame`` [B] on, [B, blocks b, ...], for ``use``.

        ``visit`` int [blocks] tells apart draws of the same block for the same use.
        """
        b = self.block

        def one(key, block, visit):
            key = jax.random.fold_in(jax.random.fold_in(key, block), use)
            return jax.random.normal(jax.random.fold_in(key, visit), (b, *self.recipe.frame_shape))

        visit = jnp.broadcast_to(jnp.asarray(visit), (blocks,))
        index = self.recipe.layout.block_of(frame)[:, None] + jnp.arange(blocks)
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

    def _committing(self, condition):
        """The branches that keep a cache of their own, and their conditions."""
        G = len(self.branches)
        if not self.one_past or G == 1:
            return self.branches, condition
        return self.branches[:1], jax.tree.map(lambda a: a.reshape(-1, G, *a.shape[1:])[:, 0], condition)

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
        level, told = self._branch_levels(state.slots.frame, branches, state.frame)
        latents = state.memory["latents"]
        return self._show(latents, state.memory.get("noise", jnp.zeros_like(latents)), level), level, told

    def _without_past(self, mask, q, k, branch):
        """The mask [B, Tq, Tk] of a branch that sees only ``past`` frames before a query's block."""
        if branch.past < 0 or self.recipe.cache.kind == "none":
            return mask
        start = self.recipe.layout.block_start(q.frame)
        return mask & (k.frame[..., None, :] >= start[..., :, None] - branch.past)

    def _also_of_the_past(self, condition, past, own):
        """The condition of ``past`` blocks in front of ``own`` ones: that of the first of these."""
        F = jax.tree.leaves(condition)[0].shape[1] if jax.tree.leaves(condition) else 1
        if F == 1:
            return condition
        chex.assert_equal(F, own)
        return jax.tree.map(lambda a: jnp.concatenate([jnp.repeat(a[:, :1], past, axis=1), a], axis=1), condition)

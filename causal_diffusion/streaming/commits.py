"""Committing: how finished blocks enter what is remembered, and the first pass of a block, which may do it by the way.

``commit`` puts a block into the slots: its frames, and what the network keeps of them. Where that is *fused* with the
first pass of the next block, the block waits as ``State.pending`` and costs no pass of its own; the result is the same.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion import cache as caching
from causal_diffusion.layout import CLEAN, COARSE, REFERENCE, Ids
from causal_diffusion.streaming.passes import COMMIT, Own, Passes, Past
from causal_diffusion.streaming.state import Action, Pending, State

Array = Any


@dataclasses.dataclass(frozen=True)
class Commits(Passes):
    """Pure functions of a recipe. ``params`` are canonical or joined ones, see ``Passes``."""

    @property
    def fused(self) -> bool:
        """Whether a finished block waits for the next block's first pass."""
        return self.recipe.cache.commit == "fused"

    def first_pass(self, params, state: State, own: Own):
        """The network on blocks in flight for the first time since the last commit.

        Where predictions are steered by a gradient this pass is made once more than the others, for the state alone.

        Returns:
            (out [B, G, T, ...], the state with what this pass committed or compacted, the fine window's keys and
            values for ``next_pass`` or None).
        """
        cache, b = self.recipe.cache, self.block
        if self.fused:
            pending, branches = state.pending, self.branches
            part = self.committed(state, pending.condition, pending.x, pending.frame, pending.action, branches)
            own = own._replace(offset=own.offset + b)
            out, kv = self.predict(params, self.kept(state), [part, own])
            kv = jax.tree.map(lambda a: a[:, :b], kv)
            if self.recipe.one_past and len(branches) > 1:
                kv = jax.tree.map(lambda a: a.reshape(-1, len(branches), *a.shape[1:])[:, 0], kv)
            return out, self._put(state, pending.x, pending.frame, pending.action, kv, out), None
        if cache.kind == "two_level":
            out, kv = self.predict(params, self.kept(state), [self.window(state), own])
            return out, state, jax.tree.map(lambda a: a[:, : state.slots.window], kv)
        if cache.budget:
            at = dict(clip=self.recipe.frames)
            position, _ = caching.positions(cache, state.slots, own.frame[:, 0], own.frame, **at)
            plan = caching.plan_compaction(state.slots, jnp.maximum(position, 0), cache.recent)
            slots = caching.compacted(state.slots, plan)
            past = self.kept(dataclasses.replace(state, slots=slots))
            out, kv = self.predict(params, past, [own], compaction=plan)
            caches = tuple(compacted for _, compacted in kv)
            return out, dataclasses.replace(state, slots=slots, caches=caches), None
        return self.next_pass(params, state, own), state, None

    def next_pass(self, params, state: State, own: Own, past: Past | None = None):
        """The network on blocks in flight: out [B, G, T, ...]. ``past``: ``kept(state)``, if it is there already."""
        parts = [self.window(state), own] if self.recipe.cache.kind == "none" else [own]
        return self.predict(params, self.kept(state) if past is None else past, parts)[0]

    def commit(self, params, state: State, condition, block, frame, action: Action | None, turned=None) -> State:
        """Puts clean frames [B, b, ...] with indices ``frame`` [B, b] (EMPTY: nothing to commit) in the cache.

        ``condition`` [BG, 1, ...] is what they were made under. A fused commit expects that nothing is pending.
        ``turned``: what ``turned`` gave for these slots.
        """
        if self.fused:
            return dataclasses.replace(state, pending=Pending(block, frame, condition, action))
        return self._commit_now(params, state, condition, block, frame, action, turned)

    def remember(self, params, state, condition, frames_x, frame, action):
        """Commits frames [B, T, ...] with indices ``frame`` [B, T] block by block; ``condition`` [BG, 1 or n, ...]."""
        B, T = frame.shape
        if T == 0:
            return state
        if state.action is not None and action is None:
            action = Action(jnp.zeros((B, T, self.recipe.model.config.action), jnp.float32), jnp.zeros((B, T), bool))
        b, last = self.block, None
        if self.fused:  # the last block waits
            last = jax.tree.map(lambda a: a[:, T - b :], (frames_x, frame, action))
            frames_x, frame, action = jax.tree.map(lambda a: a[:, : T - b], (frames_x, frame, action))
            last = (jax.tree.map(lambda a: a[:, -1:], condition), *last)
            if any(a.shape[1] > 1 for a in jax.tree.leaves(condition)):
                condition = jax.tree.map(lambda a: a[:, :-1], condition)
        if frame.shape[1]:
            state = self._commit_each(params, state, condition, frames_x, frame, action)
        return state if last is None else self.commit(params, state, *last)

    def settle(self, params, state: State) -> State:
        """The state with what is pending committed by a pass of its own."""
        pending = state.pending
        if pending is None:
            return state
        return self._commit_now(params, state, pending.condition, pending.x, pending.frame, pending.action)

    def refer(self, params, state: State, condition) -> State:
        """Puts the reference frame in its slot."""
        if state.reference is None:
            return state
        B, branches = state.keys.shape[0], self._committing()
        frame = jnp.full((B, 1), self.recipe.frames - 1, jnp.int32)
        _, told = self._branch_levels(frame, branches)
        own = Own(
            jnp.broadcast_to(state.reference[:, None], (B, len(branches), *state.reference.shape[1:])),
            jnp.zeros_like(told),
            self._told_clean(told),
            frame,
            REFERENCE,
            condition,
            None if state.action is None else _no_action(B, 1, self.recipe.model.config.action),
        )
        kv = self._stored(self.predict(params, self._nothing(B), [own], branches)[1])
        first = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=0, axis=self._slot_axis)
        caches = jax.tree.map(first, state.caches, kv)
        slots = dataclasses.replace(state.slots, frame=state.slots.frame.at[:, :1].set(0))
        return dataclasses.replace(state, caches=caches, slots=slots)

    def empty_caches(self, params, state: State, condition):
        """Zeros for what every layer keeps: of every slot, of every coarse slot, or its state."""
        recipe, b, B = self.recipe, self.block, state.keys.shape[0]
        if recipe.cache.kind == "none":
            return ()
        far = recipe.cache.kind == "two_level"
        branches = self._committing()

        def block(params, condition):
            frame = jnp.broadcast_to(jnp.arange(b, dtype=jnp.int32), (B, b))
            action = None if state.action is None else _no_action(B, b, recipe.model.config.action)
            x, zeros = jnp.zeros((B, b, *recipe.frame_shape), jnp.float32), jnp.zeros((B, b), jnp.float32)
            own = Own(x, zeros, zeros, frame, COARSE if far else CLEAN, condition, action)
            kv = self.predict(params, self._nothing(B), [own], branches)[1]
            return kv if recipe.cache.kind == "state" else self._stored(kv)

        shapes = jax.eval_shape(block, params, condition)
        if recipe.cache.kind == "state":
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        slots, axis = (state.coarse if far else state.slots).frame.shape[1], self._slot_axis
        return jax.tree.map(lambda a: jnp.zeros((*a.shape[:axis], slots, *a.shape[axis + 1 :]), a.dtype), shapes)

    def _commit_each(self, params, state, condition, frames_x, frame, action):
        def blocks(a, size):
            return jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

        def body(state, block):
            (x, frame, action), own = block
            return self._commit_now(params, state, condition if own is None else own, x, frame, action), None

        own = None
        if any(a.shape[1] > 1 for a in jax.tree.leaves(condition)):
            own = jax.tree.map(lambda a: blocks(a, 1), condition)
        given = jax.tree.map(lambda a: blocks(a, self.block), (frames_x, frame, action))
        return jax.lax.scan(body, state, (given, own))[0]

    def _commit_now(self, params, state, condition, block, frame, action, turned=None):
        cache, kv = self.recipe.cache, None
        if cache.kind == "two_level":
            state = self._into_far(params, state, condition)
        elif cache.kind != "none":
            branches = self._committing()
            own = self.committed(state, condition, block, frame, action, branches)
            past = self.kept(state, branches, turned=turned)
            _, kv = self.predict(params, past, [own], branches, sinks=cache.commit_sinks)
        return self._put(state, block, frame, action, kv)

    def _put(self, state, block, frame, action, kv, *others):
        """Writes frames, their actions and what the network keeps of them at the cursor, ``after`` the others."""
        memory, caches = {}, state.caches
        slots = dataclasses.replace(state.slots, cursor=after(state.slots.cursor, kv, *others))

        def put(buffer, new, axis=1):
            return caching.write(buffer, new, slots, frame, axis)

        if "latents" in state.memory:
            memory["latents"] = block
        if "noise" in state.memory:
            memory["noise"] = self.noise(state.keys, frame[:, 0], COMMIT, 1)
        if "action" in state.memory:
            memory |= {"action": action.value, "action_given": action.given}
        if self.recipe.cache.kind == "state":
            there = frame[:, 0] > caching.EMPTY

            def replace(old, new):
                some = jnp.repeat(there, old.shape[0] // len(there)).reshape(-1, *(1,) * (old.ndim - 1))
                return jnp.where(some, new, old)

            caches = jax.tree.map(replace, caches, kv)
        elif kv is not None:
            caches = jax.tree.map(functools.partial(put, axis=self._slot_axis), caches, self._stored(kv))
        return dataclasses.replace(
            state,
            caches=caches,
            slots=caching.commit(state.slots, frame),
            memory={name: put(state.memory[name], new) for name, new in memory.items()},
        )

    def _into_far(self, params, state, condition):
        """The block that the next commit pushes out of the fine window becomes coarse."""
        slots, branches, b = state.slots, self._committing(), self.block

        def leaving(a):
            return jax.lax.dynamic_slice_in_dim(a, slots.cursor, b, axis=1)

        frame, x = leaving(slots.frame), leaving(state.memory["latents"])
        action = None
        if "action" in state.memory:
            action = Action(leaving(state.memory["action"]), leaving(state.memory["action_given"]))
        _, told = self._branch_levels(frame, branches)
        told = self._told_clean(told)
        x = jnp.broadcast_to(x[:, None], (*told.shape[:2], *x.shape[1:]))
        own = Own(x, jnp.zeros_like(told), told, frame, COARSE, condition, action)
        _, kv = self.predict(params, self.kept(state, branches), [own], branches)
        far, kv = dataclasses.replace(state.coarse, cursor=after(state.coarse.cursor, kv)), self._stored(kv)
        caches = jax.tree.map(lambda a, new: caching.write(a, new, far, frame), state.caches, kv)
        return dataclasses.replace(state, caches=caches, coarse=caching.commit(state.coarse, frame))

    def _told_clean(self, like):
        """What the network is told of a frame that is shown as it is."""
        cache = self.recipe.cache
        if cache.commit_label == "fixed":
            return jnp.full_like(like, cache.commit_label_at)
        return self.recipe.process.label(jnp.zeros_like(like))

    def _stored(self, kv):
        """What is kept of own keys, values and queries, as it is stored."""
        dtype = self.recipe.cache.dtype
        if dtype != "compute":
            kv = jax.tree.map(lambda a: caching.store(a, dtype), kv)
        return self._laid(kv)

    def laid(self, state: State) -> State:
        """A state as ``state.as_made`` gives it, with keys and values as they are read."""
        return dataclasses.replace(state, caches=self._laid(state.caches))

    def _laid(self, kv):
        return jax.tree.map(caching.lay, kv) if self._lays else kv

    @property
    def _lays(self) -> bool:
        """Whether keys and values are kept heads first: where their tokens meet in one product, but for cuDNN's, which
        takes frames first. What compression chooses from, and 8 bits, lie as they are made."""
        cache, c = self.recipe.cache, self.recipe.model.config
        plain = cache.kind == "kv" and not cache.budget and cache.dtype != "int8"
        return plain and c.attention == "joint" and c.backend != "cudnn"

    @property
    def _slot_axis(self) -> int:
        """Of the arrays in ``State.caches``."""
        return 2 if self._lays else 1

    def _nothing(self, batch):
        """A past without frames."""
        return Past(None, Ids.of(CLEAN, jnp.zeros((batch, 0), jnp.int32)))


def after(cursor, kv, *others):
    """The cursor, known only once ``kv`` and others are.

    The last layer's keys depend on all that a pass read of the slots of the layers before. A block that is written
    where this says is written after they were read, in place. Else nothing would say so, and compilers copy the slots.
    """
    last = [layer for layer in kv or () if jax.tree.leaves(layer)][-1:]
    for leaf in jax.tree.leaves((last, others)):
        one = jax.lax.bitcast_convert_type(leaf[(0,) * leaf.ndim].astype(jnp.float32), jnp.int32)
        cursor = cursor + jnp.clip(one, 0, 0)
    return cursor


def _no_action(batch, frames, width):
    return Action(jnp.zeros((batch, frames, width), jnp.float32), jnp.zeros((batch, frames), bool))

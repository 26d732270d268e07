"""The rollout: pure functions that stream blocks over a functional cache.

One step emits one block. With F blocks in flight (the schedule's view; F = 1 for autoregressive schedules)::

    in flight   [ b, b+1, ... , b+F-2, ____ ]
    enter       the vacant place gets fresh noise, and the condition and action that steer it from now on
    denoise     one stride of schedule rows: every block in flight at its own level, reading the cache
    commit      block b is clean: its keys and values, computed at the commit level, go into the cache
    shift       [ b+1, ... , b+F-1, ____ ]    and b is emitted

``init_state`` commits given context the same way, block by block, and runs the schedule's ramp so that every later
step is alike. ``advance`` is one ``lax.scan`` over a static capacity of blocks; blocks past the traced n are
skipped, so n = 1 and n = capacity are the same program and give the same bits.

A sample's noise depends on its key and on the block's index in time alone. Guidance branches run in one batch,
innermost: leading axes called BG below are batch x branches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion import cache as caching
from causal_diffusion.diffusion.guidance import mix
from causal_diffusion.layout import CLEAN, NOISY, Ids
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import EncodedCondition, Stream
from causal_diffusion.recipe import Recipe

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a stream is. A frozen pytree; W slots, F blocks in flight of b frames each.

    caches: one cache.KV per layer, [BG, W, N, H, K].
    slots: which frame each slot holds, per sample.
    memory: what else is kept per slot: 'latents' [B, W, *space, C], and with actions 'action' [B, W, A] and
        'action_given' [B, W].
    x: blocks in flight, oldest first, [B, F b, *space, C]. The last place is vacant between steps.
    action, action_given: of the frames in flight, [B, F b, A] and [B, F b]; None without actions.
    condition: of the blocks in flight, [BG, F, ...].
    history: of the solver.
    keys: one typed PRNG key per sample, [B].
    frame: index of the first frame in flight, int32 [B].
    """

    caches: tuple[caching.KV, ...]
    slots: caching.Slots
    memory: dict[str, Array]
    x: Array
    action: Array | None
    action_given: Array | None
    condition: EncodedCondition
    history: Any
    keys: Array
    frame: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Action:
    """Actions of some frames: value [B, T, A], given bool [B, T] (False: none is known)."""

    value: Array
    given: Array


def sample_keys(seed: int, batch: int) -> Array:
    """Keys of samples 0 .. batch - 1: each depends on (seed, index) only."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Pure streaming functions of a recipe. ``params`` are canonical (unrolled) parameters throughout."""

    recipe: Recipe  # with unrolled layers, see Recipe.streaming

    @property
    def block(self) -> int:
        """Frames per block."""
        return self.recipe.layout.block

    @property
    def in_flight(self) -> int:
        """F, blocks in flight."""
        return self.recipe.schedule.view().in_flight

    def encode_condition(self, params, condition: Condition) -> EncodedCondition:
        """[B, 1, ...] -> all branches, [BG, 1, ...]. Once per change of the condition."""
        branches = self.recipe.guidance.branches()

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

    def init_state(self, params, keys, condition, context=None, context_action=None, action=None, cursor=0):
        """A stream that has seen ``context`` and is ready to step.

        Args:
            params: canonical parameters.
            keys: [B], see ``sample_keys``.
            condition: from ``encode_condition``, [BG, 1, ...].
            context: given frames [B, Tc, *space, C], Tc a multiple of the block; None or Tc = 0: none.
            context_action: Action of the context frames; None: unknown.
            action: Action of the F - 1 blocks that enter during the ramp, [B, (F - 1) b]; None: unknown.
            cursor: ring slot where the context starts (a multiple of the block; may be traced).

        Returns:
            State.
        """
        recipe, B, b, F = self.recipe, keys.shape[0], self.block, self.in_flight
        layout, c = recipe.layout, recipe.model.config
        W, T = layout.sinks + layout.window, F * b
        if context is None:
            context = jnp.zeros((B, 0, *recipe.frame_shape))
        tokens = int(np.prod([n // p for n, p in zip(recipe.frame_shape[:-1], c.patch[1:], strict=True)]))
        dtype = c.compute_dtype if recipe.cache.dtype == "compute" else jnp.dtype(recipe.cache.dtype)
        BG = B * len(recipe.guidance.branches())
        zeros = jnp.zeros((BG, W, tokens, c.heads, c.width // c.heads), dtype)
        memory = {"latents": jnp.zeros((B, W, *recipe.frame_shape))}
        if c.action:
            memory |= {"action": jnp.zeros((B, W, c.action)), "action_given": jnp.zeros((B, W), bool)}
        x = jnp.zeros((B, T, *recipe.frame_shape))
        state = State(
            caches=tuple(caching.KV(zeros, zeros) for _ in range(c.depth)),
            slots=caching.empty(B, window=layout.window, sinks=layout.sinks, block=b, cursor=cursor),
            memory=memory,
            x=x,
            action=jnp.zeros((B, T, c.action)) if c.action else None,
            action_given=jnp.zeros((B, T), bool) if c.action else None,
            condition=jax.tree.map(lambda a: jnp.repeat(a, F, axis=1), condition),
            history=recipe.solver.init(x),
            keys=keys,
            frame=jnp.zeros((B,), jnp.int32),
        )
        frames = jnp.arange(context.shape[1], dtype=jnp.int32)
        state = self._remember(
            params, state, condition, context, jnp.broadcast_to(frames, context.shape[:2]), context_action
        )
        state = dataclasses.replace(state, frame=state.frame + context.shape[1])
        return self._ramp(params, state, action)

    def step(self, params, state: State, condition: EncodedCondition, action: Action | None = None):
        """Emits one block: (state, block [B, b, *space, C]). Pure; donates nothing.

        ``condition`` [BG, 1, ...] and ``action`` [B, b, A] steer the block that enters now, which is emitted F - 1
        steps later.
        """
        state = self._enter(state, self.in_flight - 1, condition, action)
        state = self._denoise(params, state, self.recipe.schedule.view().step)
        b = self.block
        block = state.x[:, :b]
        first = jax.tree.map(lambda a: a[:, :1], state.condition)
        acted = None if state.action is None else Action(state.action[:, :b], state.action_given[:, :b])
        state = self.commit(params, state, first, block, self._frames(state)[:, :b], acted)

        def shift(a, by):
            return jnp.concatenate([a[:, by:], a[:, :by]], axis=1)

        return dataclasses.replace(
            state,
            x=shift(state.x, b),
            action=None if state.action is None else shift(state.action, b),
            action_given=None if state.action is None else shift(state.action_given, b),
            condition=jax.tree.map(lambda a: shift(a, 1), state.condition),
            history=jax.tree.map(lambda a: shift(a, b), state.history),
            frame=state.frame + b,
        ), block

    def advance(self, params, state: State, condition: EncodedCondition, action: Action | None, n, capacity: int):
        """``n`` steps as one scan over ``capacity`` (static) of them.

        Args:
            condition: of all entering blocks.
            action: Action with a leading axis of ``capacity`` blocks, or None.
            n: traced int, how many steps to take; the others are skipped.

        Returns:
            (state, blocks [capacity, B, b, *space, C]); blocks from n on are zero.
        """

        def body(state, x):
            i, action = x

            def go(state):
                return self.step(params, state, condition, action)

            def skip(state):
                return state, jnp.zeros((state.x.shape[0], self.block, *self.recipe.frame_shape))

            return jax.lax.cond(i < n, go, skip, state)

        return jax.lax.scan(body, state, (jnp.arange(capacity), action))

    def predict(self, params, state: State, x, t, frame, role, condition, action: Action | None):
        """The network on own frames and the slots of ``state``: (out [B, G, T, ...], kv per layer [BG, T, ...])."""
        layout, branches = self.recipe.layout, self.recipe.guidance.branches()
        B, T, G = x.shape[0], x.shape[1], len(branches)
        own, slots = Ids.of(role, frame), Ids.of(CLEAN, state.slots.frame)
        seen = Ids(*(jnp.concatenate(pair, axis=-1) for pair in zip(slots, own, strict=True)))

        def branched(a):
            return jnp.repeat(a, G, axis=0)

        given = None
        if action is not None:
            shown = jnp.array(["action" not in branch.drop for branch in branches])
            given = (action.given[:, None] & shown[None, :, None]).reshape(B * G, T)
        stream = Stream(
            x=branched(x),
            t=branched(t),
            frame=branched(frame),
            action=None if action is None else branched(action.value),
            action_given=given,
        )
        mask = branched(layout.visible(own, seen))
        past = tuple((kv.k, kv.v) for kv in state.caches)
        out, kv = self.recipe.model.apply({"params": params}, {"own": stream}, condition, mask, past)
        return out["own"].reshape(B, G, *x.shape[1:]), kv

    def commit(self, params, state: State, condition, block, frame, action: Action | None) -> State:
        """Puts clean frames [B, b, ...] with indices ``frame`` [B, b] (negative: nothing to commit) in the cache."""
        recipe = self.recipe
        # Sinks stay clean, as in training.
        level = jnp.where(frame < recipe.layout.sinks, 0.0, recipe.cache.commit_level)
        noisy = block
        if recipe.cache.commit_level:
            noisy = recipe.process.corrupt(block, self._noise(state.keys, frame[:, 0], 1), level)
        label = recipe.levels.context_label(level) if recipe.layout.separate_clean else level
        _, kv = self.predict(params, state, noisy, label, jnp.maximum(frame, 0), CLEAN, condition, action)
        slots = state.slots

        def put(buffer, new):
            return caching.write(buffer, new, slots, frame)

        memory = {"latents": block}
        if action is not None:
            memory |= {"action": action.value, "action_given": action.given}
        return dataclasses.replace(
            state,
            caches=tuple(
                caching.KV(put(old.k, k), put(old.v, v)) for old, (k, v) in zip(state.caches, kv, strict=True)
            ),
            slots=caching.commit(slots, frame),
            memory={name: put(state.memory[name], new) for name, new in memory.items()},
        )

    def recache(self, params, state: State, condition: EncodedCondition) -> State:
        """Encodes the remembered latents anew under another condition [BG, 1, ...], sinks first, then oldest first.

        What the window has forgotten stays forgotten, so the result is that of a stream that began at the oldest
        remembered frame.
        """
        slots = state.slots
        order = jnp.arange(slots.window, dtype=jnp.int32)
        order = slots.sinks + (slots.cursor + order) % slots.window
        order = jnp.concatenate([jnp.arange(slots.sinks, dtype=jnp.int32), order])
        latents, frame = state.memory["latents"][:, order], slots.frame[:, order]
        action = None
        if state.action is not None:
            action = Action(state.memory["action"][:, order], state.memory["action_given"][:, order])
        # The sinks pass through the ring as well: starting that much earlier leaves the cursor where it was.
        empty = dataclasses.replace(
            slots, frame=jnp.full_like(slots.frame, -1), cursor=(slots.cursor - slots.sinks) % slots.window
        )
        state = dataclasses.replace(state, slots=empty)
        return self._remember(params, state, condition, latents, frame, action)

    def steer_in_flight(self, state: State, condition: EncodedCondition) -> State:
        """Gives every block in flight the condition [BG, 1, ...]."""
        condition = jax.tree.map(lambda a: jnp.repeat(a, self.in_flight, axis=1), condition)
        return dataclasses.replace(state, condition=condition)

    def replace_samples(self, state: State, fresh: State, which) -> State:
        """Samples marked in ``which`` (bool [B]) from ``fresh``, the others from ``state``; cursors must agree."""
        B = which.shape[0]

        def pick(new, old):
            if jnp.ndim(old) == 0:
                return old
            mask = jnp.repeat(which, old.shape[0] // B).reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(mask, new, old)

        return jax.tree.map(pick, fresh, state)

    def _frames(self, state):
        """Indices of the frames in flight, int32 [B, F b]."""
        return state.frame[:, None] + jnp.arange(state.x.shape[1], dtype=jnp.int32)

    def _noise(self, keys, frame, use):
        """Noise of the block that starts at ``frame`` [B]; ``use`` 0 is its start, 1 its commit."""

        def one(key, frame):
            key = jax.random.fold_in(jax.random.fold_in(key, frame // self.block), use)
            return jax.random.normal(key, (self.block, *self.recipe.frame_shape))

        return jax.vmap(one)(keys, frame)

    def _enter(self, state, place, condition, action):
        """Fills place ``place`` in flight with noise, a condition and an action."""
        b = self.block
        noise = self._noise(state.keys, state.frame + place * b, 0)
        here = slice(place * b, (place + 1) * b)
        if state.action is not None:
            if action is None:
                action = Action(jnp.zeros_like(state.action[:, here]), jnp.zeros_like(state.action_given[:, here]))
            state = dataclasses.replace(
                state,
                action=state.action.at[:, here].set(action.value),
                action_given=state.action_given.at[:, here].set(action.given),
            )
        return dataclasses.replace(
            state,
            x=state.x.at[:, here].set(noise),
            condition=jax.tree.map(lambda a, new: a.at[:, place].set(new[:, 0]), state.condition, condition),
        )

    def _denoise(self, params, state, levels):
        """Runs the schedule rows ``levels`` [rows + 1, F] over the blocks in flight."""
        if len(levels) < 2:
            return state
        recipe, B = self.recipe, state.x.shape[0]
        times = np.repeat(recipe.schedule.times()[levels], self.block, axis=1)
        frame = self._frames(state)
        action = None if state.action is None else Action(state.action, state.action_given)
        branches = recipe.guidance.branches()

        def row(carry, times):
            x, history = carry
            t, s = (jnp.broadcast_to(time, (B, x.shape[1])) for time in times)
            out, _ = self.predict(params, state, x, t, frame, NOISY, state.condition, action)
            history, x = recipe.solver.step(history, recipe.process, x, mix(out, branches), t, s)
            return (x, history), None

        (x, history), _ = jax.lax.scan(row, (state.x, state.history), (times[:-1], times[1:]))
        return dataclasses.replace(state, x=x, history=history)

    def _ramp(self, params, state, action):
        """Brings the first F - 1 blocks in flight to the levels that every step starts from."""
        b = self.block
        condition = jax.tree.map(lambda a: a[:, :1], state.condition)
        for place in range(self.in_flight):
            entering = None
            if action is not None and place < self.in_flight - 1:
                here = slice(place * b, (place + 1) * b)
                entering = Action(action.value[:, here], action.given[:, here])
            state = self._enter(state, place, condition, entering)
        return self._denoise(params, state, self.recipe.schedule.view().ramp)

    def _remember(self, params, state, condition, frames_x, frame, action):
        """Commits frames [B, T, ...] with indices ``frame`` [B, T] block by block."""
        B, T = frame.shape
        if T == 0:
            return state
        if state.action is not None and action is None:
            action = Action(jnp.zeros((B, T, self.recipe.model.config.action)), jnp.zeros((B, T), bool))

        def blocks(a):
            return jnp.moveaxis(a.reshape(B, -1, self.block, *a.shape[2:]), 1, 0)

        def body(state, block):
            x, frame, action = block
            return self.commit(params, state, condition, x, frame, action), None

        state, _ = jax.lax.scan(body, state, jax.tree.map(blocks, (frames_x, frame, action)))
        return state

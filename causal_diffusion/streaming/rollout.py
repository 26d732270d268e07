"""The rollout: pure functions that stream blocks over a functional cache.

One step emits E blocks (the schedule's view; E = 1 but for schedules that denoise whole chunks). With F in flight::

    in flight   [ b, b+1, ... , b+F-2, ____ ]
    enter       the E vacant places get fresh noise, and the condition and action that steer them from now on
    denoise     one stride of schedule rows: every block in flight at its own level, reading the past
    commit      the first E blocks are clean: they enter the cache, as the commit level and label show them
    shift       [ b+E, ... , b+F-1, ____ ]    and they are emitted

``init_state`` commits given context the same way, block by block, and runs the schedule's ramp so that every later
step is alike. ``advance`` is one ``lax.while_loop`` that ends after a traced n of at most ``capacity`` steps, so n = 1
and n = capacity are the same program and give the same bits. (A step that is skipped, by ``lax.cond``, copies the
whole state.)

A sample's noise depends on its key and on the block's index in time alone. Guidance branches run in one batch,
innermost: leading axes called BG below are batch x branches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion import cache as caching
from causal_diffusion.nn.transformer import EncodedCondition
from causal_diffusion.streaming.denoise import Denoise
from causal_diffusion.streaming.state import Action, Observed, Pending, State

Array = Any


@dataclasses.dataclass(frozen=True)
class Rollout(Denoise):
    """Pure streaming functions of a recipe. ``params`` are canonical or joined ones, see ``Passes``."""

    def init_state(
        self,
        params,
        keys,
        condition,
        context=None,
        context_action=None,
        action=None,
        cursor=0,
        reference=None,
        observed=None,
        coarse_cursor=0,
    ):
        """A stream that has seen ``context`` and is ready to step.

        A context longer than the window is forgotten as the stream's own frames are, but it is not compressed: that
        takes a noisy block to look at it.

        Args:
            params: canonical or joined ones.
            keys: [B], see ``sample_keys``.
            condition: from ``encode_condition``, [BG, 1, ...].
            context: given frames [B, Tc, *space, C], whole blocks (the first one may be short); None or Tc = 0: none.
            context_action: Action of the context frames; None: unknown.
            action: Action of the blocks that enter during the ramp, [B, ``waiting``]; None: unknown.
            cursor: ring slot where the context starts (a multiple of the block; may be traced), see ``cursor_before``.
            reference: the reference frame [B, *space, C] where the layout has one.
            observed: Observed of the blocks that enter during the ramp, [B, ``waiting``]; None: nothing is.
            coarse_cursor: as ``cursor``, of coarse history.

        Returns:
            State.
        """
        recipe, B, b, F = self.recipe, keys.shape[0], self.block, self.in_flight
        layout, c, cache, pad = recipe.layout, recipe.model.config, recipe.cache, recipe.layout.pad
        T, W = F * b, recipe.kept + layout.sinks + recipe.slots
        if context is None:
            context = jnp.zeros((B, 0, *recipe.frame_shape), jnp.float32)
        frames = jnp.zeros((B, W, *recipe.frame_shape), jnp.float32)
        memory = {"latents": frames} if cache.latents else {}
        if cache.kind in ("none", "two_level") and self._noised:
            memory["noise"] = jnp.zeros_like(frames)
        if c.action:
            memory |= {"action": jnp.zeros((B, W, c.action), jnp.float32), "action_given": jnp.zeros((B, W), bool)}
        x = jnp.zeros((B, T + layout.knot, *recipe.frame_shape), jnp.float32)
        slots = caching.empty(
            B, window=recipe.slots, sinks=layout.sinks, block=b, cursor=cursor, pad=pad, kept=recipe.kept
        )
        coarse = None
        if cache.kind == "two_level":
            # As far as the first frame of the fine window sees.
            far = layout.coarse + pad + recipe.slots
            coarse = caching.empty(B, window=far, sinks=0, block=b, cursor=coarse_cursor, pad=pad)
        watched = None
        if recipe.guidance.observe != "none":
            shape = (B, T, *recipe.frame_shape)
            watched = Observed(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool))
        given = context.shape[1]
        state = State(
            caches=(),
            slots=slots,
            coarse=coarse,
            memory=memory,
            reference=None if reference is None else reference[:, None],
            pending=None,
            x=x,
            action=jnp.zeros((B, T, c.action), jnp.float32) if c.action else None,
            action_given=jnp.zeros((B, T), bool) if c.action else None,
            observed=watched,
            condition=jax.tree.map(lambda a: jnp.repeat(a, F, axis=1), condition),
            history=recipe.solver.init(x),
            keys=keys,
            frame=jnp.full((B,), given or -pad, jnp.int32),
            start=jnp.full((B,), given or -pad, jnp.int32),
        )
        state = dataclasses.replace(state, caches=self.empty_caches(params, state, condition))
        state = self.refer(params, state, condition)
        if self.fused:
            nothing = Action(jnp.zeros((B, b, c.action), jnp.float32), jnp.zeros((B, b), bool)) if c.action else None
            nowhere = jnp.full((B, b), caching.EMPTY, jnp.int32)
            pending = Pending(jnp.zeros((B, b, *recipe.frame_shape), jnp.float32), nowhere, condition, nothing)
            state = dataclasses.replace(state, pending=pending)
        if given:
            # A short first block is padded to the length of the others with frames that nobody sees.
            front = ((0, 0), (pad, 0))
            context = jnp.pad(context, (*front, *((0, 0),) * (context.ndim - 2)))
            if context_action is not None:
                context_action = Action(
                    jnp.pad(context_action.value, (*front, (0, 0))), jnp.pad(context_action.given, front)
                )
            frames = jnp.broadcast_to(jnp.arange(-pad, given, dtype=jnp.int32), (B, given + pad))
            state = self.remember(params, state, condition, context, frames, context_action)
        return self._ramp(params, state, action, observed)

    def cursor_before(self, state: State, given: int):
        """Where a context of ``given`` frames must start so that its stream joins ``state``'s batch.

        Returns:
            (cursor, cursor of coarse history) for ``init_state``.
        """
        written = given + self.recipe.layout.pad if given else 0
        if self.fused and given:
            written -= self.block  # the last block waits
        near, far = state.slots, state.slots if state.coarse is None else state.coarse
        return (near.cursor - written) % near.window, (far.cursor - written) % far.window

    def step(
        self,
        params,
        state: State,
        condition: EncodedCondition,
        action: Action | None = None,
        observed: Observed | None = None,
    ):
        """Emits one block (or chunk): (state, frames [B, ``emit``, *space, C]). Pure; donates nothing.

        ``condition`` [BG, 1, ...], ``action`` [B, ``emit``, A] and ``observed`` [B, ``emit``, ...] steer the blocks
        that enter now; with one block emitted per step they are emitted F - 1 steps later.
        """
        view, blocks, frames = self.view, self.view.emit, self.emit
        knot = state.x[:, : self.recipe.layout.knot] if self.recipe.layout.knot else None
        state = self._enter(state, self.in_flight - blocks, blocks, condition, action, observed, view.repeat)
        noisy, (state, turned) = state, self._denoise(params, state, view.step, knot=knot)
        if view.first is not None:
            state, turned = self._first_instead(params, noisy, state, knot), None if self.recipe.cache.opens else turned
        emitted = state.x[:, :frames]
        acted = None
        if state.action is not None:
            acted = Action(state.action[:, :frames], state.action_given[:, :frames])
        committed = jax.tree.map(lambda a: a[:, :blocks], state.condition)
        if blocks == 1:
            state = self.commit(params, state, committed, emitted, self._frames(state)[:, :frames], acted, turned)
        else:
            state = self.remember(params, state, committed, emitted, self._frames(state)[:, :frames], acted)

        def shift(a, by):
            return jnp.concatenate([a[:, by:], a[:, :by]], axis=1)

        return dataclasses.replace(
            state,
            x=shift(state.x, frames),
            action=None if state.action is None else shift(state.action, frames),
            action_given=None if state.action is None else shift(state.action_given, frames),
            observed=jax.tree.map(lambda a: shift(a, frames), state.observed),
            condition=jax.tree.map(lambda a: shift(a, blocks), state.condition),
            history=jax.tree.map(lambda a: shift(a, frames), state.history),
            frame=state.frame + frames,
        ), emitted

    def advance(self, params, state: State, condition: EncodedCondition, action, observed, n, capacity: int):
        """``n`` steps as one loop, of at most ``capacity`` (static) of them.

        Args:
            condition: of all blocks that enter.
            action, observed: Action and Observed with a leading axis of ``capacity`` steps, or None.
            n: traced int, how many steps to take.

        Returns:
            (state, frames [capacity, B, ``emit``, *space, C]); those from step n on are zero.
        """

        blocks = jnp.zeros((capacity, state.x.shape[0], self.emit, *self.recipe.frame_shape), jnp.float32)

        def more(carry):
            return carry[0] < n

        def go(carry):
            i, state, blocks = carry
            now = jax.tree.map(lambda a: a[i], (action, observed))
            state, emitted = self.step(params, state, condition, *now)
            return i + 1, state, blocks.at[i].set(emitted)

        return jax.lax.while_loop(more, go, (jnp.int32(0), state, blocks))[1:]

    def recache(self, params, state: State, condition: EncodedCondition) -> State:
        """Encodes the remembered latents anew under another condition [BG, 1, ...], sinks first, then oldest first.

        What the window has forgotten stays forgotten, so the result is that of a stream that began at the oldest
        remembered frame; tokens that compression kept are forgotten. With ``cache.recache_sinks`` off the sinks (and
        the reference) stay as they are.
        """
        slots, sinks = state.slots, self.recipe.cache.recache_sinks
        fixed = slots.kept + slots.sinks
        order = jnp.arange(slots.window, dtype=jnp.int32)
        order = fixed + (slots.cursor + order) % slots.window
        if sinks:
            order = jnp.concatenate([slots.kept + jnp.arange(slots.sinks, dtype=jnp.int32), order])
        latents, frame = state.memory["latents"][:, order], slots.frame[:, order]
        action = None
        if state.action is not None:
            action = Action(state.memory["action"][:, order], state.memory["action_given"][:, order])
        # The sinks pass through the ring as well: starting that much earlier leaves the cursor where it was.
        back = slots.sinks if sinks else 0
        forgotten = slots.frame.at[:, slots.kept if sinks else fixed :].set(caching.EMPTY)
        if self.recipe.cache.budget:
            forgotten = forgotten.at[:, : slots.kept].set(caching.EMPTY)
        empty = dataclasses.replace(slots, frame=forgotten, cursor=(slots.cursor - back) % slots.window)
        state, pending = dataclasses.replace(state, slots=empty), state.pending
        if sinks:
            state = self.refer(params, state, condition)
        state = self._commit_each(params, state, condition, latents, frame, action)
        if pending is not None:  # it is encoded by the next block's first pass, under the new condition
            pending = dataclasses.replace(pending, condition=condition)
        return dataclasses.replace(state, pending=pending)

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

    def _first_instead(self, params, noisy, state, knot):
        """Samples whose stream begins with this block take the rows of a first block from ``noisy`` instead."""
        young = noisy.frame == noisy.start

        def more(state):
            done, _ = self._denoise(params, noisy, self.view.first, self.recipe.schedule.times(first=True), knot)
            return self.replace_samples(state, done, young)

        return jax.lax.cond(jnp.any(young), more, lambda state: state, state)

    def _ramp(self, params, state, action, observed):
        """Brings the blocks in flight to the levels that every step starts from."""
        if len(self.view.ramp) < 2:
            return state
        b = self.block
        condition = jax.tree.map(lambda a: a[:, :1], state.condition)
        places = self.in_flight - self.view.emit
        for place in range(self.in_flight):
            here = slice(place * b, (place + 1) * b)
            entering = [None, None]
            if place < places:
                entering = [jax.tree.map(lambda a, here=here: a[:, here], given) for given in (action, observed)]
            state = self._enter(state, place, 1, condition, *entering)
        # What is pending is committed by the first step; the ramp commits it for itself alone.
        ramped, _ = self._denoise(params, state, self.view.ramp)
        return dataclasses.replace(state, x=ramped.x, history=ramped.history)

"""The rollout: pure functions that stream blocks over a functional cache.

One step emits E blocks (the schedule's view; E = 1 but for schedules that denoise whole chunks). With F in flight::

    in flight   [ b, b+1, ... , b+F-2, ____ ]
    enter       the E vacant places get fresh noise, and the condition and action that steer them from now on
    denoise     one stride of schedule rows: every block in flight at its own level, reading the past
    commit      the first E blocks are clean: they enter the cache, as the commit level and label show them
    shift       [ b+E, ... , b+F-1, ____ ]    and they are emitted

``init_state`` commits given context the same way, block by block, and runs the schedule's ramp so that every later
step is alike. ``advance`` is one ``lax.scan`` over a static capacity of steps; those past the traced n are skipped,
so n = 1 and n = capacity are the same program and give the same bits.

A sample's noise depends on its key and on the block's index in time alone. Guidance branches run in one batch,
innermost: leading axes called BG below are batch x branches.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion import cache as caching
from causal_diffusion.diffusion.guidance import mix
from causal_diffusion.diffusion.schedule import View, transitions
from causal_diffusion.layout import NOISY
from causal_diffusion.nn.transformer import EncodedCondition
from causal_diffusion.streaming.passes import ENTER, RISE, STEP, Passes
from causal_diffusion.streaming.state import Action, State

Array = Any


@dataclasses.dataclass(frozen=True)
class Rollout(Passes):
    """Pure streaming functions of a recipe. ``params`` are canonical (unrolled) parameters throughout."""

    @functools.cached_property
    def view(self) -> View:
        """The schedule as a stream sees it."""
        return self.recipe.schedule.view()

    @property
    def in_flight(self) -> int:
        """F, blocks in flight."""
        return self.view.in_flight

    @property
    def emit(self) -> int:
        """Frames emitted per step."""
        return self.view.emit * self.block

    @property
    def waiting(self) -> int:
        """Frames in flight between two steps."""
        return self.in_flight * self.block - self.emit

    def init_state(self, params, keys, condition, context=None, context_action=None, action=None, cursor=0):
        """A stream that has seen ``context`` and is ready to step.

        Args:
            params: canonical parameters.
            keys: [B], see ``sample_keys``.
            condition: from ``encode_condition``, [BG, 1, ...].
            context: given frames [B, Tc, *space, C], whole blocks (the first one may be short); None or Tc = 0: none.
            context_action: Action of the context frames; None: unknown.
            action: Action of the blocks that enter during the ramp, [B, ``waiting``]; None: unknown.
            cursor: ring slot where the context starts (a multiple of the block; may be traced).

        Returns:
            State.
        """
        recipe, B, b, F = self.recipe, keys.shape[0], self.block, self.in_flight
        layout, c, T, pad = recipe.layout, recipe.model.config, self.in_flight * self.block, recipe.layout.pad
        W = layout.sinks + recipe.slots
        if context is None:
            context = jnp.zeros((B, 0, *recipe.frame_shape))
        memory = {"latents": jnp.zeros((B, W, *recipe.frame_shape))}
        if recipe.cache.kind == "none" and self._noised:
            memory["noise"] = jnp.zeros_like(memory["latents"])
        if c.action:
            memory |= {"action": jnp.zeros((B, W, c.action)), "action_given": jnp.zeros((B, W), bool)}
        x = jnp.zeros((B, T, *recipe.frame_shape))
        given = context.shape[1]
        state = State(
            caches=(),
            slots=caching.empty(B, window=recipe.slots, sinks=layout.sinks, block=b, cursor=cursor, pad=pad),
            memory=memory,
            x=x,
            action=jnp.zeros((B, T, c.action)) if c.action else None,
            action_given=jnp.zeros((B, T), bool) if c.action else None,
            condition=jax.tree.map(lambda a: jnp.repeat(a, F, axis=1), condition),
            history=recipe.solver.init(x),
            keys=keys,
            frame=jnp.full((B,), given or -pad, jnp.int32),
            start=jnp.full((B,), given or -pad, jnp.int32),
        )
        state = dataclasses.replace(state, caches=self.empty_caches(params, state, condition, W))
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
        return self._ramp(params, state, action)

    def step(self, params, state: State, condition: EncodedCondition, action: Action | None = None):
        """Emits one block (or chunk): (state, frames [B, ``emit``, *space, C]). Pure; donates nothing.

        ``condition`` [BG, 1, ...] and ``action`` [B, ``emit``, A] steer the blocks that enter now; with one block
        emitted per step they are emitted F - 1 steps later.
        """
        view, blocks, frames = self.view, self.view.emit, self.emit
        state = self._enter(state, self.in_flight - blocks, blocks, condition, action, view.repeat)
        noisy, state = state, self._denoise(params, state, view.step)
        if view.first is not None:
            state = self._first_instead(params, noisy, state)
        emitted = state.x[:, :frames]
        acted = None
        if state.action is not None:
            acted = Action(state.action[:, :frames], state.action_given[:, :frames])
        committed = jax.tree.map(lambda a: a[:, :blocks], state.condition)
        if blocks == 1:
            state = self.commit(params, state, committed, emitted, self._frames(state)[:, :frames], acted)
        else:
            state = self.remember(params, state, committed, emitted, self._frames(state)[:, :frames], acted)

        def shift(a, by):
            return jnp.concatenate([a[:, by:], a[:, :by]], axis=1)

        return dataclasses.replace(
            state,
            x=shift(state.x, frames),
            action=None if state.action is None else shift(state.action, frames),
            action_given=None if state.action is None else shift(state.action_given, frames),
            condition=jax.tree.map(lambda a: shift(a, blocks), state.condition),
            history=jax.tree.map(lambda a: shift(a, frames), state.history),
            frame=state.frame + frames,
        ), emitted

    def advance(self, params, state: State, condition: EncodedCondition, action: Action | None, n, capacity: int):
        """``n`` steps as one scan over ``capacity`` (static) of them.

        Args:
            condition: of all blocks that enter.
            action: Action with a leading axis of ``capacity`` steps, or None.
            n: traced int, how many steps to take; the others are skipped.

        Returns:
            (state, frames [capacity, B, ``emit``, *space, C]); those from step n on are zero.
        """

        def body(state, x):
            i, action = x

            def go(state):
                return self.step(params, state, condition, action)

            def skip(state):
                return state, jnp.zeros((state.x.shape[0], self.emit, *self.recipe.frame_shape))

            return jax.lax.cond(i < n, go, skip, state)

        return jax.lax.scan(body, state, (jnp.arange(capacity), action))

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
            slots, frame=jnp.full_like(slots.frame, caching.EMPTY), cursor=(slots.cursor - slots.sinks) % slots.window
        )
        state = dataclasses.replace(state, slots=empty)
        return self.remember(params, state, condition, latents, frame, action)

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

    def _enter(self, state, place, blocks, condition, action, repeat=False):
        """Fills places in flight with noise (or the block before them), a condition and actions.

        With ``repeat`` a stream that has emitted nothing yet keeps its own last block: its place never fell free.
        """
        b, recipe = self.block, self.recipe
        here = slice(place * b, (place + blocks) * b)
        if repeat:
            before = (place - 1) % self.in_flight  # a single place still holds the block that has just left
            young = (state.frame == state.start).reshape(-1, *(1,) * (state.x.ndim - 1))
            entering = jnp.where(young, state.x[:, here], state.x[:, before * b : (before + 1) * b])
            state = dataclasses.replace(state, history=recipe.solver.init(state.x))
        else:
            t = jnp.full((len(state.keys), blocks * b), recipe.schedule.times()[-1])
            entering = recipe.process.start(self.noise(state.keys, state.frame + place * b, ENTER, blocks), t)
        if state.action is not None:
            if action is None:
                action = Action(jnp.zeros_like(state.action[:, here]), jnp.zeros_like(state.action_given[:, here]))
            state = dataclasses.replace(
                state,
                action=state.action.at[:, here].set(action.value),
                action_given=state.action_given.at[:, here].set(action.given),
            )
        fresh = recipe.solver.init(entering)
        return dataclasses.replace(
            state,
            x=state.x.at[:, here].set(entering),
            history=jax.tree.map(lambda a, new: a.at[:, here].set(new), state.history, fresh),
            condition=jax.tree.map(
                lambda a, new: a.at[:, place : place + blocks].set(new), state.condition, condition
            ),
        )

    def _denoise(self, params, state, levels, grid=None):
        """Runs the schedule rows ``levels`` [rows + 1, F] over the blocks in flight; ``grid`` is the time of each."""
        before, start, end = transitions(levels)
        if not len(start):
            return state
        recipe, b, F, B = self.recipe, self.block, self.in_flight, state.x.shape[0]
        grid = recipe.schedule.times() if grid is None else grid
        rises = bool(np.any(start > before))
        # A block's noise depends on its level, and on how often it has left that level before.
        falls = end < start
        visit = np.stack([np.sum(falls[:r] & (start[:r] == start[r]), axis=0) for r in range(len(start))])
        if self.view.repeat:  # a block runs the same rows once for every place that it moves up
            visit = visit + np.arange(F)[::-1]
        visit = visit * (len(grid) + 1) + start
        frame = self._frames(state)
        action = None if state.action is None else Action(state.action, state.action_given)

        def guided(x, t):
            out, _ = self.predict(
                params, state, x, t, recipe.process.label(t), frame, NOISY, state.condition, action
            )
            mean, spread = recipe.process.split(out)
            mean = mix(mean, recipe.guidance, t)
            return mean if spread is None else jnp.concatenate([mean, spread[:, 0]], axis=-1)

        def row(carry, now):
            x, history = carry
            times, visit = now
            u, t, s = (jnp.broadcast_to(jnp.repeat(time, b), (B, F * b)) for time in times)
            if rises:
                noise = self.noise(state.keys, state.frame, RISE, F, visit)
                x = recipe.process.renoise(x, t, u, noise)
            noise = None
            if recipe.solver.stochastic:
                noise = self.noise(state.keys, state.frame, STEP, F, visit)
            history, x = recipe.solver.step(history, recipe.process, guided, x, t, s, noise)
            return (x, history), None

        times = np.stack([grid[before], grid[start], grid[end]], axis=1)
        (x, history), _ = jax.lax.scan(row, (state.x, state.history), (times, visit))
        return dataclasses.replace(state, x=x, history=history)

    def _first_instead(self, params, noisy, state):
        """Samples whose stream begins with this block take the rows of a first block from ``noisy`` instead."""
        young = noisy.frame == noisy.start

        def more(state):
            done = self._denoise(params, noisy, self.view.first, self.recipe.schedule.times(first=True))
            return self.replace_samples(state, done, young)

        return jax.lax.cond(jnp.any(young), more, lambda state: state, state)

    def _ramp(self, params, state, action):
        """Brings the blocks in flight to the levels that every step starts from."""
        if len(self.view.ramp) < 2:
            return state
        b = self.block
        condition = jax.tree.map(lambda a: a[:, :1], state.condition)
        places = self.in_flight - self.view.emit
        for place in range(self.in_flight):
            entering = None
            if action is not None and place < places:
                here = slice(place * b, (place + 1) * b)
                entering = Action(action.value[:, here], action.given[:, here])
            state = self._enter(state, place, 1, condition, entering)
        return self._denoise(params, state, self.view.ramp)

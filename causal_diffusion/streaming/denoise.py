"""Denoising the blocks in flight: what enters, and the schedule's rows.

With a *knot* (Knot Forcing, arXiv 2512.21734) a block is denoised together with the first k frames of the next one. The
next block pins them: at every row they are what they were, noised to the row's level, and at the end they are the mean
of what they were and what they would be::

    block i      [ 0 1 2 | 3']                      only 0 1 2 are committed
    block i + 1          [ 3  4  5 | 6']            3 at level t: corrupt(3', eps, t); at last 3 <- (3' + 3) / 2

The network is told of the pinned frames what it is told of the others: their level.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion.guidance import mix
from causal_diffusion.diffusion.schedule import LookAhead, View, transitions
from causal_diffusion.diffusion.steering import observed_loss, steer
from causal_diffusion.layout import CLEAN, NOISY
from causal_diffusion.streaming.commits import Commits
from causal_diffusion.streaming.passes import ENTER, RISE, STEP, Own
from causal_diffusion.streaming.state import Action
from causal_diffusion.streaming.visible import Known, steady

Array = Any


@dataclasses.dataclass(frozen=True)
class Denoise(Commits):
    """Pure functions of a recipe.

    loss: (clean data [B, T, *space, C] of the frames in flight as predicted, their indices int32 [B, T]) -> [B] or a
        scalar; a user's own, down whose gradient samples are pulled (``diffusion.steering``). None: there is none.
    loss_scale: how strongly.
    """

    loss: Callable[[Array, Array], Array] | None = None
    loss_scale: float = 1.0

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

    @property
    def look_ahead(self) -> LookAhead:
        """How far ahead actions are due, and after how many frames a new prompt shows."""
        return self.view.frames_ahead(self.block, self.recipe.layout.knot)

    @property
    def steers(self) -> bool:
        """Whether predictions are pulled down a gradient."""
        return self.loss is not None or self.recipe.guidance.observe != "none"

    @functools.cached_property
    def settles(self) -> bool:
        """Whether some mask of a step is known once the ring is full, so that a program of its own is worth while."""
        recipe, b, bidirectional = self.recipe, self.block, self.recipe.layout.kind == "bidirectional_window"
        commit, flight = Known(CLEAN, np.arange(b)), self._known()
        if bidirectional:  # which frames are there yet is not
            flight = flight._replace(offset=None)
        passes = [([flight], self.branches, True), ([commit], self._committing(), recipe.cache.commit_sinks)]
        return any(steady(recipe, *each) is not None for each in passes)

    def _known(self) -> Known:
        """What is known of the frames in flight; a knot counts to the last block."""
        frames, k = self.in_flight * self.block, self.recipe.layout.knot
        return Known(NOISY, np.arange(frames + k), np.repeat([0, 1], [frames, k]))

    def _frames(self, state):
        """Indices of the frames in flight, int32 [B, T]."""
        return state.frame[:, None] + jnp.arange(state.x.shape[1], dtype=jnp.int32)

    def _enter(self, state, place, blocks, condition, action, observed, repeat=False):
        """Fills places in flight with noise (or the block before them), a condition, actions and observed values.

        With ``repeat`` a stream that has emitted nothing yet keeps its own last block: its place never fell free.
        """
        recipe, b, k = self.recipe, self.block, self.recipe.layout.knot
        here = slice(place * b, (place + blocks) * b)
        if repeat:
            before = place - 1
            young = (state.frame == state.start).reshape(-1, *(1,) * (state.x.ndim - 1))
            entering = jnp.where(young, state.x[:, here], state.x[:, before * b : (before + 1) * b])
            state = dataclasses.replace(state, history=recipe.solver.init(state.x))
        else:
            t = jnp.full((len(state.keys), blocks * b), recipe.schedule.times()[-1], jnp.float32)
            entering = recipe.process.start(self.noise(state.keys, state.frame + place * b, ENTER, blocks), t)
        if state.action is not None:
            if action is None:
                action = Action(jnp.zeros_like(state.action[:, here]), jnp.zeros_like(state.action_given[:, here]))
            state = dataclasses.replace(
                state,
                action=state.action.at[:, here].set(action.value),
                action_given=state.action_given.at[:, here].set(action.given),
            )
        if state.observed is not None:
            if observed is None:
                observed = jax.tree.map(lambda a: jnp.zeros_like(a[:, here]), state.observed)
            seen = jax.tree.map(lambda a, new: a.at[:, here].set(new), state.observed, observed)
            state = dataclasses.replace(state, observed=seen)
        fresh = recipe.solver.init(entering)
        state = dataclasses.replace(
            state,
            history=jax.tree.map(lambda a, new: a.at[:, here].set(new), state.history, fresh),
            condition=jax.tree.map(lambda a, new: a.at[:, place : place + blocks].set(new), state.condition, condition),
        )
        if not k:
            return dataclasses.replace(state, x=state.x.at[:, here].set(entering))
        beyond = self.noise(state.keys, state.frame + b, ENTER, 1)[:, :k]
        beyond = recipe.process.start(beyond, jnp.full(beyond.shape[:2], recipe.schedule.times()[-1], jnp.float32))
        return dataclasses.replace(
            state, x=jnp.concatenate([entering, beyond], axis=1), history=recipe.solver.init(state.x)
        )

    def _denoise(self, params, state, levels, grid=None, knot=None):
        """Runs the schedule rows ``levels`` [rows + 1, F] over the blocks in flight; ``grid`` is the time of each.

        ``knot``: frames [B, k, ...] that the block begins with where it is not the first one.

        Returns:
            (state, what ``turned`` gave for it).
        """
        before, start, end = transitions(levels)
        if not len(start):
            return state, None
        recipe, F, k = self.recipe, self.in_flight, self.recipe.layout.knot
        grid = recipe.schedule.times() if grid is None else grid
        rises = bool(np.any(start > before))
        # A block's noise depends on its level, and on how often it has left that level before.
        falls = end < start
        visit = np.stack([np.sum(falls[:r] & (start[:r] == start[r]), axis=0) for r in range(len(start))])
        if self.view.repeat:  # a block runs the same rows once for every place that it moves up
            visit = visit + np.arange(F)[::-1]
        visit = visit * (len(grid) + 1) + start
        top = len(grid) - 1
        idle = ~falls & (start == top) if recipe.layout.kind == "bidirectional_window" else np.zeros_like(falls)
        pinned = eps = None
        if knot is not None:
            pinned = (state.frame > state.start).reshape(-1, *(1,) * (state.x.ndim - 1))
            eps = self.noise(state.keys, state.frame, ENTER, 1)[:, :k]

        said = None  # what a transformer with a diffusion head says of the blocks in flight is the same in every row
        if recipe.model.config.head == "diffusion" and not recipe.cache.opens and not recipe.layout.ranges:
            own = self._in_flight(state, state.x, jnp.ones(state.x.shape[:2], jnp.float32), None)
            said, _ = self.predict(params, self.kept(state), [own], hidden=True)

        def of_frames(values):
            """[F] -> [B, T]; a knot goes with the block in flight."""
            each = jnp.repeat(values, self.block, axis=0)
            return jnp.broadcast_to(jnp.concatenate([each, jnp.repeat(each[-1:], k, axis=0)]), state.x.shape[:2])

        def row(carry, now, first=False):
            (x, history, state, past), (times, visit, idle) = carry, now
            u, t, s = (of_frames(time) for time in times)
            if rises:
                x = recipe.process.renoise(x, t, u, self._drawn(state, RISE, visit))
            if knot is not None:
                x = x.at[:, :k].set(jnp.where(pinned, recipe.process.corrupt(knot, eps, t[:, :k]), x[:, :k]))
            noise = self._drawn(state, STEP, visit) if recipe.solver.stochastic else None
            absent = of_frames(idle) if recipe.layout.kind == "bidirectional_window" else None
            opened = []
            if first and self.steers:  # what a gradient is taken of may not change the state
                own = self._in_flight(state, x, t, absent)
                _, state, window = self.first_pass(params, state, own)
                past = self.kept(state, window=window)
                opened.append(True)

            def guided(x, t):
                nonlocal state, past
                own = self._in_flight(state, x, t, absent)
                if first and not opened:  # a solver may ask more than once; only the first time opens the block
                    opened.append(True)
                    out, state, window = self.first_pass(params, state, own)
                    past = self.kept(state, window=window)
                elif said is None:
                    out = self.next_pass(params, state, own, past)
                else:
                    out = self.per_token(params, own, said)
                mean, spread = recipe.process.split(out)
                mean = mix(mean, recipe.guidance, t)
                return mean if spread is None else jnp.concatenate([mean, spread[:, 0]], axis=-1)

            history, x = recipe.solver.step(history, recipe.process, self._steered(state, guided), x, t, s, noise)
            return (x, history, state, past), None

        times = np.stack([grid[before], grid[start], grid[end]], axis=1)
        rows, carry = (times, visit, idle), (state.x, state.history, state, None)
        if recipe.cache.opens:
            carry, _ = row(carry, jax.tree.map(lambda a: jnp.asarray(a[0]), rows), first=True)
            rows = jax.tree.map(lambda a: a[1:], rows)
        (x, history, state, past), turned = carry, self.turned(carry[2])
        if len(rows[0]):
            if turned is not None or past is None:
                past = self.kept(state, turned=turned)

            def rest(carry, now):
                (x, history, _, _), _ = row((*carry, state, past), now)
                return (x, history), None

            (x, history), _ = jax.lax.scan(rest, (x, history), rows)
        if knot is not None:
            x = x.at[:, :k].set(jnp.where(pinned, 0.5 * (knot + x[:, :k]), x[:, :k]))
        return dataclasses.replace(state, x=x, history=history), turned

    def _in_flight(self, state, x, t, absent):
        """The frames in flight as a part of a pass."""
        k, action = self.recipe.layout.knot, None
        if state.action is not None:  # the knot is denoised under the last action of its block
            value, given = (
                jnp.concatenate([a, jnp.repeat(a[:, -1:], k, axis=1)], axis=1)
                for a in (state.action, state.action_given)
            )
            action = Action(value, given)
        known, told, frame = self._known(), self.recipe.process.label(t), self._frames(state)
        seen = dict(lead=known.lead, absent=absent, offset=known.offset)
        return Own(x, t, told, frame, NOISY, state.condition, action, **seen)

    def _drawn(self, state, use, visit):
        """Noise for all frames in flight, a knot's being that of its own block."""
        k, F = self.recipe.layout.knot, self.in_flight
        if not k:
            return self.noise(state.keys, state.frame, use, F, visit)
        visit = jnp.concatenate([visit, visit[-1:]])
        return self.noise(state.keys, state.frame, use, F + 1, visit)[:, : F * self.block + k]

    def _steered(self, state, guided):
        """``guided``, pulled down the user's loss and towards what is observed."""
        recipe, frame = self.recipe, self._frames(state)
        if self.loss is not None:
            guided = steer(recipe.process, guided, lambda x0, t: self.loss(x0, frame), self.loss_scale)
        if state.observed is not None:
            seen, beyond = state.observed, ((0, 0), (0, recipe.layout.knot))
            value, given = (jnp.pad(a, (*beyond, *((0, 0),) * (a.ndim - 2))) for a in (seen.value, seen.given))
            loss = observed_loss(recipe.guidance, recipe.process, value, given)
            guided = steer(recipe.process, guided, loss, recipe.guidance.observe_scale)
        return guided

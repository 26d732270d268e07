"""A stream of an approximate system, replayed with lists: no ring, no slots, no scan.

Where a policy moves or drops what is kept, nothing can be computed anew; so a stream is what its passes saw, one after
the other. The replay remembers every committed frame of every guidance branch in lists, with the keys (not turned along
time) and values that its layers had when it was committed. For every single pass, a row of the schedule or a commit,
it says frame by frame who sees whom and where everybody stands, in Python integers, lays the remembered keys and values
side by side and calls the network. What is forgotten is not even there.

It shares with the library the network, the schedule's matrix and times, the process, the solver's single step and the
mix of guidance. Who sees whom (``sees``), places (``places``), compression (``compress``), 8-bit storage (``rounded``)
and the turn of a key along time (``turn``) are written down here once more.

Layouts: block_causal, teacher_forcing, bidirectional_window, in whole blocks; blocks leave one by one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion.guidance import mix
from causal_diffusion.nn.transformer import Stream
from tests.streaming.oracle import ENTER, STEP, Oracle


@functools.partial(jax.jit, static_argnums=(0, 1))
def network(model, queries, params, streams, condition, mask, past, past_frame):
    """One pass: (output of the stream 'own', what every layer has of its frames)."""
    options = {"raw": True, "queries": queries} if past is not None else {}
    out, kv = model.apply({"params": params}, streams, condition, mask, past, past_frame, **options)
    return out["own"], kv


def turn(x, place, time_width, theta):
    """Turns keys or queries along time, in float64.

    Args:
        x: [..., S, N, H, K]; of a head, the first ``time_width`` channels belong to time, in pairs.
        place: [S], where the frames stand.
    """
    frequency = theta ** (-np.arange(0, time_width, 2) / time_width)
    angle = np.asarray(place, np.float64)[:, None, None, None] * frequency
    pair = np.asarray(x, np.float64)[..., :time_width].reshape(*x.shape[:-1], -1, 2)
    turned = (pair[..., 0] + 1j * pair[..., 1]) * np.exp(1j * angle)
    turned = np.stack([turned.real, turned.imag], axis=-1).reshape(*x.shape[:-1], time_width)
    return np.concatenate([turned, x[..., time_width:]], axis=-1)


class Kept(NamedTuple):
    """A committed frame: of every layer keys and values [B, N, H, K] and summed queries [B, 1, H, K]."""

    keys: list
    values: list
    queries: list


class Seat(NamedTuple):
    """A frame that a pass runs: its index, the first frame of the block it counts to, its level, is it there?"""

    frame: int
    block: int
    level: float = 0.0
    present: bool = True


class Replay(Oracle):
    """As the Oracle, for systems with keys and values that are kept, or with two levels of history."""

    def __init__(self, pipe, seed, batch, cond, context, frames):
        super().__init__(pipe, seed, batch, cond, context, frames)
        recipe, model = self.recipe, self.recipe.model.config
        assert not recipe.layout.pad and model.attention == "joint" and self.view.emit == 1
        branches = self.branches = recipe.guidance.branches()
        drop = recipe.cache.commit_drop
        self.told = [self.condition(b._replace(drop=(*b.drop, *drop))) for b in branches]  # while committing
        grid = [size // part for size, part in zip(recipe.frame_shape[:-1], model.patch[1:], strict=True)]
        self.token_shape = (int(np.prod(grid)), model.heads, model.width // model.heads)
        self.time_width = self.token_shape[2] - 2 * len(grid) * (self.token_shape[2] // (2 * (1 + len(grid))))
        self.window = recipe.layout.window
        self.tops = (recipe.cache.budget or recipe.layout.sinks) - recipe.layout.sinks - recipe.cache.recent
        self.capacity = recipe.layout.reference + self.tops + recipe.layout.sinks + self.window
        self.frames = 0  # committed
        self.tail = []  # of these, the ones behind the sinks that are still remembered one by one
        self.memory = [{} for _ in branches]  # frame -> Kept
        self.top = [[] for _ in branches]  # of every layer, keys and values of the tokens that compression kept
        self.margin = 0.5  # how near a number came to where it is rounded to the other side, in steps
        self.full = False  # whether a block has entered that finds the window full
        self.bar = None  # the knot [B, k, *space, C] that the block in flight begins with
        if recipe.layout.reference:
            self.keep_reference(np.asarray(cond["reference"], np.float32))

    # Who sees whom, and where.

    def sees(self, g, seat, name, committing, start):
        """Whether the frame in ``seat`` sees what is kept under ``name``, in a pass from frame ``start`` on."""
        layout, past = self.recipe.layout, self.branches[g].past
        if not isinstance(name, int):
            return seat.present  # the reference frame, and what compression kept
        if not seat.present or 0 <= past < seat.block - name:
            return False
        together = layout.kind == "bidirectional_window" and not committing
        near = name >= (start if together else seat.block) - self.window
        if name < layout.sinks:
            return near or not committing or self.recipe.cache.commit_sinks
        return near and self.reaches(seat, name - name % self.block)

    def sees_own(self, g, seat, other):
        """The same for another frame of the pass."""
        layout, past = self.recipe.layout, self.branches[g].past
        if seat == other:
            return True
        if not (seat.present and other.present) or 0 <= past < seat.block - other.frame:
            return False
        if seat.block == other.block or layout.kind == "bidirectional_window":
            return True
        if other.block > seat.block or layout.kind == "teacher_forcing":
            return False
        near = other.frame >= seat.block - self.window and self.reaches(seat, other.block)
        return near or other.frame < layout.sinks

    def reaches(self, seat, block):
        """Whether a block is among those that a frame at this level sees, its own counted."""
        layout = self.recipe.layout
        if not layout.ranges:
            return True
        stage = sum(seat.level <= level for level in layout.range_levels)
        return (seat.block - block) // self.block < layout.ranges[stage]

    def places(self, start, seats):
        """Where everything stands for the block at ``start``: ([(name, place)] of what is kept, place of each seat)."""
        recipe, cache = self.recipe, self.recipe.cache
        end, low = min(start, recipe.layout.sinks), min(self.tail, default=start)
        tops = self.tops if self.top[0] else 0
        forgotten, moved, late, kept = low - tops - end, 0, 0, []
        if cache.positions == "adjacent" and forgotten > 0:
            moved = forgotten + cache.sink_overlap
        if cache.positions == "slot":
            late = forgotten
        if "reference" in self.memory[0]:
            place = recipe.frames - 1
            if cache.positions == "ahead":
                place = cache.ahead
                while place < start + self.block + recipe.layout.knot:
                    place += cache.ahead_step
            kept.append(("reference", place))
        kept += [(("top", i), low - tops + i) for i in range(tops)]
        kept += [(f, f + moved) for f in range(end)]
        kept += [(f, f - late) for f in self.tail]
        return kept, [seat.frame - late for seat in seats]

    # Passes.

    def look(self, g, told, seats, x, level, label, committing=False, top=None):
        """What branch ``g`` makes of the frames in ``seats``: (output, what every layer has of them).

        Args:
            told: what it is told, from ``condition``.
            x, level, label: of the frames, [B, T, ...], the last two equal in all samples.
            top: of every layer, what compression kept; None: as it is remembered.
        """
        process, B = self.recipe.process, self.batch
        condition, action, given = told
        start = seats[0].block
        kept, places = self.places(start, seats)
        here = [min(seat.frame, seat.block + self.block - 1) for seat in seats]  # a knot has its block's last action
        stream = Stream(
            x=process.network_input(jnp.asarray(x), jnp.asarray(level)),
            t=jnp.asarray(label, jnp.float32),
            frame=self.of_batch(places),
            action=None if action is None else action[:, here],
            action_given=None if action is None else given[:, here],
            clean=np.full((B, len(seats)), committing),
        )
        spare = self.capacity - len(kept)  # so that all passes have one shape; nobody sees it
        mask = np.array(
            [
                [self.sees(g, seat, name, committing, start) for name, _ in kept]
                + [False] * spare
                + [self.sees_own(g, seat, other) for other in seats]
                for seat in seats
            ]
        )
        top = self.top[g] if top is None else top
        past = []
        for layer in range(self.recipe.model.config.depth):
            pairs = [self.kept(g, layer, name, top) for name, _ in kept]
            pairs += [(np.zeros((B, *self.token_shape), np.float32),) * 2] * spare
            past.append(tuple(np.stack(part, axis=1).astype(np.float32) for part in zip(*pairs, strict=True)))
        past_frame = self.of_batch([place for _, place in kept] + [0] * spare)
        return network(
            self.recipe.model, bool(self.recipe.cache.budget), self.params, {"own": stream}, condition, mask,
            tuple(past), past_frame,
        )  # fmt: skip

    def kept(self, g, layer, name, top):
        """(keys, values) [B, N, H, K] of what is kept under this name."""
        if isinstance(name, tuple):
            i, N = name[1], self.token_shape[0]
            return tuple(part[:, i * N : (i + 1) * N] for part in top[layer])
        return self.memory[g][name].keys[layer], self.memory[g][name].values[layer]

    def keep(self, g, name, kv, t, place):
        """Remembers frame ``t`` of a pass."""
        layers = [tuple(np.asarray(part)[:, t] for part in layer[:2]) for layer in kv]
        if self.recipe.cache.dtype == "int8":
            cache = self.recipe.cache
            moves = cache.keys == "raw" or (cache.keys == "auto" and cache.positions != "absolute")
            by = 0 if moves else place  # keys that do not move are turned before they are stored
            keys = [self.turn(self.rounded(self.turn(k, by).astype(np.float32)), -by) for k, _ in layers]
            layers = [(k, self.rounded(v)) for k, (_, v) in zip(keys, layers, strict=True)]
        queries = [np.asarray(layer[2])[:, t] for layer in kv if len(layer) > 2]
        self.memory[g][name] = Kept([k for k, _ in layers], [v for _, v in layers], queries)

    def rounded(self, x):
        """x [..., K] as 8-bit integers times the largest of K numbers / 127."""
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        steps = x / np.where(scale > 0, scale, 1)
        self.margin = min(self.margin, float(np.abs(np.abs(steps - np.floor(steps)) - 0.5).min()))
        return np.round(steps) * scale

    def turn(self, x, place):
        """``turn`` for tokens [B, N, H, K] that all stand at one place."""
        return turn(x[:, None], [place], self.time_width, self.recipe.model.config.theta)[:, 0]

    def of_batch(self, values):
        return np.broadcast_to(np.asarray(values, np.int32), (self.batch, len(values)))

    def keep_reference(self, frame):
        """It sees itself alone, so that its place does not matter. No action is known of it."""
        zero = np.zeros((self.batch, 1), np.float32)
        x = np.broadcast_to(frame, (self.batch, *self.recipe.frame_shape))[:, None]
        kept = []
        for g, (condition, action, given) in enumerate(self.told):
            told = (condition, action, None if given is None else np.zeros_like(given))
            label = self.recipe.process.label(jnp.asarray(zero))
            kept.append(self.look(g, told, [Seat(0, 0)], x, zero, label, committing=True)[1])
        for g, kv in enumerate(kept):
            self.keep(g, "reference", kv, 0, self.recipe.frames - 1)

    def shown(self, frames, level):
        """Committed frames as a branch sees them: (x, level [B, T], label)."""
        process, cache = self.recipe.process, self.recipe.cache
        level = np.broadcast_to(np.asarray(level, np.float32), (self.batch, len(frames)))
        x, dirt = self.x[:, frames], self.dirt[:, frames]
        assert cache.commit_data == "noised" or not level.any()
        label = process.label(jnp.asarray(level))
        if cache.commit_label == "fixed":
            label = jnp.full_like(label, cache.commit_label_at)
        return (process.corrupt(x, dirt, level) if level.any() else x), level, label

    def commit(self):
        """Remembers the next block."""
        b, layout = self.block, self.recipe.layout
        frames = list(range(self.frames, self.frames + b))
        if self.recipe.cache.kind == "kv":
            base = [0.0 if f < layout.sinks else self.recipe.cache.commit_level for f in frames]
            seats = [Seat(f, frames[0], level) for f, level in zip(frames, base, strict=True)]
            kept = []
            for g, branch in enumerate(self.branches):
                x, level, label = self.shown(frames, np.maximum(base, branch.level))
                kept.append(self.look(g, self.told[g], seats, x, level, label, committing=True)[1])
            for g, kv in enumerate(kept):
                for t, frame in enumerate(frames):
                    self.keep(g, frame, kv, t, frame)
        self.frames += b
        self.tail = [*self.tail, *(f for f in frames if f >= layout.sinks)][-self.window :]

    # Compression.

    def compress(self, seats, x, t, label):
        """Of a full window, keeps the tokens that the block in flight and the last clean frames ask for most."""
        recipe, older = self.recipe, len(self.tail) - self.recipe.cache.recent
        old, own = self.places(seats[0].block, seats)
        old, theirs = dict(old), [name for name, _ in old if isinstance(name, tuple)] + self.tail[:older]
        asking, count = self.tail[older:], self.tops * self.token_shape[0]
        blank = (np.zeros((self.batch, count, *self.token_shape[1:]), np.float32),) * 2
        before, depth, after = self.top, recipe.model.config.depth, []
        self.tail, self.top = asking, [[blank] * depth for _ in self.branches]
        for g in range(len(self.branches)):
            chosen = []
            for layer in range(depth):  # what a layer asks depends on what the layers below it have kept
                top = chosen + [blank] * (depth - layer)
                _, kv = self.look(g, self.conditions[g], seats, x, t, label, top=top)
                own_queries = np.asarray(kv[layer][2])
                query = sum(self.turn(own_queries[:, i], place) for i, place in enumerate(own))
                query = query + sum(self.turn(self.memory[g][f].queries[layer], old[f]) for f in asking)
                pairs = [self.kept(g, layer, name, before[g]) for name in theirs]
                turned = [self.turn(k, old[name]) for name, (k, _) in zip(theirs, pairs, strict=True)]
                score = np.einsum("BHK,BMHK->BM", query[:, 0], np.concatenate(turned, axis=1))
                best = np.sort(np.argsort(-score, axis=1)[:, :count], axis=1)[:, :, None, None]
                tokens = (np.concatenate(part, axis=1) for part in zip(*pairs, strict=True))
                chosen.append(tuple(np.take_along_axis(part, best, axis=1) for part in tokens))
            after.append(chosen)
        self.top = after

    # Two levels of history.

    def look_at_both(self, told, seats, x, t, label):
        """Nothing is kept: coarse tokens of all frames before the window, the window and the block in one pass."""
        (condition, action, given), layout, W = told, self.recipe.layout, self.window
        start, network_input = seats[0].frame, self.recipe.process.network_input
        far, near = list(range(len(self.frame))), list(range(start - W, start))
        far_x, far_t, far_label = self.shown(far, 0.0)
        near_x, near_t, near_label = self.shown(np.maximum(near, 0), self.recipe.cache.commit_level)
        near = [*near, *(seat.frame for seat in seats)]

        def stream(x, label, frames, clean):
            frames = np.maximum(frames, 0)
            acts = () if action is None else (action[:, frames], given[:, frames])
            return Stream(x, label, self.of_batch(frames), *acts, clean=clean)

        x = jnp.concatenate([network_input(near_x, near_t), network_input(x, t)], axis=1)
        clean = np.arange(len(near)) < np.full((self.batch, 1), W)
        own = stream(x, jnp.concatenate([near_label, label], axis=1), near, clean)
        coarse = stream(network_input(far_x, far_t), far_label, far, np.ones(far_t.shape, bool))

        def sees(q, k):
            if q == k:
                return True
            (q, q_is_far), (k, k_is_far) = q, k
            block = q - q % self.block
            if min(q, k) < 0 or k >= block + self.block or k_is_far and k >= start - W:
                return False
            if k_is_far:
                return k >= (block if q_is_far else block - W) - layout.coarse
            return not q_is_far and k >= block - W

        ids = [(f, True) for f in far] + [(f, False) for f in near]
        mask = np.array([[sees(q, k) for k in ids] for q in ids])
        streams = {"coarse": coarse, "own": own}
        return network(self.recipe.model, False, self.params, streams, condition, mask, None, None)[0][:, W:]

    # The stream.

    def run(self):
        """The wanted new frames."""
        level, left = self.matrix()
        recipe, b, knot, F = self.recipe, self.block, self.recipe.layout.knot, self.view.in_flight
        process, solver, times = recipe.process, recipe.solver, [recipe.schedule.times()] * self.blocks
        times[self.given] = recipe.schedule.times(first=True)
        entered = self.noise(ENTER, range(self.blocks))
        for r in range(len(level) - 1):
            now, then = (np.concatenate([np.zeros(self.given, int), row]) for row in level[r : r + 2])
            head = self.given + left[r]
            if head * b >= self.wanted.stop:
                break
            enters = self.frames < head * b or not r
            while self.frames < head * b:
                self.commit()
            self.full = enters and len(self.tail) == self.window
            # The frames in flight, those of the knot behind them at the level of the last one.
            flying, start = np.arange(head * b, (head + F) * b + knot), head * b
            of_block = np.minimum(flying // b, head + F - 1)
            t, s = (np.array([times[i][v[i]] for i in range(self.blocks)], np.float32).repeat(b) for v in (now, then))
            t[flying], s[flying] = t[of_block * b], s[of_block * b]
            t, s = (np.broadcast_to(a, (self.batch, len(self.frame))) for a in (t, s))
            begun = (then < np.array([len(row) - 1 for row in times]))[of_block]
            if self.bar is not None:
                pinned = slice(start, start + knot)
                self.x[:, pinned] = process.corrupt(self.bar, entered[:, pinned], t[:, pinned])
            noise = None
            if solver.stochastic:
                visit = now.copy()
                visit[head + F : head + F + 1] = now[head + F - 1] if knot else 0
                live = np.flatnonzero(then < now)
                noise = self.noise(STEP, [*live, head + F] if knot else live, visit)
            predict = functools.partial(self.predict, flying, of_block * b, begun)
            self.history, x = solver.step(self.history, process, predict, self.x, t, s, noise)
            self.x = np.array(x)
            if knot and not then[head]:
                if self.bar is not None:
                    self.x[:, pinned] = (self.bar + self.x[:, pinned]) / 2
                self.bar = self.x[:, start + b : start + b + knot].copy()
        return self.x[:, self.wanted]

    def predict(self, flying, blocks, begun, x, t):
        """The mixed prediction for the frames ``flying`` of [B, T, ...]; for others, which stay, 0."""
        whole, x, t = x, jnp.asarray(x)[:, flying], jnp.asarray(t)[:, flying]
        seats = [
            Seat(*ids) for ids in zip(flying.tolist(), blocks.tolist(), t[0].tolist(), begun.tolist(), strict=True)
        ]
        label = self.recipe.process.label(t)
        if self.full and self.recipe.cache.budget:
            self.compress(seats, x, t, label)
        self.full, outs = False, []
        for g, told in enumerate(self.conditions):
            if self.recipe.cache.kind == "two_level":
                outs.append(self.look_at_both(told, seats, x, t, label))
            else:
                outs.append(self.look(g, told, seats, x, t, label)[0])
        mixed = mix(jnp.stack(outs, axis=1), self.recipe.guidance, t)
        return jnp.zeros(whole.shape).at[:, flying].set(mixed)

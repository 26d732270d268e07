"""A stream without ``streaming`` and ``cache``: everything that a block can see is computed anew at every step.

All frames stand in one array, those that pad a short first block in front. Row by row of the schedule's matrix, the
network sees every frame that exists, under the layout's predicate, and the solver moves those whose level falls. The
oracle shares with the library the network, the predicate, the matrix and times, the process and the solver's single
step, each of which has tests of its own.

A draw for block b is normal(fold_in(fold_in(fold_in(key of the sample, b), use), visit)). ``visit`` is 0 where a block
draws once; at level l of L, for the n-th time from 0, it is n (L + 2) + l.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.diffusion.schedule import CHUNKED
from causal_diffusion.layout import CLEAN, NOISY, Ids
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import Stream

ENTER, COMMIT, RISE, STEP = range(4)


@functools.partial(jax.jit, static_argnums=4)
def draw(key, block, use, visit, shape):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, block), use), visit)
    return jax.random.normal(key, shape)


@functools.partial(jax.jit, static_argnums=0)
def move(recipe, params, conditions, past, history, x, t, s, noise):
    """One step of the solver for all frames: (history, x). Frames with s = t stay.

    Args:
        conditions: of each guidance branch, (Condition, action [B, T, A] or None, which are given [B, T]).
        past: dict of [B, T]: frame, exists, clean, the first frame in flight; and of clean frames x and level as
            shown, their data and the noise that hides them.
    """
    layout, process, config = recipe.layout, recipe.process, recipe.model.config
    clean = past["clean"]

    def predict(x, t):
        pixels = clean[..., None, None, None]
        label = process.label(past["level"])
        if recipe.cache.commit_label == "fixed":
            label = jnp.full_like(label, recipe.cache.commit_label_at)
        stage = layout.stages(jnp.where(clean, 0.0, t))
        frame = jnp.where(past["exists"], past["frame"], -1)
        ids = Ids.of(jnp.where(clean, CLEAN, NOISY), frame, 0, stage)
        start = layout.block_of(frame) * layout.block - layout.pad
        inside = (recipe.guidance.interval[0] <= t) & (t <= recipe.guidance.interval[1])
        prefix_mask = layout.prefix_visible(ids, ids, config.prefix) if config.prefix else None
        means, spreads = [], []
        for branch, (condition, action, given) in zip(recipe.guidance.branches(), conditions, strict=True):
            level, mask = jnp.maximum(past["level"], branch.level), layout.visible(ids, ids)
            if branch.past >= 0 and recipe.cache.kind == "none":  # hidden by noise
                level = jnp.where(frame < past["first"] - branch.past, 1.0, level)
            elif branch.past >= 0:  # not seen
                mask = mask & (frame[:, None] >= start[:, :, None] - branch.past)
            more = level > past["level"]
            noisier = process.corrupt(past["data"], past["dirt"], level)
            shown = process.network_input(jnp.where(more[..., None, None, None], noisier, past["x"]), level)
            stream = Stream(
                x=jnp.where(pixels, shown, process.network_input(x, t)),
                t=jnp.where(clean, jnp.where(more, process.label(level), label), process.label(t)),
                frame=jnp.maximum(past["frame"], 0),
                action=action,
                action_given=given,
                clean=clean,
            )
            streams = {"all": stream}
            out, _ = recipe.model.apply({"params": params}, streams, condition, mask, prefix_mask=prefix_mask)
            mean, spread = process.split(out["all"])
            weight = jnp.where(inside, branch.weight, branch.outside)[..., None, None, None]
            means.append(weight * mean)
            spreads.append(spread)
        if spreads[0] is None:
            return sum(means)
        return jnp.concatenate([sum(means), spreads[0]], axis=-1)  # guidance leaves the variance alone

    return recipe.solver.step(history, process, predict, x, t, s, noise)


class Oracle:
    """Frames of a whole stream as one NumPy array, committed ones and ones in flight alike."""

    def __init__(self, pipe, seed, batch, cond, context, frames):
        self.recipe, self.params, self.batch, self.cond = pipe.recipe, pipe.params, batch, cond
        recipe, layout = self.recipe, self.recipe.layout
        b, pad, view = layout.block, layout.pad, recipe.schedule.view()
        self.block, self.view = b, view
        self.keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(batch)]
        first = context.shape[1]
        self.given = (first + pad) // b if first else 0  # blocks
        self.wanted = slice(first + pad, first + pad + frames)
        # As many blocks more as fly beside the last one that is wanted, in whole chunks.
        new = -(-(frames + first + pad) // b) - self.given + view.in_flight
        self.new = -(-new // view.emit) * view.emit
        self.blocks = self.given + self.new
        self.frame = np.arange(self.blocks * b) - pad
        self.top = np.full((batch, len(self.frame)), recipe.schedule.times()[-1], np.float32)
        self.x = np.array(recipe.process.start(self.noise(ENTER, range(self.blocks)), self.top))
        self.x[:, pad : pad + first] = context
        guided = any(branch.level or branch.past >= 0 for branch in recipe.guidance.branches())
        self.dirt = self.noise(COMMIT, range(self.blocks) if recipe.cache.commit_level or guided else ())
        self.history = recipe.solver.init(jnp.asarray(self.x))
        self.conditions = [self.condition(branch) for branch in recipe.guidance.branches()]

    def noise(self, use, blocks, visit=None):
        """Noise of these blocks for what it is for, 0 for all others; ``visit`` of all blocks."""
        noise = np.zeros((self.batch, self.blocks, self.block, *self.recipe.frame_shape), np.float32)
        for sample, key in enumerate(self.keys):
            for block in blocks:
                at = 0 if visit is None else int(visit[block])
                noise[sample, block] = draw(key, block, use, at, noise.shape[2:])
        return noise.reshape(self.batch, -1, *self.recipe.frame_shape)

    def condition(self, branch):
        """What a guidance branch is told: (Condition, actions, which of them are given)."""
        model, told, action, given = self.recipe.model.config, {}, None, None
        if model.classes:
            label = np.asarray(self.cond["label"])[:, None]
            told["label"] = jnp.asarray(np.full_like(label, -1) if "label" in branch.drop else label)
        if model.text:
            text = self.cond["text"][:, None]
            told["text"] = jnp.asarray(np.zeros_like(text) if "text" in branch.drop else text)
            told["text_mask"] = jnp.asarray(self.cond["text_mask"][:, None])
        if model.action:
            parts = [self.cond[name] for name in ("context_action", "action") if name in self.cond]
            action = np.concatenate(parts, axis=1)
            pad = self.recipe.layout.pad
            after = max(0, len(self.frame) - pad - action.shape[1])  # the last one is held
            action = np.pad(action, ((0, 0), (0, after), (0, 0)), mode="edge")
            action = np.pad(action, ((0, 0), (pad, 0), (0, 0)))[:, : len(self.frame)]
            given = np.broadcast_to("action" not in branch.drop, action.shape[:2])
        return Condition(**told), action, given

    def matrix(self):
        """(level [rows, new blocks], how many blocks have left [rows])."""
        schedule = self.recipe.schedule
        level = self.view.matrix(self.new) if schedule.offset in CHUNKED else schedule.matrix(self.new)
        done = np.logical_and.accumulate((level == 0)[::-1], axis=0)[::-1]  # clean for good
        left = np.cumprod(done, axis=1).sum(axis=1)
        return level, left // self.view.emit * self.view.emit

    def past(self, left):
        """What there is when ``left`` new blocks have left, and how it is shown; see ``move``."""
        recipe, layout, cache = self.recipe, self.recipe.layout, self.recipe.cache
        block, head = np.repeat(np.arange(self.blocks), self.block), self.given + left
        clean, exists = block < head, block < head + self.view.in_flight
        sink = self.frame < layout.sinks - layout.pad
        if cache.kind == "none":  # only what is remembered takes part, so that little is seen even indirectly
            exists = exists & (sink | (block >= head - recipe.slots // self.block))
        level = np.where(sink, 0.0, cache.commit_level).astype(np.float32)
        path = recipe.process.values(level)
        a, s = (np.asarray(value)[:, None, None, None] for value in (path.a, path.s))
        shown = {"noised": a * self.x + s * self.dirt, "scaled": a * self.x, "clean": self.x}[cache.commit_data]
        rows = dict(frame=self.frame, exists=exists, clean=clean, level=level)
        rows["first"] = np.full(len(self.frame), head * self.block - layout.pad)
        data = {"x": shown, "data": self.x, "dirt": self.dirt}
        return data | {name: np.broadcast_to(a, (self.batch, len(a))) for name, a in rows.items()}

    def run(self):
        """The wanted new frames."""
        level, left = self.matrix()
        b, schedule, process = self.block, self.recipe.schedule, self.recipe.process
        times = np.broadcast_to(schedule.times(), (self.new, schedule.steps + 1))
        times = [schedule.times(first=True), *times[1:]]
        before = [{} for _ in range(self.new)]  # of each block, how often it has left each level
        for r in range(len(level) - 1):
            now, then = level[r], level[r + 1]
            if self.view.repeat and r and left[r] > left[r - 1]:
                # All are clean and one has left: the last one is copied, and all are taken for noisier than they are.
                new = (self.given + left[r] + self.view.in_flight - 1) * b
                self.x[:, new : new + b] = self.x[:, new - b : new]
                continue

            def of_frames(values, given):
                values = np.concatenate([np.full(self.given, given, np.asarray(values).dtype), values])
                return np.broadcast_to(np.repeat(values, b), self.top.shape)

            t, s = (of_frames([times[i][v] for i, v in enumerate(row)], 0.0) for row in (now, then))
            live, rises = np.flatnonzero(then < now), then > now
            assert not len(live) or live.max() < left[r] + self.view.in_flight and live.min() >= left[r]
            again = np.array([before[i].get(max(u, v), 0) for i, (u, v) in enumerate(zip(now, then, strict=True))])
            if self.view.repeat:
                again = left[r] + self.view.in_flight - 1 - np.arange(self.new)
            visit = again * np.array([len(row) + 1 for row in times]) + np.maximum(now, then)
            visit = np.concatenate([np.zeros(self.given, int), np.maximum(visit, 0)])
            if rises.any():
                assert not len(live)
                self.x = np.where(
                    of_frames(rises, False)[..., None, None, None],
                    process.renoise(self.x, s, t, self.noise(RISE, self.given + np.flatnonzero(rises), visit)),
                    self.x,
                )
                continue
            for i in live:
                before[i][now[i]] = before[i].get(now[i], 0) + 1
            noise = self.noise(STEP, self.given + live, visit) if self.recipe.solver.stochastic else None
            self.history, x = move(
                self.recipe, self.params, self.conditions, self.past(left[r]), self.history, self.x, t, s, noise
            )
            self.x = np.array(x)
        return self.x[:, self.wanted]

"""What a streaming step costs once all slots are full: every pass of the network, on all branches of guidance.

A step is what ``streaming`` runs for the blocks that it emits at a time (``streaming.passes`` says of which passes it
consists, kind by kind). The first block of a clip, whose rows of the schedule may be its own, is none of it, nor is a
new condition (``condition_cost``). Counted are

* for every pass the matrices, attention as the mask shows it, and cross-attention to ``text.tokens`` condition tokens;
* a steered pass (``guidance.observe``) twice, for the gradient of its inputs, and where the first pass of a block
  differs from the others that one once more;
* the weights, read once per pass in the dtype that they multiply in, whatever the batch;
* keys and values: all slots read once per pass and branch, or once where branches share a past, as they are stored; a
  block's written once. Of two levels those of the fine window, made anew for each block, too.

What compression drops (``cache.budget``) varies from block to block: the mean over a round is counted.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from causal_diffusion.cache import EMPTY
from causal_diffusion.cost.count import Cost
from causal_diffusion.cost.masks import or_itself
from causal_diffusion.cost.network import Pass, forward, layers_in_time, tokens
from causal_diffusion.diffusion.schedule import transitions
from causal_diffusion.layout import CLEAN, COARSE, NOISY, REFERENCE, Ids, concatenate
from causal_diffusion.recipe import Recipe


class Call(NamedTuple):
    """A pass of a step. branches: rows per sample; commits: whether a block's keys and values are kept of it; window:
    frames whose keys and values it leaves to the next passes, or finds (negative); compacts: whether it compacts."""

    run: Pass
    branches: int
    commits: bool = False
    window: int = 0
    compacts: bool = False


def step_cost(recipe: Recipe, batch: int = 1, visible: bool = True) -> Cost:
    """A step of ``batch`` samples; ``visible``: False counts attention densely.

    Raises:
        ValueError: cache.kind 'state': what such a network costs is not known.
    """
    c, total = recipe.model.config, Cost()
    pasts = 1 if recipe.one_past else len(recipe.guidance.branches())
    fine, coarse = kept_bytes(recipe)
    for call in calls(recipe):
        run, rows = call.run, batch * call.branches
        cost = forward(c, recipe.frame_shape, run, rows, visible)
        own = fine if recipe.cache.kind != "two_level" else window_bytes(recipe)
        # What is stored is read once per cache; the fine window of two levels once per row.
        slots = run.slots * fine * pasts if recipe.cache.kind == "kv" else run.slots * own * call.branches
        read = batch * (slots + run.coarse_slots * coarse * pasts) + rows * run.text * text_bytes(c)
        written = batch * pasts * recipe.layout.block * (coarse if run.coarse else fine) if call.commits else 0
        written += rows * call.window * own
        other = 2 * rows * c.depth * c.width * tokens(c, recipe.frame_shape)[0] * _candidates(recipe) * call.compacts
        total = total + cost + Cost(read=read, written=written, other=other)
    return total


def condition_cost(recipe: Recipe, batch: int = 1) -> Cost:
    """A new condition of ``batch`` samples, for all branches: keys and values of every layer's cross-attention."""
    branches = len(recipe.guidance.branches())
    if recipe.cache.commit_drop:
        branches += 1 if recipe.one_past else branches
    c, rows = recipe.model.config, batch * branches
    run = Pass(None, text=text_tokens(recipe), encode=True)
    return forward(c, recipe.frame_shape, run, rows) + Cost(written=rows * run.text * text_bytes(c))


def text_tokens(recipe: Recipe) -> int:
    """Condition tokens of a prompt."""
    return recipe.config.text.tokens if recipe.model.config.text else 0


def text_bytes(c) -> int:
    """Of a condition token's keys and values, all layers."""
    return 2 * c.depth * c.width * np.dtype(c.compute_dtype).itemsize


def kept_bytes(recipe: Recipe) -> tuple[int, int]:
    """What is stored of a fine and of a coarse frame, all layers, of one sample and branch."""
    c, cache = recipe.model.config, recipe.cache
    if cache.dtype == "int8":
        row = c.width + 4 * c.heads  # a scale for each head
    else:
        row = c.width * np.dtype(c.compute_dtype if cache.dtype == "compute" else cache.dtype).itemsize
    fine, coarse = tokens(c, recipe.frame_shape)
    layers = c.depth if c.attention == "joint" else layers_in_time(c) + c.depth * bool(c.prefix)
    summed = 0
    if cache.budget:  # queries, float32 where they are not cast
        summed = c.depth * (4 * c.width if cache.dtype == "compute" else row)
    return 2 * layers * fine * row + summed, 2 * c.depth * coarse * row


def window_bytes(recipe: Recipe) -> int:
    """Keys and values of a fine frame, all layers, as they are computed."""
    c = recipe.model.config
    return 2 * c.depth * tokens(c, recipe.frame_shape)[0] * c.width * np.dtype(c.compute_dtype).itemsize


def calls(recipe: Recipe) -> Iterator[Call]:
    """The passes of a step, in order."""
    cache, view = recipe.cache, recipe.schedule.view()
    if cache.kind == "state":
        raise ValueError("cache.kind is 'state': what a network costs that hands on a state of its own is not known")
    steady, G = _Steady(recipe), len(recipe.guidance.branches())
    _, start, end = transitions(view.step)
    steered = recipe.guidance.observe != "none"
    repeats = recipe.solver.evaluations * (1 + steered)
    once = recipe.model.config.head == "diffusion" and not cache.opens and not recipe.layout.ranges
    if once:  # the network speaks once, the diffusion head in every row
        speaks = steady.denoise(start[0], end[0])
        yield speaks._replace(run=dataclasses.replace(speaks.run, head=0))
    for row in range(len(start)):
        following = steady.denoise(start[row], end[row])
        if once:
            head = Pass(None, head=following.run.fine)
            yield from [Call(head, G)] * repeats
            continue
        opens = row == 0 and cache.opens
        if opens:
            yield steady.opening(start[row], end[row])
        # What a gradient is taken of may not change the state: then opening takes the place of no other pass.
        yield from [following] * (repeats - (opens and not steered))
    if cache.kind != "none":
        for _ in range(view.emit - (cache.commit == "fused")):
            yield steady.commit()


def _candidates(recipe):
    """Slots that compete when they are compacted."""
    return recipe.kept + recipe.slots - recipe.cache.recent


class _Steady:
    """A stream at a block far from its beginning, all slots full."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.layout, self.view = recipe, recipe.layout, recipe.schedule.view()
        self.branches = recipe.guidance.branches()
        layout, b = recipe.layout, recipe.layout.block
        old = layout.sinks + layout.coarse + layout.pad + 2 * recipe.slots + recipe.frames + 1
        self.start = layout.block_start(-(-old // b) * b + b)  # first frame in flight
        self.last = layout.last_stage
        self.grid = np.asarray(recipe.schedule.times())
        self.committed = int(layout.stages(np.float64(recipe.cache.commit_level)))

    def denoise(self, start, end) -> Call:
        """The blocks in flight, of levels ``start`` that fall to ``end``: [F] each."""
        cache, own = self.recipe.cache, self._in_flight(start, end)
        if cache.kind == "none":
            window = self._window()
            told = len(window.frame) // self.layout.block if self.view.in_flight > 1 else 0
            return self._call([window, own], Ids.of(CLEAN, np.arange(0)), told=told)
        if cache.kind == "two_level":
            past = concatenate(self._window(), self._far())
            return self._call([own], past, coarse_slots=len(self._far().frame))
        return self._call([own], self._slots(self.start))

    def opening(self, start, end) -> Call:
        """The same for the first time since the last commit, where that differs."""
        cache, own, b = self.recipe.cache, self._in_flight(start, end), self.layout.block
        if cache.commit == "fused":
            waiting = Ids.of(CLEAN, np.arange(self.start - b, self.start), 0, self.committed)
            return self._call([waiting, own], self._slots(self.start - b), told=1, commits=True)
        if cache.kind == "two_level":
            window, far = self._window(), self._far()
            told = len(window.frame) // b if self.view.in_flight > 1 else 0
            return self._call(
                [window, own], far, told=told, coarse_slots=len(far.frame), window=len(window.frame)
            )  # fmt: skip
        return self._call([own], self._slots(self.start), compacts=True)

    def commit(self) -> Call:
        """A finished block by itself; of two levels, the block that leaves the fine window."""
        recipe, b, one = self.recipe, self.layout.block, self.branches[:1]
        branches = one if recipe.one_past else self.branches
        if recipe.cache.kind == "two_level":
            leaving = Ids.of(COARSE, self._window().frame[:b], 0, self.last)
            far = self._far()
            return self._call([leaving], far, branches, coarse_slots=len(far.frame), commits=True)
        own = Ids.of(CLEAN, np.arange(self.start, self.start + b), 0, self.committed)
        past = self._slots(self.start)
        return self._call([own], past, branches, sinks=recipe.cache.commit_sinks, commits=True)

    def _in_flight(self, start, end):
        layout, F = self.layout, self.view.in_flight
        frame = self.start + np.arange(F * layout.block + layout.knot)
        place = np.minimum(np.arange(len(frame)) // layout.block, F - 1)  # a knot goes with the block in flight
        stage = layout.stages(self.grid[start])[place]
        lead = np.repeat([0, 1], [F * layout.block, layout.knot])
        if layout.kind == "bidirectional_window":  # blocks that wait at the top are absent
            idle = (start == end) & (start == len(self.grid) - 1)
            frame = np.where(idle[place], EMPTY, frame)
        return Ids.of(NOISY, frame, 0, stage, lead)

    def _ring(self, end):
        """Frames of the slots when the block at ``end`` comes next, several rounds where they are compacted: [R, W]."""
        recipe, b = self.recipe, self.layout.block
        ring = np.arange(end - recipe.slots, end)
        if not recipe.cache.budget:
            ring = ring[None]
        else:
            kept = np.arange(recipe.cache.recent, recipe.slots, b)[:, None]
            ring = np.where(ring >= end - kept, ring, EMPTY)
        fixed = np.concatenate([np.zeros(recipe.kept, int), np.arange(self.layout.sinks) - self.layout.pad])
        return np.concatenate([np.broadcast_to(fixed, (len(ring), len(fixed))), ring], axis=1)

    def _slots(self, end):
        frame = self._ring(end)
        # Tokens that compression kept are seen as a reference is.
        role = np.where(np.arange(frame.shape[1]) < self.recipe.kept, REFERENCE, CLEAN)
        return Ids.of(role, frame if len(frame) > 1 else frame[0], 0, self.last)

    def _window(self):
        return Ids.of(CLEAN, self._ring(self.start)[0], 0, self.last)

    def _far(self):
        before = self.start - self.recipe.slots
        size = self.layout.coarse + self.layout.pad + self.recipe.slots
        return Ids.of(COARSE, np.arange(before - size, before), 0, self.last)

    def _call(self, parts, past, branches=None, *, sinks=True, told=0, coarse_slots=0, **about) -> Call:
        """Who sees whom is what ``streaming.passes.Passes.predict`` tells the network. ``told``: blocks that bring a
        condition beside those of the last part."""
        recipe, layout = self.recipe, self.layout
        branches, own = branches or self.branches, concatenate(*parts)
        rounds = past.frame.shape[:-1]
        own = Ids(*(np.broadcast_to(a, (*rounds, len(own.frame))) for a in own))
        past = Ids(*(np.broadcast_to(a, past.frame.shape) for a in past))
        seen = concatenate(past, own)
        mask, start = layout.visible(own, seen), layout.block_start(own.frame, own.lead)[..., None]
        key, reference = seen.frame[..., None, :], (seen.role == REFERENCE)[..., None, :]
        if not sinks:
            mask = mask & ((key >= start - layout.window) | reference)
        each = []
        for branch in branches:
            shown = mask
            if branch.past >= 0 and recipe.cache.kind != "none":
                shown = mask & ((key >= start - branch.past) | reference & bool(layout.reference))
            each.append(shown)
        mask = np.mean(np.stack(each), axis=tuple(range(1 + len(rounds))))
        model, coarse = recipe.model.config, bool(np.all(parts[-1].role == COARSE))
        prefix = or_itself(layout.prefix_visible(own, seen, model.prefix)) * 1.0 if model.prefix else None
        flying = self.view.in_flight if np.all(parts[-1].role == NOISY) else 1
        sets = told + flying if model.label_tokens else 1
        T = own.frame.shape[-1]
        run = Pass(
            mask,
            fine=0 if coarse else T,
            coarse=T if coarse else 0,
            slots=past.frame.shape[-1] - coarse_slots,
            coarse_slots=coarse_slots,
            prefix=prefix,
            registers=sets * (model.registers > 0),
            text=text_tokens(recipe),
            head=0 if coarse else T,
        )
        return Call(run, len(branches), **about)

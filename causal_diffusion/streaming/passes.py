"""Passes of the network over a stream: what is run together, what it sees, and what it is told.

A pass runs one or two *parts* (``Own``), one after the other: clean frames whose keys and values are wanted, and the
blocks in flight. It reads what is kept of the past (``Past``). Who sees whom is the layout's predicate over the ids of
all of these; where kept frames stand in time is ``cache.positions``. Leading axes called BG are batch x guidance
branches, branches innermost.

What a pass consists of depends on the kind of cache (p: the finished block that is not committed yet, fused commit)::

    kind           first pass of a block                  further passes         commit
    kv             [ slots | in flight ]                  [ slots | in flight ]  [ slots | block ]
    kv, fused      [ slots | p, in flight ]               [ slots | in flight ]  with the next first pass
    two_level      [ coarse | window, in flight ]         [ coarse, window | in flight ]
                                                                                 [ coarse | what leaves the window ]
    none           [ | window, in flight ]                the same               none
    state          [ state | in flight ]                  the same               [ state | block ]
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion import cache as caching
from causal_diffusion.diffusion.guidance import Branch
from causal_diffusion.layout import CLEAN, COARSE, NOISY, REFERENCE, Ids
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.transformer import EncodedCondition, Stream
from causal_diffusion.recipe import Recipe
from causal_diffusion.streaming.state import Action, State

Array = Any

ENTER, COMMIT, RISE, STEP = range(4)  # what noise is for; a block's draws for each never meet


class Own(NamedTuple):
    """Frames that a pass runs: T of one role.

    x: [B, T, *space, C] at levels t [B, T], of which the network is told ``told``; or, where branches differ, all three
        with an axis G behind B.
    frame: int32 [B, T].
    condition: [BG, F, ...], F a divisor of the blocks; None: that of the last part's first block.
    action: of these frames.
    stage: of ``Ids``; None: that of the levels.
    lead: of ``Ids``, int [T].
    absent: bool [B, T], frames that nobody sees; None: all are there.
    """

    x: Array
    t: Array
    told: Array
    frame: Array
    role: int
    condition: EncodedCondition | None
    action: Action | None = None
    stage: int | None = None
    lead: Array | int = 0
    absent: Array | None = None

    @property
    def ids(self):
        """(frames as they are seen, levels) [B, T]."""
        frame = self.frame if self.absent is None else jnp.where(self.absent, caching.EMPTY, self.frame)
        return frame, self.t if self.t.ndim == 2 else self.t[:, 0]


class Past(NamedTuple):
    """What a pass reads: what every layer keeps, the ids of its frames [B, W], and the slots they are in."""

    caches: Any
    ids: Ids
    slots: caching.Slots | None = None


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

    def encode_condition(self, params, condition: Condition) -> EncodedCondition:
        """[B, 1, ...] -> all branches, [BG, 1, ...]. Once per change of the condition.

        With ``cache.commit_drop`` what committed blocks are told stands behind, once for every cache; G counts it here,
        and in a State.
        """
        hidden = [branch.drop for branch in self.branches]
        if self.recipe.cache.commit_drop:
            hidden += [(*branch.drop, *self.recipe.cache.commit_drop) for branch in self._committing()]

        def across(field, value, hide):
            each = [hide(value) if field in drop else value for drop in hidden]
            return jnp.stack(each, axis=1).reshape(-1, *value.shape[1:])

        label, text, mask = condition.label, condition.text, condition.text_mask
        condition = Condition(
            label=None if label is None else across("label", label, lambda x: jnp.full_like(x, -1)),
            text=None if text is None else across("text", text, jnp.zeros_like),
            text_mask=None if mask is None else across("", mask, None),
        )
        model = self.recipe.model
        return model.apply({"params": params}, condition, method=model.encode_condition)

    def predict(self, params, past: Past, parts, branches=None, *, sinks=True, compaction=None, hidden=False):
        """The network on ``parts`` and the past.

        Args:
            parts: a list of Own. What is kept of the past stands where the last one sees it.
            branches: None is all of them.
            sinks: whether sinks are seen that lie before the window.
            compaction: what is done to the past first; ``past.slots`` and ``past.ids`` are as it leaves them.
            hidden: out is what ``per_token`` takes, [B, G, T, N, D].

        Returns:
            (out [B, G, T, ...] of the last part, kv per layer, [BG, T, ...] of all parts); with ``compaction`` kv is
            (own, compacted past) of every layer. Of coarse frames there is no out.
        """
        recipe, layout, branches = self.recipe, self.recipe.layout, branches or self.branches
        G, B, T = len(branches), *parts[-1].frame.shape
        own = _concatenate(*map(self._ids, parts))
        seen = _concatenate(past.ids, own)
        place, options = _joined([part.frame for part in parts]), {}
        if recipe.cache.raw:
            options["raw"] = True
        if recipe.cache.raw and past.slots is not None:
            at = dict(clip=recipe.frames, reach=recipe.schedule.view().in_flight * self.block + layout.knot)
            kept, place = caching.positions(recipe.cache, past.slots, parts[-1].frame[:, 0], place, **at)
            options["past_frame"] = jnp.repeat(jnp.maximum(kept, 0), G, axis=0)
        if recipe.cache.budget:
            options |= {"queries": True, "compaction": compaction}
        if hidden:
            options["hidden"] = True

        def flat(a):
            return a.reshape(B * G, *a.shape[2:])

        def branched(a):
            return jnp.repeat(a, G, axis=0)

        def by_branch(a, x):
            return a if x.t.ndim == 3 else jnp.broadcast_to(a[:, None], (B, G, *a.shape[1:]))

        x, t, told = (
            jnp.concatenate([by_branch(a, part) for a, part in zip(each, parts, strict=True)], axis=2)
            for each in zip(*((part.x, part.t, part.told) for part in parts), strict=True)
        )
        action = given = None
        if parts[-1].action is not None:
            action = branched(_joined([part.action.value for part in parts]))
            known = [part.action.given[:, None] & self._acts(part, branches)[None, :, None] for part in parts]
            given = flat(jnp.concatenate(known, axis=2))
        stream = Stream(
            x=flat(recipe.process.network_input(x, t)),
            # The label is rounded here. Merged with the embedding's arithmetic it would differ from program to
            # program in its last bit, which the highest of the embedding's frequencies show.
            t=flat(jax.lax.optimization_barrier(told)),
            frame=branched(jnp.maximum(place, 0)),
            action=action,
            action_given=given,
            clean=branched(own.role != NOISY),
        )
        mask, prefix_mask = layout.visible(own, seen), None
        start = (layout.block_start(own.frame) - self.block * own.lead)[..., None]
        if not sinks:
            mask = mask & ((seen.frame[:, None] >= start - layout.window) | (seen.role == REFERENCE)[:, None])
        mask = flat(jnp.stack([self._without_past(mask, start, seen, branch) for branch in branches], axis=1))
        if recipe.model.config.prefix:
            prefix_mask = branched(layout.prefix_visible(own, seen, recipe.model.config.prefix))
        name = "coarse" if parts[-1].role == COARSE else "own"
        out, kv = recipe.model.apply(
            {"params": params},
            {name: stream},
            self._conditions(parts, branches),
            mask,
            past.caches,
            prefix_mask=prefix_mask,
            **options,
        )
        if name == "coarse":
            return None, kv
        out = out["own"][:, -T:]
        return out.reshape(B, G, *out.shape[1:]), kv

    def per_token(self, params, own: Own, h):
        """The diffusion head on frames [B, T, ...] that a pass said h [B, G, T, N, D] of: out [B, G, T, ...]."""
        B, G = h.shape[:2]

        def flat(a):
            return jnp.broadcast_to(a[:, None], (B, G, *a.shape[1:])).reshape(B * G, *a.shape[1:])

        x, told = self.recipe.process.network_input(own.x, own.t), jax.lax.optimization_barrier(own.told)
        model = self.recipe.model
        h = h.reshape(B * G, *h.shape[2:])
        out = model.apply({"params": params}, flat(x), flat(told), h, method=model.per_token)
        return out.reshape(B, G, *out.shape[1:])

    def kept(self, state: State, branches=None, window=None) -> Past:
        """What is kept of the past; ``window``: of two levels the fine one's keys and values, once they are there."""
        cache, G = self.recipe.cache, len(branches or self.branches)
        nothing, last = state.slots.frame[:, :0], self.recipe.layout.last_stage
        caches = state.caches
        if self.recipe.one_past and G > 1:
            caches = jax.tree.map(lambda a: jnp.repeat(a, G, axis=0), caches)
        if cache.kind in ("none", "state"):
            return Past(caches or None, Ids.of(CLEAN, nothing))
        if cache.kind == "two_level":
            coarse = Ids.of(COARSE, state.coarse.frame, 0, last)
            if window is None:
                return Past(caches, coarse)
            fine = Ids.of(CLEAN, state.slots.frame, 0, last)
            pairs = tuple((*near, *far) for near, far in zip(window, caches, strict=True))
            return Past(pairs, _concatenate(fine, coarse))
        # Tokens that compression kept are seen as a reference is: by all, wherever they stand.
        role = np.where(np.arange(state.slots.frame.shape[1]) < state.slots.kept, REFERENCE, CLEAN)
        return Past(caches, Ids.of(role, state.slots.frame, 0, last), state.slots)

    def window(self, state: State) -> Own:
        """The remembered frames themselves, as a part that stands before the blocks in flight."""
        shown, level, told = self._shown(state, self.branches)
        action = None
        if state.action is not None:
            action = Action(state.memory["action"], state.memory["action_given"])
        last = self.recipe.layout.last_stage
        return Own(shown, level, told, state.slots.frame, CLEAN, None, action, stage=last)

    def committed(self, state: State, condition, block, frame, action, branches) -> Own:
        """A finished block [B, b, ...] with indices ``frame`` [B, b], as a part whose keys and values are wanted."""
        level, told = self._branch_levels(frame, branches)
        noise = self.noise(state.keys, frame[:, 0], COMMIT, 1) if self._noised else jnp.zeros_like(block)
        return Own(self._show(block, noise, level), level, told, frame, CLEAN, condition, action)

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

    def _ids(self, part):
        layout, (frame, t) = self.recipe.layout, part.ids
        stage = layout.stages(t) if part.stage is None else part.stage
        return Ids.of(part.role, frame, 0, stage, part.lead)

    def _acts(self, part, branches):
        """Which branches know the actions of a part, bool [G]."""
        hidden = self.recipe.cache.commit_drop if part.role != NOISY else ()
        return np.array(["action" not in (*branch.drop, *hidden) for branch in branches])

    def _conditions(self, parts, branches):
        """The condition of all parts together, [BG, F, ...]."""
        condition = self._of_part(parts[-1], parts[-1].condition, branches)
        if len(parts) == 1 or not jax.tree.leaves(condition):
            return condition
        if parts[0].condition is None and jax.tree.leaves(condition)[0].shape[1] == 1:
            return condition
        each = []
        for part in parts:
            own = condition
            if part.condition is not None:
                own = self._of_part(part, part.condition, branches)
            blocks = part.frame.shape[1] // self.block
            if part.condition is None:
                own = jax.tree.map(lambda a: a[:, :1], own)
            if jax.tree.leaves(own)[0].shape[1] == 1:
                own = jax.tree.map(lambda a, n=blocks: jnp.repeat(a, n, axis=1), own)
            each.append(own)
        return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *each)

    def _of_part(self, part, condition, branches):
        """Of what ``encode_condition`` encoded, that of the branches that run; what is committed is told its own."""
        G = len(self.branches)
        apart = len(self._committing()) if self.recipe.cache.commit_drop else 0

        def pick(a):
            a = a.reshape(-1, G + apart, *a.shape[1:])
            if apart and part.role != NOISY:
                a = jnp.repeat(a[:, G:], len(branches) // apart, axis=1)
            else:
                a = a[:, : len(branches)]
            return a.reshape(-1, *a.shape[2:])

        return jax.tree.map(pick, condition)

    def _shown_at(self, frame):
        """(level at which committed frames are shown, level that the network is told), float32 like ``frame``."""
        cache, layout = self.recipe.cache, self.recipe.layout
        # Sinks stay clean, as in training.
        level = jnp.where(frame < layout.sinks - layout.pad, 0.0, cache.commit_level)
        if cache.commit_label == "fixed":
            return level, jnp.full_like(level, cache.commit_label_at)
        return level, self.recipe.process.label(level)

    def _committing(self):
        """The branches that keep a cache of their own."""
        return self.branches[:1] if self.recipe.one_past else self.branches

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

    def _without_past(self, mask, start, k, branch):
        """The mask [B, Tq, Tk] of a branch that sees only ``past`` frames before ``start`` [B, Tq, 1], its block's."""
        if branch.past < 0 or self.recipe.cache.kind == "none":
            return mask
        seen = k.frame[..., None, :] >= start - branch.past
        if self.recipe.layout.reference:  # a condition, not a past
            seen = seen | (k.role == REFERENCE)[..., None, :]
        return mask & seen


def _concatenate(*ids: Ids) -> Ids:
    return Ids(*(jnp.concatenate(parts, axis=-1) for parts in zip(*ids, strict=True)))


def _joined(parts):
    return jnp.concatenate(parts, axis=1)

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
from causal_diffusion.layout import CLEAN, COARSE, NOISY, REFERENCE, Ids
from causal_diffusion.nn import rope
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.nn.layers import join_projections
from causal_diffusion.nn.transformer import EncodedCondition, Stream, Transformer
from causal_diffusion.streaming.shown import Shown
from causal_diffusion.streaming.state import Action, State
from causal_diffusion.streaming.visible import Known, alike, seen, steady

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
    offset: of ``visible.Known``, int [T].
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
    offset: np.ndarray | None = None

    @property
    def known(self) -> Known:
        """What is known of them before anything runs."""
        return Known(self.role, None if self.absent is not None else self.offset, self.lead)

    @property
    def ids(self):
        """(frames as they are seen, levels) [B, T]."""
        frame = self.frame if self.absent is None else jnp.where(self.absent, caching.EMPTY, self.frame)
        return frame, self.t if self.t.ndim == 2 else self.t[:, 0]


class Past(NamedTuple):
    """What a pass reads: what every layer keeps, the ids of its frames [B, W], and the slots they are in.

    turned: whether raw keys were turned to where they stand.
    """

    caches: Any
    ids: Ids
    slots: caching.Slots | None = None
    turned: bool = False


@dataclasses.dataclass(frozen=True)
class Passes(Shown):
    """Pure functions of a recipe. ``params`` are canonical or joined parameters (``nn.layers``) throughout.

    Joined ones are faster: canonical ones are joined by the program itself, every time that it runs.
    """

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
        return self._apply(params, condition, method="encode_condition")

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
        keys = _concatenate(past.ids, own)
        place, options = _joined([part.frame for part in parts]), {}
        if recipe.cache.raw:
            options["raw"] = True
        if recipe.cache.raw and past.slots is not None:
            kept, place = self._places(past.slots, parts[-1].frame[:, 0], place)
            if not past.turned:
                options["past_frame"] = jnp.repeat(kept, G, axis=0)
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
        mask = prefix_mask = None
        each = [part.known for part in parts]
        if self.full and past.slots is not None:
            mask = steady(recipe, each, branches, sinks)
        if mask is None:
            mask = flat(jnp.stack(seen(recipe, own, keys, branches, sinks), axis=1))
            if recipe.model.config.backend == "cudnn" and alike(recipe, each, branches, sinks):
                mask = mask[:, :1]  # it counts keys instead of hiding them
        if recipe.model.config.prefix:
            prefix_mask = branched(layout.prefix_visible(own, keys, recipe.model.config.prefix))
        name = "coarse" if parts[-1].role == COARSE else "own"
        out, kv = self._apply(
            params,
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
        h = h.reshape(B * G, *h.shape[2:])
        out = self._apply(params, flat(x), flat(told), h, method="per_token")
        return out.reshape(B, G, *out.shape[1:])

    def _apply(self, params, *args, **options):
        """The network, with joined parameters (``nn.layers``) where it is a transformer."""
        model = self.recipe.model
        if isinstance(model, Transformer):
            model, params = model.clone(joined=True), join_projections(params)
        return model.apply({"params": params}, *args, **options)

    def kept(self, state: State, branches=None, window=None, turned=None) -> Past:
        """What is kept of the past.

        ``window``: of two levels the fine one's keys and values, once they are there; ``turned``: what ``turned`` gave.
        """
        cache, G = self.recipe.cache, len(branches or self.branches)
        nothing, last = state.slots.frame[:, :0], self.recipe.layout.last_stage
        caches = state.caches if turned is None else turned
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
        return Past(caches, Ids.of(role, state.slots.frame, 0, last), state.slots, turned is not None)

    def turned(self, state: State):
        """What every layer keeps, its raw keys turned to where they stand for the blocks in flight and their commit.

        Once per block instead of in every pass. None where no keys are turned.
        """
        c, cache = self.recipe.model.config, self.recipe.cache
        if not cache.raw or c.positions == "additive":
            return None
        place, _ = self._places(state.slots, state.frame, state.frame[:, None])
        axes = len(c.patch) if c.attention == "joint" else 1
        table = rope.time_table(place, c.width // c.heads, c.theta, axes, c.rope_split)

        def turn(keys):
            keys = caching.load(keys, c.compute_dtype)
            return rope.rotate(keys, [jnp.repeat(part, keys.shape[0] // len(place), axis=0) for part in table])

        return tuple((turn(layer[0]), *layer[1:]) if layer else layer for layer in state.caches)

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
        known = np.arange(self.block)
        return Own(self._show(block, noise, level), level, told, frame, CLEAN, condition, action, offset=known)

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

    def _committing(self):
        """The branches that keep a cache of their own."""
        return self.branches[:1] if self.recipe.one_past else self.branches

    def _places(self, slots, start, frame):
        """Where in time the slots and own frames [B, T] stand, as ``cache.positions`` says: (int32 [B, W], [B, T])."""
        recipe = self.recipe
        reach = recipe.schedule.view().in_flight * self.block + recipe.layout.knot
        kept, place = caching.positions(recipe.cache, slots, start, frame, clip=recipe.frames, reach=reach)
        return jnp.maximum(kept, 0), place


def _concatenate(*ids: Ids) -> Ids:
    return Ids(*(jnp.concatenate(parts, axis=-1) for parts in zip(*ids, strict=True)))


def _joined(parts):
    return jnp.concatenate(parts, axis=1)

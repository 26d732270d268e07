"""The block-causal diffusion transformer.

Named streams of frames go in, each with its own noise levels and positions; they meet only in attention, under a
mask that the layout draws. Blocks come in two forms, ``block.Block`` with joint and ``factorised.FactorisedBlock`` with
factorised attention. Consecutive streams of one form run as one tensor, a *segment*; up to three forms exist::

    registers   F frames of R learned tokens (AR-Diffusion, arXiv 2503.07418, 'temporal causal'): every frame sees those
                of its condition, they see nothing but each other. The caller's mask does not speak of them.
    coarse      the stream of that name: patches c times larger in space by an embedder and projections of their own
                (FAR, arXiv 2503.19325). It is context: nothing is predicted for it. What is cached of it is computed in
                a pass of its own, in which it is the only stream.
    fine        all other streams

What is remembered of the past goes in as ``past`` and comes out as ``kv``. Keys are kept turned to where their frame
stands, or, *raw*, turned as if it stood at time 0, that is by space alone. Raw keys are turned along time when they
are read (``past_frame``), so their frames may appear to stand anywhere; coarse keys never move and are never raw.

Parameters have one canonical form, see ``layers``.
"""

import dataclasses
import itertools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.cache import Compaction
from causal_diffusion.layout import StaticMask
from causal_diffusion.nn import rope
from causal_diffusion.nn.attention import Segment, Visibility, dense
from causal_diffusion.nn.block import Block, Modulation, norm
from causal_diffusion.nn.config import TransformerConfig
from causal_diffusion.nn.diffusion_head import DiffusionHead
from causal_diffusion.nn.embedders import (
    ActionEmbedding,
    Condition,
    LabelEmbedding,
    TextEmbedding,
    TimeEmbedding,
    patchify,
    unpatchify,
)
from causal_diffusion.nn.factorised import FactorisedBlock
from causal_diffusion.nn.remat import rematerialised
from causal_diffusion.nn.text.word_embedding import WordEmbedding
from causal_diffusion.parallel.activations import constrain, tokens
from causal_diffusion.parallel.context import Order

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """The frames of one stream.

    x: [B, T, *space, C]; t: noise level that the network is told, [B, T]; frame: index in time, int32 [B, T];
    action: [B, T, A] or None; action_given: bool [B, T], None where every frame has its action;
    clean: bool [B, T], frames that are clean copies or context, None where none is.
    """

    x: Array
    t: Array
    frame: Array
    action: Array | None = None
    action_given: Array | None = None
    clean: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodedCondition:
    """A condition after everything that does not depend on the frames was computed.

    vector: [B, F, D] of the class, or None; keys, values: per layer [B, F, M, H, K] for
    cross-attention, or None; mask: bool [B, F, M] or None.
    """

    vector: Array | None = None
    keys: tuple[Array, ...] | None = None
    values: tuple[Array, ...] | None = None
    mask: Array | None = None


class Transformer(nn.Module):
    """Predicts, for every frame of every stream, what the process asks for."""

    config: TransformerConfig
    joined: bool = False  # whether the parameters are joined, see ``layers``

    def setup(self):
        c, dtype = self.config, self.config.compute_dtype
        self.embed = dense(c.width, dtype)
        if c.coarse:
            self.coarse_embed = dense(c.width, dtype)
        self.time = TimeEmbedding(c.width, c.frequencies)
        if c.classes:
            self.label = LabelEmbedding(c.classes, c.width)
        if c.action:
            self.action = ActionEmbedding(c.width)
        if c.vocabulary:
            self.words = WordEmbedding(c.vocabulary, c.text)
        if c.text:
            self.text = TextEmbedding(c.width, c.text_layers, dtype)
        if c.registers:
            self.registers = self.param("registers", nn.initializers.normal(0.02), (c.registers, c.width), jnp.float32)
        if c.modulation == "table":
            self.projection = dense(c.modulations * c.width, jnp.float32)
        block = Block if c.attention == "joint" else FactorisedBlock
        layer = (lambda i: {}) if c.attention == "joint" else (lambda i: {"layer": i})
        block = rematerialised(block, c.remat, c.layers == "scan")
        if c.layers == "scan":
            self.blocks = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.depth,
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            )(c, self.joined)
        else:
            self.block = [block(c, self.joined, **layer(i)) for i in range(c.depth)]
        outputs = math.prod(c.patch) * c.channels * c.outputs
        if c.head == "diffusion":
            self.query = self.param("query", nn.initializers.normal(0.02), (c.width,), jnp.float32)
            self.head = DiffusionHead(c.head_width, c.head_depth, outputs, c.frequencies, dtype)
            return
        if c.head != "none":
            self.head_modulation = Modulation(c.width, 2, c.head)
        self.head = dense(outputs, jnp.float32, "zeros")

    def __call__(
        self,
        streams: dict[str, Stream],
        condition: Condition | EncodedCondition,
        mask,
        past=None,
        past_frame=None,
        prefix_mask=None,
        raw: bool = False,
        queries: bool = False,
        compaction: Compaction | None = None,
        hidden: bool = False,
        order: Order | None = None,
    ):
        """Runs all streams together.

        Args:
            streams: name -> Stream, concatenated along frames in this order. All have the same spatial size.
            condition: for the whole sample (F = 1), or per block (then there is one stream).
            mask: by frame over [fine slots | coarse slots | streams]: bool [T, W + T] or [B, T, W + T], [.., 1, W + T]
                where all rows are alike, or, where it is known before anything runs, a StaticMask, for which attention
                computes only what is seen.
            past: per layer what ``kv`` is of the slots, each [B, W, N, H, K], arrays or ``cache.Int8``; with coarse
                slots (k, v, coarse k, coarse v), or (coarse k, coarse v) where there are no fine ones. None: no past.
            past_frame: int32 [B, W], or [B, W, N] by token: where in time the keys of the fine slots, which are raw,
                stand. None: they need no turning. Additive positions do not turn: they take no notice.
            prefix_mask: as ``mask``, what the prefix attention of each frame sees; a row without a frame, or None,
                means the frame itself.
            raw: static, whether the keys and queries of ``kv`` are raw. Those of coarse and of prefix attention never
                know it.
            queries: static, whether ``kv`` has the summed queries of each frame. Joint attention only.
            compaction: how each layer compacts its past, (k, v, q) of raw keys, before it reads it; ``mask`` and
                ``past_frame`` are of the slots afterwards. Own queries that count are those of fine frames that are
                not ``clean``. Joint attention only.
            hidden: static, whether outputs are what ``per_token`` takes, float32 [B, T, N, D]. Diffusion head only.
            order: in which the fine frames run; outputs are in that of the streams, kv is not. They are one segment,
                the last one, and share their condition's text. None: as they come.

        Returns:
            (outputs, kv): outputs name -> float32 [B, T, *space, C * outputs], all but 'coarse'; kv per layer of the
            fine frames, of the coarse ones if 'coarse' is the only stream: (k, v) [B, T, N, H, K]; with ``queries``
            (k, v, q), q float32 [B, T, 1, H, K]; with model.prefix (k, v, prefix k, prefix v); () in a layer without
            attention along time (stacked on a leading axis with layers='scan'). With a compaction, the pair of that
            and the compacted past.

        Raises:
            ValueError: queries or a compaction without joint attention; a stream 'coarse' without model.coarse; an
                order for several segments of fine frames, or for a text by block.
        """
        c = self.config
        if c.attention != "joint" and (queries or compaction is not None):
            raise ValueError(
                f"model.attention is {c.attention!r}: summed queries and compaction look at whole frames of tokens; "
                "model.attention = 'joint' would do"
            )
        if not isinstance(condition, EncodedCondition):
            condition = self.embed_condition(condition)
        for stream in streams.values():
            B, T = stream.x.shape[0], stream.x.shape[1] // c.patch[0]
            chex.assert_shape([stream.t, stream.frame], (B, T))
            if stream.clean is not None:
                chex.assert_shape(stream.clean, (B, T))
            if stream.action is not None:
                chex.assert_shape(stream.action, (B, T, c.action))
        if order is not None:
            mask, prefix_mask = _mask_in_order(mask, order), _mask_in_order(prefix_mask, order)
            condition = _in_order(condition, order)
        xs, segments, runs, frames = self._segments(streams, condition, raw, queries, order)
        past_rotary = None
        if past_frame is not None and c.positions != "additive":
            axes = len(c.patch) if c.attention == "joint" else 1
            past_rotary = rope.time_table(past_frame, c.width // c.heads, c.theta, axes, c.rope_split)
        visibility = Visibility(mask, prefix_mask, past_rotary, compaction)
        if c.registers:
            xs, segments, visibility = self._with_registers(xs, segments, visibility, condition)
        xs, kv = self._run_blocks(xs, segments, visibility, condition, past)
        outputs = {}
        own = slice(-len(runs), None)  # registers come before
        for x, segment, run, e in zip(xs[own], segments[own], runs, frames, strict=True):
            if segment.form == "coarse":
                continue
            out, start = norm(x) if hidden else self._head(x, e, segment.clean, run, order), 0
            out = tokens(out) if order is None else order.restore(constrain(tokens(out), "batch"))
            for name, stream in run.items():
                T = stream.x.shape[1] // c.patch[0]
                shape = (*stream.x.shape[:-1], c.channels * c.outputs)
                own = out[:, start : start + T]
                outputs[name] = own if hidden else unpatchify(own, shape, c.patch)
                start += T
        return outputs, kv

    def _segments(self, streams, condition, raw=False, queries=False, order=None):
        """Consecutive streams of one form, embedded: of each its tokens, Segment, streams by name and embedding."""
        c, dtype = self.config, self.config.compute_dtype
        xs, segments, runs, frames = [], [], [], []
        if order is not None and "coarse" in list(streams)[1:]:
            raise ValueError("frames that run in another order are one segment, behind coarse ones")
        for coarse, names in itertools.groupby(streams, key=lambda name: name == "coarse"):
            if coarse and not c.coarse:
                raise ValueError("there is a stream 'coarse' and model.coarse is 0; model.coarse = 4 would do")
            run = {name: streams[name] for name in names}
            factor, embed = (c.coarse, self.coarse_embed) if coarse else (1, self.embed)
            patch = (c.patch[0], *(factor * part for part in c.patch[1:]))
            join = _join if order is None or coarse else lambda parts: order.take(constrain(_join(parts), "batch"))
            x = [patchify(s.x.astype(dtype), patch) for s in run.values()]
            x = tokens(_join([embed(part) for part in x]) if join is _join else embed(join(x)))
            if c.head == "diffusion":
                query = join([_noisy(s)[..., None, None] for s in run.values()])
                x = jnp.where(query, self.query.astype(dtype), x)
            e = modulated = tokens(join([self._embed_frames(s, condition) for s in run.values()]))
            frame, clean = join([s.frame for s in run.values()]), None
            if any(s.clean is not None for s in run.values()):
                clean = join([jnp.zeros(s.t.shape, bool) if s.clean is None else s.clean for s in run.values()])
            if c.modulation == "table":
                modulated = self.projection(nn.silu(e)).reshape(*e.shape[:-1], c.modulations, c.width)
            grid = self._grid(next(iter(run.values())).x.shape[2:-1], factor)
            if c.positions != "rotary":
                at = frame % c.period if c.period else frame
                if c.positions == "both":
                    at = jnp.zeros_like(frame)  # a stream never ends: no absolute time
                x = x + rope.additive_table(at, grid, c.width, c.theta, factor).astype(dtype)
            rotary = stored = None
            if c.positions != "additive":
                rotary = self._rotary(frame, grid, factor)
                stored = self._rotary(jnp.zeros((1, 1), jnp.int32), grid, factor) if raw and not coarse else None
            xs.append(x)
            form = "coarse" if coarse else "fine"
            segments.append(Segment(form, modulated, clean, rotary, stored, queries and not coarse))
            runs.append(run)
            frames.append(e)
        return tuple(xs), tuple(segments), runs, frames

    def _grid(self, space, factor):
        return tuple(size // (factor * part) for size, part in zip(space, self.config.patch[1:], strict=True))

    def _rotary(self, frame, grid, stride):
        """The table of joint attention, or the pair (space, time) of factorised attention."""
        c, K = self.config, self.config.width // self.config.heads
        if c.attention == "joint":
            return rope.rotary_table(frame, grid, K, c.theta, c.rope_split, stride)
        return (rope.space_table(grid, K, c.theta) if grid else None), rope.rotary_table(frame, (), K, c.theta)

    def _with_registers(self, xs, segments, visibility, condition):
        """Puts the registers first, and their columns between those of the slots and of the streams."""
        c, B = self.config, xs[0].shape[0]
        tokens = self.registers[None, None]
        if c.label_tokens:
            tokens = tokens + condition.vector[:, :, None]
        F = tokens.shape[1]
        tokens = jnp.broadcast_to(tokens, (B, *tokens.shape[1:])).astype(c.compute_dtype)
        T = sum(x.shape[1] for x in xs)
        shown = np.repeat(np.eye(F, dtype=bool), T // F, axis=0)
        mask = visibility.mask
        W = mask.shape[-1] - T
        if isinstance(mask, StaticMask):
            mask = StaticMask(np.concatenate([mask.array[:, :W], shown, mask.array[:, W:]], axis=1))
        else:
            mask = jnp.broadcast_to(mask, (*mask.shape[:-2], T, mask.shape[-1]))
            shown = jnp.broadcast_to(shown, (*mask.shape[:-1], F))
            mask = jnp.concatenate([mask[..., :W], shown, mask[..., W:]], axis=-1)
        return (tokens, *xs), (Segment("registers"), *segments), visibility._replace(mask=mask)

    def _head(self, x, e, clean, run, order):
        """The last norm and Linear, or the network per token: [B, T, N, P]."""
        c, x = self.config, norm(x)
        if c.head == "diffusion":
            given = [_join(each) for each in zip(*((patchify(s.x, c.patch), s.t) for s in run.values()), strict=True)]
            return self.head(*(given if order is None else map(order.take, given)), x)
        if c.head != "none":
            shift, scale = jnp.moveaxis(self.head_modulation(e if c.head == "linear" else e[:, :, None]), 2, 0)
            if clean is not None and not c.modulate_clean:
                shift, scale = (jnp.where(clean[:, :, None], 0.0, part) for part in (shift, scale))
            x = x * (1 + scale[:, :, None]) + shift[:, :, None]
        return self.head(x)

    def per_token(self, x, t, h):
        """The diffusion head alone: x [B, T, *space, C] at levels t [B, T], h as ``hidden`` gives it -> outputs."""
        c = self.config
        shape = (*x.shape[:-1], c.channels * c.outputs)
        return unpatchify(self.head(patchify(x, c.patch), t, h), shape, c.patch)

    def embed_condition(self, condition: Condition) -> EncodedCondition:
        """The class vector and the embedded text (as one (tokens,) tuple of keys, projected inside each block)."""
        c = self.config
        vector = self.label(condition.label) if c.classes else None
        tokens, mask = None, condition.text_mask if c.text else None
        if c.text:
            text = self.words(condition.text, condition.text_mask) if c.vocabulary else condition.text
            if condition.text_of is not None:  # all captions stand beside each other, and a block sees its own
                B, F, M, E = text.shape
                own = condition.text_of[:, :, None, None] == jnp.arange(F, dtype=jnp.int32)[:, None]
                mask = (own & mask[:, None]).reshape(B, -1, F * M)
                text = text.reshape(B, 1, F * M, E)
            tokens = (self.text(text),)
        return EncodedCondition(vector=vector, keys=tokens, mask=mask)

    def encode_condition(self, condition: Condition) -> EncodedCondition:
        """Everything about a condition that can be computed once per change. Needs layers='unrolled'."""
        embedded = self.embed_condition(condition)
        if embedded.keys is None:
            return embedded
        pairs = [block.text_keys_values(embedded.keys[0]) for block in self.block]
        keys, values = zip(*pairs, strict=True)
        return dataclasses.replace(embedded, keys=keys, values=values)

    def _embed_frames(self, stream: Stream, condition: EncodedCondition):
        """Time, class and action of every frame, summed: float32 [B, T, D]."""
        t = jnp.where(_noisy(stream), 1.0, stream.t) if self.config.head == "diffusion" else stream.t
        e = self.time(t)
        if condition.vector is not None and not self.config.label_tokens:
            e = e + jnp.repeat(condition.vector, e.shape[1] // condition.vector.shape[1], axis=1)
        if self.config.action:
            given = stream.action_given
            action = stream.action
            if action is None:
                action = jnp.zeros((*stream.t.shape, self.config.action), jnp.float32)
                given = jnp.zeros(stream.t.shape, bool)
            e = e + self.action(action, jnp.ones(stream.t.shape, bool) if given is None else given)
        return e

    def _run_blocks(self, xs, segments, visibility, condition, past):
        encoded = condition.values is not None
        if self.config.layers == "scan":
            if encoded:
                raise ValueError("an encoded condition needs layers='unrolled'; see unstack_layers")
            text = None if condition.keys is None else condition.keys[0]
            return self.blocks(xs, segments, visibility, text, condition.mask, past)
        kv = []
        for i, block in enumerate(self.block):
            text = None
            if condition.keys is not None:
                text = (condition.keys[i], condition.values[i]) if encoded else condition.keys[0]
            xs, own = block(xs, segments, visibility, text, condition.mask, None if past is None else past[i])
            kv.append(own)
        return xs, tuple(kv)


def _noisy(stream: Stream):
    """Which frames of a stream are to be predicted, bool [B, T]."""
    return jnp.ones(stream.t.shape, bool) if stream.clean is None else ~stream.clean


def _join(parts):
    """Arrays laid one after the other along frames."""
    return jnp.concatenate(parts, axis=1)


def _mask_in_order(mask, order: Order):
    """A mask of frames in another order."""
    return StaticMask(order.mask(mask.array)) if isinstance(mask, StaticMask) else order.mask(mask)


def _in_order(condition: EncodedCondition, order: Order) -> EncodedCondition:
    """A mask of text by block, as frames in another order see it."""
    if condition.keys is None:
        return condition
    if condition.keys[0].shape[1] > 1:
        raise ValueError("frames with texts of their own run in the order that they come in; text_of would do")
    mask = condition.mask
    if mask is None or mask.shape[1] == 1:
        return condition
    return dataclasses.replace(condition, mask=order.take(jnp.repeat(mask, len(order.back) // mask.shape[1], axis=1)))

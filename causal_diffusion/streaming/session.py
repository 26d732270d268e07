"""The session: a stream as a Python user holds it.

Iterating gives decoded blocks. Between blocks the user may steer (``update``, actions), look back (``mark``,
``rewind``, ``fork``), restart single samples (``reset``) and go home (``save``). All state is on device in one
frozen pytree; the session owns it, donates it to every step, and copies it where two futures are wanted.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint import save_tree
from causal_diffusion.checkpoint.fingerprints import check_same
from causal_diffusion.config import to_json
from causal_diffusion.errors import UserError
from causal_diffusion.nn.embedders import Condition
from causal_diffusion.ranges import COUNT, check_number, is_number
from causal_diffusion.streaming.decoding import encode_context, prime, replace_samples
from causal_diffusion.streaming.inputs import (
    as_action,
    check_context_action,
    check_recache,
    copy_tree,
    parse_action,
    parse_condition,
    parse_context,
    parse_observed,
    parse_reference,
    take_actions,
    take_observed,
)
from causal_diffusion.streaming.maker import Maker
from causal_diffusion.streaming.output import Output, begin_output
from causal_diffusion.streaming.placement import put
from causal_diffusion.streaming.state import Action, Observed, State, as_made
from causal_diffusion.streaming.watch import Watch


class Mark(NamedTuple):
    """A moment of a stream, to ``rewind`` to."""

    state: State
    frame: np.ndarray  # ``state.frame`` as the host knows it, int [B]
    condition: Condition
    encoded: Any
    queue: np.ndarray | None  # actions of blocks to come
    held: np.ndarray | None  # the action that holds when there are none
    observed: np.ndarray | None = None  # known values of blocks to come
    decoder: Any = None  # what the decoder of latents remembers; None before its first block
    ahead: Output | None = None  # the block that was begun and not yet returned, of a session that is ahead
    maker: Maker | None = None  # what made it, of a mark that a user holds


class Session(Iterator):
    """An endless stream of blocks [B, b, *space, C] in data range; made by ``Pipeline.stream``."""

    def __init__(self, pipeline, mark: Mark, seed: int, ahead: bool = False, watch: Watch | None = None):
        """``ahead``: whether the next block is begun before one is returned; ``watch``: begun with the stream."""
        self.pipeline = pipeline
        self.seed = seed
        self.ahead = ahead
        self.watch = Watch() if watch is None else watch
        self._mark = mark

    @property
    def batch(self) -> int:
        """Samples streamed side by side."""
        return len(self._mark.frame)

    @property
    def frame(self) -> np.ndarray:
        """Index of the next emitted frame of each sample, int [B], context included; of latents, if there are any."""
        begun = 0 if self._mark.ahead is None else self.pipeline.rollout.emit
        return np.maximum(self._mark.frame - begun, 0)

    @property
    def void(self) -> int:
        """Frames that the next block lacks, as the first one of a sequence may: they are never shown."""
        if not self.pipeline.recipe.layout.pad or self._mark.ahead is not None:
            return 0
        return max(0, -int(self._mark.frame.min()))

    @property
    def decoded(self) -> bool:
        """Whether the decoder of latents has begun, so that the next latent stands for as many frames as any later."""
        return self._mark.decoder is not None

    def __next__(self) -> np.ndarray:
        return self.next()

    def next(self, action=None) -> np.ndarray:
        """The next block.

        Args:
            action: for the frames of the block that enters now: [A], [b, A] or [B, b, A]; fewer frames than the
                block are held. Without one, queued actions (``cond['action']``) come first, then the last is held.
        """
        return self.take(1, action)

    def take(self, blocks: int, action=None) -> np.ndarray:
        """``blocks`` blocks at once, [B, blocks b, *space, C]: the same bits as that many calls of ``next``.

        Schedules that denoise whole chunks emit a chunk where others emit a block. Latents come out decoded.
        """
        config, rollout = self.pipeline.recipe.config, self.pipeline.rollout
        blocks = check_number("blocks", blocks, COUNT, error=UserError)
        given = parse_action(config.model, action, self.batch)
        if given is not None:
            entering = blocks * rollout.emit - self._void_entering()
            if given.shape[1] > entering:
                raise UserError(f"action has {given.shape[1]} frames; the frames that enter now are {entering}")
            self._mark = self._mark._replace(queue=given)
        begun, parts = [] if self._mark.ahead is None else [self._mark.ahead], []
        self._mark = self._mark._replace(ahead=None)
        left = blocks - len(begun)
        while left > 0 or self.ahead and left == 0:  # the last one is the block that stays under way
            begun.append(self._step(max(1, min(left, config.stream.capacity))))
            left -= begun[-1].steps
            if len(begun) > 1:
                parts.append(begun.pop(0).fetch(self.watch))
        if self.ahead:
            self._mark = self._mark._replace(ahead=begun.pop())
        parts += [each.fetch(self.watch) for each in begun]
        with self.watch.phase("compiling"):
            self.pipeline.programs.wait()
        frames = np.concatenate(parts, axis=1)
        self.watch.returned(blocks, frames.shape[1])
        return frames

    def prepare(self, blocks: int | None = None) -> None:
        """Compiles what the next ``blocks`` blocks need, None being endless, in the background; the first one waits."""
        mark, pipeline, recipe = self._mark, self.pipeline, self.pipeline.recipe
        rollout, capacity = pipeline.rollout, pipeline.config.stream.capacity
        action = observed = None
        if recipe.model.config.action:
            value, given, *_ = take_actions(None, None, rollout.emit, self.batch, recipe.model.config.action)
            action = Action(*(self._by_step(a, 1, capacity) for a in (value, given)))
        if recipe.guidance.observe != "none":
            seen, _ = take_observed(None, rollout.emit, self.batch, recipe.frame_shape)
            observed = Observed(*(self._by_step(a, 1, capacity) for a in (seen.value, seen.given)))
        with self.watch.phase("compiling"):
            given = (pipeline.weights, mark.state, mark.encoded, action, observed, 1)
            pipeline.programs.prepare(mark.frame, blocks, *given)
        with self.watch.phase("beginning"):
            jax.block_until_ready(mark.state)

    def _step(self, n: int) -> Output:
        """Begins at most ``n`` of the next blocks, those that one program makes."""
        mark, pipeline, capacity = self._mark, self.pipeline, self.pipeline.config.stream.capacity
        program, n = pipeline.programs.choose(mark.frame, n)
        with self.watch.phase("compiling"):
            pipeline.programs.wait(program)
        void, actions, observed = self.void, self._actions(n, capacity), self._observed(n, capacity)
        state, emitted = program(pipeline.weights, mark.state, mark.encoded, actions, observed, n)
        output, decoder = begin_output(pipeline.codec, emitted, n, void, mark.decoder)
        frame = mark.frame + n * pipeline.rollout.emit
        self._mark = self._mark._replace(state=state, frame=frame, decoder=decoder)
        return output

    def finish(self) -> np.ndarray:
        """Drains the blocks in flight and returns them, [B, frames, ...]; empty for autoregressive schedules."""
        rollout = self.pipeline.rollout
        if not rollout.waiting:
            shape, codec = self.pipeline.recipe.frame_shape, self.pipeline.codec
            shape = shape if codec is None else codec.geometry.frame_shape(shape)
            return np.zeros((self.batch, 0, *shape), np.float32)
        return self.take(rollout.waiting // rollout.emit)

    def update(self, cond: dict, when: str = "entering", recache: bool = False) -> None:
        """Changes the condition; what ``cond`` leaves out stays.

        Args:
            cond: as for ``Pipeline.stream``; an 'action' replaces queued actions, 'observed' the values known of
                frames that enter from now on.
            when: 'entering': blocks that enter from now on; 'in_flight': also those half denoised.
            recache: encode the remembered past anew under the new condition (LongLive, arXiv 2509.22622), so that
                the change is not held back by keys and values computed under the old one. Block by block, as it was
                encoded first; LongLive runs all of it in one pass in which it sees itself whole.
        """
        if when not in ("entering", "in_flight"):
            raise UserError(f"when is {when!r}; it is 'entering' or 'in_flight'")
        model = self.pipeline.recipe.model.config
        if "context_action" in cond:
            raise UserError("context_action belongs to a context; give it to stream() or reset()")
        if "reference" in cond:
            raise UserError("the reference frame of a stream stays; give another one to stream() or reset()")
        if recache:
            check_recache(self.pipeline.recipe)
        cond = dict(cond)
        observed = parse_observed(self.pipeline.recipe, cond.pop("observed", None), self.batch)
        observed = self._mark.observed if observed is None else observed
        condition = parse_condition(model, self.pipeline.read_prompts(cond), self.batch, self._mark.condition)
        condition = put(condition, self.pipeline.mesh)
        with self.watch.phase("condition"):
            encoded = self.pipeline.encode_condition(self.pipeline.weights, condition)
        state = self._mark.state
        if when == "in_flight":
            state = put(self.pipeline.rollout.steer_in_flight(state, encoded), self.pipeline.mesh)
        if recache:
            state = self.pipeline.recache(self.pipeline.weights, state, encoded)
        queue = parse_action(model, cond.get("action"), self.batch)
        queue = self._mark.queue if queue is None else queue
        self._mark = self._mark._replace(
            state=state, condition=condition, encoded=encoded, queue=queue, observed=observed
        )

    def mark(self) -> Mark:
        """A copy of this moment."""
        return self._mark._replace(state=copy_tree(self._mark.state), maker=self.pipeline.maker)

    def rewind(self, mark: Mark) -> None:
        """Back to a mark of this stream; the mark stays good.

        Raises:
            CheckpointError: the mark was made with other weights, another VAE, text encoder or steering loss (named).
        """
        maker, batch = self.pipeline.maker, len(mark.frame)
        if mark.maker is not None and not maker.is_same(mark.maker):
            check_same("the mark", mark.maker.fingerprints(batch), maker.fingerprints(batch),
                       "try a mark of this stream")  # fmt: skip
        self._mark = mark._replace(state=copy_tree(mark.state))

    def fork(self) -> "Session":
        """A twin that goes on from here by itself."""
        return Session(self.pipeline, self.mark(), self.seed, self.ahead)

    def reset(self, sample: int, context=None, context_action=None, reference=None, observed=None) -> None:
        """Starts sample ``sample`` again, as it would start alone; the others do not notice.

        Its noise is that of the same seed and index, so with the same context it repeats itself. Actions that are
        queued are those of the next frames, whoever they belong to; values that were known of it are known no more.

        Args:
            sample: which one.
            context, context_action: what it starts from, as for ``Pipeline.stream``, of one sample.
            reference: another reference frame; None keeps its own.
            observed: values known of its new frames, [T, *space, C], NaN where unknown.
        """
        if not is_number(sample, int) or not 0 <= sample < self.batch:
            raise UserError(f"there is no sample {sample}; samples are 0 .. {self.batch - 1}")
        pipeline, state, recipe = self.pipeline, self._mark.state, self.pipeline.recipe
        context = encode_context(pipeline.codec, recipe, None if context is None else np.asarray(context)[None])
        context = parse_context(recipe, context, 1)
        context = np.broadcast_to(context, (self.batch, *context.shape[1:]))
        acted = parse_action(recipe.model.config, context_action, self.batch, "context_action")
        check_context_action(acted, context, "context_action")
        layout, given = recipe.layout, context.shape[1]
        if layout.pad and not given and self.batch > 1:
            raise UserError(
                f"layout.first is {layout.first} and layout.block is {layout.block}: a single sample cannot start with "
                f"a short block beside others; a context of {layout.first} frames would do"
            )
        cursor, coarse_cursor = pipeline.rollout.cursor_before(state, given)
        other, reference = reference, None if state.reference is None else state.reference[:, 0]
        if other is not None:
            reference = parse_reference(recipe, other, context, self.batch)
        seen, queue = self._observed_from(sample, parse_observed(recipe, observed, 1))
        fresh = pipeline.init_state(
            pipeline.weights, state.keys, self._mark.encoded, context, as_action(acted), None, cursor, reference, seen,
            coarse_cursor,
        )  # fmt: skip
        which = jnp.arange(self.batch) == sample
        decoder = replace_samples(pipeline.codec, self._mark.decoder, prime(pipeline.codec, context), which)
        state = put(pipeline.rollout.replace_samples(state, fresh, which), pipeline.mesh)
        frame = self._mark.frame.copy()
        frame[sample] = given or -layout.pad
        self._mark = self._mark._replace(state=state, frame=frame, observed=queue, decoder=decoder)

    def save(self, path) -> None:
        """Writes the whole stream to one file; ``Pipeline.resume`` goes on with the same bits."""
        mark = self._mark
        arrays = {"state": as_made(mark.state), "condition": mark.condition}
        kept = ("queue", "held", "observed", "decoder")
        arrays |= {name: value for name in kept if (value := getattr(mark, name)) is not None}
        if mark.ahead is not None:
            arrays["ahead"] = mark.ahead.fetch(Watch())
        text = None if mark.condition.text is None else mark.condition.text.shape[2]
        meta = {
            "schema": 2,
            "fingerprints": self.pipeline.maker.fingerprints(self.batch),
            "config": json.loads(to_json(self.pipeline.recipe.config)),
            "seed": self.seed,
            "batch": self.batch,
            "queue": None if mark.queue is None else mark.queue.shape[1],
            "held": mark.held is not None,
            "observed": None if mark.observed is None else mark.observed.shape[1],
            "text": text,
            "decoded": self.decoded,
            "ahead": None if mark.ahead is None else list(arrays["ahead"].shape),
        }
        save_tree(path, arrays, meta)

    def _void_entering(self):
        """As ``void``, of the block that enters next."""
        return self.void if not self.pipeline.rollout.waiting else 0

    def _actions(self, n, capacity):
        """Actions of the next n blocks from the queue, then the held one: leaves [capacity, B, b, A]."""
        A, b = self.pipeline.recipe.model.config.action, self.pipeline.rollout.emit
        if not A:
            return None
        void = self._void_entering()
        value, given, queue, held = take_actions(self._mark.queue, self._mark.held, n * b, self.batch, A, void)
        self._mark = self._mark._replace(queue=queue, held=held)

        return Action(*(self._by_step(a, n, capacity) for a in (value, given)))

    def _observed(self, n, capacity):
        """Likewise of known values: leaves [capacity, B, b, ...]."""
        recipe = self.pipeline.recipe
        if recipe.guidance.observe == "none":
            return None
        frames = n * self.pipeline.rollout.emit
        seen, rest = take_observed(self._mark.observed, frames, self.batch, recipe.frame_shape, self._void_entering())
        self._mark = self._mark._replace(observed=rest)
        return Observed(*(self._by_step(a, n, capacity) for a in (seen.value, seen.given)))

    def _observed_from(self, sample, values):
        """Known values [1, T, ...] of a sample that starts again: (those of its ramp, the queue of all samples)."""
        recipe, waiting, queue = self.pipeline.recipe, self.pipeline.rollout.waiting, self._mark.observed
        if recipe.guidance.observe == "none":
            return None, queue
        seen = None
        if values is not None:
            values = np.broadcast_to(values, (self.batch, *values.shape[1:]))
        if waiting:
            seen, values = take_observed(values, waiting, self.batch, recipe.frame_shape)
        length = max(0 if a is None else a.shape[1] for a in (queue, values))
        if not length:
            return seen, None

        def long(a):
            full = np.full((self.batch, length, *recipe.frame_shape), np.nan, np.float32)
            if a is not None:
                full[:, : a.shape[1]] = a
            return full

        queue = long(queue)
        queue[sample] = long(values)[sample]
        return seen, queue

    def _by_step(self, a, n, capacity):
        """[B, n b, ...] -> [capacity, B, b, ...]."""
        a = np.moveaxis(a.reshape(self.batch, n, -1, *a.shape[2:]), 1, 0)
        return put(jnp.asarray(np.pad(a, ((0, capacity - n), *((0, 0),) * (a.ndim - 1)))), self.pipeline.mesh, ahead=1)

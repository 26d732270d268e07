"""The session: a stream as a Python user holds it.

Iterating gives decoded blocks. Between blocks the user may steer (``update``, actions), look back (``mark``,
``rewind``, ``fork``), restart single samples (``reset``) and write the stream to a file (``save``). All state is on
device in one frozen pytree; the session owns it, donates it to every step, and copies it where two futures are wanted.

An exception may interrupt any method at any instruction (Ctrl-C in a notebook that iterates is normal use). The stream
then continues with the next block that was not returned. Three rules give that::

    one slot       all of a stream is one attribute, ``_now``; whatever changes it assigns it once, at its end
    no half step   a step, which consumes the state that it starts from, is in that slot as a ``Once`` before it begins
                   and runs on a thread of the library: whoever reads the slot next waits for its result
    pending        blocks of a step stay in ``Mark.ahead`` until they are returned, and go back if they are not
"""

import functools
import json
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint import save_tree
from causal_diffusion.checkpoint.fingerprints import check_same
from causal_diffusion.config import to_json
from causal_diffusion.errors import UserError
from causal_diffusion.jax_settings import under_own_settings
from causal_diffusion.ranges import SIZE, check_number, is_number
from causal_diffusion.streaming.decoding import encode_context, prime, replace_samples
from causal_diffusion.streaming.entering import (
    Mark,
    observed_from,
    padding,
    padding_entering,
    take_entering_actions,
    take_entering_observed,
)
from causal_diffusion.streaming.inputs import (
    as_action,
    check_context_action,
    check_recache,
    conditions,
    copy_tree,
    parse_action,
    parse_condition,
    parse_context,
    parse_observed,
    parse_reference,
)
from causal_diffusion.streaming.output import begin_output, take_steps
from causal_diffusion.streaming.placement import put
from causal_diffusion.streaming.state import as_made
from causal_diffusion.streaming.watch import Watch
from causal_diffusion.workers import Once, settled


def _exclusive(method):
    """Decorates a method of a session: other threads wait meanwhile."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with self._lock:
            return method(self, *args, **kwargs)

    return under_own_settings(wrapped)


class Session(Iterator):
    """An endless stream of blocks [B, b, *space, C] in data range; made by ``Pipeline.stream``.

    Its methods may be called from several threads, one after the other.
    """

    def __init__(self, pipeline, mark: Mark, seed: int, ahead: bool = False, watch: Watch | None = None):
        """``ahead``: whether the next block is begun before one is returned; ``watch``: begun with the stream."""
        self.pipeline = pipeline
        self.seed = seed
        self.ahead = ahead
        self.watch = Watch() if watch is None else watch
        self._lock = threading.RLock()
        self._compiling, self._weights = {}, None  # program -> of this stream's shapes; the parameters they are for
        self._now: Mark | Once = mark

    @property
    def _mark(self) -> Mark:
        """Where the stream is; of a step that was begun, once it is done."""
        return settled(self._now, functools.partial(setattr, self, "_now"))

    @_mark.setter
    def _mark(self, mark: Mark):
        self._now = mark

    @property
    def batch(self) -> int:
        """Samples streamed side by side."""
        return len(self._mark.frame)

    @property
    def frame(self) -> np.ndarray:
        """Index of the next emitted frame of each sample, int [B], context included; of latents, if there are any."""
        mark = self._mark
        return np.maximum(mark.frame - mark.steps_ahead * self.pipeline.rollout.emit, 0)

    @property
    def void(self) -> int:
        """Frames that the next block lacks, as the first one of a sequence may: they are never shown."""
        return 0 if self._mark.ahead else padding(self.pipeline, self._mark)

    @property
    def decoded(self) -> bool:
        """Whether the decoder of latents has begun, so that the next latent stands for as many frames as any later."""
        return self._mark.decoder is not None

    def __next__(self) -> np.ndarray:
        taken = _Taken(self)
        try:
            return taken.take(1, None)
        except BaseException:
            taken.put_back()
            raise

    def next(self, action=None) -> np.ndarray:
        """The next block.

        Args:
            action: for the frames of the block that enters now: [A], [b, A] or [B, b, A]; fewer frames than the
                block are held. Without one, queued actions (``cond['action']``) come first, then the last is held.
        """
        taken = _Taken(self)
        try:
            return taken.take(1, action)
        except BaseException:
            taken.put_back()
            raise

    def take(self, blocks: int, action=None) -> np.ndarray:
        """``blocks`` blocks at once, [B, blocks b, *space, C]: the same bits as that many calls of ``next``.

        Schedules that denoise whole chunks emit a chunk where others emit a block. Latents come out decoded. The same
        call again after an interrupt continues it: an action that is begun already does not count twice.
        """
        taken = _Taken(self)
        try:
            return taken.take(blocks, action)
        except BaseException:
            taken.put_back()
            raise

    def prepare(self, blocks: int | None = None) -> None:
        """Compiles what the next ``blocks`` blocks need, None being endless, in the background; the first one waits."""
        mark = self._mark
        with self.watch.phase("compiling"):
            for program in self.pipeline.programs.needed(mark.frame, blocks):
                self._compiling_of(mark, program).start()
        with self.watch.phase("beginning"):
            jax.block_until_ready(mark.state)

    def _ready(self, blocks: int, given: np.ndarray | None) -> Mark:
        """Begins steps until ``blocks`` blocks are ahead, and fetches all of them but the one that stays under way."""
        capacity, mark = self.pipeline.config.stream.capacity, self._mark
        fresh = given
        if any(output.given is not None and np.array_equal(output.given, given) for output in mark.ahead):
            fresh = None  # the same call again after an interrupt
        if fresh is not None:
            entering = blocks * self.pipeline.rollout.emit - padding_entering(self.pipeline, mark)
            if fresh.shape[1] > entering:
                raise UserError(f"action has {given.shape[1]} frames; the frames that enter now are {entering}")
            mark = mark._replace(queue=fresh)
        while (left := blocks + self.ahead - mark.steps_ahead) > 0:
            mark = self._step(mark, max(1, min(left - self.ahead, capacity)), given)
            if len(mark.ahead) > 1:  # the device works meanwhile on the last one
                mark = mark._replace(ahead=(*(each.fetched(self.watch) for each in mark.ahead[:-1]), mark.ahead[-1]))
                self._now = mark
        with self.watch.phase("compiling"):
            for compiling in self._compiling.values():
                compiling.result()
        return mark

    def _step(self, mark: Mark, n: int, given=None) -> Mark:
        """Begins at most ``n`` of the next blocks, those that one program makes: the mark with them ahead."""
        pipeline = self.pipeline
        (chosen, n), weights = pipeline.programs.choose(mark.frame, n), pipeline.weights
        with self.watch.phase("compiling"):
            program = self._compiling_of(mark, chosen).result()

        def step():
            void = padding(pipeline, mark)
            steered, action = take_entering_actions(pipeline, mark, n)
            steered, observed = take_entering_observed(pipeline, steered, n)
            state, emitted = program(weights, mark.state, mark.encoded, action, observed, np.int32(n))
            output, decoder = begin_output(pipeline.codec, emitted, n, void, mark.decoder, given)
            frame = mark.frame + n * pipeline.rollout.emit
            return steered._replace(state=state, frame=frame, decoder=decoder, ahead=(*mark.ahead, output))

        self._now = Once(step, mark, mark.state)
        return self._mark

    def _compiling_of(self, mark: Mark, program):
        """``program`` for the shapes of this stream."""
        pipeline = self.pipeline
        if self._weights is not pipeline.weights:  # others were put in their place
            self._compiling, self._weights = {}, pipeline.weights
        if program not in self._compiling:
            _, action = take_entering_actions(pipeline, mark, 1)
            _, observed = take_entering_observed(pipeline, mark, 1)
            given = (pipeline.weights, mark.state, mark.encoded, action, observed, np.int32(1))
            self._compiling[program] = pipeline.programs.compiling(program, given)
        return self._compiling[program]

    def finish(self) -> np.ndarray:
        """Drains the blocks in flight and returns them, [B, frames, ...]; empty for autoregressive schedules."""
        rollout = self.pipeline.rollout
        if not rollout.waiting:
            shape, codec = self.pipeline.recipe.frame_shape, self.pipeline.codec
            shape = shape if codec is None else codec.geometry.frame_shape(shape)
            return np.zeros((self.batch, 0, *shape), np.float32)
        return self.take(rollout.waiting // rollout.emit)

    @_exclusive
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
        model, cond = self.pipeline.recipe.model.config, conditions(cond)
        if "context_action" in cond:
            raise UserError("context_action belongs to a context; give it to stream() or reset()")
        if "reference" in cond:
            raise UserError("the reference frame of a stream stays; give another one to stream() or reset()")
        if recache:
            check_recache(self.pipeline.recipe)
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

    @_exclusive
    def mark(self) -> Mark:
        """A copy of this moment."""
        mark = self._mark
        return mark._replace(state=copy_tree(mark.state), maker=self.pipeline.maker)

    @_exclusive
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

    @under_own_settings
    def fork(self) -> "Session":
        """A twin that goes on from here by itself."""
        return Session(self.pipeline, self.mark(), self.seed, self.ahead)

    @_exclusive
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
        seen, queue = observed_from(pipeline, self._mark, sample, parse_observed(recipe, observed, 1))
        fresh = pipeline.init_state(
            pipeline.weights, state.keys, self._mark.encoded, context, as_action(acted), None, cursor, reference, seen,
            coarse_cursor,
        )  # fmt: skip
        which = jnp.arange(self.batch, dtype=jnp.int32) == sample
        decoder = replace_samples(pipeline.codec, self._mark.decoder, prime(pipeline.codec, context), which)
        state = put(pipeline.rollout.replace_samples(state, fresh, which), pipeline.mesh)
        frame = self._mark.frame.copy()
        frame[sample] = given or -layout.pad
        self._mark = self._mark._replace(state=state, frame=frame, observed=queue, decoder=decoder)

    @_exclusive
    def save(self, path) -> None:
        """Writes the whole stream to one file; ``Pipeline.resume`` goes on with the same bits."""
        mark = self._mark
        arrays = {"state": as_made(mark.state), "condition": mark.condition}
        kept = ("queue", "held", "observed", "decoder")
        arrays |= {name: value for name in kept if (value := getattr(mark, name)) is not None}
        pending = [frames for output in mark.ahead for frames in output.fetched(Watch()).frames]
        if pending:
            arrays["ahead"] = dict(enumerate(pending))
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
            "ahead": [list(frames.shape) for frames in pending] if pending else None,
            "is_ahead": self.ahead,
        }
        save_tree(path, arrays, meta)


class _Taken:
    """Blocks on their way to the user. ``put_back``: what was taken and did not arrive is pending again."""

    def __init__(self, session: Session):
        self._session, self._before = session, None

    def take(self, blocks, action):
        """As ``Session.take``. Nothing is called after the last blocks have left ``Mark.ahead``."""
        session = self._session
        blocks = check_number("blocks", blocks, SIZE, error=UserError)
        with session._lock:
            given = parse_action(session.pipeline.recipe.config.model, action, session.batch)
            mark = session._ready(blocks, given)
            taken, rest = take_steps(mark.ahead, blocks)
            frames = np.concatenate([each.fetch(session.watch) for each in taken], axis=1)
            session.watch.returned(blocks, frames.shape[1])
            after = mark._replace(ahead=tuple(each._replace(given=None) for each in rest))
            self._before = mark
            session._now = after
        return frames

    def put_back(self):
        if self._before is not None:
            self._session._now = self._before

"""A moment of a stream, and what steers the blocks that enter next: queued actions and known values."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from causal_diffusion.nn.embedders import Condition
from causal_diffusion.streaming.inputs import take_actions, take_observed
from causal_diffusion.streaming.maker import Maker
from causal_diffusion.streaming.output import Output
from causal_diffusion.streaming.placement import put
from causal_diffusion.streaming.state import Action, Observed, State


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
    ahead: tuple[Output, ...] = ()  # blocks that were begun and not yet returned, in order
    maker: Maker | None = None  # what made it, of a mark that a user holds

    @property
    def steps_ahead(self) -> int:
        """Steps that were begun and not yet returned."""
        return sum(output.steps for output in self.ahead)


def padding(pipeline, mark: Mark) -> int:
    """Frames that the next block to be begun lacks, as the first one of a sequence may."""
    return max(0, -int(mark.frame.min())) if pipeline.recipe.layout.pad else 0


def padding_entering(pipeline, mark: Mark) -> int:
    """As ``padding``, of the block that enters next."""
    return padding(pipeline, mark) if not pipeline.rollout.waiting else 0


def take_entering_actions(pipeline, mark: Mark, n: int) -> tuple[Mark, Action | None]:
    """Takes the actions of the next n blocks from the queue, then the held one.

    Returns:
        (the mark without them, Action with leaves [capacity, B, b, A]; None where the system takes no actions).
    """
    A, frames = pipeline.recipe.model.config.action, n * pipeline.rollout.emit
    if not A:
        return mark, None
    void = padding_entering(pipeline, mark)
    value, given, queue, held = take_actions(mark.queue, mark.held, frames, len(mark.frame), A, void)
    return mark._replace(queue=queue, held=held), Action(*(_by_step(pipeline, a, n) for a in (value, given)))


def take_entering_observed(pipeline, mark: Mark, n: int) -> tuple[Mark, Observed | None]:
    """Likewise known values: (the mark without them, Observed with leaves [capacity, B, b, ...] or None)."""
    recipe, frames = pipeline.recipe, n * pipeline.rollout.emit
    if recipe.guidance.observe == "none":
        return mark, None
    void = padding_entering(pipeline, mark)
    seen, rest = take_observed(mark.observed, frames, len(mark.frame), recipe.frame_shape, void)
    return mark._replace(observed=rest), Observed(*(_by_step(pipeline, a, n) for a in (seen.value, seen.given)))


def observed_from(pipeline, mark: Mark, sample: int, values: np.ndarray | None):
    """Known values [1, T, ...] of a sample that starts again: (those of its ramp, the queue of all samples)."""
    recipe, waiting, queue, batch = pipeline.recipe, pipeline.rollout.waiting, mark.observed, len(mark.frame)
    if recipe.guidance.observe == "none":
        return None, queue
    seen = None
    if values is not None:
        values = np.broadcast_to(values, (batch, *values.shape[1:]))
    if waiting:
        seen, values = take_observed(values, waiting, batch, recipe.frame_shape)
    length = max(0 if a is None else a.shape[1] for a in (queue, values))
    if not length:
        return seen, None

    def long(a):
        full = np.full((batch, length, *recipe.frame_shape), np.nan, np.float32)
        if a is not None:
            full[:, : a.shape[1]] = a
        return full

    queue = long(queue)
    queue[sample] = long(values)[sample]
    return seen, queue


def _by_step(pipeline, a, n):
    """[B, n b, ...] -> [capacity, B, b, ...]."""
    a = np.moveaxis(a.reshape(len(a), n, -1, *a.shape[2:]), 1, 0)
    rest = pipeline.config.stream.capacity - n
    return put(jnp.asarray(np.pad(a, ((0, rest), *((0, 0),) * (a.ndim - 1)))), pipeline.mesh, ahead=1)

"""Blocks on their way from the device to the user.

A step is begun and its blocks are fetched apart, so that the next one can be begun in between: the device, which
computes in the order in which things are begun, never waits for the host::

    host      begin 0 | begin 1 | fetch 0 ....... | begin 2 | fetch 1 ...
    device    [ steps 0 ][ decode 0 ][ steps 1 ][ decode 1 ][ steps 2 ] ...
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from causal_diffusion.streaming.decoding import decode_blocks
from causal_diffusion.streaming.watch import Watch

Array = Any


class Output(NamedTuple):
    """``steps`` steps that were begun.

    emitted: [capacity, B, E, *space, C], or () once they were fetched; steps from ``first`` on count, and of their
        frames the first ``void`` do not.
    frames: of a system that works on latents, decoded, or of any system once they were fetched: per step, a list of
        [B, T, ...]. None: ``emitted`` is what the user gets.
    given: the action with which the user asked for these steps, [B, T, A]; None: without one.
    """

    steps: int
    void: int
    emitted: Array
    frames: list[Array] | None = None
    given: np.ndarray | None = None
    first: int = 0

    def fetch(self, watch: Watch) -> np.ndarray:
        """The frames [B, T, *space, C], once they are there."""
        return np.concatenate(self.fetched(watch).frames, axis=1)

    def fetched(self, watch: Watch) -> "Output":
        """The same in the host's memory, once it is there; as it is if it was fetched before."""
        if isinstance(self.emitted, tuple):
            return self
        with watch.phase("steps"):
            jax.block_until_ready(self.emitted)
        if self.frames is None:
            with watch.phase("fetching"):
                emitted = np.asarray(self.emitted)[self.first : self.first + self.steps]
                frames = [block[:, self.void if i == 0 else 0 :] for i, block in enumerate(emitted)]
                return self._replace(void=0, emitted=(), frames=frames, first=0)
        with watch.phase("decoding"):
            jax.block_until_ready(self.frames)
        with watch.phase("fetching"):
            return self._replace(emitted=(), frames=[np.asarray(frames) for frames in self.frames])

    def split(self, n: int) -> tuple["Output", "Output"]:
        """(the first ``n`` steps, the others), 0 < n < ``steps``."""
        frames = (None, None) if self.frames is None else (self.frames[:n], self.frames[n:])
        return (self._replace(steps=n, frames=frames[0]),
                self._replace(steps=self.steps - n, frames=frames[1], void=0, first=self.first + n))  # fmt: skip


def take_steps(outputs: tuple[Output, ...], n: int) -> tuple[tuple[Output, ...], tuple[Output, ...]]:
    """(the outputs of the first ``n`` steps of ``outputs``, those of the others)."""
    taken, rest = [], list(outputs)
    while n > 0:
        output = rest.pop(0)
        if output.steps > n:
            output, other = output.split(n)
            rest.insert(0, other)
        taken.append(output)
        n -= output.steps
    return tuple(taken), tuple(rest)


def begin_output(codec, emitted, steps: int, void: int, memory, given=None):
    """What comes out of ``steps`` steps, decoded if need be: (Output, the decoder's memory)."""
    if codec is None:
        return Output(steps, void, emitted, given=given), memory
    frames, memory = decode_blocks(codec, [_block(emitted, i) for i in range(steps)], void, memory)
    return Output(steps, void, emitted, frames, given), memory


@jax.jit
def _block(emitted, i):
    """One step's: a number that is traced, so that nothing is compiled for each."""
    return jax.lax.dynamic_index_in_dim(emitted, i, keepdims=False)

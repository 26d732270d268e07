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

    emitted: [capacity, B, E, *space, C], the first ``steps`` of them count; of their frames the first ``void`` do not.
    frames: of a system that works on latents, decoded, a list of [B, T, ...]; None without a decoder.
    """

    steps: int
    void: int
    emitted: Array
    frames: list[Array] | None = None

    def fetch(self, watch: Watch) -> np.ndarray:
        """The frames [B, T, *space, C], once they are there."""
        with watch.phase("steps"):
            jax.block_until_ready(self.emitted)
        if self.frames is None:
            with watch.phase("fetching"):
                blocks = np.moveaxis(np.asarray(self.emitted)[: self.steps], 0, 1)
                return blocks.reshape(len(blocks), -1, *blocks.shape[3:])[:, self.void :]
        with watch.phase("decoding"):
            jax.block_until_ready(self.frames)
        with watch.phase("fetching"):
            return np.concatenate([np.asarray(frames) for frames in self.frames], axis=1)


def begin_output(codec, emitted, steps: int, void: int, memory):
    """What comes out of ``steps`` steps, decoded if need be: (Output, the decoder's memory)."""
    if codec is None:
        return Output(steps, void, emitted), memory
    frames, memory = decode_blocks(codec, [_block(emitted, i) for i in range(steps)], void, memory)
    return Output(steps, void, emitted, frames), memory


@jax.jit
def _block(emitted, i):
    """One step's: a number that is traced, so that nothing is compiled for each."""
    return jax.lax.dynamic_index_in_dim(emitted, i, keepdims=False)

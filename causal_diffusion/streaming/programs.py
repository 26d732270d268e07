"""The two programs that make blocks, and which one makes which.

::

    block      0  1  2  ...  k-1 | k  k+1  ...
    program    filling           | full            block k is the first one before which every ring of slots is full

In the full program no mask is left where every query sees the whole ring (``visible``). Which program makes a block
follows from the frame numbers of the samples, which the host knows without asking the device. It is the same one
however many blocks are asked for at once, so that the bits are, too; a sample that starts again takes the batch back to
filling.

Programs are compiled when a stream begins, beside each other, before its first block is returned: those that it will
need. Streams of the same shapes share them.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from causal_diffusion.streaming.placement import compiled
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.visible import full_from


class Programs:
    """``Rollout.advance``, compiled.

    Attributes:
        filling, full: (params, state, condition, action, observed, n) -> (state, blocks); the state is donated. One and
            the same where a full ring changes nothing.
    """

    def __init__(self, rollout: Rollout, capacity: int, mesh):
        self._emit, self._compiling = rollout.emit, {}
        self._begins = full_from(rollout.recipe) + (rollout.block if rollout.fused else 0)
        self._rollouts = {"filling": rollout}
        if rollout.settles:
            self._rollouts["full"] = dataclasses.replace(rollout, full=True)
        made = {name: _program(each, name, capacity, mesh) for name, each in self._rollouts.items()}
        self.filling, self.full = made["filling"], made.get("full", made["filling"])

    def filling_blocks(self, frame: np.ndarray) -> int:
        """How many steps of a stream that emits ``frame`` [B] next are still made while some ring fills."""
        return max(0, -(-(self._begins - int(frame.min())) // self._emit))

    def of_stream(self, frame: np.ndarray) -> dict[str, tuple[int, Rollout]]:
        """{name: (the step from which on it makes a stream that emits ``frame`` [B] first, its rollout)}, in order."""
        begins = {"filling": 0, "full": self.filling_blocks(frame)}
        both = {name: (begins[name], rollout) for name, rollout in self._rollouts.items()}
        if both.get("full", (1,))[0] == 0:
            del both["filling"]
        return both

    def choose(self, frame: np.ndarray, n: int):
        """(the program that makes the next step, how many of the next ``n`` steps it makes)."""
        filling = self.filling_blocks(frame)
        return (self.filling, min(n, filling)) if filling else (self.full, n)

    def prepare(self, frame: np.ndarray, steps: int | None, *args) -> None:
        """Begins to compile what ``steps`` steps from ``frame`` on need, None being endless; ``args`` of a call."""
        filling = self.filling_blocks(frame)
        wanted = [self.filling] * (filling > 0) + [self.full] * (steps is None or steps > filling)
        shapes = jax.tree.map(_shape, args)
        for program in dict.fromkeys(wanted):
            key = (program, jax.tree.structure(shapes), *jax.tree.leaves(shapes))
            if key not in self._compiling:
                lowered = program.lower(*args)  # here, under whatever settings this thread has
                pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
                self._compiling[key] = pool.submit(lowered.compile)
                pool.shutdown(wait=False)

    def wait(self, program=None) -> None:
        """Until ``program``, or all that was begun, is compiled."""
        for key, future in self._compiling.items():
            if program in (None, key[0]):
                future.result()


def _shape(a):
    """What a program is compiled for, of one array."""
    return f"{np.shape(a)} {getattr(a, 'dtype', type(a))} {getattr(a, 'sharding', '')}"


def _program(rollout, name, capacity, mesh):
    def advance(params, state, condition, action, observed, n):
        return rollout.advance(params, state, condition, action, observed, n, capacity)

    advance.__name__ = name
    return compiled(advance, mesh, first=1, donate=1)

"""The two programs that make blocks, and which one makes which.

::

    block      0  1  2  ...  k-1 | k  k+1  ...
    program    filling           | full            block k is the first one before which every ring of slots is full

In the full program no mask is left where every query sees the whole ring (``visible``). Which program makes a block
follows from the frame numbers of the samples, which the host knows without asking the device. It is the same one
however many blocks are asked for at once, so that the bits are, too; a sample that starts again takes the batch back to
filling.

Programs are compiled in the background when a stream begins, before its first block is returned: those that it will
need. Streams of the same shapes share them, from any thread; a stream waits for its own programs only. They are traced
and compiled on threads of the library, under its own JAX settings (``jax_settings``).
"""

import dataclasses
import threading

import jax
import numpy as np

from causal_diffusion.streaming.placement import compiled
from causal_diffusion.streaming.rollout import Rollout
from causal_diffusion.streaming.visible import full_from
from causal_diffusion.workers import Once


class Compiling:
    """A program for certain shapes. ``lowered``: once it is traced; ``result``: the executable, once it is compiled."""

    def __init__(self, program, args):
        self.lowered = Once(lambda: program.lower(*args))
        self._compiled = Once(lambda: self.lowered.result().compile())

    def start(self) -> None:
        """Begins, and waits until the program is traced: tracing would slow down this thread's Python all the same."""
        self._compiled.start()
        self.lowered.result()

    def result(self):
        """(params, state, condition, action, observed, n) -> (state, blocks); the state is donated."""
        return self._compiled.result()


class Programs:
    """``Rollout.advance``, compiled. All methods may be called from several threads.

    Attributes:
        filling, full: (params, state, condition, action, observed, n) -> (state, blocks); the state is donated. One and
            the same where a full ring changes nothing.
    """

    def __init__(self, rollout: Rollout, capacity: int, mesh):
        self._emit, self._compiling, self._lock = rollout.emit, {}, threading.Lock()
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

    def needed(self, frame: np.ndarray, steps: int | None) -> list:
        """The programs that ``steps`` steps from ``frame`` on need, None being endless."""
        filling = self.filling_blocks(frame)
        return list(dict.fromkeys([self.filling] * (filling > 0) + [self.full] * (steps is None or steps > filling)))

    def compiling(self, program, args) -> Compiling:
        """``program`` for arguments such as ``args``, each pair compiled once; ``Compiling.start`` begins it."""
        args = jax.tree.map(_shape, args)
        key = (program, jax.tree.structure(args), *map(_key, jax.tree.leaves(args)))
        with self._lock:
            if key not in self._compiling:
                self._compiling[key] = Compiling(program, args)
            return self._compiling[key]

    def executables(self, program) -> int:
        """For how many kinds of arguments ``program`` was asked for."""
        with self._lock:
            return sum(key[0] is program for key in self._compiling)


def _shape(a):
    """What a program is compiled for, of one array: its arguments are not kept alive."""
    if isinstance(a, jax.Array):
        # Where an array that may be moved lies now does not matter.
        sharding = a.sharding if a.committed else None
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(np.shape(a), np.asarray(a).dtype)


def _key(a):
    return f"{a.shape} {a.dtype} {a.sharding}"


def _program(rollout, name, capacity, mesh):
    def advance(params, state, condition, action, observed, n):
        return rollout.advance(params, state, condition, action, observed, n, capacity)

    advance.__name__ = name
    return compiled(advance, mesh, first=1, donate=1)

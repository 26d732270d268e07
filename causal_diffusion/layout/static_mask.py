"""A mask that is known before anything runs, so that a program can be made for what it shows.

A traced mask says while a program runs who sees whom: everything is computed, and what is hidden is thrown away. A
``StaticMask`` is part of the program instead. It has no leaves for JAX, is equal to another one where all entries are,
and goes through ``jax.jit``, ``jax.checkpoint`` and scans as a constant.
"""

import functools

import jax
import numpy as np


@jax.tree_util.register_static
class StaticMask:
    """Who sees whom by frame, bool [T, S], as a constant of the program: queries as rows, keys as columns."""

    def __init__(self, array):
        """``array``: bool [T, S] in NumPy; it is copied."""
        array = np.array(array, bool)
        if array.ndim != 2:
            raise ValueError(f"a static mask has rows and columns, not the shape {array.shape}")
        array.setflags(write=False)
        self.array = array

    @property
    def shape(self) -> tuple[int, int]:
        """(T, S)."""
        return self.array.shape

    @functools.cached_property
    def full(self) -> bool:
        """Whether every query sees every key."""
        return bool(self.array.all())

    def __getitem__(self, rows) -> "StaticMask":
        """Some of its rows."""
        return StaticMask(self.array[rows])

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype, copy=copy)

    def __eq__(self, other):
        return isinstance(other, StaticMask) and np.array_equal(self.array, other.array)

    def __hash__(self):
        return self._hash

    @functools.cached_property
    def _hash(self):
        return hash((self.shape, self.array.tobytes()))

    def __repr__(self):
        return f"StaticMask({self.shape[0]}x{self.shape[1]}, {self.array.mean():.3f} seen)"

"""Levels: how noisy each block is during training.

A clip of n blocks gets n times t in [0, 1]. ``independent`` draws every block alone (diffusion forcing, Chen et al.
2024, arXiv 2407.01392), ``shared`` draws once for all blocks (full-sequence diffusion). The density is that of a
single level:

    uniform        t ~ U(0, 1)
    logit_normal   t = sigmoid(mean + std z), z ~ N(0, 1)           (Esser et al. 2024, arXiv 2403.03206, eq. 19)

Where the layout keeps a clean copy, its blocks may be noised too, each with its own level from U(0, context), so
that the network learns to distrust what it generated itself (noise augmentation, Valevski et al. 2024, arXiv
2408.14837). Sinks stay clean: they are what was given. ``label_context`` says whether the network is told that level
or told zero.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any


@dataclasses.dataclass(frozen=True)
class Levels:
    """Joint distribution of the levels of a clip's blocks."""

    kind: str = "independent"  # a key of KINDS
    density: str = "uniform"  # a key of DENSITIES
    mean: float = 0.0  # of logit_normal, in logits
    std: float = 1.0  # of logit_normal, in logits
    context: float = 0.0  # clean copies are noised to a level drawn from U(0, context)
    label_context: bool = True  # the network is told the level of the clean copy

    def __post_init__(self):
        for name, table in (("kind", KINDS), ("density", DENSITIES)):
            if getattr(self, name) not in table:
                raise ValueError(f"levels.{name} is {getattr(self, name)!r}; it is one of {', '.join(table)}")
        if not 0.0 <= self.context <= 1.0:
            raise ValueError(f"levels.context is {self.context}; a level lies in [0, 1]")
        if self.std <= 0.0:
            raise ValueError(f"levels.std is {self.std}; it is positive")

    def sample(self, key: Array, blocks: int) -> Array:
        """Levels of the noisy blocks of one clip, float32 [blocks]."""
        return KINDS[self.kind](self, key, blocks)

    def sample_context(self, key: Array, blocks: int) -> Array:
        """Noise levels of the clean copies of one clip, float32 [blocks]."""
        return self.context * jax.random.uniform(key, (blocks,))

    def context_label(self, t: Array) -> Array:
        """The level that the network is told for clean copies noised to t."""
        return t if self.label_context else jnp.zeros_like(t)


def _uniform(levels, key, shape):
    del levels
    return jax.random.uniform(key, shape)


def _logit_normal(levels, key, shape):
    return jax.nn.sigmoid(levels.mean + levels.std * jax.random.normal(key, shape))


def _independent(levels, key, blocks):
    return DENSITIES[levels.density](levels, key, (blocks,))


def _shared(levels, key, blocks):
    return jnp.broadcast_to(DENSITIES[levels.density](levels, key, ()), (blocks,))


DENSITIES = {"uniform": _uniform, "logit_normal": _logit_normal}
KINDS = {"independent": _independent, "shared": _shared}

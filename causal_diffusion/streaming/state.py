"""The state of a stream, and what steers it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion import cache as caching
from causal_diffusion.nn.transformer import EncodedCondition

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a stream is. A frozen pytree; W slots, F blocks in flight of b frames each.

    caches: per layer, the keys (rotated) and values that its attentions keep, each [BG, W, N, H, K], or
        [B, W, N, H, K] where all branches see the same past; () without.
    slots: which frame each slot holds, per sample.
    memory: what else is kept per slot: 'latents' [B, W, *space, C]; without keys and values 'noise', where
        they are shown with some; with actions 'action' [B, W, A] and 'action_given' [B, W].
    x: blocks in flight, oldest first, [B, F b, *space, C]. The last place is vacant between steps.
    action, action_given: of the frames in flight, [B, F b, A] and [B, F b]; None without actions.
    condition: of the blocks in flight, [BG, F, ...].
    history: of the solver.
    keys: one typed PRNG key per sample, [B].
    frame: index of the first frame in flight, int32 [B].
    start: index of the first frame that was not given, int32 [B].
    """

    caches: tuple[tuple[Array, ...], ...]
    slots: caching.Slots
    memory: dict[str, Array]
    x: Array
    action: Array | None
    action_given: Array | None
    condition: EncodedCondition
    history: Any
    keys: Array
    frame: Array
    start: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Action:
    """Actions of some frames: value [B, T, A], given bool [B, T] (False: none is known)."""

    value: Array
    given: Array


def sample_keys(seed: int, batch: int) -> Array:
    """Keys of samples 0 .. batch - 1: each depends on (seed, index) only."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(batch))

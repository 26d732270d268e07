"""The state of a stream, and what steers it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from causal_diffusion import cache as caching
from causal_diffusion.nn.transformer import EncodedCondition
from causal_diffusion.seeds import random_key

Array = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Action:
    """Actions of some frames: value [B, T, A], given bool [B, T] (False: none is known)."""

    value: Array
    given: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """Values of frames in flight that are known beforehand: value and given (bool), both [B, T, *space, C]."""

    value: Array
    given: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pending:
    """A finished block whose keys and values the next block's first pass computes (cache.commit = 'fused').

    x [B, b, *space, C]; frame int32 [B, b], EMPTY where there is none; condition [BG, 1, ...]; action of its frames.
    """

    x: Array
    frame: Array
    condition: EncodedCondition
    action: Action | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a stream is. A frozen pytree; W slots, F blocks in flight of b frames each, T = F b + knot frames.

    caches: per layer, what its attentions keep of every slot, arrays, Int8 or HeadsFirst [BG, W, N, ...], or
        [B, W, N, ...] where all branches see the same past: keys and values, with compression also summed queries; of
        two levels those of coarse tokens; () without. A recurrent network's states, whatever they are.
    slots: which frame each slot holds, per sample.
    coarse: likewise of the coarse tokens; None without.
    memory: what else is kept per slot: 'latents' [B, W, *space, C]; without keys and values 'noise', where
        they are shown with some; with actions 'action' [B, W, A] and 'action_given' [B, W].
    reference: the reference frame, [B, 1, *space, C]; None without.
    pending: see there; None where blocks are committed at once.
    x: blocks in flight, oldest first, [B, T, *space, C]. Between steps the last place is vacant, and a knot lies in
        front: its frames are those that the next block begins with.
    action, action_given: of the frames in flight, [B, F b, A] and [B, F b]; None without actions.
    observed: of the frames in flight; None without.
    condition: of the blocks in flight, [BG, F, ...].
    history: of the solver.
    keys: one typed PRNG key per sample, [B].
    frame: index of the first frame in flight, int32 [B].
    start: index of the first frame that was not given, int32 [B].
    """

    caches: Any
    slots: caching.Slots
    coarse: caching.Slots | None
    memory: dict[str, Array]
    reference: Array | None
    pending: Pending | None
    x: Array
    action: Array | None
    action_given: Array | None
    observed: Observed | None
    condition: EncodedCondition
    history: Any
    keys: Array
    frame: Array
    start: Array


def as_made(state: State) -> State:
    """With keys and values frame by frame, as a saved stream holds them whatever read them."""
    unlaid = jax.tree.map(caching.unlay, state.caches, is_leaf=lambda x: isinstance(x, caching.HeadsFirst))
    return dataclasses.replace(state, caches=unlaid)


def sample_keys(seed: int, batch: int) -> Array:
    """Keys of samples 0 .. batch - 1: each depends on (seed, index) only. UserError: see ``seeds.random_key``."""
    return jax.vmap(jax.random.fold_in, (None, 0))(random_key(seed), jnp.arange(batch, dtype=jnp.int32))

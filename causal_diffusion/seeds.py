"""Seeds: integers from a user -> keys of random numbers.

A seed has 64 bits, and every one of them counts. Seeds below 2^32 give JAX's own key of that number; of larger ones the
high half is folded into the key of the low half, which JAX would take alone.
"""

import jax

from causal_diffusion.errors import UserError
from causal_diffusion.jax_settings import IMPL
from causal_diffusion.ranges import SEED, check_number


def random_key(seed: int, *, name: str = "seed", impl: str = IMPL) -> jax.Array:
    """A typed key. UserError: no integer, or not in 0 .. 2^64 - 1. ``impl``: the key's under any settings."""
    seed = check_seed(seed, name)
    key = jax.random.key(seed % 2**32, impl=impl)
    return jax.random.fold_in(key, seed // 2**32) if seed >= 2**32 else key


def check_seed(seed, name: str = "seed") -> int:
    """A seed as a Python integer. UserError: it is none, or not in 0 .. 2^64 - 1."""
    return check_number(name, seed, SEED, default=0, error=UserError)

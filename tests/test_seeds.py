"""Seeds: all of their 64 bits count, and whatever is no seed is refused in one line."""

import jax
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.seeds import random_key
from causal_diffusion.streaming.state import sample_keys


def bits(key):
    return tuple(jax.random.key_data(key).ravel().tolist())


def test_small_seeds_give_the_keys_of_jax():
    for seed in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        assert bits(random_key(seed)) == bits(jax.random.key(seed))


def test_every_bit_counts():
    seeds = [0, *(1 << bit for bit in range(64)), 2**64 - 1, 2**32 + 1, 2**33 + 1]
    assert len({bits(random_key(seed)) for seed in seeds}) == len(seeds)
    assert bits(sample_keys(5, 2)) != bits(sample_keys(5 + 2**32, 2))


def test_numbers_of_numpy_are_seeds():
    assert bits(random_key(np.uint64(2**63 + 5))) == bits(random_key(2**63 + 5))
    assert bits(random_key(np.asarray(7))) == bits(random_key(jax.numpy.int32(7))) == bits(random_key(7))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, float("nan"), "1", None, True, [1, 2]])
def test_what_is_no_seed_is_refused_in_one_line(seed):
    with pytest.raises(UserError, match="^seed is .*, try seed = 0$") as error:
        random_key(seed)
    assert "\n" not in str(error.value)

"""Eight bits: how far off, and how much smaller. Heads first: the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.cache import HeadsFirst, Int8, heads_first, lay, load, store, unlay


def test_eight_bits_are_as_near_as_the_equation_says():
    x = jax.random.normal(jax.random.key(0), (3, 5, 4, 2, 16)) * jnp.exp(jnp.arange(5.0))[:, None, None, None]
    x = x.at[0, 0, 0].set(0.0)
    kept = store(x, "int8")
    assert isinstance(kept, Int8) and kept.shape == x.shape and kept.values.dtype == jnp.int8
    back = load(kept, jnp.float32)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    error = np.abs(back - x)
    assert (error <= largest / 254 * (1 + 1e-5)).all() and error.max() > largest.max() / 300
    assert not np.asarray(back[0, 0, 0]).any()
    np.testing.assert_array_equal(store(back, "int8").values, kept.values)  # once rounded, always the same


def test_eight_bits_take_a_quarter_and_a_bit():
    x = jnp.zeros((2, 3, 4, 2, 64))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(store(x, "int8"))) * 64 * 4 == x.nbytes * (64 + 4)


def test_floating_types_are_cast():
    x = jnp.linspace(-1, 1, 7)
    assert store(x, "bfloat16").dtype == jnp.bfloat16 and load(store(x, "bfloat16"), jnp.float32).dtype == jnp.float32
    np.testing.assert_array_equal(load(store(x, "float32"), jnp.float32), x)


def test_heads_first_are_the_same_numbers():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4, 8))
    laid = lay(x)
    assert laid.array.shape == (2, 4, 3, 5, 8) and laid.shape == x.shape
    np.testing.assert_array_equal(unlay(laid), x)
    np.testing.assert_array_equal(unlay(x), x)
    for each in (x, laid):
        np.testing.assert_array_equal(heads_first(each), x.reshape(2, 15, 4, 8).swapaxes(1, 2))
    narrow = load(laid, jnp.bfloat16)
    assert isinstance(narrow, HeadsFirst) and narrow.array.dtype == jnp.bfloat16

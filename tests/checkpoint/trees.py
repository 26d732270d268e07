"""Trees of every kind, checkpoints of them, and how they are compared."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding

from causal_diffusion.checkpoint import Checkpoints

at_once = functools.partial(Checkpoints, asynchronous=False)
META = {"config": {"width": 16, "name": "tiny", "levels": [0.5, 1.0]}, "note": "ä"}


class Mixed(NamedTuple):
    """Every kind of leaf in every kind of container."""

    half: jax.Array
    keys: jax.Array
    fast_key: jax.Array
    rest: tuple
    nothing: None = None


@functools.cache
def make_tree(seed: int = 0) -> dict:
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (8, 16))
    return {
        "params": {"block_0": {"kernel": kernel, "bias": jnp.arange(16.0)}},
        "opt": optax.adamw(1e-3).init({"kernel": kernel}),
        "mixed": Mixed(half=jnp.asarray([1 / 3, jnp.nan, jnp.inf], jnp.bfloat16),
                       keys=jax.random.split(key, 4),
                       fast_key=jax.random.key(seed, impl="rbg"),
                       rest=(np.asarray([[True], [False]]), jnp.zeros((0, 3)), jnp.uint8(7), {})),
        "step": jnp.int32(seed),
    }


def make_ema(seed: int = 0) -> dict:
    return {"block_0": {"kernel": jnp.full((8, 16), seed + 0.1)}}


def like(tree, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    place = sharding if callable(sharding) else lambda leaf: sharding
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), tree)


LIKE = {"ema": like(make_ema()), "train": like(make_tree())}


def assert_same(found, wanted):
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save(store: Checkpoints, step: int) -> None:
    store.save(step, ema=make_ema(step), train=make_tree(step), data={"batches": step}, meta=META)


def saved_steps(folder):
    """A folder of checkpoints with steps 100 and 200."""
    store = at_once(folder / "checkpoints")
    save(store, 100)
    save(store, 200)
    return store.directory


def check_step(restored, step: int) -> None:
    assert restored.step == step
    assert_same(restored.ema, make_ema(step))
    assert_same(restored.train, make_tree(step))
    assert restored.data == {"batches": step}
    assert restored.meta == META


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.motion_vae import MotionVAE, MotionVAEConfig, Residual

SMALL = MotionVAEConfig(channels=5, latent=3, width=6, align=4)


def shapes(config):
    network, x = MotionVAE(config), jnp.zeros((1, config.geometry.time, config.channels))
    return jax.eval_shape(network.init, jax.random.key(0), x)["params"]


def count(tree):
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def random_params(config, seed=0):
    """Every parameter away from zero."""
    tree = shapes(config)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(0.4 * rng.standard_normal(a.shape), jnp.float32), tree)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_the_published_sizes():
    """CMDM's released checkpoint, and the same without the map to the aligned features."""
    assert count(shapes(MotionVAEConfig())) == 76_312_199
    assert count(shapes(MotionVAEConfig(align=0))) == 76_295_559
    assert MotionVAEConfig().geometry.latent_shape((196, 263)) == (49, 64)


def test_the_ends_are_the_last_kernels_of_either_side():
    params = shapes(SMALL)
    assert at(params, MotionVAE.encoder_end).shape == (6, 2 * 3)
    assert at(params, MotionVAE.decoder_end).shape == (3, 6, 5)
    assert params["projection"]["kernel"].shape == (3, 4) and "projection" not in shapes(
        dataclasses.replace(SMALL, align=0)
    )


def test_projection_is_linear():
    network, params, z = MotionVAE(SMALL), random_params(SMALL), jnp.arange(12.0).reshape(2, 2, 3)
    out = network.apply({"params": params}, z, method="project")
    expected = z @ params["projection"]["kernel"] + params["projection"]["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_a_residual_block_by_hand(dilation):
    block, rng = Residual(dilation, jnp.float32), np.random.default_rng(0)
    x = rng.standard_normal((1, 30, 2)).astype(np.float32)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32), block.init(jax.random.key(0), x)["params"]
    )
    y, state = block.apply({"params": params}, x)
    p = jax.tree.map(np.asarray, params)
    relu = lambda a: np.maximum(a, 0)  # noqa: E731
    padded = np.concatenate([np.zeros((2 * dilation, 2)), relu(x[0])])
    for t in range(30):
        h = sum(padded[t + k * dilation] @ p["conv"]["kernel"][k] for k in range(3)) + p["conv"]["bias"]
        expected = x[0, t] + relu(h) @ p["linear"]["kernel"] + p["linear"]["bias"]
        np.testing.assert_allclose(y[0, t], expected, rtol=1e-4, atol=1e-5)
    assert state["conv"].shape == (1, 2 * dilation, 2)


def test_the_widest_dilation_comes_first():
    """Both sides; it shows in how much of the past each block keeps."""
    network, params = MotionVAE(SMALL), random_params(SMALL)
    encoded, encoder = network.apply({"params": params}, jnp.ones((2, 8, 5)), method="encode")
    _, decoder = network.apply({"params": params}, encoded.mean, method="decode")
    for state in (encoder, decoder):
        for stage in ("blocks_0", "blocks_1"):
            kept = [state[stage][f"block_{i}"]["conv"].shape[1] for i in range(3)]
            assert kept == [18, 6, 2]
    assert [encoder[name].shape[1] for name in ("conv_in", "down_0", "down_1", "conv_out")] == [2, 2, 2, 2]
    assert [decoder[name].shape[1] for name in ("conv_in", "up_0", "up_1", "conv_mid", "conv_out")] == [2] * 5


def test_the_posterior_is_bounded_and_is_what_is_sampled():
    network, params = MotionVAE(SMALL), random_params(SMALL)
    x = jax.random.normal(jax.random.key(0), (2, 8, 5))
    keys = jax.random.split(jax.random.key(1), 2)
    encoded, z, y = network.apply({"params": params}, x, keys, method="reconstruct")
    eps = jnp.stack([jax.random.normal(key, (2, 3)) for key in keys])
    np.testing.assert_allclose(z, encoded.mean + jnp.exp(encoded.logvar / 2) * eps, rtol=1e-5)
    np.testing.assert_allclose(y, network.apply({"params": params}, z, method="decode")[0], rtol=1e-4, atol=1e-4)
    encoded, _ = network.apply({"params": params}, 1e6 * x, method="encode")
    assert encoded.logvar.min() == -30 and encoded.logvar.max() == 20


@pytest.mark.parametrize("stages", [0, 1, 3])
def test_any_number_of_stages(stages):
    config = dataclasses.replace(SMALL, stages=stages, depth=1, align=0)
    network, params = MotionVAE(config), random_params(config)
    x = jax.random.normal(jax.random.key(0), (1, 16, 5))
    encoded, _ = network.apply({"params": params}, x, method="encode")
    assert encoded.mean.shape == (1, 16 // 2**stages, 3) == (1, config.geometry.latents(16), 3)
    assert network.apply({"params": params}, encoded.mean, method="decode")[0].shape == x.shape


def test_bfloat16_stays_near_and_is_kept_in_the_state():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    params, x = random_params(SMALL), jax.random.normal(jax.random.key(0), (1, 8, 5))
    full, _ = MotionVAE(SMALL).apply({"params": params}, x, method="encode")
    encoded, state = MotionVAE(half).apply({"params": params}, x, method="encode")
    assert encoded.mean.dtype == jnp.float32 and {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype("bfloat16")}
    scale = np.abs(full.mean).max()
    assert 0 < np.abs(encoded.mean - full.mean).max() < 0.1 * scale
    y, _ = MotionVAE(half).apply({"params": params}, encoded.mean, method="decode")
    assert y.dtype == jnp.float32


def test_a_clip_must_be_whole_groups():
    with pytest.raises(UserError, match="6 frames are no whole number of latents: a clip has 4 n, 4 or 8 would do"):
        SMALL.geometry.latents(6)


@pytest.mark.parametrize("values, message", [
    (dict(channels=0), "vae.motion.channels is 0; it is at least 1"),
    (dict(latent=0), "vae.motion.latent is 0; it is at least 1"),
    (dict(stages=-1), "vae.motion.stages is -1; it lies in [0, 10], try vae.motion.stages = 0"),
    (dict(align=-1), "vae.motion.align is -1; it is at least 0"),
    (dict(dtype="float16"), "vae.motion.dtype is 'float16'; it is one of auto, float32, bfloat16"),
])  # fmt: skip
def test_bad_sizes_are_named(values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        MotionVAEConfig(**values)

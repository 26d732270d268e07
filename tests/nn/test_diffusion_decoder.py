"""CDT: its published size, its steps against a plain loop, its noise, and its layers against their formulas."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.cdt_unet import FrameAttention, TimeUp, UNet, time_down
from causal_diffusion.nn.diffusion_decoder import CDT, CDTConfig, frame_noise

TINY = CDTConfig(
    channels=2, latent=2, base=4, unet=4, multipliers=(1,), unet_multipliers=(1, 2), time_down=(True,),
    space_down=(True,), blocks=1, finest=4, wide=3, up=3,
)  # fmt: skip
PUBLISHED_SMALL = CDTConfig(base=64, finest=3, pad="edge", space_down=(True, True, True, False))
rng = np.random.default_rng(0)


def variant(**changes):
    return dataclasses.replace(TINY, **changes)


def shapes(config):
    x = jnp.zeros((1, 5, 2 * config.geometry.space, 2 * config.geometry.space, config.channels))
    return jax.eval_shape(lambda: CDT(config).init(jax.random.key(0), x))["params"]


def random_params(config):
    """Every parameter away from zero, scales about one."""
    generator = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(0.4 * generator.normal(size=a.shape) + ("scale" in path[-1].key), jnp.float32),
        shapes(config),
    )


@jax.jit(static_argnums=(0, 1))
def run(config, method, params, *inputs):
    return CDT(config).apply({"params": params}, *inputs, method=method)


def latents(count, batch=1, size=(2, 2)):
    return rng.normal(size=(batch, count, *size, 2)).astype(np.float32)


def video(frames, batch=1):
    return rng.uniform(-1, 1, size=(batch, frames, 4, 4, 2)).astype(np.float32)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def abar(index, steps):
    """Of the published index: a product of 1 - beta, each beta at most 0.999."""
    f = np.cos(np.pi / 2 * (np.arange(steps + 1) / steps + 0.008) / 1.008) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[index]


# Sizes.


@pytest.mark.parametrize("config, count", [
    (CDTConfig(), 192_592_755), pytest.param(PUBLISHED_SMALL, 120_672_838, marks=pytest.mark.full),
], ids=["base", "small"])  # fmt: skip
def test_the_published_sizes(config, count):
    """Both released models, by counting the parameters of their classes."""
    assert sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes(config))) == count
    assert config.geometry.latent_shape((17, 256, 256, 3)) == (5, 32, 32, 16)


def test_flags_are_those_of_the_last_stages():
    assert CDTConfig().halves == ((False, True, True, True), (False, False, True, True))
    config = CDTConfig(multipliers=(1, 2, 2), time_down=(True, False), space_down=(True,))
    assert config.halves == ((False, False, True), (False, True, False))
    assert config.geometry[:4] == (2, True, 2, 2)


def test_the_ends_are_the_last_kernels_of_either_side():
    for path, shape in ((CDT.encoder_end, (4, 4)), (CDT.decoder_end, (3, 3, 3, 4, 2))):
        leaf = shapes(TINY)
        for name in path:
            leaf = leaf[name]
        assert leaf.shape == shape


# Steps.


def predictions(config, params, z, key_data=None):
    """(x, index) -> x0 over a whole clip, and the noise it starts from."""
    data = jnp.broadcast_to(jax.random.key_data(jax.random.key(0)), (z.shape[0], 2)) if key_data is None else key_data
    frames = (config.geometry.frames(z.shape[1]), *(config.geometry.space * n for n in z.shape[2:4]), config.channels)
    noise = np.asarray(frame_noise(data, jnp.zeros(z.shape[0], jnp.int32), frames))

    @jax.jit
    def predict(params, x, index):
        def network(model):
            return model._predict(x, jnp.full(z.shape[0], index), model.context(z)[0], None)[0]

        return CDT(config).apply({"params": params}, method=network)

    return lambda x, index: predict(params, x, index), noise


def test_one_step_is_one_pass_from_noise():
    params, z = random_params(TINY), latents(3)
    predict, noise = predictions(TINY, params, z)
    decoded, state = run(TINY, "decode", params, z)
    close(decoded, predict(0.8 * noise, 8191))
    assert list(state["steps"]) == ["step0"] and np.abs(decoded - predict(0.8 * noise, 0)).max() > 1e-4


@pytest.mark.full
@pytest.mark.parametrize("steps, train_steps", [(3, 8192), (4, 10)])
def test_several_steps_are_a_plain_loop_over_the_whole_clip(steps, train_steps):
    config, z = variant(steps=steps, train_steps=train_steps, noise=0.6), latents(3, batch=2)
    params = random_params(config)
    predict, noise = predictions(config, params, z)
    x, indices = 0.6 * noise, np.linspace(0, train_steps - 1, steps).astype(int)
    for k in reversed(range(steps)):
        x0 = np.asarray(predict(x.astype(np.float32), indices[k]), np.float64)
        here = abar(indices[k], train_steps)
        there = abar(indices[k - 1], train_steps) if k else 1.0
        x = np.sqrt(there) * x0 + np.sqrt(1 - there) * (x - np.sqrt(here) * x0) / np.sqrt(1 - here)
    decoded, state = run(config, "decode", params, z)
    np.testing.assert_allclose(decoded, x, atol=2e-5 * np.abs(x).max())
    assert len(state["steps"]) == steps


@pytest.mark.parametrize("steps, indices", [
    (1, (8191,)), (2, (0, 8191)), (3, (0, 4095, 8191)), (8192, tuple(range(8192))),
], ids=["1", "2", "3", "8192"])  # fmt: skip
def test_the_indices(steps, indices):
    assert CDTConfig(steps=steps).indices == indices


def test_the_path_is_the_published_cosine():
    for steps in (10, 8192):
        process = CDTConfig(train_steps=steps).process
        index = np.array([0, 1, steps // 2, steps - 2, steps - 1])
        path = process.values((index + 1) / np.float32(steps))
        np.testing.assert_allclose(path.a, np.sqrt(abar(index, steps)), atol=1e-6)
        np.testing.assert_allclose(path.s, np.sqrt(1 - abar(index, steps)), atol=1e-6)


# What the U-Net is shown.


def shown(config, params, method, *inputs):
    """[(x, step)] of every call of the U-Net, which is left out: it answers with zeros."""

    @jax.jit
    def call(params, *inputs):
        calls = []

        def instead(following, arguments, names, context):
            if not isinstance(context.module, UNet) or context.method_name != "__call__":
                return following(*arguments, **names)
            x, _, step, _ = arguments
            calls.append((x, step))
            return jnp.zeros_like(x), {}

        with nn.intercept_methods(instead):
            CDT(config).apply({"params": params}, *inputs, method=method)
        return calls

    return call(params, *inputs)


def test_decoding_starts_from_noise_of_the_config_and_tells_the_step():
    config = variant(steps=2, noise=0.7)
    params, z = random_params(config), latents(40, batch=4)
    (x, step), (_, last) = shown(config, params, "decode", z)
    each = np.asarray(x[0]).ravel()  # 79 x 4 x 4 x 2 numbers
    assert abs(each.mean()) < 3 * 0.7 / np.sqrt(each.size) and abs(each.std() - 0.7) < 3 * 0.7 / np.sqrt(2 * each.size)
    np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))  # one key for all
    np.testing.assert_allclose(step, 8191 / 8192)
    np.testing.assert_array_equal(last, 0.0)


def test_training_draws_the_step_uniformly_and_corrupts_by_it():
    params, batch = random_params(TINY), 400
    x = np.broadcast_to(np.float32(0.5), (batch, 5, 4, 4, 2))
    keys = jax.random.split(jax.random.key(3), batch)
    ((noisy, step),) = shown(TINY, params, "reconstruct", x, keys)
    step, noisy = np.asarray(step, np.float64), np.asarray(noisy, np.float64)
    assert len(np.unique(step)) > 350 and abs(step.mean() - 0.5) < 3 * 12**-0.5 * batch**-0.5
    assert step.min() < 0.03 and 0.97 < step.max() < 1.0
    signal = abar(np.round(step * 8192).astype(int), 8192)
    eps = (noisy - 0.5 * np.sqrt(signal)[:, None, None, None, None]) / np.sqrt(1 - signal)[:, None, None, None, None]
    assert abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01 and abs(eps[signal > 0.9].std() - 1) < 0.03
    ((_, late),) = shown(variant(train_from=0.75), params, "reconstruct", x, keys)
    assert 0.75 <= late.min() < 0.76 and late.max() < 1.0
    ((fewer, _),) = shown(TINY, params, "reconstruct", x[:3], keys[:3])
    np.testing.assert_array_equal(fewer, noisy[:3].astype(np.float32))  # a sample's noise is its own


def test_reconstruct_is_encoded_sampled_and_predicted():
    params, x, keys = random_params(TINY), video(5, batch=2), jax.random.split(jax.random.key(1), 2)
    encoded, z, x0 = run(TINY, "reconstruct", params, x, keys)
    close(encoded.mean, run(TINY, "encode", params, x)[0].mean)
    assert z.shape == encoded.mean.shape and np.abs(z - encoded.mean).max() > 1e-2 and x0.shape == x.shape
    close(run(TINY, "reconstruct", params, x[::-1], keys[::-1])[2], x0[::-1])


# Noise of a stream.


def test_the_noise_of_a_frame_is_its_own():
    data = jax.random.key_data(jax.random.split(jax.random.key(5), 2))
    draw = jax.jit(frame_noise, static_argnums=2)
    whole = draw(data, jnp.zeros(2, jnp.int32), (8, 2, 3, 1))
    np.testing.assert_array_equal(draw(data, jnp.array([5, 2]), (3, 2, 3, 1))[0], whole[0, 5:])
    np.testing.assert_array_equal(draw(data, jnp.array([5, 2]), (3, 2, 3, 1))[1], whole[1, 2:5])
    assert len(np.unique(whole)) == whole.size


def test_a_sample_decodes_alone_as_in_a_batch_and_by_its_key():
    params, z, keys = random_params(TINY), latents(3, batch=2), jax.random.split(jax.random.key(9), 2)
    keyed, state = run(TINY, "decode", params, z, None, keys)
    close(run(TINY, "decode", params, z[1:], None, keys[1])[0], keyed[1:])
    close(run(TINY, "decode", params, z[::-1], None, keys[::-1])[0], keyed[::-1])
    assert np.abs(run(TINY, "decode", params, z, None, keys[::-1])[0] - keyed).max() > 1e-3
    np.testing.assert_array_equal(state["key"], jax.random.key_data(keys))  # for later pieces
    np.testing.assert_array_equal(state["frame"], [5, 5])


# Sizes of frames, padding, layers.


@pytest.mark.full
def test_frames_that_deeper_levels_do_not_halve():
    """Latents of 3 x 1: the level below rounds up, and is cut on the way back. Its last row counts."""
    config = variant(unet_multipliers=(1, 1, 1))
    params, z = random_params(config), latents(1, size=(3, 1))
    decoded, _ = run(config, "decode", params, z)
    assert decoded.shape == (1, 1, 6, 2, 2)
    other = z.copy()  # the first call may still be reading z
    other[:, :, 2] += 1.0
    assert np.abs(run(config, "decode", params, other)[0] - decoded)[:, :, 4:].max() > 1e-2


def test_pixels_may_enter_and_leave_as_channels():
    config = variant(patch=2)
    params = shapes(config)
    assert config.geometry.space == 4 and config.geometry.latent_shape((3, 8, 12, 2)) == (2, 2, 3, 2)
    assert params["encoder"]["stage0"]["first"]["conv"]["kernel"].shape == (3, 3, 3, 4 * 2, 4)
    assert params["unet"]["conv_out"]["kernel"].shape == (3, 3, 3, 4, 4 * 2)
    assert run(config, "decode", random_params(config), latents(1))[0].shape == (1, 1, 8, 8, 2)


def test_padding_with_edges_continues_a_constant_video():
    flat = np.broadcast_to(np.float32([0.3, -0.4]), (1, 5, 6, 6, 2))
    for pad, spread in (("edge", 1e-5), ("zeros", None)):
        config = variant(pad=pad)
        mean = np.asarray(run(config, "encode", random_params(config), flat)[0].mean)
        found = np.ptp(mean, axis=(1, 2, 3)).max() / np.abs(mean).max()
        assert found < spread if spread else found > 1e-2


def test_time_is_halved_and_doubled_as_the_first_step_of_training_finds_it():
    x = rng.normal(size=(1, 5, 1, 1, 3)).astype(np.float32)
    down, up = time_down(3, False, jnp.float32, None), TimeUp()
    slow, past = down.init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(slow[:, 0], x[:, 0] / 2, atol=1e-6)
    np.testing.assert_allclose(slow[:, 1:], (x[:, 1::2] + x[:, 2::2]) / 2, atol=1e-6)
    np.testing.assert_array_equal(past, x[:, -1:])
    (start, state), params = up.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(start, np.repeat(x, 2, axis=1)[:, 1:])
    np.testing.assert_array_equal(up.apply(params, x, state)[0], np.repeat(x, 2, axis=1))


def test_attention_in_a_frame_is_linear():
    x = rng.normal(size=(1, 2, 2, 3, 4)).astype(np.float32)
    out, params = FrameAttention().init_with_output(jax.random.key(0), x)
    p = params["params"]
    h = x.reshape(2, 6, 4).astype(np.float64)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    q, k, v = np.split(h @ np.asarray(p["qkv"]["kernel"]), 3, axis=-1)
    q = np.exp(q) / np.exp(q).sum(axis=-1, keepdims=True)
    k = np.exp(k) / np.exp(k).sum(axis=-2, keepdims=True)
    h = 0.5 * q @ (k.swapaxes(1, 2) @ v)
    expected = x + (h @ np.asarray(p["out"]["kernel"]) + np.asarray(p["out"]["bias"])).reshape(x.shape)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_frames_in_no_whole_groups_are_refused():
    with pytest.raises(UserError, match=r"^4 frames are no whole number of latents: a clip has 1 \+ 2 n, 3 or 5"):
        run(TINY, "encode", random_params(TINY), video(4))


@pytest.mark.parametrize("values, message", [
    (dict(steps=0), "vae.cdt.steps is 0; it is at least 1"),
    (dict(patch=0), "vae.cdt.patch is 0; it is at least 1"),
    (dict(multipliers=()), "vae.cdt.multipliers is ()"),
    (dict(unet_multipliers=(1, 2)), "vae.cdt.unet_multipliers is (1, 2) and vae.cdt.multipliers is (1, 2, 3, 4): at "
                                    "least one level for every stage, each >= 1, (1, 2, 3, 4) would do"),
    (dict(multipliers=(1,)), "vae.cdt.time_down is (True, True) and vae.cdt.multipliers is (1,): no more entries than "
                             "stages, (True,) would do"),
    (dict(wide=4), "vae.cdt.wide is 4; it is odd, 7 would do"),
    (dict(pad="reflect"), "vae.cdt.pad is 'reflect'; it is zeros or edge"),
    (dict(steps=9, train_steps=8), "vae.cdt.train_steps is 8 and vae.cdt.steps is 9: at least as many"),
    (dict(train_from=1.0), "vae.cdt.train_from is 1.0; it lies in [0, 1)"),
    (dict(noise=-1.0), "vae.cdt.noise is -1.0; it is at least 0, try vae.cdt.noise = 0.0"),
    (dict(dtype="float16"), "vae.cdt.dtype is 'float16'; one of auto"),
])  # fmt: skip
def test_bad_sizes_are_named(values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        CDTConfig(**values)
    assert "\n" not in str(error.value) and re.search("would do|, try vae", str(error.value))

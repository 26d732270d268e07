"""The video VAE by itself: sizes, what is refused, attention, clipping, precision, and the per-frame form.

That pieces equal the whole, test_vae_streams.py has; that it is Wan 2.1's, tests/interop/test_wan_vae.py.
"""

import dataclasses

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.autoencoder import Geometry
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import FrameAttention, VideoVAE, VideoVAEConfig, copy_up, mean_down
from tests.parameters import perturbed

SMALL = VideoVAEConfig(base=4, latent=2, multipliers=(1, 2), time_down=(True,), blocks=1)
FRAME = dataclasses.replace(SMALL, time_down=(False,), time_kernel=1)


def shapes_of(config):
    return jax.eval_shape(vae_of(config).init, jax.random.key(0))


def vae_of(config):
    return VAE(VAEConfig("video", video=config))


def random_params(config):
    leaves, tree = jax.tree.flatten(shapes_of(config))
    rng = np.random.default_rng(0)
    scale = [np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.3 for leaf in leaves]
    values = [s * rng.standard_normal(leaf.shape) for s, leaf in zip(scale, leaves, strict=True)]
    return jax.tree.unflatten(tree, [jnp.asarray(a + (a.ndim == 1), jnp.float32) for a in values])


def video_of(frames, height=8, width=12):
    return jax.random.uniform(jax.random.key(2), (2, frames, height, width, 3), minval=-1.0)


def test_as_many_parameters_as_wan_2_1():
    assert sum(np.prod(a.shape) for a in jax.tree.leaves(shapes_of(VideoVAEConfig()))) == 126_892_531


def test_a_latent_stands_for_what_the_stages_say():
    assert VideoVAEConfig().geometry == Geometry(time=4, apart=True, space=8, axes=2, channels=3, latent=16)
    assert SMALL.geometry == Geometry(2, True, 2, 2, 3, 2)
    assert FRAME.geometry == Geometry(1, False, 2, 2, 3, 2)
    assert VideoVAEConfig(multipliers=(1,), time_down=()).geometry == Geometry(1, False, 1, 2, 3, 16)


@pytest.mark.parametrize("time_down", [(True, False), (False, True), (False, False)])
def test_time_is_halved_where_the_config_says_so(time_down):
    vae = vae_of(dataclasses.replace(SMALL, multipliers=(1, 1, 2), time_down=time_down, latent=5, channels=1))
    frames = vae.geometry.frames(3)
    x = jax.ShapeDtypeStruct((1, frames, 8, 4, 1), jnp.float32)
    encoded, z, y = jax.eval_shape(
        lambda p, x: vae.network.apply({"params": p}, x, jax.random.split(jax.random.key(0), 1), method="reconstruct"),
        jax.eval_shape(vae.init, jax.random.key(0)), x,
    )  # fmt: skip
    assert encoded.mean.shape == encoded.logvar.shape == z.shape == (1, 3, 2, 1, 5) and y.shape == x.shape
    halved = {i for i in (0, 1) if "time" in shapes_of(vae.config.video)["encoder"][f"down_{i}"]}
    doubled = {i for i in (0, 1) if "time" in shapes_of(vae.config.video)["decoder"][f"up_{i}"]}
    assert halved == {i for i in (0, 1) if time_down[i]} and doubled == {1 - i for i in halved}


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(base=0), "vae.video.base is 0; it is at least 1, try vae.video.base = 1"),
        (dict(multipliers=()), r"vae.video.multipliers is \(\): .* try vae.video.multipliers = \(1, 2\)"),
        (dict(time_down=(True, True)), r"vae.video.time_down is \(True, True\) .* \(True,\) would do"),
        (dict(multipliers=(1, 2, 4)), r"vae.video.multipliers is \(1, 2, 4\): .* \(True, False\) would do"),
        (dict(time_kernel=5), r"vae.video.time_kernel is 5; it lies in \[1, 3\], try vae.video.time_kernel = 3"),
        (dict(time_kernel=1), r"time_kernel is 1: .* vae.video.time_down = \(False,\) would do"),
        (dict(base=3, multipliers=(1, 1)), "vae.video.base is 3 .* vae.video.base = 4 would do"),
        (dict(decoder_base=5, multipliers=(1, 3)), "vae.video.decoder_base is 5 .* = 6 would do"),
        (dict(dtype="float16"), "vae.video.dtype is 'float16'; .* 'auto' would do"),
    ],
)
def test_impossible_sizes_are_refused(change, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    "shape, told",
    [
        ((7, 16, 16, 3), r"7 frames .* a clip has 1 \+ 4 n, 5 or 9 would do"),
        ((0, 16, 16, 3), r"0 frames .* 1 or 5 would do"),
        ((5, 20, 16, 3), "the height is 20: a multiple of 8, 16 or 24 would do"),
        ((5, 16, 7, 3), "the width is 7: a multiple of 8, 8 would do"),
        ((5, 16, 16, 4), "a clip has 4 channels: this autoencoder takes 3"),
        ((5, 16, 16), "frames, height, width, "),
    ],
)
def test_clips_that_do_not_fit_are_refused(shape, told):
    with pytest.raises(UserError, match=told):
        vae_of(VideoVAEConfig()).encode({}, np.zeros((1, *shape), np.float32))


def test_frames_that_are_not_finite_are_refused():
    video = np.zeros((2, 5, 16, 16, 3), np.float32)
    video[1, 3, 0, 0, 2] = np.nan
    with pytest.raises(UserError, match=r"video has a value that is not finite, at \[1, 3, 0, 0, \d\]"):
        vae_of(VideoVAEConfig()).encode({}, video)


def test_the_last_kernels_of_both_sides_are_those_named():
    """The one behind which the encoder's mean, and the decoder's pixels, are linear."""
    params, vae, flatten = random_params(SMALL), vae_of(SMALL), flax.traverse_util.flatten_dict
    x, z = video_of(3), jax.random.normal(jax.random.key(0), (2, 2, 4, 6, 2))
    for path, function, given in ((VideoVAE.encoder_end, vae.encode, x), (VideoVAE.decoder_end, vae.decode, z)):
        flat, bias = flatten(params), (*path[:-1], "bias")
        still = flat | {path: 0 * flat[path], bias: jnp.full_like(flat[bias], 0.25)}
        assert path[-1] == "kernel" and np.std(function(params, given)) > 0.1
        assert (function(flax.traverse_util.unflatten_dict(still), given) == 0.25).all()


def test_decoded_pixels_are_clipped_and_learn_all_the_same():
    vae, params = vae_of(SMALL), random_params(SMALL)
    z = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 2))

    def decode(bias):
        decoder = params["decoder"] | {"conv_out": params["decoder"]["conv_out"] | {"bias": bias}}
        return vae.network.apply({"params": params | {"decoder": decoder}}, z, method="decode")[0]

    bias = np.float32([-9.0, 9.0, 0.0])
    out, pull = jax.vjp(jax.jit(decode), bias)
    (gradient,) = pull(jnp.ones_like(out))
    assert (out[..., 0] == -1).all() and (out[..., 1] == 1).all() and (np.abs(out[..., 2]) < 1).any()
    np.testing.assert_allclose(gradient, out[..., 0].size)


def test_attention_is_of_one_head_and_stays_inside_a_frame():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 4, 6)).astype(np.float32)
    module = FrameAttention(SMALL)
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), x))
    params = jax.tree.unflatten(tree, [np.random.default_rng(i).standard_normal(a.shape) for i, a in enumerate(leaves)])
    w, expected = params["params"], np.zeros(x.shape)
    for b, t in np.ndindex(2, 3):
        tokens = x[b, t].reshape(8, 6).astype(np.float64)
        h = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True) * np.sqrt(6) * w["norm"]["scale"]
        q, k, v = np.split(h @ w["qkv"]["kernel"][0, 0] + w["qkv"]["bias"], 3, axis=-1)
        scores = np.exp(q @ k.T / np.sqrt(6))
        h = scores / scores.sum(axis=-1, keepdims=True) @ v
        expected[b, t] = x[b, t] + (h @ w["proj"]["kernel"][0, 0] + w["proj"]["bias"]).reshape(2, 4, 6)
    np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-4)


def test_frames_by_themselves_know_of_no_other():
    params, vae, video = random_params(FRAME), vae_of(FRAME), video_of(4)
    latents, state = vae.encode_piece(params, video)
    decoded, after = vae.decode_piece(params, latents)
    assert not jax.tree.leaves((state, after))  # nothing is remembered
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(vae.encode(params, video[:, order]), latents[:, order], atol=1e-6)
    np.testing.assert_allclose(vae.decode(params, latents[:, order]), decoded[:, order], atol=1e-6)
    assert np.abs(np.diff(latents, axis=1)).max() > 1e-2


def test_a_smaller_decoder_shares_the_encoder():
    fast = shapes_of(dataclasses.replace(SMALL, decoder_base=2, decoder_blocks=1))
    teacher = shapes_of(SMALL)
    assert fast["encoder"] == teacher["encoder"] and fast["quant_conv"] == teacher["quant_conv"]
    assert fast["decoder"]["conv_out"]["kernel"].shape == (3, 3, 3, 2, 3)
    assert "res_0_1" in teacher["decoder"] and "res_0_1" not in fast["decoder"]


def test_remat_changes_no_number():
    class One(nn.Module):
        config: VideoVAEConfig

        @nn.compact
        def __call__(self, x):
            return self.config.block(3, "block")(x)[0]

    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3, 2)).astype(np.float32)
    params = perturbed(lambda key: One(SMALL).init(key, x))

    def run(config):
        gradients = jax.grad(lambda params: jnp.sum(jnp.sin(One(config).apply(params, x))))
        return jax.jit(gradients)(params), str(jax.make_jaxpr(gradients)(params)).count("remat")

    (plain, none), (again, some) = run(SMALL), run(dataclasses.replace(SMALL, remat=True))
    assert none == 0 and some > 0
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_for_the_inside_only():
    params, config = random_params(SMALL), dataclasses.replace(SMALL, dtype="bfloat16")
    video, half, full = video_of(3), vae_of(config), vae_of(SMALL)
    latents, state = half.encode_piece(params, video)
    decoded, _ = half.decode_piece(params, latents)
    assert latents.dtype == decoded.dtype == jnp.float32
    assert state["res_0_0"]["conv1"].dtype == jnp.bfloat16
    assert jax.tree.map(lambda a: a.dtype, shapes_of(config)) == jax.tree.map(lambda a: a.dtype, shapes_of(SMALL))
    expected = full.encode(params, video)
    assert 1e-4 < np.abs(latents - expected).max() / np.abs(expected).max() < 0.1


def test_what_a_stream_remembers_is_two_frames_of_each_convolution_at_most():
    x = jax.ShapeDtypeStruct((1, 9, 8, 8, 3), "float32")
    _, state = jax.eval_shape(vae_of(SMALL).encode_piece, shapes_of(SMALL), x)
    frames = {keys: leaf.shape[1] for keys, leaf in flax.traverse_util.flatten_dict(state).items() if leaf != ()}
    assert {keys[-1]: n for keys, n in frames.items()} == {
        "conv_in": 2, "conv1": 2, "conv2": 2, "time": 1, "conv_out": 2
    }  # fmt: skip
    assert len(frames) == 1 + 4 * 2 + 1 + 1


def test_shortcuts_pass_the_means_of_patches():
    """What an untrained network would give back if its convolutions said nothing, the first frame apart."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 8, 8, 4))
    half = mean_down(x, True, 8, start=True)
    assert half.shape == (2, 3, 4, 4, 8)
    # Eight places of each channel in two groups: those of one frame and those of the next.
    places = x[:, 1:3, 2:4, 4:6, 1]
    np.testing.assert_allclose(half[:, 1, 1, 2, 2:4], places.mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(half[:, 0, 1, 2, 2], x[:, 0, 2:4, 4:6, 1].mean(axis=(1, 2)), atol=1e-6)
    back = copy_up(mean_down(x, True, 4, start=True), True, 4, start=True)
    assert back.shape == x.shape
    np.testing.assert_allclose(back[:, 1:3, 2:4, 4:6], jnp.broadcast_to(
        x[:, 1:3, 2:4, 4:6].mean(axis=(1, 2, 3), keepdims=True), (2, 2, 2, 2, 4)), atol=1e-6)
    later = mean_down(x[:, 1:], True, 8, start=False)
    np.testing.assert_array_equal(later, half[:, 1:])


def test_shortcuts_of_uneven_widths_are_refused():
    with pytest.raises(ValueError, match="vae.video.shortcuts = False would do"):
        VideoVAEConfig(base=6, multipliers=(1, 7, 7), time_down=(False, False), shortcuts=True)

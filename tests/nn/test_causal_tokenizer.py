"""C-ViViT: attention against brute force, a window smaller than the clip, nothing absolute, its sizes and codes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.causal_tokenizer import (
    CausalTokenizer,
    RelativeBias,
    SpaceAttention,
    TimeAttention,
    TokenizerConfig,
    slopes,
)
from causal_diffusion.nn.patches import patchify, unpatchify

SMALL = TokenizerConfig(channels=2, latent=3, width=8, depth=1, heads=2, patch=(2, 2, 2), size=(4, 4), window=3)
DEEP = dataclasses.replace(SMALL, depth=2)
rng = np.random.default_rng(0)


def random_params(module, *inputs):
    """Every parameter away from zero, scales about one."""
    generator = np.random.default_rng(1)
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.asarray(0.4 * generator.normal(size=a.shape) + ("scale" in path[-1].key), jnp.float32), tree
    )


def params_of(config):
    return random_params(CausalTokenizer(config), jnp.zeros((1, 1 + config.patch[0], 4, 4, config.channels)))


@jax.jit(static_argnums=(0, 1))
def run(config, method, params, x, state=None):
    return CausalTokenizer(config).apply({"params": params}, x, state, method=method)


def video(groups, size=(4, 4), batch=1):
    return rng.normal(size=(batch, 1 + 2 * groups, *size, 2)).astype(np.float32)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


# Streams.


@pytest.mark.parametrize("config, plan", [
    (SMALL, (1,) * 8), pytest.param(DEEP, (2, 5, 1), marks=pytest.mark.full),
], ids=["one layer", "two layers"])  # fmt: skip
def test_pieces_equal_the_whole_where_the_window_is_smaller_than_the_clip(config, plan):
    """A window of three latents, in a clip of eight."""
    params, x = params_of(config), video(7, batch=2)
    whole = run(config, "encode", params, x)[0].mean
    decoded, _ = run(config, "decode", params, whole)
    encoder = decoder = None
    at, pieces = 0, ([], [])
    for n in plan:
        frames = slice(max(0, 2 * at - 1), 2 * (at + n) - 1)
        encoded, encoder = run(config, "encode", params, x[:, frames], encoder)
        piece, decoder = run(config, "decode", params, whole[:, at : at + n], decoder)
        pieces[0].append(encoded.mean)
        pieces[1].append(piece)
        at += n
    close(np.concatenate(pieces[0], axis=1), whole)
    close(np.concatenate(pieces[1], axis=1), decoded)


def test_a_state_holds_the_window_and_no_more():
    """Keys and values of window - 1 latents and two inputs of the convolution, each layer; how many were seen."""
    params, state = params_of(SMALL), None
    for frames in (1, 2, 2):
        _, state = run(SMALL, "encode", params, video(1, batch=2)[:, :frames], state)
        assert sum(a.nbytes for a in jax.tree.leaves(state)) == 2 * ((2 * 2 + 2) * (2 * 2) * 8 * 4 + 4)
        assert all(a.shape[0] == 2 for a in jax.tree.leaves(state))
    np.testing.assert_array_equal(state["seen"], [2, 2])


def test_the_window_and_the_convolution_bound_what_is_seen():
    params, x = params_of(SMALL), video(7)
    changed = x.copy()
    changed[:, 1:3] = video(1)[:, 1:]  # what latent 1 stands for
    reach = (SMALL.window - 1) + 2
    before, after = (np.asarray(run(SMALL, "encode", params, v)[0].mean) for v in (x, changed))
    differs = np.abs(after - before).max(axis=(0, 2, 3, 4))
    assert (differs[1 : 2 + reach] > 1e-5).all() and (differs[2 + reach :] == 0.0).all() and differs[0] == 0.0


def test_a_window_beyond_the_clip_is_the_whole_past():
    params, x = params_of(SMALL), video(4)
    five, fifty = (run(dataclasses.replace(SMALL, window=w), "encode", params, x)[0].mean for w in (5, 50))
    np.testing.assert_array_equal(five, fifty)
    assert np.abs(five - run(SMALL, "encode", params, x)[0].mean).max() > 1e-4


def test_nothing_depends_on_how_long_a_stream_has_run():
    """Of a video that repeats itself, latents do too once the first frame is out of sight."""
    params, period = params_of(SMALL), video(2)[:, 1:]
    x = np.concatenate([video(0), *[period] * 5], axis=1)
    latents = run(SMALL, "encode", params, x)[0].mean
    close(latents[:, 7:9], latents[:, 9:11])
    assert np.abs(latents[:, 7] - latents[:, 8]).max() > 1e-3


# Attention.


def brute(p, x, heads, visible, bias):
    """x [B, S, D] under visible [S, S] and bias [H, S, S], in float64."""
    y = x - x.mean(axis=-1, keepdims=True)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-5) * np.asarray(p["norm"]["scale"], np.float64)
    k, v = np.split(y @ np.asarray(p["kv"]["kernel"], np.float64), 2, axis=-1)
    q, k, v = (a.reshape(*a.shape[:-1], heads, -1) for a in (y @ np.asarray(p["q"]["kernel"], np.float64), k, v))
    q, k = (
        a / np.linalg.norm(a, axis=-1, keepdims=True) * np.asarray(p[s]) for a, s in ((q, "q_scale"), (k, "k_scale"))
    )
    score = np.where(visible, 8 * np.einsum("bqhk,bshk->bhqs", q, k) + bias, -np.inf)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    out = np.einsum("bhqs,bshk->bqhk", weight / weight.sum(axis=-1, keepdims=True), v)
    return out.reshape(x.shape) @ np.asarray(p["out"]["kernel"], np.float64)


def test_attention_in_time_is_alibi_over_the_window():
    module, x = TimeAttention(SMALL), rng.normal(size=(2, 5, 2, 3, 8)).astype(np.float32)
    seen = jnp.zeros(2, jnp.int32)
    params = random_params(module, x, None, seen)
    out = jax.jit(module.apply)({"params": params}, x, None, seen)[0]
    d = np.arange(5)[:, None] - np.arange(5)
    slope = np.array([2.0**-4, 2.0**-8])  # of two heads
    np.testing.assert_array_equal(slopes(2), slope)
    np.testing.assert_array_equal(slopes(8), 2.0 ** -np.arange(1, 9))
    visible, bias = (d >= 0) & (d < 3), -slope[:, None, None] * d
    for cell in np.ndindex(2, 3):
        expected = brute(params, x[:, :, *cell].astype(np.float64), 2, visible, bias)
        np.testing.assert_allclose(out[:, :, *cell], expected, atol=1e-5)


def test_attention_in_space_is_that_of_a_frame():
    module, x = SpaceAttention(SMALL), rng.normal(size=(2, 3, 2, 3, 8)).astype(np.float32)
    bias = rng.normal(size=(2, 6, 6)).astype(np.float32)
    params = random_params(module, x, bias)
    out = jax.jit(module.apply)({"params": params}, x, bias)
    expected = brute(params, x.reshape(6, 6, 8).astype(np.float64), 2, np.ones((6, 6), bool), bias)
    np.testing.assert_allclose(out, expected.reshape(x.shape), atol=1e-5)


def test_the_bias_in_space_is_a_function_of_the_offset():
    """The same for every pair so far apart, in frames of any size, and not symmetric."""
    module = RelativeBias(SMALL)
    params = random_params(module, 2, 3)
    small, large = (np.asarray(module.apply({"params": params}, h, w)) for h, w in ((2, 3), (4, 5)))
    by_offset = {}
    for bias, width in ((small, 3), (large, 5)):
        for i, j in np.ndindex(bias.shape[1:]):
            offset = i // width - j // width, i % width - j % width
            by_offset.setdefault(offset, []).append(bias[:, i, j])
    assert len(by_offset) == 7 * 9
    assert max(np.ptp(np.stack(values), axis=0).max() for values in by_offset.values()) < 1e-5
    firsts = np.stack([values[0] for values in by_offset.values()])
    assert len(np.unique(firsts.round(4), axis=0)) > 50
    np.testing.assert_allclose(_bias_net(params, (1, -2)), by_offset[1, -2][0], atol=1e-5)


def _bias_net(p, offset):
    h = np.sign(offset) * np.log(1 + np.abs(offset))
    for name in ("hidden0", "hidden1"):
        h = h @ np.asarray(p[name]["kernel"]) + np.asarray(p[name]["bias"])
        h = np.where(h > 0, h, 0.1 * h)
    return h @ np.asarray(p["out"]["kernel"]) + np.asarray(p["out"]["bias"])


# Patches, sizes, the first frame.


def test_patches_are_cut_and_put_back():
    x = rng.normal(size=(2, 4, 6, 9, 2)).astype(np.float32)
    tokens = patchify(x, (2, 3, 3))
    assert tokens.shape == (2, 2, 2, 3, 2 * 3 * 3 * 2)
    np.testing.assert_array_equal(tokens[1, 1, 0, 2].reshape(2, 3, 3, 2), x[1, 2:4, 0:3, 6:9])
    np.testing.assert_array_equal(unpatchify(tokens, (2, 3, 3)), x)


def test_frames_of_other_sizes():
    params, x = params_of(SMALL), video(2, (6, 2))
    latents = run(SMALL, "encode", params, x)[0].mean
    assert latents.shape == (1, 3, 3, 1, 3)
    _, state = run(SMALL, "encode", params, x[:, :3])
    close(run(SMALL, "encode", params, x[:, 3:], state)[0].mean, latents[:, 2:])
    assert run(SMALL, "decode", params, latents)[0].shape == x.shape


def test_the_first_frame_is_a_clip_with_parameters_of_its_own():
    params, x = params_of(SMALL), video(1)
    latents, _ = run(SMALL, "encode", params, x)
    image, _ = run(SMALL, "encode", params, x[:, :1])
    close(image.mean, latents.mean[:, :1])
    assert np.abs(run(SMALL, "encode", params, x[:, :1] + 0.3)[0].mean - image.mean).max() > 1e-2  # brightness counts
    decoded, _ = run(SMALL, "decode", params, latents.mean)
    other = jax.tree.map(jnp.copy, params)
    other["decoder"]["first_pixels"]["bias"] += 1.0
    moved = run(SMALL, "decode", other, latents.mean)[0] - decoded
    np.testing.assert_allclose(moved[:, :1], 1.0, atol=1e-5)
    np.testing.assert_array_equal(moved[:, 1:], 0.0)


def test_frames_in_no_whole_groups_are_refused():
    with pytest.raises(UserError, match=r"^4 frames are no whole number of latents: a clip has 1 \+ 2 n, 3 or 5"):
        run(SMALL, "encode", params_of(SMALL), np.zeros((1, 4, 4, 4, 2), np.float32))


# Latents.


def test_gaussian_latents_are_within_bounds():
    encoded, _ = run(SMALL, "encode", params_of(SMALL), video(1))
    assert encoded.mean.shape == encoded.logvar.shape == (1, 2, 2, 2, 3) and encoded.codes is None
    with pytest.raises(UserError, match="^vae.tokenizer.quantise is 'none': latents have no codes, 'fsq' would do"):
        CausalTokenizer(SMALL).apply({"params": {}}, jnp.zeros((1, 1, 2, 2), jnp.int32), method="lookup")


@pytest.mark.parametrize("kind", ["vq", pytest.param("lfq", marks=pytest.mark.full), "fsq"])
def test_quantised_latents_have_codes_and_pass_gradients(kind):
    config = dataclasses.replace(SMALL, quantise=kind, codes=8, levels=(3, 5, 2))
    network, x = CausalTokenizer(config), video(2)

    def look(params):
        encoded, _ = network.apply({"params": params}, x, method="encode")
        found = network.apply({"params": params}, encoded.codes, method="lookup")
        return jnp.sum(jnp.sin(encoded.mean)), (encoded, found)

    gradient, (encoded, found) = jax.jit(jax.grad(look, has_aux=True))(params_of(config))
    assert encoded.codes.shape == (1, 3, 2, 2) and encoded.codes.dtype == jnp.int32 and encoded.logvar is None
    np.testing.assert_allclose(found, encoded.mean, atol=1e-6)
    assert len(np.unique(encoded.codes)) > 1 and (float(encoded.loss) != 0.0) == (kind != "fsq")

    assert float(jnp.abs(gradient["encoder"]["first_embed"]["kernel"]).max()) > 1e-6


def test_the_ends_are_the_last_kernels_of_either_side():
    params = params_of(SMALL)
    for path, shape in ((CausalTokenizer.encoder_end, (8, 6)), (CausalTokenizer.decoder_end, (8, 2 * 2 * 2 * 2))):
        leaf = params
        for name in path:
            leaf = leaf[name]
        assert leaf.shape == shape


@pytest.mark.full
def test_a_black_video_has_finite_gradients():
    """Norms of constant patches and directions of zero vectors."""
    network, x = CausalTokenizer(SMALL), jnp.zeros((1, 3, 4, 4, 2))
    zeros = jax.tree.map(jnp.zeros_like, params_of(SMALL))

    def loss(params):
        return jnp.sum(
            network.apply({"params": params}, x, jax.random.split(jax.random.key(0), 1), method="reconstruct")[2]
        )

    assert all(np.isfinite(a).all() for a in jax.tree.leaves(jax.jit(jax.grad(loss))(zeros)))


@pytest.mark.parametrize("values, message", [
    (dict(width=10, heads=4), "vae.tokenizer.width is 10 and vae.tokenizer.heads is 4: all of one width, "
                              "vae.tokenizer.width = 8 would do"),
    (dict(depth=0), "vae.tokenizer.depth is 0; it is at least 1"),
    (dict(window=0), "vae.tokenizer.window is 0; it is at least 1"),
    (dict(patch=(2, 8, 4)), "vae.tokenizer.patch is (2, 8, 4): frames, height and width, the last two equal"),
    (dict(patch=(2, 8)), "vae.tokenizer.patch is (2, 8): frames"),
    (dict(size=(60, 64)), "vae.tokenizer.size is (60, 64) and vae.tokenizer.patch is (2, 8, 8): height and width in "
                          "whole patches, vae.tokenizer.size = (64, 64) would do"),
    (dict(quantise="fsq"), "vae.tokenizer.latent is 16 and vae.tokenizer.levels is (8, 8, 8, 5, 5, 5): fsq has one"),
    (dict(dtype="float16"), "vae.tokenizer.dtype is 'float16'; one of auto"),
])  # fmt: skip
def test_bad_sizes_are_named(values, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        TokenizerConfig(**values)
    assert "\n" not in str(error.value) and re.search("would do|, try vae", str(error.value))

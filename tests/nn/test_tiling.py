"""Tiles: where they stand, what they weigh, and that they change nothing but seams."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.motion_vae import MotionVAEConfig
from causal_diffusion.nn.tiling import TiledVAE, tile_starts, tile_weights
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig

SMALL = VAE(VAEConfig("video", video=VideoVAEConfig(
    base=4, latent=2, multipliers=(1, 2), time_down=(True,), blocks=1)))  # fmt: skip


def random_params(vae, attention):
    """Parameters away from zero. Without ``attention`` an output sees only what convolutions reach."""
    def fill(path, leaf):
        here = jax.tree_util.keystr(path)
        value = np.random.default_rng(sum(map(ord, here))).standard_normal(leaf.shape).astype(np.float32)
        if "proj" in here and not attention:
            return np.zeros_like(value)
        return value / np.sqrt(np.prod(leaf.shape[:-1])) if "kernel" in here else 1 + 0.1 * value

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(vae.init, jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL, attention=True)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).uniform(-1, 1, (1, 5, 8, 12, 3)).astype(np.float32)


def every_tiling():
    return [(n, t, o) for n, t in itertools.product(range(1, 14), range(1, 14)) for o in range(t) if t <= n]


def test_tiles_cover_an_axis_and_share_what_was_asked_for():
    assert tile_starts(10, 4, 1) == [0, 3, 6] and tile_starts(10, 10, 3) == [0] and tile_starts(10, 5, 0) == [0, 5]
    for n, tile, overlap in every_tiling():
        starts = tile_starts(n, tile, overlap)
        steps = np.diff(starts)
        assert starts[0] == 0 and starts[-1] + tile == n
        assert (steps >= 1).all() and (steps <= tile - overlap).all()
        assert len(starts) == 1 + -(-(n - tile) // (tile - overlap))  # no fewer could


def test_weights_are_positive_and_add_up_to_one():
    for (n, tile, overlap), scale in itertools.product(every_tiling(), (1, 8)):
        starts, total = tile_starts(n, tile, overlap), np.zeros(n * scale)
        for start, weight in zip(starts, tile_weights(starts, tile, scale), strict=True):
            assert weight.shape == (tile * scale,) and weight.min() > 0
            total[start * scale : (start + tile) * scale] += weight
        np.testing.assert_allclose(total, 1.0, atol=1e-6)


def test_a_seam_is_a_linear_ramp():
    """Two tiles of 4 latents at 0 and 2, two pixels per latent: 4 shared pixels."""
    first, second = tile_weights([0, 2], 4, 2)
    np.testing.assert_allclose(first, [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125])
    np.testing.assert_allclose(second, first[::-1])


@pytest.mark.parametrize("tile, overlap", [((4, 6), 2), ((2, 3), 1), ((3, 2), 1), ((4, 2), 0)])
@pytest.mark.parametrize("scale_in, scale_out", [(2, 1), (1, 2)])
def test_what_happens_inside_a_pixel_is_the_same_in_any_tiling(tile, overlap, scale_in, scale_out):
    """However many tiles there are: a function of single latents does not notice them."""
    x = np.random.default_rng(1).standard_normal((2, 3, 4 * scale_in, 6 * scale_in, 2)).astype(np.float32)

    def function(x, state):
        small = x[:, :, ::scale_in, ::scale_in]
        return jnp.sin(jnp.repeat(jnp.repeat(small, scale_out, axis=2), scale_out, axis=3)), small.shape

    y, states = TiledVAE(SMALL, tile, overlap)._tiled(function, x, scale_in, scale_out)
    np.testing.assert_allclose(y, function(x, None)[0], atol=1e-6)
    assert set(states) == {(2, 3, *tile, 2)}


def test_one_tile_is_no_tile(params, video):
    tiled = TiledVAE(SMALL, (4, 6))
    latents = SMALL.encode(params, video)
    np.testing.assert_array_equal(tiled.encode(params, video), latents)
    np.testing.assert_array_equal(tiled.decode(params, latents), SMALL.decode(params, latents))


def test_a_tile_by_itself_is_what_the_vae_makes_of_it(params, video):
    """Without overlap, tiles are side by side."""
    tiled = TiledVAE(SMALL, (4, 2), overlap=0).encode(params, video)
    for i in range(3):
        alone = SMALL.encode(params, video[:, :, :, 4 * i : 4 * i + 4])
        np.testing.assert_allclose(tiled[:, :, :, 2 * i : 2 * i + 2], alone, atol=1e-6)


def test_pieces_of_tiles_equal_the_whole(params, video):
    tiled = TiledVAE(SMALL, (4, 2), overlap=1)
    latents = tiled.encode(params, video)
    decoded = tiled.decode(params, latents)
    z, x, encoder, decoder = [], [], None, None
    for n in range(3):
        mean, encoder = tiled.encode_piece(params, video[:, max(0, 2 * n - 1) : 2 * n + 1], encoder)
        piece, decoder = tiled.decode_piece(params, latents[:, n : n + 1], decoder)
        assert len(encoder) == len(decoder) == 5
        z, x = [*z, mean], [*x, piece]
    np.testing.assert_allclose(np.concatenate(z, axis=1), latents, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(x, axis=1), decoded, atol=1e-5)
    np.testing.assert_allclose(tiled.encode(params, video, piece=1), latents, atol=1e-5)
    np.testing.assert_allclose(tiled.decode(params, latents, piece=1), decoded, atol=1e-5)


def test_tiles_differ_from_the_whole_near_seams_only():
    """Kernels reach 9 latents in this encoder and 12 in this decoder. With attention, a tile would differ all over."""
    params = random_params(SMALL, attention=False)
    video = np.random.default_rng(2).uniform(-1, 1, (1, 3, 2, 96, 3)).astype(np.float32)
    tiled = TiledVAE(SMALL, (1, 28), overlap=8)  # tiles at latents 0 and 20 of 48
    latents = SMALL.encode(params, video)
    off = np.abs(tiled.encode(params, video) - latents).max(axis=(0, 1, 2, 4))
    assert off[: 28 - 9].max() < 1e-5 and off[20 + 9 :].max() < 1e-5 and off[20:28].max() > 1e-3
    decoded = SMALL.decode(params, latents)
    off = np.abs(tiled.decode(params, latents) - decoded).max(axis=(0, 1, 2, 4))
    assert off[: 2 * (28 - 12)].max() < 1e-5 and off[2 * (20 + 12) :].max() < 1e-5 and off[40:56].max() > 1e-3


@pytest.mark.parametrize(
    "tile, overlap, told",
    [
        ((4,), 1, r"tile is \(4,\)"),
        ((4, 0), 0, r"tile is \(4, 0\)"),
        ((4, 4), -1, "overlap is -1"),
    ],
)
def test_impossible_tiles_are_refused(tile, overlap, told):
    with pytest.raises(UserError, match=told):
        TiledVAE(SMALL, tile, overlap)


def test_tiles_that_do_not_fit_are_refused(params, video):
    with pytest.raises(UserError, match="a tile has 8 latents where the frame has 4: tile = 4 would do there"):
        TiledVAE(SMALL, (8, 6)).encode(params, video)
    with pytest.raises(UserError, match="overlap is 4 and a tile has 4 latents .* has 6: .* overlap = 1 would do"):
        TiledVAE(SMALL, (4, 4), 4).encode(params, video)
    with pytest.raises(UserError, match="the width is 11: a multiple of 2"):
        TiledVAE(SMALL, (4, 6)).encode_piece(params, video[:, :1, :, :11])
    with pytest.raises(UserError, match="vae.form is 'motion'"):
        TiledVAE(VAE(VAEConfig("motion", motion=MotionVAEConfig(channels=7, latent=3, width=8, align=0))), (4, 4))

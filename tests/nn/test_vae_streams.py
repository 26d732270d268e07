"""What every causal autoencoder promises: pieces equal the whole, and no group of frames sees a later one."""

import dataclasses

import jax
import numpy as np
import pytest

from causal_diffusion.nn import vae as vaes
from causal_diffusion.nn.causal_tokenizer import TokenizerConfig
from causal_diffusion.nn.diffusion_decoder import CDTConfig
from causal_diffusion.nn.motion_vae import MotionVAEConfig
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig
from tests.parameters import perturbed

SMALL = {
    "motion": VAEConfig("motion", motion=MotionVAEConfig(channels=7, latent=3, width=8, align=0)),
    "video": VAEConfig("video", video=VideoVAEConfig(
        base=4, latent=2, multipliers=(1, 2), time_down=(True,), blocks=1)),
    "video 4x": VAEConfig("video", video=VideoVAEConfig(
        base=2, latent=2, multipliers=(1, 1, 2), time_down=(True, True), blocks=1)),
    "video shortcuts": VAEConfig("video", video=VideoVAEConfig(
        base=4, latent=2, multipliers=(1, 2, 2), time_down=(True, False), blocks=1, patch=2, shortcuts=True)),
    "frame": VAEConfig("video", video=VideoVAEConfig(
        base=4, latent=2, multipliers=(1, 2), time_down=(False,), blocks=1, time_kernel=1)),
    "tokenizer": VAEConfig("tokenizer", tokenizer=TokenizerConfig(
        latent=4, width=16, depth=1, heads=2, patch=(2, 4, 4), size=(8, 8), window=2)),
    "tokenizer fsq": VAEConfig("tokenizer", tokenizer=TokenizerConfig(
        latent=3, width=16, depth=1, heads=2, patch=(2, 4, 4), size=(8, 8), quantise="fsq", levels=(5, 5, 5))),
    "cdt": VAEConfig("cdt", cdt=CDTConfig(
        base=4, latent=2, unet=4, multipliers=(1, 2), unet_multipliers=(1, 1, 1), time_down=(True,), blocks=1)),
    "cdt 3 steps": VAEConfig("cdt", cdt=CDTConfig(
        base=4, latent=2, unet=4, multipliers=(1, 2), unet_multipliers=(1, 1, 1), time_down=(True,), blocks=1,
        wide=3, up=3, pad="edge", steps=3, patch=2)),
}  # fmt: skip
FEW = ("motion", "video")  # in the first tier; all in the second
LATENTS = 4
PLANS = ((1, 1, 1, 1), (1, 3), (1, 2, 1), (2, 2), (3, 1))  # latents per piece


class Case:
    """A small autoencoder with every parameter away from zero, a clip, and its whole-clip passes."""

    def __init__(self, name):
        self.vae = VAE(SMALL[name])
        g = self.vae.geometry
        self.params = perturbed(self.vae.init)
        shape = (2, g.frames(LATENTS), *(2 * g.space,) * g.axes, g.channels)
        self.video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        self.latents = np.asarray(self.vae.encode(self.params, self.video))
        self.decoded = np.asarray(self.vae.decode(self.params, self.latents))


@pytest.fixture(
    scope="module", params=[n if n in FEW else pytest.param(n, marks=pytest.mark.full) for n in SMALL]
)
def case(request):
    return Case(request.param)


def negated(a, at):
    """A copy with entry ``at`` of the second axis negated."""
    a = a.copy()
    a[:, at] *= -1.0
    return a


def close(a, b):
    scale = np.abs(b).max()
    assert scale > 1e-3  # the numbers are worth comparing
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


def test_shapes_are_those_that_the_geometry_tells(case):
    g = case.vae.geometry
    assert case.latents.shape == (2, *g.latent_shape(case.video.shape[1:]))
    assert case.decoded.shape == case.video.shape
    for n in range(1, 6):
        assert g.latents(g.frames(n)) == n and g.latents(g.frames(n, start=False), start=False) == n


@pytest.mark.parametrize(
    "plan", [plan if len(plan) != 2 else pytest.param(plan, marks=pytest.mark.full) for plan in PLANS], ids=str
)
def test_pieces_equal_the_whole(case, plan):
    g, z, x, encoder, decoder = case.vae.geometry, [], [], None, None
    at = frame = 0
    for n in plan:
        frames = g.frames(n, start=not at)
        mean, encoder = case.vae.encode_piece(case.params, case.video[:, frame : frame + frames], encoder)
        video, decoder = case.vae.decode_piece(case.params, case.latents[:, at : at + n], decoder)
        assert mean.shape[1] == n and video.shape[1] == frames
        z, x, at, frame = [*z, mean], [*x, video], at + n, frame + frames
    close(np.concatenate(z, axis=1), case.latents)
    close(np.concatenate(x, axis=1), case.decoded)


def test_a_state_keeps_its_shapes_and_leads_with_the_batch(case):
    """So that one compiled program serves a stream of any length, and samples can be replaced one by one."""
    g, specs = case.vae.geometry, []
    encoder = decoder = None
    for n in (1, 1, 1):
        start = encoder is None
        _, encoder = case.vae.encode_piece(case.params, case.video[:, : g.frames(n, start)], encoder)
        _, decoder = case.vae.decode_piece(case.params, case.latents[:, :n], decoder)
        specs.append(jax.tree.map(lambda a: (a.shape, a.dtype), (encoder, decoder)))
    assert specs[1] == specs[2] == specs[0]
    assert all(a.shape[0] == 2 for a in jax.tree.leaves((encoder, decoder)))


def test_a_prefix_is_encoded_and_decoded_as_the_whole_is(case):
    g = case.vae.geometry
    for n in (1, 2):
        close(case.vae.encode(case.params, case.video[:, : g.frames(n)]), case.latents[:, :n])
        close(case.vae.decode(case.params, case.latents[:, :n]), case.decoded[:, : g.frames(n)])


def test_a_changed_frame_leaves_earlier_groups_alone(case):
    g = case.vae.geometry
    for group in range(1, LATENTS):
        first = g.frames(group)
        latents = np.asarray(case.vae.encode(case.params, negated(case.video, first)))
        np.testing.assert_array_equal(latents[:, :group], case.latents[:, :group])
        assert np.abs(latents - case.latents)[:, group].max() > 1e-4
        decoded = np.asarray(case.vae.decode(case.params, negated(case.latents, group)))
        np.testing.assert_array_equal(decoded[:, :first], case.decoded[:, :first])
        assert np.abs(decoded - case.decoded)[:, first : g.frames(group + 1)].max() > 1e-4


def test_no_gradient_flows_back_in_time(case):
    """d(group i)/d(group j) is exactly zero for j > i, for every channel and pixel at once, and is not for j = i."""
    g, network = case.vae.geometry, case.vae.network

    def encode(x):
        return network.apply({"params": case.params}, x, method="encode")[0].mean

    def decode(z):
        return network.apply({"params": case.params}, z, method="decode")[0]

    grouped = [slice(0 if i == 0 else g.frames(i), g.frames(i + 1)) for i in range(LATENTS)]
    latents = [slice(i, i + 1) for i in range(LATENTS)]
    for f, x, inputs, outputs in (
        (encode, case.video, grouped, latents), (decode, case.latents, latents, grouped)
    ):  # fmt: skip
        pull = jax.jit(lambda x, y, f=f: jax.vjp(f, x)[1](y)[0])
        ones = np.random.default_rng(2).standard_normal(jax.eval_shape(f, x).shape).astype(np.float32)
        for i in range(LATENTS):
            only = np.zeros_like(ones)
            only[:, outputs[i]] = ones[:, outputs[i]]
            gradient = np.asarray(pull(x, only))
            for j in range(LATENTS):
                largest = np.abs(gradient[:, inputs[j]]).max()
                assert largest == 0.0 if j > i else True
                assert largest > 0.0 if j == i else True


@pytest.mark.full
def test_a_thousand_pieces_cost_the_memory_of_one(case):
    """Live bytes on the device do not grow, and nothing is compiled again."""
    g, sizes = case.vae.geometry, []
    encoder = decoder = None
    for i in range(1001):
        start = encoder is None
        mean, encoder = case.vae.encode_piece(case.params, case.video[:, : g.frames(1, start)], encoder)
        video, decoder = case.vae.decode_piece(case.params, mean, decoder)
        if i in (2, 1000):
            del mean, video
            programs = vaes._encode._cache_size() + vaes._decode._cache_size()
            sizes.append((sum(a.nbytes for a in jax.live_arrays()), programs))
    assert sizes[0] == sizes[1]


def test_the_smallest_configs_are_of_every_form():
    assert {config.form for config in SMALL.values()} == {f.name for f in dataclasses.fields(VAEConfig)} - {
        "form", "checkpoint"
    }  # fmt: skip

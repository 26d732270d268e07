"""Costs of autoencoders: equal to the traced program's, and to the published figure of Wan 2.1's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from causal_diffusion.cost import vae_decode_cost, vae_encode_cost
from causal_diffusion.nn.vae import VAE, VAEConfig
from tests.cost.products import products

VIDEO = dict(base=4, latent=3, multipliers=(1, 2, 2), time_down=(False, True), blocks=1)
FORMS = {
    "wan": dict(form="video", video=VIDEO),
    "short cut": dict(form="video", video=VIDEO | dict(decoder_base=8, decoder_blocks=1, patch=2, shortcuts=True)),
    "frames": dict(form="video", video=dict(base=4, latent=2, multipliers=(1, 1), time_down=(False,), time_kernel=1)),
    "motion": dict(form="motion", motion=dict(channels=5, latent=3, width=6, depth=2, align=4)),
    "tokenizer": dict(form="tokenizer", tokenizer=dict(latent=3, width=8, depth=2, heads=2, window=3, patch=(2, 4, 4))),
    "codes": dict(form="tokenizer", tokenizer=dict(latent=3, width=8, depth=1, heads=2, patch=(2, 4, 4),
                                                   quantise="vq", codes=7)),
    "cdt": dict(form="cdt", cdt=dict(base=4, unet=4, latent=3, multipliers=(1, 2, 3), steps=2, patch=2, blocks=1)),
    "cdt odd": dict(form="cdt", cdt=dict(base=4, unet=4, latent=3, multipliers=(1, 2), space_down=(True, True),
                                         time_down=(True,), finest=2, wide=3, pad="edge")),
}  # fmt: skip
BATCH, LATENTS, SIDE = 2, 2, 3


def make(form, **sizes):
    given = FORMS[form]
    name = given["form"]
    section = type(getattr(VAEConfig(), name))(**(given[name] | sizes))
    return VAE(VAEConfig(form=name, **{name: section}))


def carried(state) -> int:
    """Bytes of frames, keys and values in a state; how many frames came before, and keys, are none of it."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.dtype.kind == "f")


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("form", [
    *("wan", "motion", "tokenizer"),
    *(pytest.param(form, marks=pytest.mark.full) for form in ("short cut", "frames", "codes", "cdt", "cdt odd")),
])  # fmt: skip
def test_a_later_piece_costs_what_the_traced_program_does(form, way):
    vae = make(form, dtype="float32")
    g = vae.geometry
    latents = (BATCH, LATENTS, *(SIDE,) * g.axes, g.latent)
    frames = (BATCH, g.frames(LATENTS, start=False), *(SIDE * g.space,) * g.axes, g.channels)
    shape, count = (latents, vae_decode_cost) if way == "decode" else (frames, vae_encode_cost)
    piece = jax.ShapeDtypeStruct(shape, jnp.float32)
    first = piece
    if g.apart and way == "encode":
        first = jax.ShapeDtypeStruct((BATCH, g.frames(LATENTS), *frames[2:]), jnp.float32)
    params = jax.eval_shape(vae.init, jax.random.key(0))

    def run(params, x, state):
        out, state = vae.network.apply({"params": params}, x, state, method=way)
        return (out if way == "decode" else out.mean), state

    _, state = jax.eval_shape(lambda params, x: run(params, x, None), params, first)
    cost = count(vae, shape)
    sizes, summed = vae.config.sizes, 0
    if vae.config.form == "tokenizer":  # on CPU depth-wise convolutions are sums, and products of none
        summed = 2 * 27 * math.prod(latents[:-1]) * sizes.width * sizes.depth
        assert cost.other == summed + 2 * math.prod(latents) * sizes.codes * (form == "codes" and way == "encode")
    assert products(run, params, piece, state) == cost.flops - summed
    assert cost.read == cost.written == carried(state)


def test_weights_are_read_once():
    vae = make("wan", dtype="float32")
    params = jax.eval_shape(vae.init, jax.random.key(0))
    parts = {"encode": ("encoder", "quant_conv"), "decode": ("decoder", "post_quant_conv")}
    for way, names in parts.items():
        held = 4 * sum(leaf.size for name in names for leaf in jax.tree.leaves(params[name]))
        cost = (vae_decode_cost(vae, (3, 2, 4, 4, 3)) if way == "decode" else vae_encode_cost(vae, (3, 4, 16, 16, 3)))
        norms = 4 * sum(leaf.size for name in names for path, leaf in jax.tree_util.tree_leaves_with_path(params[name])
                        if path[-1].key == "scale")  # fmt: skip
        assert cost.weights == held - norms


def test_wans_decoder():
    """performance: 0.27 + 0.38 + 2.81 + 5.30 + 4.80 = 13.55 TFLOP per latent frame of 480 x 832 pixels."""
    vae = VAE(VAEConfig(form="video"))
    cost = vae_decode_cost(vae, (1, 3, 60, 104, 16))
    assert cost.flops == pytest.approx(3 * 13.55e12, rel=0.01)
    assert vae_decode_cost(vae, (2, 6, 60, 104, 16)).flops == 4 * cost.flops
    smaller = dataclasses.replace(vae.config.video, decoder_base=48)
    assert vae_decode_cost(VAE(VAEConfig(form="video", video=smaller)), (1, 3, 60, 104, 16)).flops < 0.27 * cost.flops

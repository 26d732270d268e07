"""Wan's VAE in a folder of diffusers' form: written and read without torch, and what is refused."""

import json
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.interop import wan_vae
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig
from tests.interop.small_wan_vae import SMALL, Evil, same_tree


@pytest.fixture(scope="module")
def safetensors():
    import safetensors.numpy

    return safetensors.numpy


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(jax.eval_shape(SMALL.init, jax.random.key(0)))
    values = [np.random.default_rng(i).standard_normal(leaf.shape).astype(np.float32) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


@pytest.fixture
def folder(safetensors, params, tmp_path):
    wan_vae.save(tmp_path / "vae", SMALL, params)
    return tmp_path / "vae"


def test_a_folder_is_read_as_it_was_written_without_torch(folder, params, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    vae, tree = wan_vae.load(folder)
    assert vae == SMALL
    same_tree(tree, jax.tree.map(jnp.asarray, params))


def test_unmeasured_statistics_stay_so(safetensors, params, tmp_path):
    wan_vae.save(tmp_path, VAE(SMALL.config), params)
    said = json.loads((tmp_path / wan_vae.CONFIG).read_text())
    assert said["latents_mean"] == [0.0, 0.0] and said["latents_std"] == [1.0, 1.0]
    assert wan_vae.load(tmp_path)[0] == VAE(SMALL.config)


def test_keys_are_those_of_the_fact_sheet(folder, safetensors):
    """Written down from diffusers, beside the code: a rename on our side fails here."""
    weights = safetensors.load_file(folder / wan_vae.WEIGHTS)
    shapes = {key: value.shape for key, value in weights.items()}
    assert len(shapes) == 94
    expected = {
        "encoder.conv_in.weight": (4, 3, 3, 3, 3),
        "encoder.down_blocks.0.norm1.gamma": (4, 1, 1, 1),
        "encoder.down_blocks.1.resample.1.weight": (4, 4, 3, 3),
        "encoder.down_blocks.1.time_conv.weight": (4, 4, 3, 1, 1),
        "encoder.down_blocks.2.conv_shortcut.weight": (8, 4, 1, 1, 1),
        "encoder.mid_block.attentions.0.to_qkv.weight": (24, 8, 1, 1),
        "encoder.mid_block.attentions.0.norm.gamma": (8, 1, 1),
        "decoder.up_blocks.0.upsamplers.0.resample.1.weight": (4, 8, 3, 3),
        "decoder.up_blocks.0.upsamplers.0.time_conv.weight": (16, 8, 3, 1, 1),
        "decoder.up_blocks.1.resnets.1.conv2.bias": (4,),
        "decoder.conv_out.weight": (3, 4, 3, 3, 3),
        "quant_conv.weight": (4, 4, 1, 1, 1),
        "post_quant_conv.bias": (2,),
    }
    assert {key: shapes[key] for key in expected} == expected


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda w: w.pop("encoder.mid_block.resnets.1.conv1.bias"),
         r"has no encoder.mid_block.resnets.1.conv1.bias, of the shape \(8,\)"),
        (lambda w: w.update({"decoder.extra.weight": np.zeros(2, np.float32)}), "has decoder.extra.weight, for which"),
        (lambda w: w.update({"decoder.conv_in.bias": np.zeros(9, np.float32)}),
         r"decoder.conv_in.bias has the shape \(9,\); \(8,\) would do"),
        (lambda w: w.update({"encoder.down_blocks.0.resnets.0.conv1.bias": np.zeros(9, np.float32)}),
         "encoder.down_blocks.0.resnets.0.conv1.bias is of Wan 2.2's form"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_another_variant_are_refused_by_their_first_key(folder, safetensors, change, told, whole):
    """Whether the sizes come from config.json or from the shapes."""
    path = folder / wan_vae.WEIGHTS
    weights = safetensors.load_file(path)
    change(weights)
    safetensors.save_file(weights, path)
    with pytest.raises(UserError, match=told) as refused:
        wan_vae.load(folder if whole else path)
    assert "\n" not in str(refused.value)


def test_weights_of_another_network_are_refused(tmp_path, safetensors):
    safetensors.save_file({"blocks.0.attn1.to_q.weight": np.zeros((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="encoder.conv_in.weight is missing; the weights of Wan 2.1's VAE would do"):
        wan_vae.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(is_residual=True), "is_residual is True: it is of Wan 2.2's form"),
        (dict(attn_scales=[0.5]), r"attn_scales is \[0.5\]: it has attention outside its middle"),
        (dict(patch_size=2), "patch_size is 2: it takes patches"),
        (dict(_class_name="AutoencoderKL"), "is of the class AutoencoderKL; AutoencoderKLWan would do"),
        (dict(latents_mean=[0.0]), "latents_mean has 1 numbers; 2, one per channel, would do"),
        (dict(out_channels=4), "out_channels is 4; 3, as in_channels, would do"),
        (dict(dim_mult=[1, 2, 4]), r"vae.video.time_down is \(True,\) and vae.video.multipliers is \(1, 2, 4\)"),
        (dict(base_dim="many"), "config.json: "),
    ],
)
def test_configs_of_another_form_are_refused(folder, change, told):
    path = folder / wan_vae.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=told) as refused:
        wan_vae.load(folder)
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere is neither a file nor the folder of an AutoencoderKLWan"):
        wan_vae.load(tmp_path / "nowhere")
    (folder / wan_vae.WEIGHTS).write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(UserError, match=f"cannot read .*{wan_vae.WEIGHTS}"):
        wan_vae.load(folder)
    (folder / wan_vae.WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"cannot read .*{wan_vae.WEIGHTS}"):
        wan_vae.load(folder)
    (folder / wan_vae.CONFIG).write_text("{")
    with pytest.raises(UserError, match=f"cannot read .*{wan_vae.CONFIG}"):
        wan_vae.load(folder)
    assert not (tmp_path / "made").exists()


def test_what_diffusers_cannot_hold_is_not_written(safetensors, params, tmp_path):
    video = SMALL.config.video
    for change, told in (
        (dict(time_kernel=1, time_down=(False,)), "vae.video.time_kernel is 1, which .* 3 would do"),
        (dict(decoder_blocks=1), "vae.video.decoder_blocks is 1, which .* 2 would do"),
    ):
        other = VAE(VAEConfig("video", video=VideoVAEConfig(**vars(video) | change)))
        with pytest.raises(UserError, match=told):
            wan_vae.save(tmp_path / "vae", other, params)
    with pytest.raises(UserError, match="vae.form is 'motion'"):
        wan_vae.save(tmp_path / "vae", VAE(VAEConfig("motion")), params)
    wider = VAE(VAEConfig("video", video=VideoVAEConfig(**vars(video) | dict(base=6))))
    with pytest.raises(UserError, match=r"decoder/attention/norm/scale has the shape \(8,\); \(12,\) would do"):
        wan_vae.save(tmp_path / "vae", wider, params)
    assert not (tmp_path / "vae").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        wan_vae.save(tmp_path / "file", SMALL, params)

"""Wan 2.1's VAE: number by number against diffusers', weights in both directions, and what is refused."""

import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.checkpoint.foreign import of_arrays
from causal_diffusion.errors import UserError
from causal_diffusion.interop import wan_vae
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig
from tests.interop.small_wan_vae import Evil, same_tree

oracle = pytest.mark.oracle

SIZES = {
    "one downsampling": dict(base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True]),
    "wan's stages": dict(base_dim=6, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2),
    "one block": dict(base_dim=6, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1),
    "larger decoder": dict(
        base_dim=4, decoder_base_dim=6, z_dim=4, dim_mult=[1, 2, 3], num_res_blocks=1, temperal_downsample=[True, False]
    ),
}
WAN = "wan's stages"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def diffusers(torch):
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def safetensors():
    import safetensors.numpy

    return safetensors.numpy


def theirs_of(torch, diffusers, sizes, seed=0):
    """diffusers' VAE with every weight away from 0 and 1."""
    z, rng = sizes["z_dim"], np.random.default_rng(seed)
    stats = dict(latents_mean=rng.normal(size=z).tolist(), latents_std=rng.uniform(1, 2, z).tolist())
    model = diffusers.AutoencoderKLWan(**sizes, **stats).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            value = rng.normal(size=tuple(p.shape))
            scaled = {"weight": value / np.sqrt(value[0].size), "bias": 0.1 * value, "gamma": 1 + 0.3 * value}
            p.copy_(torch.from_numpy(scaled[name.split(".")[-1]]))
    return model


@pytest.fixture(scope="module", params=list(SIZES))
def pair(request, torch, diffusers, tmp_path_factory):
    """(diffusers' model, its folder, ours loaded from there)."""
    model = theirs_of(torch, diffusers, SIZES[request.param])
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return model, folder, *wan_vae.load(folder)


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 4, 1)


def channels_first(torch, array):
    return torch.from_numpy(np.array(array).transpose(0, 4, 1, 2, 3).copy())


@oracle
@pytest.mark.parametrize("frames", [1, 9])
def test_latents_and_videos_are_equal(torch, pair, frames):
    model, _, vae, params = pair
    x = np.random.default_rng(1).uniform(-1, 1, (2, frames, 16, 32, 3)).astype(np.float32)
    with torch.no_grad():
        latents = model.encode(channels_first(torch, x)).latent_dist.mode()
        video = channels_last(model.decode(latents).sample)
    latents = channels_last(latents)
    ours = vae.encode(params, x)
    assert ours.shape == latents.shape and video.shape[1] == vae.geometry.frames(latents.shape[1])
    assert np.abs(ours - latents).max() < 1e-4 * np.abs(latents).max()
    ours = vae.decode(params, jnp.asarray(latents))
    assert (np.abs(video) < 1).mean() > 0.5  # most pixels were not clipped
    assert np.abs(ours - video).max() < 1e-4 * np.abs(video).max()
    scaled = (latents - np.float32(model.config.latents_mean)) / np.float32(model.config.latents_std)
    np.testing.assert_allclose(vae.normalise(latents), scaled, atol=1e-5)


@oracle
def test_the_variance_of_the_posterior_is_equal(torch, pair):
    model, _, vae, params = pair
    x = np.random.default_rng(2).uniform(-1, 1, (1, 5, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        logvar = channels_last(model.encode(channels_first(torch, x)).latent_dist.logvar)
    np.testing.assert_allclose(vae.posterior(params, x).logvar, logvar, atol=1e-4 * np.abs(logvar).max())


@oracle
def test_weights_come_back_bit_by_bit(torch, diffusers, pair, tmp_path):
    """Ours -> diffusers' from_pretrained -> the state that it came from; and ours -> ours."""
    model, _, vae, params = pair
    wan_vae.save(tmp_path / "saved", vae, params)
    again = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "saved")
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    fields = set(model.config) - {"_use_default_values", "_name_or_path", "_diffusers_version", "_class_name"}
    scale = {"scale_factor_temporal": vae.geometry.time, "scale_factor_spatial": vae.geometry.space}
    for field in fields:
        wanted = scale.get(field, model.config[field])
        assert again.config[field] == wanted, field
    loaded, tree = wan_vae.load(tmp_path / "saved")
    assert loaded == vae
    same_tree(tree, params)


@oracle
def test_as_many_parameters_as_wan_2_1(torch, diffusers):
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan()
    vae = VAE(VAEConfig("video"))
    ours = jax.tree.leaves(jax.eval_shape(vae.init, jax.random.key(0)))
    assert sum(np.prod(a.shape) for a in ours) == sum(p.numel() for p in model.parameters())
    assert tuple(model.config.latents_mean) == wan_vae.MEAN and tuple(model.config.latents_std) == wan_vae.STD


RULES = [  # diffusers' key -> the key that Wan published
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"down_blocks\.(\d+)", r"downsamples.\1"),
    (r"(downsamples\.\d+|middle\.[02]|resnets\.\d+)\.norm1", r"\1.residual.0"),
    (r"(downsamples\.\d+|middle\.[02]|resnets\.\d+)\.conv1", r"\1.residual.2"),
    (r"(downsamples\.\d+|middle\.[02]|resnets\.\d+)\.norm2", r"\1.residual.3"),
    (r"(downsamples\.\d+|middle\.[02]|resnets\.\d+)\.conv2", r"\1.residual.6"),
    (r"conv_shortcut", "shortcut"),
]


def published(key, blocks):
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    stage = r"up_blocks\.(\d+)\."
    key = re.sub(stage + r"resnets\.(\d+)", lambda m: f"upsamples.{int(m[1]) * (blocks + 2) + int(m[2])}", key)
    return re.sub(stage + r"upsamplers\.0", lambda m: f"upsamples.{int(m[1]) * (blocks + 2) + blocks + 1}", key)


@oracle
def test_files_as_wan_published_them_are_read(torch, diffusers, pair, tmp_path):
    """The same parameters from the .pth, from a .safetensors of either naming, and from diffusers' folder."""
    from safetensors.torch import save_file

    model, folder, vae, params = pair
    state, config = model.state_dict(), model.config
    named = {published(key, config.num_res_blocks): value for key, value in state.items()}
    if config.dim_mult == [1, 2, 4, 4] and config.num_res_blocks == 2:  # all that diffusers' own converter knows
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        back = convert_wan_vae_to_diffusers(named)
        assert back.keys() == state.keys() and all(back[key] is state[key] for key in state)
    torch.save(named, tmp_path / "vae.pth")
    save_file(named, tmp_path / "vae.safetensors")
    for path in (tmp_path / "vae.pth", tmp_path / "vae.safetensors", folder / wan_vae.WEIGHTS):
        read, tree = wan_vae.load(path)
        assert read.config == vae.config and read.mean == read.std == ()
        same_tree(tree, params)


@oracle
def test_a_file_of_wan_2_1_brings_the_published_statistics(torch, diffusers, tmp_path, monkeypatch):
    """Its sizes tell it from others. The weights themselves would be half a gigabyte: only their shapes are made."""
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan()
    shapes = {key: np.broadcast_to(np.float32(0), tuple(p.shape)) for key, p in model.state_dict().items()}
    weights = of_arrays(tmp_path / "vae.pth", shapes)
    naming, config = wan_vae._infer("vae.pth", weights)
    assert naming == wan_vae.DIFFUSERS and config == VideoVAEConfig()
    monkeypatch.setattr(wan_vae, "_open", lambda path: weights)
    monkeypatch.setattr(wan_vae, "_to_ours", lambda path, config, naming, weights: {})
    assert wan_vae.load(tmp_path / "vae.pth")[0] == VAE(VAEConfig("video"), wan_vae.MEAN, wan_vae.STD)


@oracle
def test_half_precision_is_read_as_float32(torch, diffusers, tmp_path):
    model = theirs_of(torch, diffusers, SIZES["one downsampling"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "folder")
    named = {published(key, 1): value for key, value in model.state_dict().items()}
    torch.save(named, tmp_path / "vae.pth")
    _, params = wan_vae.load(tmp_path / "folder")
    same_tree(wan_vae.load(tmp_path / "vae.pth")[1], params)
    bias = model.state_dict()["encoder.conv_in.bias"].float().numpy()
    np.testing.assert_array_equal(params["encoder"]["conv_in"]["bias"], bias)


@oracle
@pytest.mark.parametrize("form", ["protocol 2", "protocol 4", "torch", "beside tensors"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(torch, tmp_path, form):
    made, file = tmp_path / "made", tmp_path / "vae.pth"
    content = {"encoder.conv1.weight": torch.zeros(2), "extra": Evil(made)} if form == "beside tensors" else Evil(made)
    if form.startswith("protocol"):
        file.write_bytes(pickle.dumps(content, int(form[-1])))
        pickle.loads(file.read_bytes())
        assert made.is_dir()  # it is a real one
        made.rmdir()
    else:
        torch.save(content, file)
    with pytest.raises(UserError, match="holds not only tensors.* nothing of it was run") as refused:
        wan_vae.load(file)
    assert not made.exists() and "\n" not in str(refused.value)
    assert "but posix.mkdir:" in str(refused.value) or form == "protocol 4"  # which torch does not read as far


@oracle
@pytest.mark.parametrize(
    "content, told",
    [
        (b"no pickle at all", "vae.pth holds not only tensors"),
        (b"", "cannot read .*vae.pth"),
        ([1, 2], "the file is a list; tensors by name"),
        ({"step": 3}, "step is a int; tensors by name"),
        ({}, "encoder.conv_in.weight is missing"),
    ],
    ids=str,
)
def test_files_without_weights_are_refused(torch, tmp_path, content, told):
    if isinstance(content, bytes):
        (tmp_path / "vae.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "vae.pth")
    with pytest.raises(UserError, match=told) as refused:
        wan_vae.load(tmp_path / "vae.pth")
    assert "\n" not in str(refused.value)


def test_without_torch_a_pth_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "vae.pth").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(UserError, match="vae.pth needs torch: pip install 'causal_diffusion"):
        wan_vae.load(tmp_path / "vae.pth")
    assert not (tmp_path / "made").exists()

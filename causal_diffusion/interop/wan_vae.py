"""Weights of Wan 2.1's VAE, in and out.

    vae, params = load("Wan2.1-T2V-1.3B-Diffusers/vae")       # diffusers' AutoencoderKLWan: a folder
    vae, params = load("Wan2.1_VAE.pth")                      # as Wan published it: a file, or a .safetensors of either
    save("my_vae", vae, params)                               # a folder for diffusers' from_pretrained

Three names for every array::

    encoder/res_1_0/conv1/kernel  [3, 3, 3, I, O]      ours
    encoder.down_blocks.3.conv1.weight  [O, I, 3, 3, 3]      diffusers
    encoder.downsamples.3.residual.2.weight  [O, I, 3, 3, 3]      Wan's

Blocks and resamplings are counted through by both others, by diffusers in the encoder only. Values pass as they are,
bit by bit; half-precision ones become float32. A ``.pth`` is a pickle: it is read by torch's restricted reader, which
makes tensors and runs nothing.
"""

import json
import os
import re
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as serialised

from causal_diffusion.checkpoint.foreign import Weights, open_weights
from causal_diffusion.checkpoint.leaves import reason_of, replacing
from causal_diffusion.errors import UnreadableError, UserError
from causal_diffusion.file_access import is_dir, is_file
from causal_diffusion.interop.torch_file import read_torch_arrays
from causal_diffusion.nn.vae import VAE, VAEConfig
from causal_diffusion.nn.video_vae import VideoVAEConfig
from causal_diffusion.seeds import random_key
from causal_diffusion.text_files import read_json

STEM = "diffusion_pytorch_model"
CONFIG, WEIGHTS = "config.json", f"{STEM}.safetensors"
ANCHORS = ("encoder.conv_in.weight", "encoder.conv1.weight")  # diffusers', and Wan's: one is in every file
CLASS = "AutoencoderKLWan"

# Of the latents of Wan 2.1's own weights, which a .pth does not tell.
MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

# Ours: (diffusers', Wan's). In front of a leaf stands a part, in front of it a module, in front of that a side.
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "gamma"}
PARTS = {
    "norm1": ("norm1", "residual.0"), "conv1": ("conv1", "residual.2"),
    "norm2": ("norm2", "residual.3"), "conv2": ("conv2", "residual.6"),
    "shortcut": ("conv_shortcut", "shortcut"), "space": ("resample.1", "resample.1"),
    "time": ("time_conv", "time_conv"), "norm": ("norm", "norm"), "qkv": ("to_qkv", "to_qkv"), "proj": ("proj", "proj"),
}  # fmt: skip
MODULES = {
    "quant_conv": ("quant_conv", "conv1"), "post_quant_conv": ("post_quant_conv", "conv2"),
    "conv_in": ("conv_in", "conv1"), "norm_out": ("norm_out", "head.0"), "conv_out": ("conv_out", "head.2"),
    "mid_0": ("mid_block.resnets.0", "middle.0"), "attention": ("mid_block.attentions.0", "middle.1"),
    "mid_1": ("mid_block.resnets.1", "middle.2"),
}  # fmt: skip
DIFFUSERS, WAN = 0, 1
FIELDS = {  # of diffusers' config: ours, and diffusers' default
    "in_channels": ("channels", 3), "base_dim": ("base", 96), "decoder_base_dim": ("decoder_base", None),
    "z_dim": ("latent", 16), "dim_mult": ("multipliers", [1, 2, 4, 4]), "num_res_blocks": ("blocks", 2),
    "temperal_downsample": ("time_down", [False, True, True]),
}  # fmt: skip
FOREIGN = {"is_residual": "it is of Wan 2.2's form", "attn_scales": "it has attention outside its middle",
           "patch_size": "it takes patches of pixels, as Wan 2.2 does"}  # fmt: skip


def load(path: str | os.PathLike) -> tuple[VAE, dict]:
    """(vae, params) of diffusers' folder or of a single file.

    ``vae.encode(params, video)`` is the latent mean, ``vae.decode(params, latents)`` the video, both channel-last;
    ``vae.normalise`` scales latents as the weights' own statistics say. A file says its sizes by its shapes, and no
    statistics: Wan 2.1's published ones are taken where the sizes are Wan 2.1's.

    Raises:
        UserError: the path cannot be read, its weights are those of another network (the first key that differs is
            named), or it is a pickle that holds more than tensors.
    """
    path = Path(path).expanduser()
    if is_dir(path):
        if not is_file(path / CONFIG) and is_file(path / "vae" / CONFIG):
            raise UserError(f"{path} is the folder of a whole pipeline: try {path / 'vae'}")
        config, mean, std = _read_config(path / CONFIG)
        weights = _open(path)
        naming = DIFFUSERS
    else:
        weights = _open(path)
        naming, config = _infer(path, weights)
        mean, std = (MEAN, STD) if config == VideoVAEConfig() else ((), ())
    return VAE(VAEConfig("video", video=config), mean, std), _to_ours(path, config, naming, weights)


def save(path: str | os.PathLike, vae: VAE, params) -> None:
    """Writes the folder that diffusers' ``AutoencoderKLWan.from_pretrained`` reads.

    Raises:
        UserError: the VAE has a form that diffusers' does not have, ``params`` are another's, or it cannot be written.
    """
    path, config = Path(path).expanduser(), vae.config.video
    if vae.config.form != "video":
        raise UserError(f"vae.form is {vae.config.form!r} and {CLASS} is a video VAE: 'video' would do")
    for name, does in (
        ("time_kernel", (3,)), ("decoder_blocks", (0, config.blocks + 1)), ("patch", (1,)), ("shortcuts", (False,))
    ):  # fmt: skip
        if getattr(config, name) not in does:
            given = getattr(config, name)
            raise UserError(f"vae.video.{name} is {given}, which {CLASS} cannot be: {does[-1]} would do")
    leaves, given = _leaves(config), flax.traverse_util.flatten_dict(params)
    shapes = [{"/".join(keys): leaf.shape for keys, leaf in tree.items()} for tree in (leaves, given)]
    _compare("the tree of parameters", *shapes)
    weights = {}
    for keys, value in given.items():
        value = np.asarray(value, np.float32)
        name, shape = _theirs(config, DIFFUSERS, keys, value.shape)
        if value.ndim > 1:
            value = value.transpose(-1, -2, *range(value.ndim - 2))
        weights[name] = np.ascontiguousarray(value).reshape(shape)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / WEIGHTS) as file:
            file.write(serialised(weights, metadata={"format": "pt"}))
        with replacing(path / CONFIG) as file:
            file.write((json.dumps(_config_of(vae), indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error


def _config_of(vae):
    """The content of diffusers' config.json."""
    config, g = vae.config.video, vae.geometry
    said = {"_class_name": CLASS, "_diffusers_version": "0.42.1"}
    said |= {theirs: getattr(config, ours) for theirs, (ours, _) in FIELDS.items()}
    said |= {"decoder_base_dim": config.decoder_base or None, "out_channels": config.channels, "dropout": 0.0}
    said |= {"attn_scales": [], "is_residual": False, "patch_size": None}
    said |= {"scale_factor_temporal": g.time, "scale_factor_spatial": g.space}
    return said | {"latents_mean": vae.mean or (0.0,) * g.latent, "latents_std": vae.std or (1.0,) * g.latent}


def _read_config(path):
    """diffusers' config.json -> (VideoVAEConfig, mean, std)."""
    try:
        said = read_json(path)
    except UnreadableError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}; the folder of an {CLASS} has one") from error
    if not isinstance(said, dict) or said.get("_class_name") != CLASS:
        found = said.get("_class_name") if isinstance(said, dict) else said
        raise UserError(f"{path} is of the class {found}; {CLASS} would do")
    for name, why in FOREIGN.items():
        if said.get(name):
            raise UserError(f"{path}: {name} is {said[name]}: {why}, and cannot be read; Wan 2.1's form would do")
    channels = said.get("in_channels", 3)
    if said.get("out_channels", 3) != channels:
        raise UserError(f"{path}: out_channels is {said.get('out_channels', 3)}; {channels}, as in_channels, would do")
    given = {ours: said.get(theirs, default) for theirs, (ours, default) in FIELDS.items()}
    given["decoder_base"] = given["decoder_base"] or 0
    config = _checked(path, {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    stats = []
    for name, published in (("latents_mean", MEAN), ("latents_std", STD)):
        stats.append(tuple(float(x) for x in said.get(name, published)))
        if len(stats[-1]) != config.latent:
            raise UserError(f"{path}: {name} has {len(stats[-1])} numbers; {config.latent}, one per channel, would do")
    measured = any(stats[0]) or set(stats[1]) != {1.0}
    return config, *(stats if measured else ((), ()))


def _checked(path, given):
    try:
        return VideoVAEConfig(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from error


def _open(path) -> Weights:
    """The weights of a folder or file, without what stands before every name."""
    if not (is_dir(path) or path.exists() or path.is_symlink()):
        raise UserError(f"{path} is neither a file nor the folder of an {CLASS}")

    def read_pickle(file):
        return read_torch_arrays(file, *ANCHORS)

    return open_weights(path, stem=STEM, read_pickle=read_pickle).within(*ANCHORS)


def _infer(path, weights):
    """A file's weights -> (how they are named, the sizes that their shapes tell)."""
    shapes = weights.shapes
    naming = WAN if "encoder.conv1.weight" in shapes else DIFFUSERS
    conv_in, stages, conv, pointwise = (
        ("conv_in", "down_blocks", "conv1", "post_quant_conv"), ("conv1", "downsamples", "residual.2", "conv2")
    )[naming]  # fmt: skip

    def size(key, axis):
        if len(shapes.get(key, ())) != 5:
            raise UserError(f"{path}: {key} is {shapes.get(key, 'missing')}; the weights of Wan 2.1's VAE would do")
        return shapes[key][axis]

    given = {"base": size(f"encoder.{conv_in}.weight", 0), "channels": size(f"encoder.{conv_in}.weight", 1)}
    given |= {"latent": size(f"{pointwise}.weight", 0)}
    widths, time_down, n = [[]], [], 0
    while True:
        at = f"encoder.{stages}.{n}"
        if f"{at}.{conv}.weight" in shapes:
            widths[-1].append(size(f"{at}.{conv}.weight", 0))
        elif f"{at}.resample.1.weight" in shapes:
            time_down.append(f"{at}.time_conv.weight" in shapes)
            widths.append([])
        else:
            break
        n += 1
    size(f"encoder.{stages}.0.{conv}.weight", 0)
    given |= {"blocks": len(widths[0]), "time_down": tuple(time_down)}
    given |= {"multipliers": tuple(max(1, (stage or [0])[-1] // given["base"]) for stage in widths)}
    decoder = size(f"decoder.{conv_in}.weight", 0) // given["multipliers"][-1]
    given |= {"decoder_base": 0 if decoder == given["base"] else decoder}
    return naming, _checked(path, given)


def _leaves(config):
    """{path of a leaf in our tree: what it is}."""
    vae = VAE(VAEConfig("video", video=config))
    return flax.traverse_util.flatten_dict(jax.eval_shape(vae.init, random_key(0)))


def _theirs(config, naming, keys, shape):
    """Path and shape of our leaf -> (key, shape) of theirs. Both others have one axis less where they see images."""
    *where, leaf = keys
    words = [where.pop(0)] if where[0] in ("encoder", "decoder") else []
    modules = MODULES | (_numbered(config)[words[0]] if words else {})
    words.append(modules[where[0]][naming])
    words += [PARTS[part][naming] for part in where[1:2]]
    axes = 2 if {"space", "norm", "qkv", "proj"} & set(where) else 3
    if leaf == "scale":
        shape = (*shape, *(1,) * axes)
    if leaf == "kernel":
        *taps, inputs, outputs = shape
        shape = (outputs, inputs, *(1,) * (axes - len(taps)), *taps)
    return ".".join((*words, LEAVES[leaf])), shape


def _numbered(config):
    """{side: {our module: theirs}} of what they count through."""
    sides = {"encoder": {}, "decoder": {}}
    n = 0
    for i in range(len(config.multipliers)):
        names = [f"res_{i}_{j}" for j in range(config.blocks)] + [f"down_{i}"]
        for name in names:
            sides["encoder"][name] = (f"down_blocks.{n}", f"downsamples.{n}")
            n += 1
    n = 0
    for i in range(len(config.multipliers)):
        names = {f"res_{i}_{j}": f"resnets.{j}" for j in range(config.blocks + 1)} | {f"up_{i}": "upsamplers.0"}
        for name, place in names.items():
            sides["decoder"][name] = (f"up_blocks.{i}.{place}", f"upsamples.{n}")
            n += 1
    return sides


def _to_ours(path, config, naming, weights):
    """Their weights as our tree, float32."""
    leaves = _leaves(config)
    theirs = {keys: _theirs(config, naming, keys, leaf.shape) for keys, leaf in leaves.items()}
    given = weights.shapes
    for key in given:
        if re.match(r"encoder\.(downsamples\.0\.downsamples|down_blocks\.0\.resnets)\.", key):
            raise UserError(f"{path}: {key} is of Wan 2.2's form, and cannot be read; weights of Wan 2.1's would do")
    _compare(path, dict(theirs.values()), given)
    params = {}
    for keys, (key, _) in theirs.items():
        value, shape = weights[key], leaves[keys].shape
        if len(shape) > 1:
            *taps, inputs, outputs = shape
            value = value.reshape(outputs, inputs, *taps).transpose(*range(2, len(shape)), 1, 0)
        params[keys] = jnp.asarray(value.reshape(shape), jnp.float32)
    return flax.traverse_util.unflatten_dict(params)


def _compare(where, wanted, given):
    """UserError that names the first key in which ``given`` differs from ``wanted``, {key: shape}."""
    for key in sorted({*wanted, *given}):
        if key not in given:
            raise UserError(f"{where} has no {key}, of the shape {wanted[key]}: it is of another network")
        if key not in wanted:
            raise UserError(f"{where} has {key}, for which there is no place: it is of another network")
        if tuple(given[key]) != tuple(wanted[key]):
            raise UserError(f"{where}: {key} has the shape {given[key]}; {wanted[key]} would do")

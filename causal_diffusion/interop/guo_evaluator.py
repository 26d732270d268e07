"""Weights of the published evaluator of text to motion, as its authors released them.

    evaluator, params = load("checkpoints/t2m/text_mot_match/model/finest.tar")
    m = evaluator.apply({"params": params}, x, length, method="motion")

The file is torch's, not a tar: three networks by name, beside the state of their training, which is left there. MARDM's
has the same names. Sizes are told by shapes. Names of the arrays::

    ours                                        theirs
    movement_encoder/conv_0/kernel  [4, I, O]   movement_encoder: main.0.weight  [O, I, 4]     conv_1: main.3
    movement_encoder/out                        movement_encoder: out_net
    motion_encoder/input                        motion_encoder: input_emb
    motion_encoder/gru/first  [2, H]            motion_encoder: hidden  [2, 1, H]
    motion_encoder/gru/forward_input  [I, 3 H]  motion_encoder: gru.weight_ih_l0  [3 H, I]     backward: ..._l0_reverse
    motion_encoder/head_in, head_norm, head_out motion_encoder: output_net.0, .1, .3
    text_encoder/...                            text_encoder: the same
    tag                                         text_encoder: pos_emb
"""

import os
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.checkpoint.foreign import of_arrays
from causal_diffusion.errors import UserError
from causal_diffusion.file_access import is_file
from causal_diffusion.interop.torch_file import as_array, read_torch
from causal_diffusion.nn.guo_evaluator import GuoConfig, GuoEvaluator
from causal_diffusion.seeds import random_key

NETWORKS = ("movement_encoder", "motion_encoder", "text_encoder")
ANCHORS = ("main.0.weight", "input_emb.weight")  # each network has one of them
MODULES = {
    "conv_0": "main.0", "conv_1": "main.3", "out": "out_net", "input": "input_emb",
    "head_in": "output_net.0", "head_norm": "output_net.1", "head_out": "output_net.3",
}  # fmt: skip
GRU = {"input": "weight_ih", "state": "weight_hh", "input_bias": "bias_ih", "state_bias": "bias_hh"}


def load(path: str | os.PathLike) -> tuple[GuoEvaluator, dict]:
    """(evaluator, params) of a released file.

    Raises:
        UserError: the path cannot be read, it holds other networks (the first name that differs is named), or a pickle
            of more than tensors and numbers.
    """
    path = Path(path).expanduser()
    if not is_file(path):
        raise UserError(f"{path} is no file; the evaluator's finest.tar would do")
    torch, content = read_torch(path)
    weights = {}
    for network in NETWORKS:
        arrays = content.get(network) if isinstance(content, dict) else None
        if not isinstance(arrays, dict) or not all(isinstance(v, torch.Tensor) for v in arrays.values()):
            raise UserError(f"{path} has no {network} of tensors; {', '.join(NETWORKS)} would do")
        arrays = {name: as_array(path, f"{network}.{name}", value) for name, value in arrays.items()}
        arrays = of_arrays(path, arrays).within(*ANCHORS)
        weights |= {f"{network}.{name}": arrays[name] for name in arrays.shapes}
    evaluator = GuoEvaluator(_sizes(path, weights))
    motion = jnp.zeros((1, 4, evaluator.config.channels), jnp.float32)
    shapes = jax.eval_shape(evaluator.init, random_key(0), motion)["params"]
    params = {}
    for keys, leaf in flax.traverse_util.flatten_dict(shapes).items():
        name = _theirs(keys)
        if name not in weights:
            raise UserError(f"{path} has no {name}: it is of another network")
        value = weights.pop(name)
        value = value[:, 0] if keys[-1] == "first" else value.T  # Conv1d's [O, I, k] becomes [k, I, O]
        if value.shape != leaf.shape:
            raise UserError(f"{path}: {name} is for {value.shape}; {leaf.shape} would do")
        params[keys] = jnp.asarray(np.ascontiguousarray(value))
    if weights:
        raise UserError(f"{path} has {sorted(weights)[0]}, for which there is no place: it is of another network")
    return evaluator, flax.traverse_util.unflatten_dict(params)


def _sizes(path, weights):
    """The sizes that shapes tell."""

    def size(name, axis, axes):
        shape = weights[name].shape if name in weights else "missing"
        if len(shape) != axes:
            raise UserError(f"{path}: {name} is {shape}; the weights of Guo et al.'s evaluator would do")
        return shape[axis]

    return GuoConfig(
        channels=size("movement_encoder.main.0.weight", 1, 3),
        movement_hidden=size("movement_encoder.main.0.weight", 0, 3),
        movement=size("movement_encoder.main.3.weight", 0, 3),
        motion_hidden=size("motion_encoder.input_emb.weight", 0, 2),
        text_hidden=size("text_encoder.input_emb.weight", 0, 2),
        latent=size("motion_encoder.output_net.3.weight", 0, 2),
        words=size("text_encoder.pos_emb.weight", 0, 2),
        tags=size("text_encoder.pos_emb.weight", 1, 2),
    )


def _theirs(keys):
    """Path of our leaf -> their name."""
    network, *where = keys
    if network == "tag":
        network, where = "text_encoder", ["pos_emb", *where]
    *module, leaf = where
    if module == ["gru"]:
        if leaf == "first":
            return f"{network}.hidden"
        direction, _, kind = leaf.partition("_")
        return f"{network}.gru.{GRU[kind]}_l0{'_reverse' if direction == 'backward' else ''}"
    leaf = "bias" if leaf == "bias" else "weight"
    return ".".join((network, *(MODULES.get(name, name) for name in module), leaf))

"""Starting a run from another one's parameters, with a report per leaf."""

import dataclasses

import jax

from causal_diffusion.checkpoint import Checkpoints, folder_of, read_meta
from causal_diffusion.config import freeze
from causal_diffusion.errors import CheckpointError
from causal_diffusion.nn.layers import stack_layers, unstack_layers
from causal_diffusion.recipe import Recipe, build
from causal_diffusion.seeds import random_key
from causal_diffusion.training.state import TrainState


def init_from(recipe: Recipe, state: TrainState, shardings: TrainState, path: str) -> tuple[TrainState, list[str]]:
    """Takes over every averaged parameter of another run that has the same name and shape here.

    Returns:
        (state with these parameters and averages, report: one line per leaf that was not taken over, and a total).

    Raises:
        CheckpointError: nothing intact is at ``path``, or not a single leaf fits.
    """
    folder = folder_of(path)
    other = build(freeze(read_meta(folder).meta["config"])).streaming()
    like = jax.eval_shape(other.init_params, random_key(0))
    restored = Checkpoints(folder).restore({"ema": like})
    given = _by_path(restored.ema)
    fresh = _by_path(unstack_layers(state.params))
    lines = [f"  checkpoint {step} is damaged ({why}): using {restored.step}" for step, why in restored.skipped]
    taken = {}
    for name, leaf in fresh.items():
        if name not in given:
            lines.append(f"  fresh    {name} {leaf.shape}: not in the checkpoint")
        elif given[name].shape != leaf.shape:
            lines.append(f"  fresh    {name} {leaf.shape}: the checkpoint has {given[name].shape}")
        else:
            taken[name] = jax.device_put(given[name], leaf.sharding)  # beside the fresh ones it may be stacked with
    lines += [f"  unused   {name} {leaf.shape}" for name, leaf in given.items() if name not in fresh]
    if not taken:
        raise CheckpointError(f"train.init_from is {path!r}: none of its parameters fits this model")
    lines.append(f"  taken over: {len(taken)} of {len(fresh)} parameters from {folder}")
    params = _unflatten(state.params, fresh | taken, recipe.model.config.layers)
    params = jax.device_put(params, shardings.params)
    ema = jax.device_put(jax.tree.map(lambda p: p.copy(), params), shardings.ema)
    return dataclasses.replace(state, params=params, ema=ema), lines


def _by_path(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def _unflatten(params, leaves, layers):
    canonical = unstack_layers(params)
    structure = jax.tree.structure(canonical)
    tree = jax.tree.unflatten(structure, [leaves[name] for name in _by_path(canonical)])
    return stack_layers(tree) if layers == "scan" else tree

"""Starting from another run's parameters: what is taken, what is fresh, what is not used, and that it is said."""

import json

import jax
import numpy as np
import pytest

from causal_diffusion.checkpoint import Checkpoints
from causal_diffusion.config import to_json
from causal_diffusion.errors import CheckpointError
from causal_diffusion.nn.layers import stack_layers, unstack_layers
from causal_diffusion.parallel.mesh import make_mesh
from causal_diffusion.recipe import build
from causal_diffusion.training.init_from import init_from
from causal_diffusion.training.state import TrainState, abstract_state


@pytest.fixture(scope="module")
def small2(small):
    return lambda *overrides: small("model.depth=2", *overrides)


def random_like(recipe, seed):
    tree = jax.eval_shape(recipe.streaming().init_params, jax.random.key(0))
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def save(config, workdir, step=5, seed=0):
    """A checkpoint of random averages, as ``train`` writes them; returns them."""
    ema = random_like(build(config), seed)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, ema=ema, meta={"config": json.loads(to_json(config))})
    return ema


@pytest.fixture(scope="module")
def run(small2, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, save(small2(), workdir)


def fresh_state(config):
    """(recipe, a state of random parameters on all devices, its shardings), without compiling an initialiser."""
    recipe, mesh = build(config), make_mesh()
    shapes, shardings = abstract_state(recipe, mesh)
    params = random_like(recipe, seed=1)
    params = stack_layers(params) if config.model.layers == "scan" else params
    moments = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes.opt_state)
    state = TrainState(np.int32(0), params, params, moments, jax.random.key(5))
    return recipe, jax.tree.map(jax.device_put, state, shardings), shardings


def start(config, path):
    recipe, fresh, shardings = fresh_state(config)
    state, report = init_from(recipe, fresh, shardings, str(path))
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema)
    for leaf, average in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        p, e = (x.addressable_shards[0].data.unsafe_buffer_pointer() for x in (leaf, average))
        assert p != e  # or donation would give one buffer away twice
    assert state.opt_state is fresh.opt_state and state.step is fresh.step
    return jax.device_get(unstack_layers(state.params)), jax.device_get(unstack_layers(fresh.params)), report


def named(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("given", ["unrolled", "scan"])
@pytest.mark.parametrize("wanted", ["unrolled", "scan"])
def test_everything_is_taken_between_scanned_and_unrolled_layers(small2, tmp_path, given, wanted):
    ema = save(small2(f"model.layers={given}"), tmp_path)
    params, _, report = start(small2(f"model.layers={wanted}"), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, ema)
    count = len(jax.tree.leaves(ema))
    assert report == [f"  taken over: {count} of {count} parameters from {tmp_path / 'checkpoints'}"]


def test_the_folder_of_checkpoints_will_do(small2, run):
    workdir, ema = run
    params, _, _ = start(small2(), workdir / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, params, ema)


@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_what_is_missing_stays_fresh(small2, run, layers):
    """Three layers from two: the third is fresh, on eight devices, in both forms."""
    workdir, ema = run
    params, fresh, report = start(small2("model.depth=3", f"model.layers={layers}"), workdir)
    params, fresh, given = named(params), named(fresh), named(ema)
    missing = [name for name in params if name.startswith("block_2/")]
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, fresh[name] if name in missing else given[name])
    assert report == [f"  fresh    {name} {params[name].shape}: not in the checkpoint" for name in missing] + [
        f"  taken over: {len(given)} of {len(params)} parameters from {workdir / 'checkpoints'}"]


def test_another_shape_stays_fresh_and_is_named(small2, run):
    workdir, ema = run
    params, fresh, report = start(small2("model.mlp=48"), workdir)
    np.testing.assert_array_equal(params["block_0"]["mlp_in"]["kernel"], fresh["block_0"]["mlp_in"]["kernel"])
    np.testing.assert_array_equal(params["embed"]["kernel"], ema["embed"]["kernel"])
    assert "  fresh    block_0/mlp_in/kernel (16, 48): the checkpoint has (16, 32)" in report
    assert len([line for line in report if "fresh" in line]) == 6  # in kernel and bias, out kernel, of two layers


def test_what_is_not_needed_is_named(small2, run):
    workdir, ema = run
    _, _, report = start(small2("model.depth=1"), workdir)
    unused = [name for name in named(ema) if name.startswith("block_1/")]
    assert [line.split()[1] for line in report if line.startswith("  unused")] == unused
    assert len(unused) > 5


def test_nothing_fits(small2, run, small):
    workdir, _ = run
    other = small("model.width=24", "model.heads=2", "model.mlp=40", "model.classes=0", "model.frequencies=32",
                  "model.qk_norm=none", "model.patch=(1, 4, 4)", "model.depth=1")
    recipe, state, shardings = fresh_state(other)
    with pytest.raises(CheckpointError, match="none of its parameters fits this model") as error:
        init_from(recipe, state, shardings, str(workdir))
    assert str(workdir) in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_there(small2, tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path / 'none'}"):
        start(small2(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_one_is_skipped_and_named(small2, tmp_path):
    ema = save(small2(), tmp_path, step=5)
    save(small2(), tmp_path, step=9, seed=1)
    largest = max((tmp_path / "checkpoints/9/ema").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    largest.write_bytes(b"x" + largest.read_bytes()[1:])
    params, _, report = start(small2(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, ema)
    assert any("9 is damaged" in line and "5" in line for line in report)

"""What a run will cost: the table adds up, FLOPs follow from the sizes, memory holds the state."""

import functools
import math

import jax
import pytest

from causal_diffusion.autoencoder import build_autoencoder
from causal_diffusion.config import load_config
from causal_diffusion.cost import step_cost, training_cost
from causal_diffusion.cost.peaks import PEAKS
from causal_diffusion.parallel.mesh import MeshConfig, make_mesh
from causal_diffusion.parallel.rules import param_shardings
from causal_diffusion.recipe import build, parameter_count
from causal_diffusion.training import state as states
from causal_diffusion.training.collectives import collectives
from causal_diffusion.training.report import aligned, memory_estimate, parameter_table, summary, training_flops
from causal_diffusion.training.state import abstract_state


@pytest.fixture(scope="module")
def tiny(small):
    return lambda *overrides: build(small("model.depth=2", *overrides))


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_table_adds_up():
    recipe = build(load_config("quickstart"))
    shapes, _ = abstract_state(recipe, one_device())
    lines = parameter_table(recipe, one_device()).splitlines()
    assert lines[0].split() == ["parameter", "shape", "sharding", "numbers", "bytes/device"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-5]}
    leaves = jax.tree_util.tree_leaves_with_path(shapes.params)
    assert len(rows) == len(leaves)
    for path, leaf in leaves:
        shape, where, numbers, size = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
        assert shape == "x".join(map(str, leaf.shape)) and where == "replicated"
        assert numbers == f"{math.prod(leaf.shape):,}" and size == f"{4 * math.prod(leaf.shape):,}"
    total = parameter_count(shapes.params)
    assert total > 1_000_000
    assert lines[-5].split() == ["total", f"{total:,}", f"{4 * total:,}"]
    totals = {"gradients, during a step": shapes.params, "averages": shapes.ema,
              "optimizer state (adamw)": shapes.opt_state, "parameters, averages and optimizer state": shapes}
    for line, (words, tree) in zip(lines[-4:], totals.items(), strict=True):
        assert line.startswith(words) and line.split()[-1] == f"{bytes_of(tree):,}"
    assert len({len(line) for line in lines if "replicated" in line}) == 1  # flush right


def test_bytes_per_device_shrink_with_fsdp(tiny, monkeypatch):
    monkeypatch.setattr(states, "param_shardings", functools.partial(param_shardings, min_size=256))
    recipe = tiny()

    def held(mesh):
        return int(parameter_table(recipe, mesh).split()[-1].replace(",", ""))

    whole, split = held(one_device()), held(make_mesh(MeshConfig(1, 8)))
    assert whole / 8 < split < whole / 4


def test_flops_do_not_depend_on_how_layers_are_run(tiny):
    one = training_flops(tiny())
    assert training_flops(tiny("model.layers=scan", "model.remat=full", "train.accumulate=2")) == one
    assert training_flops(tiny("train.batch=16")) == 2 * one


@pytest.mark.full
def test_of_an_autoencoder_xla_counts(small):
    recipe = build_autoencoder(load_config("motion_vae:tiny"))
    D, L = recipe.vae.config.sizes.width, recipe.frames
    assert training_flops(recipe) > 3 * 2 * recipe.config.train.batch * L * 3 * 3 * D * D  # of its middle alone


def test_memory_and_summary(small, train):
    recipe, mesh = build(small()), make_mesh()
    compiled = train.compile_step(recipe, mesh)
    estimate = memory_estimate(compiled)
    shapes, _ = abstract_state(recipe, mesh)
    batch = recipe.config.train.batch // 8 * math.prod((recipe.frames, *recipe.frame_shape)) * 4
    held = estimate["arguments and results"]
    assert bytes_of(shapes) + batch <= held < 1.3 * bytes_of(shapes) + batch  # donated, so not twice
    assert estimate["temporary"] > 0
    assert estimate["total"] == held + estimate["temporary"]
    text = summary(recipe, mesh, compiled)
    assert f"{parameter_count(shapes.params):,}" in text
    assert "small: exact streaming" in text and "data 8, fsdp 1" in text
    assert "8 clips of 4 frames, 12 steps" in text
    assert f"{training_flops(recipe):,.0f} per step" in text
    assert f"{estimate['total'] / 2**20:,.1f} MiB total" in text
    sums = collectives(compiled.as_text())["all-reduce"]  # of gradients over the batch, and of little else
    assert f"collectives {sums.count:,} all-reduce, {sums.bytes / 2**20:,.1f} MiB per step and device" in text
    assert 1.0 < sums.bytes / (4 * parameter_count(shapes.params)) < 1.5


def test_what_training_and_a_stream_cost_is_told(tiny, monkeypatch):
    recipe, mesh = tiny(), make_mesh()

    def told():
        lines = summary(recipe, mesh, jax.jit(lambda: 0).lower().compile()).splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("FLOPs"))
        return [line for line in lines[first + 1 :] if not line.startswith("memory")]

    train, dense, stream = training_cost(recipe), training_cost(recipe, visible=False), step_cost(recipe)
    shares, per_block = told()  # CPUs have no peak, so there is no limit
    linear, attention = (part / train.flops for part in (train.linear, train.attention))
    share = train.attention / dense.attention
    of = f"({share:.0%} of a dense mask's)"
    assert shares.strip() == f"linear {linear:.0%}, attention {attention:.0%} {of}, cross-attention 0%"
    assert share == 16 / 49  # of 4 blocks of either kind, without the last clean one
    assert f"1 block of 1 frame: {stream.flops:.3g} FLOPs in 3 passes" in per_block
    assert f"{stream.weights:.3g} bytes of weights read, {stream.read:.3g} of the past" in per_block
    monkeypatch.setitem(PEAKS, jax.devices()[0].device_kind, PEAKS["TPU v4"]._replace(f32=1e9, bandwidth=1e15))
    steps, blocks = 8e9 / train.flops, 1e9 / stream.flops
    assert told()[-1].startswith(f"limits      {steps:.3g} training steps/s on this mesh, {blocks:.3g} blocks/s")
    recipe = build(load_config("motionstreamer:tiny"))
    assert any("FLOPs of the autoencoder, which decodes them" in line for line in told())


def test_why_streaming_is_approximate_is_told(tiny):
    recipe = tiny("cache.dtype=bfloat16")
    mesh = one_device()
    text = summary(recipe, mesh, jax.jit(lambda: 0).lower().compile())
    assert "approximate streaming; approximate because keys and values are computed in float32" in text


def test_aligned():
    assert aligned([("a", "1"), ("bcd", "1,000")], right=(1,)) == "a        1\nbcd  1,000"

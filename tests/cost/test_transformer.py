"""Costs of training: to the operation those of the traced objective, forward and backward."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.compatibility.autoencoder import clip_shapes
from causal_diffusion.config import config_folder, freeze, load_config
from causal_diffusion.cost import training_cost
from causal_diffusion.cost.network import forward, matrices
from causal_diffusion.cost.transformer import training_pass
from causal_diffusion.data.pipeline import batch_spec
from causal_diffusion.nn.transformer import Transformer
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from causal_diffusion.training.report import training_flops
from causal_diffusion.training.step import gradients
from tests.cost.products import products

systems = importlib.import_module("tests.streaming.conftest")
SHIPPED = [
    path.stem for path in sorted(config_folder().glob("*.py"))
    if not path.stem.startswith("_") and freeze(load_config(path.stem)).trains == "transformer"
]  # fmt: skip
QUICK = ("ca2_vdm", "far_long", "quickstart")


@functools.cache
def tiny(name):
    return build(load_config(f"{name}:tiny", {"model.backend": "reference"})).streaming()


def arguments(recipe):
    """Of the objective, as shapes."""
    params = jax.eval_shape(recipe.init_params, jax.random.key(0))
    spec = batch_spec(clip_shapes(recipe.config), recipe.config.train.batch)
    return params, spec, jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)


def weights_along_a_clip(recipe):
    """Products in the loss itself: fused-SNR weights look along the frames."""
    fused = recipe.process.weight.startswith("fused_snr")
    return fused * 2 * recipe.config.train.batch * recipe.frames**2


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in SHIPPED]
)
def test_the_forward_pass_has_the_products_of_its_program(name):
    recipe = tiny(name)
    dense, own_past = training_cost(recipe, visible=False), bool(recipe.config.train.own_past)
    forward_alone = dense.flops * (1 + own_past) / (3 + own_past)
    program = products(functools.partial(diffusion_loss, recipe), *arguments(recipe))
    assert program - weights_along_a_clip(recipe) == forward_alone
    visible = training_cost(recipe)
    assert visible.attention <= dense.attention and visible.cross_attention <= dense.cross_attention
    assert (visible.linear, visible.other) == (dense.linear, dense.other)


def test_a_past_of_own_guesses_takes_one_more_forward_pass():
    recipes = (build(load_config("quickstart:tiny", {"train.own_past": shares})) for shares in ((), (0.0, 0.5)))
    plain, more = (training_cost(recipe).flops for recipe in recipes)
    assert more * 3 == plain * 4


@pytest.mark.parametrize(
    "name", ["quickstart", *(pytest.param(name, marks=pytest.mark.full) for name in ("motionstreamer", "ca2_vdm"))]
)
def test_the_backward_pass_is_twice_the_forward_one(name):
    """But for gradients of what comes from outside: data, levels, words' places."""
    recipe = tiny(name)
    c, run, batch = recipe.model.config, training_pass(recipe), recipe.config.train.batch
    rows, first = run.rows(c, recipe.frame_shape), {matrices(c)[0], matrices(c)[1]}
    if c.head == "diffusion":
        first |= {m for m in matrices(c) if m.rows == ("head frames",) and m.inputs == c.frequencies}
        first |= {m for m in matrices(c) if m.rows == ("head",) and m.inputs == c.channels}
    outside = sum(2 * batch * sum(rows[kind] for kind in m.rows) * m.inputs * m.outputs for m in first)

    def grad(params, spec, key, step):
        return gradients(recipe, params, spec, key, step=step)

    program = products(grad, *arguments(recipe))
    assert program == training_cost(recipe, visible=False).flops - outside
    assert outside < 0.05 * program


def wide(backend):
    """A system with frames of 256 tokens."""
    sizes = {"model.width": 1024, "model.heads": 8, "model.mlp": 4096, "model.depth": 1, "train.batch": 1}
    sizes |= {"data.height": 32, "data.width": 32, "text.tokens": 8, "model.backend": backend}
    return build(systems.make_config(**systems.SYSTEMS["teacher"] | sizes))


def test_xla_counts_little_else():
    """Elementwise work, which XLA counts at one operation a number, shrinks with the width: 1 / D of the products."""
    recipe = wide("reference")
    lowered = jax.jit(functools.partial(diffusion_loss, recipe)).lower(*arguments(recipe))
    ours = training_cost(recipe, visible=False).flops / 3
    assert 1.0 < lowered.cost_analysis()["flops"] / ours < 1.03
    assert training_flops(recipe) == training_cost(recipe).flops


def test_blockwise_attention_computes_what_is_visible():
    recipe = wide("blockwise")
    program = products(functools.partial(diffusion_loss, recipe), *arguments(recipe))
    assert 3 * program == training_cost(recipe).flops < training_cost(recipe, visible=False).flops


@pytest.mark.parametrize("name", ["causal", "knot", "registers", "axial", "two_level"])
def test_what_is_hidden_is_the_rest(name):
    """Dense attention less what the mask hides is visible attention."""
    recipe = build(systems.make_config(**systems.SYSTEMS[name]))
    c, mask = recipe.model.config, recipe.layout.training_mask(recipe.frames)
    size = np.full(len(mask), 4)  # tokens of a frame, of which coarse ones have one
    size[: recipe.layout.coarse] = 1
    hidden = c.depth * int(size @ ~mask @ size)
    if c.attention == "factorised":  # keys of the same cell, in one layer of two
        hidden = 4 * int(np.sum(~mask))
    per_pair = 3 * 4 * recipe.config.train.batch * c.width
    dense, visible = (training_cost(recipe, visible).attention for visible in (False, True))
    assert dense - visible == per_pair * hidden > 0


def test_how_layers_run_does_not_count():
    recipe = tiny("quickstart")
    scanned = dataclasses.replace(recipe.model.config, layers="scan", remat="full")
    assert training_cost(recipe._replace(model=Transformer(scanned))) == training_cost(recipe)


def test_weights_are_those_that_a_pass_multiplies():
    recipe = tiny("causal_forcing")
    params = jax.eval_shape(recipe.init_params, jax.random.key(0))
    small = ("scale", "table", "embedding")  # norms, modulation tables, classes
    held = 4 * sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)
                   if path[-1].key not in small)  # fmt: skip
    one = forward(recipe.model.config, recipe.frame_shape, training_pass(recipe), 7)
    assert one.weights == held
    assert training_cost(recipe).weights == 3 * held

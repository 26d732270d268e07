"""Cases for GPUs: they build at full size, and the very same code runs at a tiny one."""

import importlib
import math

import numpy as np
import pytest

from benchmarks import cases
from causal_diffusion.config import freeze, load_config
from causal_diffusion.recipe import build, parameter_count

SHAPES = {
    "nfd": [(1, 1, 1, 14, 24, 16)],
    "attention": [(1, 14, 4680, 12, 128), (1, 42, 1560, 12, 128), (1, 32, 336, 16, 64)],
    "wan": [(1, 1, 3, 60, 104, 16), (1, 1, 1, 60, 104, 16), (1, 9, 480, 832, 3)],
}
SLOW = ("wan", "nfd", "gpu_nfd310", "gpu_wan_chunk", "gpu_wan_e2e", "gpu_wan_framewise", "gpu_train_mfu")  # seconds


def tiers(names):
    return [pytest.param(name, marks=pytest.mark.full if name in SLOW else ()) for name in names]


def module(name):
    return importlib.import_module(f"benchmarks.gpu.{name}")


@pytest.mark.parametrize("name", tiers(SHAPES))
def test_it_builds_at_full_size(name):
    assert [out.shape for out in module(name).abstract()] == SHAPES[name]


@pytest.mark.full
def test_the_training_step_lowers_for_a_gpu():
    metrics = module("training").abstract()
    assert {leaf.shape for leaf in metrics} == {(), (16,)}


def test_sizes_are_those_that_the_names_say():
    wan, nfd = module("wan"), module("nfd").SIZES["full"]
    chunk, frame = wan.SIZES["full"], wan.by_frame(wan.SIZES["full"])
    tokens = [c.data.height * c.data.width // math.prod(c.model.patch) for c in (chunk, nfd)]
    assert tokens == [1560, 336]
    for config, own in ((chunk, 3), (frame, 1)):
        assert config.layout.block == own and config.layout.window + own == wan.CONTEXT
        assert config.schedule.steps == 4 and config.cache.commit == "separate"
    assert nfd.layout.window + 1 == 16 and nfd.schedule.steps == 4
    assert build(chunk).streaming().model.config.depth == 30
    assert freeze(load_config("self_forcing")).model.width == chunk.model.width


@pytest.mark.full
def test_they_have_as_many_parameters_as_the_models_that_they_stand_for():
    import jax

    for name, count, within in (("wan", 1_418_996_800, 0.0), ("nfd", 310e6, 0.1)):
        recipe = build(module(name).SIZES["full"]).streaming()
        made = parameter_count(jax.eval_shape(recipe.init_params, jax.random.key(0)))
        assert abs(made - count) <= within * count


@pytest.mark.parametrize("name", tiers(name for name in cases.CASES if name.startswith("gpu")))
def test_the_same_code_runs_at_a_tiny_size(name):
    row = cases.run(name, 2, "tiny")
    assert not row["not_run"] and row["figures"]
    for figure in row["figures"]:
        assert np.isfinite(figure["value"]) and figure["value"] > 0, figure


def test_limits_are_those_of_the_page():
    """Section "What the hardware could do": a chunk, a clip's mean chunk, its decoding, a frame of NFD's shape."""
    from causal_diffusion.config import override
    from causal_diffusion.cost import step_cost, vae_decode_cost
    from causal_diffusion.nn.vae import VAE

    wan = module("wan")
    chunk = step_cost(build(wan.SIZES["full"]).streaming()).flops
    mean = step_cost(build(override(wan.SIZES["full"], {"layout.window": 9})).streaming()).flops
    decode = vae_decode_cost(VAE(wan.VAES["full"]), (1, 3, 60, 104, 16)).flops
    frame = step_cost(build(module("nfd").SIZES["full"]).streaming()).flops
    np.testing.assert_allclose([chunk, mean, decode, frame], [202e12, 141.5e12, 40.7e12, 1.27e12], rtol=0.02)

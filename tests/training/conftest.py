"""A system that trains in a second, and what the training tests share."""

import dataclasses

import jax
import pytest

from causal_diffusion.config import EvaluateConfig, LogConfig, freeze, load_config
from causal_diffusion.training import loop

SMALL = [
    "data.frames=4", "layout.window=3", "model.width=16", "model.depth=1", "model.mlp=32",
    "train.steps=12", "train.batch=8", "train.warmup=2", "train.decay=constant", "train.lr=3e-3",
    "evaluate.clips=0", "log.every=3", "log.evaluate=0", "log.checkpoint=4",
]


@pytest.fixture(autouse=True, scope="module")
def quick_compiles():
    """Compilation is what these tests wait for, and optimised code computes the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def small():
    """small('train.steps=3', ...): the quickstart with everything made small, as a frozen Config."""
    return lambda *overrides: freeze(load_config("quickstart:tiny", [*SMALL, *overrides]))


@pytest.fixture(scope="session")
def train():
    """The loop's ``train``, but one that compiles each step once for all tests."""
    compile_step, compiled = loop.compile_step, {}

    def compile_once(recipe, mesh, spec=None):
        config = dataclasses.replace(recipe.config, log=LogConfig(), evaluate=EvaluateConfig())
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=""))
        key = (config, mesh, repr(spec))
        if key not in compiled:
            compiled[key] = compile_step(recipe, mesh, spec)
        return compiled[key]

    def train(config, workdir, **sources):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "compile_step", compile_once)
            return loop.train(config, workdir, **sources)

    return train

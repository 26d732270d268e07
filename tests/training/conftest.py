"""A system that trains in a second, and what the training tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from causal_diffusion.config import freeze, override
from causal_diffusion.run_config import EvaluateConfig, LogConfig
from causal_diffusion.training import loop

SMALL = freeze({
    "name": "small",
    "data": dict(source="moving_digits", frames=4, height=16, width=16, channels=1),
    "model": dict(width=16, depth=1, heads=2, mlp=32, patch=(1, 8, 8), channels=1, classes=10),
    "layout": dict(kind="teacher_forcing", block=1, window=3),
    "process": dict(predict="x0"),
    "levels": dict(context=0.3),
    "schedule": dict(steps=2),
    "train": dict(steps=12, batch=8, lr=3e-3, warmup=2, decay="constant"),
    "evaluate": dict(clips=0, context=2, frames=6),
    "log": dict(every=3, evaluate=0, checkpoint=4),
})


@pytest.fixture(scope="session")
def small():
    """small('train.steps=3', ...): moving digits with everything small, as a frozen Config."""
    return lambda *overrides: override(SMALL, overrides)


@pytest.fixture(scope="session")
def train():
    """The loop's ``train``, but one that compiles each program once for all tests and prints no summary.

    All clips are moving digits here, so that a program is a function of config and mesh.
    """
    compile_step, sharded_state, compiled = loop.compile_step, loop.sharded_state, {}

    def once(make, recipe, mesh, *rest):
        schedule = dict(init_from="") | (dict(steps=100) if recipe.config.train.decay == "constant" else {})
        schedule |= dict(guard="stop") if recipe.config.train.guard == "skip" else {}  # the host alone tells them apart
        config = dataclasses.replace(recipe.config, log=LogConfig(), evaluate=EvaluateConfig())
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **schedule))
        if (make, config, mesh) not in compiled:
            compiled[make, config, mesh] = make(recipe, mesh, *rest)
        return compiled[make, config, mesh]

    def train(config, workdir, **sources):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "compile_step", functools.partial(once, compile_step))
            patch.setattr(loop, "sharded_state", lambda *which: jax.tree.map(jnp.copy, once(sharded_state, *which)))
            patch.setattr(loop, "summary", lambda *arguments, **options: "")
            return loop.train(config, workdir, **sources)

    train.compile_step = functools.partial(once, compile_step)
    return train

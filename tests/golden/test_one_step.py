"""One training step of quickstart:tiny on a fixed batch, held to numbers written down when it was known to learn.

Whatever moves them - initialisation, levels, the objective, the optimizer, the config - moves every run. A change
that means to writes the new numbers into one_step.json with

    python tests/golden/test_one_step.py
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from causal_diffusion.config import load_config
from causal_diffusion.recipe import build
from causal_diffusion.training.state import create
from causal_diffusion.training.step import train_step

FILE = Path(__file__).with_name("one_step.json")


def metrics() -> dict[str, float]:
    """loss, grad_norm and param_norm of the first step, on noise that no data pipeline had a hand in."""
    recipe = build(load_config("quickstart:tiny"))
    rng = np.random.default_rng(0)
    batch = recipe.config.train.batch
    clips = {
        "video": rng.uniform(-1, 1, (batch, recipe.frames, *recipe.frame_shape)).astype(np.float32),
        "label": np.arange(batch, dtype=np.int32) % recipe.model.config.classes,
        "index": np.arange(batch, dtype=np.int32),
    }

    @jax.jit
    def first_step(key, clips):
        return train_step(recipe, create(recipe, key), clips)[1]

    measured = first_step(jax.random.key(0), clips)
    return {name: float(measured[name]) for name in ("loss", "grad_norm", "param_norm")}


def test_the_first_step_is_the_one_that_is_known_to_learn():
    measured, golden = metrics(), json.loads(FILE.read_text())
    assert measured == pytest.approx(golden, rel=1e-3), (
        f"the first step of quickstart:tiny has changed: {measured}, it was {golden}. If that was not meant, something "
        "that every run depends on is broken. If it was: run `python tests/golden/test_one_step.py`, say why in the "
        "commit, and train the quickstart once more"
    )


if __name__ == "__main__":
    FILE.write_text(json.dumps(metrics(), indent=1) + "\n")
    print(FILE.read_text())

"""Every system of the family, as configured and as small as can be, against the oracle that keeps no cache."""

import numpy as np
import pytest

from causal_diffusion.config import load_config
from causal_diffusion.recipe import build
from causal_diffusion.streaming.pipeline import Pipeline

CHEAPEST = ("dfot",)
FAMILY = (
    "diffusion_forcing", "dfot", "vid_gpt", "ca2_vdm", "acdit", "far", "ar_diffusion", "nfd", "skyreels_v2",
    "streaming_tsdiff",
)  # fmt: skip
SIZES = {
    "model.width": 32, "model.heads": 2, "model.depth": 2, "model.mlp": 32, "data.height": 8, "data.width": 8,
    "model.patch": (1, 4, 4), "schedule.steps": 4, "stream.capacity": 4,
}  # fmt: skip
# What a random network takes for the noise stands for data that are lost in rounding where there is nothing but noise.
SOME_DATA = {"schedule.t_max": 0.6}
MORE = dict.fromkeys(("vid_gpt", "ca2_vdm", "acdit"), SOME_DATA) | {
    "streaming_tsdiff": SOME_DATA | {"schedule.guess": 2}
}
# Of the parameters. Rounding must not grow from frame to frame: where the forecast is taken for noise again and again,
# it does unless the network has its say.
SCALE = {"streaming_tsdiff": 0.2}


@pytest.mark.parametrize("name", [n if n in CHEAPEST else pytest.param(n, marks=pytest.mark.full) for n in FAMILY])
def test_it_streams_past_its_window_as_if_nothing_were_cached(random_params, oracle, inputs, name):
    """From given frames on, for more than twice what it remembers, with random parameters none of which is zero."""
    recipe = build(load_config(f"{name}:tiny", SIZES | MORE.get(name, {})))
    assert recipe.kind == "exact"
    pipe = Pipeline(recipe.config, random_params(recipe, SCALE.get(name, 0.1)))
    layout = recipe.layout
    frames = 2 * recipe.slots + 2 * layout.block
    given = inputs(pipe, batch=2, context=2 * layout.block - layout.pad, frames=frames)
    streamed = pipe.generate(seed=3, frames=frames, **given)
    expected = oracle(pipe, 3, frames=frames, **given).run()
    assert streamed.shape == expected.shape == (2, frames, 8, 8, 1) and np.isfinite(expected).all()
    largest = np.abs(expected).max(axis=(0, 2, 3, 4))
    assert (largest > 0.1).all()  # it does not die
    error = np.abs(streamed - expected).max(axis=(0, 2, 3, 4)) / largest.max()
    assert error.max() < 1e-5, error

"""Whole streams against the oracle, which keeps no cache: one system for every value of every choice."""

import jax
import numpy as np
import pytest

from causal_diffusion.streaming.passes import Passes

SLOW = (
    "three_way", "temporal", "uneven", "window", "trapezoid", "interleaved", "axial", "unmodulated", "rolling",
    "causal", "registers", "refine", "partial", "fractional", "per_token", "ranges",
    "chunk", "real_time",
)  # fmt: skip
WITHOUT_CONTEXT = ("causal", "prefix", "first")  # the stream begins from nothing; others from two blocks
NAMES = (
    "teacher", "pyramid", "rolling", "causal", "uneven", "window", "chunk", "trapezoid", "interleaved", "prefix",
    "partial", "axial", "registers", "unmodulated", "ranges", "refine", "real_time", "fractional", "three_way",
    "temporal", "one_past", "first", "per_token",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full) if n in SLOW else n for n in NAMES])
def test_streams_equal_the_oracle_without_a_cache(pipeline, oracle, inputs, name):
    """More than three windows long, from given frames or from none, under every condition that the system takes."""
    pipe = pipeline(name)
    layout = pipe.recipe.layout
    frames = 3 * pipe.recipe.slots + 2 * layout.block
    context = 0 if name in WITHOUT_CONTEXT else 2 * layout.block - layout.pad
    given = inputs(pipe, batch=2, context=context, frames=frames)
    streamed = pipe.generate(seed=5, frames=frames, **given)
    expected = oracle(pipe, 5, frames=frames, **given).run()
    assert streamed.shape == expected.shape
    largest = np.abs(expected).max(axis=(0, 2, 3, 4))
    assert (largest > 0.1).all() and (largest < 100).all()  # it neither dies nor explodes
    error = np.abs(streamed - expected).max(axis=(0, 2, 3, 4)) / largest.max()
    assert error.max() < 1e-5, error


def test_a_transformer_with_a_head_per_token_runs_once_for_all_rows(pipeline, inputs, monkeypatch):
    """Once for what it says of the block that is denoised, and once to commit it, whatever the number of rows."""
    pipe, runs = pipeline("per_token"), []
    mark = pipe.stream(0, 2, **{k: v for k, v in inputs(pipe, batch=2, context=0, frames=4).items() if k == "cond"})
    state, encoded = mark.mark().state, mark.mark().encoded

    def counted(self, *arguments, predict=Passes.predict, **options):
        runs.append(options.get("hidden", False))
        return predict(self, *arguments, **options)

    monkeypatch.setattr(Passes, "predict", counted)
    jax.eval_shape(pipe.rollout.step, pipe.params, state, encoded)
    assert sorted(runs) == [False, True] and pipe.recipe.schedule.steps > 2

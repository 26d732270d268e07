"""Guidance in a stream: what each branch keeps of the past, and what weights make of it."""

import jax
import numpy as np
import pytest

from causal_diffusion.config import override
from causal_diffusion.streaming.pipeline import Pipeline


def stream(pipe, inputs, frames=6, **changes):
    pipe = Pipeline(override(pipe.config, changes), pipe.params) if changes else pipe
    given = inputs(pipe, 2, context=2 * pipe.recipe.layout.block, frames=frames)
    return pipe, pipe.stream(seed=3, **given)


def test_branches_that_see_the_same_past_keep_it_once(pipeline, inputs):
    """Unmodulated clean frames know neither level nor class, so both branches read one cache (ACDiT)."""
    pipe, shared = stream(pipeline("one_past"), inputs)
    assert len(pipe.recipe.guidance.branches()) == 2
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shared.mark().state.caches)} == {2}  # samples
    other, apart = stream(pipeline("teacher"), inputs)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(apart.mark().state.caches)} == {4}  # samples x branches
    assert not other.recipe.one_past


@pytest.mark.full
@pytest.mark.parametrize("kind", ["history", "history_fractional"])
def test_history_guidance_of_weight_one_is_the_conditional_stream(pipeline, inputs, kind):
    pipe = pipeline("fractional")
    plain = {"guidance.kind": "none", "guidance.interval": (0.0, 1.0)}
    _, unguided = stream(pipe, inputs, **plain)
    _, guided = stream(pipe, inputs, **plain | {"guidance.kind": kind, "guidance.scale": 1.0})
    np.testing.assert_array_equal(guided.take(6), unguided.take(6))


@pytest.mark.full
def test_a_branch_without_a_past_does_not_depend_on_it(pipeline, inputs):
    """With weight 0 on the branch that sees it, context changes nothing but where the stream begins."""
    pipe = pipeline("fractional")
    alone = {"guidance.kind": "history", "guidance.scale": 0.0, "guidance.interval": (0.0, 1.0)}
    pipe, one = stream(pipe, inputs, **alone)
    given = inputs(pipe, 2, context=2, frames=6)
    other = pipe.stream(seed=3, **given | {"context": -given["context"]})
    np.testing.assert_array_equal(one.take(4), other.take(4))
    _, seeing = stream(pipe, inputs, **alone | {"guidance.scale": 0.5})
    assert np.abs(one.take(1) - seeing.take(1)).max() > 1e-4

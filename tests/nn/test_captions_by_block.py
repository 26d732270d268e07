"""Captions that change within a clip: two of them beside each other say what one for every block says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.embedders import Condition


@pytest.mark.parametrize(("attention", "words"), [
    pytest.param("joint", False, id="joint-tokens"),
    pytest.param("factorised", True, id="factorised-words"),
    pytest.param("joint", True, id="joint-words", marks=pytest.mark.full),
    pytest.param("factorised", False, id="factorised-tokens", marks=pytest.mark.full),
])
def test_two_captions_and_whose_a_block_is_equal_a_caption_for_every_block(tiny, attention, words):
    system, rng = tiny(attention=attention, vocabulary=9 if words else 0), np.random.default_rng(0)
    of = jnp.asarray([[0, 0, 1, 1], [0, 1, 1, 1]], jnp.int32)  # two samples of four blocks
    mask = jnp.asarray(rng.random((2, 2, 3)) < 0.7).at[..., 0].set(True)
    text = jnp.asarray(rng.integers(1, 9, (2, 2, 3)) if words else rng.standard_normal((2, 2, 3, 5)), jnp.float32)
    text = text.astype(jnp.int32) if words else text
    label = system.condition.label
    beside = Condition(label, text, mask, of)
    by_block = Condition(label, *(jnp.stack([a[i][of[i]] for i in range(2)]) for a in (text, mask)))
    for a, b in zip(_outputs(system, beside), _outputs(system, by_block), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    other = dataclasses.replace(beside, text_of=1 - of)
    assert np.abs(_outputs(system, other)[0] - _outputs(system, beside)[0]).max() > 1e-2


def _outputs(system, condition):
    return [np.asarray(out) for out in system.apply(condition=condition).values()]

"""Patches there and back, and the vectors that times and conditions become."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.embedders import (
    ActionEmbedding,
    LabelEmbedding,
    TextEmbedding,
    TimeEmbedding,
    patchify,
    unpatchify,
)
from causal_diffusion.nn.rope import sinusoid

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def random_params(module, *args):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]
    return jax.tree.map(lambda s: normal(*s.shape), shapes)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 6, 5), (1,)),
        ((2, 6, 5), (3,)),
        ((2, 4, 6, 3), (1, 2)),
        ((2, 4, 6, 4, 3), (1, 2, 2)),
        ((2, 4, 6, 4, 3), (2, 3, 4)),
    ],
    ids=str,
)
def test_patches_go_there_and_back(shape, patch):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tokens = patchify(x, patch)
    grid = [size // part for size, part in zip(shape[1:-1], patch, strict=True)]
    values = int(np.prod(patch)) * shape[-1]
    assert tokens.shape == (2, grid[0], int(np.prod(grid[1:])), values)
    np.testing.assert_array_equal(unpatchify(tokens, shape, patch), x)
    for time, *cell in itertools.product(*map(range, grid)):  # each token is one box of the data, row by row
        box = [slice(i * part, (i + 1) * part) for i, part in zip((time, *cell), patch, strict=True)]
        place = int(np.ravel_multi_index(cell, grid[1:])) if cell else 0
        np.testing.assert_array_equal(tokens[:, time, place], x[(slice(None), *box)].reshape(2, -1))


@pytest.mark.parametrize(("shape", "patch"), [((1, 4, 6, 1), (1, 4)), ((1, 4, 6, 1), (3, 2)), ((1, 4, 6, 1), (1,))])
def test_patches_that_do_not_fit_are_refused(shape, patch):
    with pytest.raises(ValueError, match="does not divide"):
        patchify(np.zeros(shape), patch)


def test_time_is_embedded_as_a_thousand_steps():
    module, t = TimeEmbedding(6, 8), np.array([[0.0, 0.25, 1.0]], np.float32)
    params = random_params(module, t)
    hidden = sinusoid(1000 * t, 8) @ params["in"]["kernel"] + params["in"]["bias"]
    expected = hidden / (1 + np.exp(-hidden)) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, t), expected, atol=1e-4)


def test_a_negative_label_is_the_null_class():
    module = LabelEmbedding(3, 4)
    params = random_params(module, jnp.zeros((2,), jnp.int32))
    out = module.apply({"params": params}, jnp.array([[0, 2, -1], [1, -7, 0]]))
    table = params["embedding"]
    assert table.shape == (4, 4)
    np.testing.assert_array_equal(out, table[np.array([[0, 2, 3], [1, 3, 0]])])


def test_an_unknown_action_is_a_learned_vector_whatever_it_holds():
    module, action = ActionEmbedding(4), normal(1, 3, 2)
    given = np.array([[True, False, True]])
    params = random_params(module, action, given)
    out = np.asarray(module.apply({"params": params}, action, given))
    np.testing.assert_array_equal(out[0, 1], params["null"])
    action[0, 1] = np.nan
    np.testing.assert_array_equal(module.apply({"params": params}, action, given), out)
    hidden = action[0, ::2] @ params["in"]["kernel"] + params["in"]["bias"]
    expected = hidden / (1 + np.exp(-hidden)) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(out[0, ::2], expected, atol=1e-5)


def test_text_is_embedded_by_one_linear_or_two():
    text = normal(2, 1, 3, 5)
    for layers in (1, 2):
        module = TextEmbedding(4, layers, jnp.float32)
        params = random_params(module, text)
        assert set(params) == ({"in", "out"} if layers == 2 else {"in"})
        expected = text @ params["in"]["kernel"] + params["in"]["bias"]
        if layers == 2:
            expected = jax.nn.gelu(expected, approximate=True) @ params["out"]["kernel"] + params["out"]["bias"]
        np.testing.assert_allclose(module.apply({"params": params}, text), expected, atol=1e-5)


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.guo_evaluator import GuoConfig, GuoEvaluator
from tests.nn.conftest import random_params

SMALL = GuoEvaluator(GuoConfig(channels=5, movement_hidden=6, movement=7, motion_hidden=4, text_hidden=3, latent=8,
                               words=6, tags=4, frames=24))  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL, clips(1, 4))


def clips(batch, frames, width=5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, frames, width)), jnp.float32)




@jax.jit
def motion(params, x, length):
    return SMALL.apply({"params": params}, x, length, method="motion")


@jax.jit
def text(params, words, tags, length):
    return SMALL.apply({"params": params}, words, tags, length, method="text")


def test_padding_changes_nothing_up_to_its_frames(params):
    x, length = clips(3, 24), jnp.array([24, 9, 16])
    got = motion(params, x, length)
    assert got.shape == (3, 8)
    np.testing.assert_array_equal(got, motion(params, x.at[1, 9:].set(7.0).at[2, 16:].set(7.0), length))
    np.testing.assert_allclose(got[1:], motion(params, x[:, :16], jnp.array([16, 9, 16]))[1:], atol=1e-6)
    order = np.array([1, 2, 0])  # batches need not be sorted
    np.testing.assert_allclose(got[order], motion(params, x[order], length[order]), atol=1e-6)
    assert (np.abs(got - motion(params, x, jnp.array([20, 12, 20]))).max(axis=1) > 1e-3).all()


def test_captions_stop_at_their_length_in_both_directions(params):
    words, tags, length = clips(2, 5, 6), clips(2, 5, 4, seed=1), jnp.array([5, 3])
    got = text(params, words, tags, length)
    np.testing.assert_array_equal(got, text(params, words.at[1, 3:].set(9.0), tags.at[1, 3:].set(9.0), length))
    turned = [x.at[1, :3].set(x[1, :3][::-1]) for x in (words, tags)]
    assert np.abs(got - text(params, *turned, length))[1].max() > 1e-3
    with pytest.raises(ValueError, match=r"captions are \(2, 5, 6\) with tags \(2, 4, 4\)"):
        text(params, words, tags[:, :4], length)


def test_bad_sizes_are_named(params):
    with pytest.raises(ValueError, match="a motion has 6 numbers a frame; 5 would do"):
        motion(params, clips(1, 8, 6), None)
    with pytest.raises(ValueError, match="evaluator.latent is 0"):
        GuoConfig(latent=0)

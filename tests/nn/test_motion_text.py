import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.motion_text import MotionText, MotionTextConfig, aligned_features
from causal_diffusion.training.objectives import alignment
from tests.nn.conftest import random_params

SIZES = dict(channels=7, parts=((0, 1, 2), (3, 4), (0, 5, 6)), width=8, depth=2, latent=6, tokens=5, heads=2)
WORDS = MotionText(MotionTextConfig(**SIZES, vocabulary=11))
FROZEN = MotionText(MotionTextConfig(**SIZES, text=3))
WHOLE = MotionText(MotionTextConfig(channels=7, width=8, depth=0, latent=6, time=2, heads=1))



@functools.partial(jax.jit, static_argnames="model")
def motion(params, x, length=None, model=WORDS):
    return model.apply({"params": params}, x, length, method="motion")


@functools.partial(jax.jit, static_argnames="model")
def captions(params, tokens, mask, model=WORDS):
    return model.apply({"params": params}, tokens, mask, method="text")


@jax.jit
def seen(params, x, seed):
    """Which frames and numbers [T, C] of clips the features see that ``seed`` [P, B, L, E] picks."""
    _, pull = jax.vjp(lambda x: WORDS.apply({"params": params}, x, method="motion")[1], x)
    return jnp.sum(jnp.abs(pull(seed)[0]), axis=0)


@pytest.fixture(scope="module")
def params():
    return random_params(WORDS, clips(1, 4))


def clips(batch, frames, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, frames, 7)), jnp.float32)


def test_the_embedding_is_the_projected_mean_over_parts_and_time(params):
    embedding, features = motion(params, clips(2, 16), jnp.array([16, 16]))
    assert embedding.shape == (2, 6) and features.shape == (3, 2, 4, 6)
    assert embedding.dtype == features.dtype == jnp.float32
    p = params["projection"]
    mean = np.asarray(features).mean(axis=(0, 2)) @ np.asarray(p["kernel"]) + np.asarray(p["bias"])
    np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-6)


def test_a_feature_sees_the_frames_of_its_group_and_before_and_no_later_ones(params):
    """By reverse-mode derivatives: exactly zero from the later ones, and not from the last one that it may see."""
    for i in range(4):
        frames = np.asarray(seen(params, clips(2, 16), jnp.zeros((3, 2, 4, 6)).at[:, :, i].set(1.0)))
        frames = frames.sum(axis=1)
        assert (frames[4 * i + 4 :] == 0).all()
        assert (frames[4 * i : 4 * i + 4] > 0).all()
        assert i == 0 or frames[4 * i - 1] > 0


def test_a_part_sees_its_own_numbers(params):
    for part, own in enumerate(WORDS.config.parts):
        pick = jnp.zeros((3, 2, 4, 6)).at[part].set(1.0)
        numbers = np.asarray(seen(params, clips(2, 16), pick)).sum(axis=0)
        assert np.flatnonzero(numbers).tolist() == sorted(own)


def test_padding_changes_nothing(params):
    """Neither what stands in it, nor how much of it there is; a part of a group does not count."""
    x, length = clips(2, 16), jnp.array([16, 10])
    got = motion(params, x, length)[0]
    np.testing.assert_array_equal(got, motion(params, x.at[1, 10:].set(1e3), length)[0])
    np.testing.assert_array_equal(got, motion(params, x, jnp.array([16, 8]))[0])
    np.testing.assert_allclose(got, motion(params, x, jnp.array([99, 11]))[0])
    assert np.abs(got - motion(params, x, jnp.array([16, 12]))[0])[1].max() > 1e-3
    np.testing.assert_allclose(got[1], motion(params, x[:, :8])[0][1], atol=1e-6)


def test_words_behind_the_mask_do_not_count_and_their_order_does(params):
    words = jnp.array([[3, 4, 5, 9], [7, 0, 0, 0]])
    mask = jnp.array([[True, True, True, False], [False] * 4])
    got = captions(params, words, mask)
    assert got.shape == (2, 6) and got.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1.0, rtol=1e-6)  # of the null caption too
    np.testing.assert_array_equal(got, captions(params, words.at[0, 3].set(2), mask))
    assert np.abs(got - captions(params, words.at[0, 1].set(5).at[0, 2].set(4), mask))[0].max() > 1e-3
    np.testing.assert_allclose(got[:1], captions(params, words[:1, :3], None), atol=1e-6)


def test_captions_as_frozen_tokens():
    params = random_params(FROZEN, clips(1, 4))
    tokens = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 3)), jnp.float32)
    mask = jnp.array([[True, True, False, False], [True] * 4])
    got = captions(params, tokens, mask, FROZEN)
    np.testing.assert_array_equal(got, captions(params, tokens.at[0, 2:].set(9.0), mask, FROZEN))
    assert (np.abs(got - captions(params, tokens.at[:, 1].set(9.0), mask, FROZEN)).max(axis=1) > 1e-3).all()


def test_aligned_features_are_what_the_alignment_loss_takes(params):
    x = clips(2, 16)

    def loss(x):
        features = aligned_features(WORDS, params, x)
        return alignment.alignment(jnp.ones((2, 4, 6)), jnp.ones((2, 4, 5)), features) + features.sum(), features

    (value, features), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(features, motion(params, x, jnp.array([16, 16]))[1].mean(axis=0), atol=1e-6)
    assert np.isfinite(value) and not np.any(gradient)  # it is frozen


def test_temperature_begins_at_a_tenth_and_stays_in_bounds(params):
    smallest = MotionText(MotionTextConfig(channels=7, width=1, depth=0, latent=1, time=1, vocabulary=1, heads=1))
    first = jax.jit(smallest.init)(jax.random.key(0), clips(1, 4))["params"]["log_temperature"]
    for log, expected in ((first, 0.1), (-9.0, 0.01), (3.0, 1.0)):
        given = params | {"log_temperature": jnp.float32(log)}
        assert WORDS.apply({"params": given}, method="temperature") == pytest.approx(expected)


def test_whole_bodies_and_other_rates():
    params = random_params(WHOLE, clips(1, 4))
    _, features = motion(params, clips(2, 6), model=WHOLE)
    assert features.shape == (1, 2, 3, 6) and "text_encoder" not in params
    with pytest.raises(ValueError, match="it takes no captions"):
        captions(params, jnp.zeros((1, 2), jnp.int32), None, WHOLE)


@pytest.mark.parametrize("change, words", [
    (dict(time=3), "time is 3; a power of 2"), (dict(text=4), "text is 4 and vocabulary 11; text = 0"),
    (dict(heads=3), "heads is 3 and the width 8"), (dict(parts=((7,),)), r"parts\[0\] is \(7,\); numbers from 0 to 6"),
    (dict(parts=((),)), r"parts\[0\] is \(\)"), (dict(latent=0), "latent is 0"), (dict(dtype="f4"), "dtype is 'f4'"),
])  # fmt: skip
def test_a_bad_config_is_named(change, words):
    with pytest.raises(ValueError, match=f"motion_text.{words}"):
        MotionTextConfig(**(SIZES | dict(vocabulary=11) | change))


@pytest.mark.parametrize("call, words", [
    (lambda p: motion(p, clips(1, 6)), "T a multiple of 4"),
    (lambda p: motion(p, clips(1, 4)[..., :5]), r"a motion is \(1, 4, 5\); \[B, T, 7\]"),
    (lambda p: captions(p, jnp.zeros((1, 6), jnp.int32), None), "a caption has 6 words; at most motion_text.tokens, 5"),
    (lambda p: captions(p, jnp.zeros((1, 3, 3)), None), r"ids \[N, M\] would do"),
    (lambda p: captions(p, jnp.zeros((3,), jnp.int32), None), r"ids \[N, M\] would do"),
])  # fmt: skip
def test_bad_input_is_named(params, call, words):
    with pytest.raises(ValueError, match=words):
        call(params)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from causal_diffusion.nn.motion_text import MotionText, MotionTextConfig
from causal_diffusion.training.objectives import contrastive
from causal_diffusion.training.objectives.contrastive import equal_captions

MODEL = MotionText(
    MotionTextConfig(channels=6, parts=((0, 1, 2), (3, 4, 5)), width=8, depth=1, latent=8, vocabulary=9, tokens=4,
                     heads=2)
)  # fmt: skip
KEY = jax.random.key(0)



@functools.partial(jax.jit, static_argnames="drop")
def contrastive_loss(params, given, key=KEY, drop=0.0):
    return contrastive.contrastive_loss(MODEL, params, given, key, drop)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(KEY, jnp.zeros((1, 4, 6)))["params"]


def batch(size=6, frames=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "video": jnp.asarray(rng.standard_normal((size, frames, 6)), jnp.float32),
        "length": jnp.asarray(rng.integers(4, frames + 1, size), jnp.int32),
        "text": jnp.asarray(rng.permutation(8)[:size, None] + 1 + np.zeros((1, 4)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(4) < rng.integers(1, 5, (size, 1))),
        "caption": jnp.arange(size),
    }


@jax.jit
def both(params, given):
    motion, _ = MODEL.apply({"params": params}, given["video"], given["length"], method="motion")
    return motion, MODEL.apply({"params": params}, given["text"], given["text_mask"], method="text")


def embedded(params, given):
    return [np.asarray(x, np.float64) for x in both(params, given)]


def cross_entropy(scores, targets):
    log = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -(targets * log).sum(axis=1).mean()


def test_without_equal_captions_it_is_clips_loss(params):
    given = batch()
    motion, text = embedded(params, given)
    scores = motion @ text.T / 0.1
    loss, metrics = contrastive_loss(params, given)
    expected = (cross_entropy(scores, np.eye(6)) + cross_entropy(scores.T, np.eye(6))) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    hits = [np.mean(np.argmax(s, axis=1) == np.arange(6)) for s in (scores, scores.T)]
    np.testing.assert_allclose(metrics["top1"], np.mean(hits), rtol=1e-6)
    assert metrics["temperature"] == pytest.approx(0.1) and metrics["loss"] == loss


def test_equal_captions_are_no_negatives(params):
    """Three captions that count as one, worded differently."""
    given = batch() | {"caption": jnp.array([7, 2, 5, 2, 2, 0])}
    same = np.eye(6)
    same[np.ix_([1, 3, 4], [1, 3, 4])] = 1
    np.testing.assert_array_equal(equal_captions(given), same.astype(bool))
    motion, text = embedded(params, given)
    scores = motion @ text.T / 0.1
    targets = same / same.sum(axis=1, keepdims=True)
    expected = (cross_entropy(scores, targets) + cross_entropy(scores.T, targets)) / 2
    loss, metrics = contrastive_loss(params, given)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    hits = [np.mean(same[np.arange(6), np.argmax(s, axis=1)]) for s in (scores, scores.T)]
    np.testing.assert_allclose(metrics["top1"], np.mean(hits), rtol=1e-6)
    apart = contrastive_loss(params, given | {"caption": jnp.arange(6)})[0]
    assert abs(apart - loss) > 1e-3


def test_words_behind_the_mask_do_not_part_captions():
    text, mask = jnp.array([[1, 2, 3], [1, 2, 4], [1, 2, 4]]), jnp.array([[True, True, False]] * 2 + [[True] * 3])
    expected = [[True, True, False], [True, True, False], [False, False, True]]
    assert equal_captions({"text": text, "text_mask": mask}).tolist() == expected


def test_padding_of_clips_changes_nothing(params):
    given = batch()
    loss, _ = contrastive_loss(params, given)
    own = jnp.arange(12)[None, :, None] < given["length"][:, None, None]
    other = given | {"video": jnp.where(own, given["video"], 50.0)}
    assert contrastive_loss(params, other)[0] == loss


def test_dropped_words(params):
    given = batch()
    given |= {"text": given["text"] + jnp.arange(4) % 2, "text_mask": jnp.ones((6, 4), bool)}  # of words that differ
    losses = {float(contrastive_loss(params, given, jax.random.key(i), drop=0.5)[0]) for i in range(3)}
    assert len(losses) == 3
    short = given | {"text_mask": jnp.arange(4) < jnp.ones((6, 1))}  # nothing would be left: captions stay whole
    for i in range(3):
        dropped = contrastive_loss(params, short, jax.random.key(i), drop=0.5)[0]
        np.testing.assert_allclose(dropped, contrastive_loss(params, short)[0], rtol=1e-6)


def test_gradients_are_finite_and_lead_to_captions_that_are_told_apart(params):
    given = batch()
    given["video"] = given["video"] + 3.0 * jnp.eye(6)[:, None]  # each clip has a sign of its own
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads, metrics = jax.grad(contrastive.contrastive_loss, argnums=1, has_aux=True)(MODEL, params, given, KEY)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics, grads

    for i in range(60):
        params, state, metrics, grads = step(params, state)
        if not i:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
            assert np.any(grads["log_temperature"])
            first = metrics["loss"]
    assert metrics["top1"] == 1.0 and metrics["loss"] < 0.3 * first


@pytest.mark.parametrize("change, words", [
    (dict(text=None), "has no 'text'"),
    (dict(text=jnp.zeros((2, 3, 4)), caption=None), "captions as tokens and no 'caption'"),
])  # fmt: skip
def test_bad_batches_are_named(change, words):
    given = {name: value for name, value in (batch(2) | change).items() if value is not None}
    with pytest.raises(ValueError, match=words):
        equal_captions(given)

"""The objective: what it draws and by which keys, the loss in closed form, copies, and dropped conditions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.training.objectives.diffusion import batch_condition, diffusion_loss
from tests.training.objectives.looking import (
    CONTEXT,
    MANY,
    B,
    T,
    batch_of,
    look,
    noise_in,
    recipe_of,
)

ORDER = np.array([4, 0, 5, 2, 1, 3])
DRAWS = {
    "one copy, noised context": CONTEXT | dict(train=dict(drop=0.5)),
    "copies": CONTEXT | dict(layout=dict(copies=3)),
    "context in the stream": dict(layout=dict(kind="block_causal"), levels=dict(clean=0.5, context=0.3)),
    "a gap": dict(layout=dict(sinks=1, gap=3)),
    "cyclic places": dict(model=dict(positions="additive", period=8), layout=dict(window=2)),
}


@pytest.mark.parametrize("system", DRAWS)
def test_noise_depends_on_key_and_index_alone(system):
    """Bit for bit, in any order and any company."""
    recipe, batch = recipe_of(**DRAWS[system]), batch_of()
    streams, condition, *_ = look(recipe, batch)
    moved, moved_condition, *_ = look(recipe, jax.tree.map(lambda x: x[ORDER], batch))
    both = (streams, condition), (moved, moved_condition)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[ORDER], b), *both)
    others = batch_of(seed=1)
    others["index"] = others["index"] + 7
    others = jax.tree.map(lambda x, y: np.concatenate([x[3:4], y[1:]]), batch, others)
    joined, *_ = look(recipe, others)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:4], b[:1]), streams, joined)


def test_noise_does_not_depend_on_the_size_of_the_batch():
    recipe, batch = recipe_of(**CONTEXT), batch_of()
    whole, alone = (look(recipe, jax.tree.map(lambda x, cut=cut: x[cut], batch))[0] for cut in (slice(B), slice(3, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:4], b), whole, alone)


def test_noise_differs_by_key_index_stream_and_frame():
    recipe, batch = recipe_of(**CONTEXT), batch_of()
    batch["video"][:] = 0.0
    x0 = batch["video"]
    streams, *_ = look(recipe, batch)
    eps, clean = noise_in(streams["noisy"], x0), noise_in(streams["clean"], x0[:, :-1])
    other = noise_in(look(recipe, batch, key=8)[0]["noisy"], x0)
    for a, b in ((eps, other), (eps[0], eps[1]), (eps[:, 0], eps[:, 1]), (eps[:, :-1], clean)):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.3
    assert abs(eps.mean()) < 0.2 and abs(eps.std() - 1) < 0.15 and abs(clean.std() - 1) < 0.15


def test_loss_of_a_batch_is_the_mean_over_its_samples():
    recipe, batch = recipe_of(**CONTEXT), batch_of()
    *_, loss, metrics = look(recipe, batch)
    alone = [look(recipe, jax.tree.map(lambda x, i=i: x[i : i + 1], batch))[-2:] for i in range(B)]
    np.testing.assert_allclose(loss, np.mean([a for a, _ in alone]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_by_frame"], np.mean([m["loss_by_frame"] for _, m in alone], 0), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(metrics["loss_by_frame"]), rtol=1e-6)
    assert metrics["loss_by_frame"].shape == (T,)


@pytest.mark.parametrize("predict", ["x0", "velocity", "noise"])
def test_a_network_of_zeros_scores_the_mean_square_of_its_target(predict):
    sampling = dict(schedule=dict(t_max=0.99))
    recipe, batch = recipe_of(process=dict(predict=predict), **sampling), batch_of()
    x0 = batch["video"]
    streams, _, _, loss, metrics = look(recipe, batch)
    eps = noise_in(streams["noisy"], x0)
    target = {"x0": x0, "noise": eps, "velocity": eps - x0}[predict]
    by_frame = np.mean(target**2, axis=(0, 2, 3, 4))
    np.testing.assert_allclose(metrics["loss_by_frame"], by_frame, rtol=1e-3)
    np.testing.assert_allclose(loss, by_frame.mean(), rtol=1e-3)


def test_the_weight_of_another_space():
    """x0 predicted, velocity scored: an error d of x0 is one of d / t in velocity; t is held above the floor."""
    recipe, batch = recipe_of(process=dict(predict="x0", loss="velocity", floor=0.1)), batch_of()
    streams, _, _, loss, _ = look(recipe, batch)
    error = np.mean(batch["video"] ** 2, axis=(2, 3, 4)) / np.maximum(np.asarray(streams["noisy"].t), 0.1) ** 2
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)


def test_the_real_network_starts_at_that_closed_form():
    recipe, batch = recipe_of(process=dict(predict="x0"), model=dict(action=0, text=0)), batch_of()
    params = jax.jit(recipe.init_params)(jax.random.key(0))
    loss, _ = jax.jit(lambda p: diffusion_loss(recipe, p, batch, jax.random.key(0)))(params)
    np.testing.assert_allclose(loss, np.mean(batch["video"] ** 2), rtol=1e-5)


def test_a_perfect_network_scores_zero_and_only_the_noisy_stream_is_scored():
    recipe, batch = recipe_of(process=dict(predict="x0"), **CONTEXT), batch_of()
    answers = {"noisy": batch["video"], "clean": jnp.full_like(batch["video"][:, :-1], jnp.nan)}
    streams, *_, loss, metrics = look(recipe, batch, answer=lambda name, stream: jnp.asarray(answers[name]))
    assert list(streams) == ["clean", "noisy"]
    assert loss == 0.0 and not np.any(metrics["loss_by_frame"])
    answers["noisy"] = batch["video"] + np.array([0.0, 0.0, 0.5, 0.0], np.float32)[:, None, None, None]
    *_, metrics = look(recipe, batch, answer=lambda name, stream: jnp.asarray(answers[name]))
    np.testing.assert_allclose(metrics["loss_by_frame"], [0, 0, 0.25, 0], atol=1e-6)


def test_block_causal_has_one_stream():
    recipe = recipe_of(layout=dict(kind="block_causal"))
    streams, _, mask, *_ = look(recipe, batch_of())
    assert list(streams) == ["noisy"]
    np.testing.assert_array_equal(mask, np.tril(np.ones((T, T), bool)))


def test_shared_levels_are_one_per_clip():
    t = np.asarray(look(recipe_of(levels=dict(kind="shared")), batch_of())[0]["noisy"].t)
    assert np.array_equal(t, np.repeat(t[:, :1], T, axis=1)) and len(np.unique(t)) == B


@pytest.fixture(scope="module")
def copied():
    """Two copies through the real network: (recipe, params, streams and condition it was given, loss, metrics)."""
    process = dict(path="vp_cosine", predict="v", weight="fused_snr", decay=0.5, variance="learned", vlb=0.1)
    bare = dict(classes=0, action=0, text=0)
    recipe = recipe_of(layout=dict(copies=2, block=2), model=bare, process=process, **CONTEXT)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), shapes)
    batch = batch_of()
    twice = jnp.zeros((B, 2 * T, 4, 4, 2))
    streams, condition, mask, *_ = look(recipe, batch, answer=lambda name, stream: twice, compiled=True)
    loss, metrics = jax.jit(lambda p: diffusion_loss(recipe, p, batch, jax.random.key(7)))(params)
    return recipe, params, batch, (streams, condition, mask), loss, metrics


def test_copies_are_clips_of_their_own(copied):
    """The loss with two copies is the mean over single ones with the same draws: masks, weights and variance too."""
    recipe, params, batch, (streams, condition, mask), loss, metrics = copied
    assert streams["noisy"].x.shape[1] == 2 * T and streams["clean"].x.shape[1] == T - 2
    single = dataclasses.replace(recipe.layout, copies=1)
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(T))
    x0, process, by_frame = batch["video"], recipe.process, []

    @jax.jit
    def alone(noisy):
        out, _ = recipe.model.apply({"params": params}, streams | {"noisy": noisy}, condition,
                                    jnp.asarray(single.training_mask(T)))
        path = process.at(noisy.t, x0)
        eps = (noisy.x - path.a * x0) / path.s
        return process.frame_loss(out["noisy"], x0, eps, noisy.x, noisy.t)

    for copy in range(2):
        cut = slice(copy * T, (copy + 1) * T)
        by_frame.append(alone(jax.tree.map(lambda a, cut=cut: a[:, cut], streams["noisy"])))
    np.testing.assert_allclose(loss, np.mean(by_frame), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_by_frame"], np.mean(by_frame, axis=(0, 1)), rtol=1e-4)
    t = np.asarray(streams["noisy"].t)
    assert len(np.unique(t)) == 2 * B * 2  # two blocks in both copies
    assert not np.allclose(by_frame[0], by_frame[1], rtol=0.1)
    # Fused weights look along one copy: the first frame of the second has no past, though eight frames stand in a row.
    weight = jax.jit(process.loss_weight)
    assert not np.allclose(weight(t)[:, T], weight(t[:, T:])[:, 0], rtol=1e-2)


def test_a_learned_variance_is_trained_beside_the_mean():
    """The last half of the channels has its own term, of weight vlb, and does not touch the mean part."""
    batch, rng = batch_of(), np.random.default_rng(2)
    out = jnp.asarray(rng.standard_normal((*batch["video"].shape[:-1], 2)), jnp.float32)

    process = dict(path="vp_linear", predict="noise", variance="learned")
    recipes = [recipe_of(process=process | dict(vlb=vlb)) for vlb in (0.0, 0.01)]

    def loss(out, recipe):
        return look(recipe, batch, answer=lambda name, s: out[:, : s.x.shape[1]])[-2]

    @jax.jit
    def both(out):
        return [jax.value_and_grad(loss)(out, recipe) for recipe in recipes]

    (plain, simple), (whole, bound) = both(out)
    np.testing.assert_allclose(simple[..., 0], bound[..., 0], rtol=1e-4, atol=1e-8)
    assert not np.any(simple[..., 1]) and np.all(np.asarray(bound[..., 1]) != 0)
    assert whole - plain > 1e-3


def test_the_share_of_samples_without_conditions():
    """4 standard deviations of the binomial; class and text go together, actions stay."""
    drop = 0.3
    recipe, batch = recipe_of(train=dict(drop=drop)), batch_of(MANY)
    streams, condition, *_ = look(recipe, batch)
    label = np.asarray(condition.label)[:, 0]
    gone = label == -1
    assert abs(gone.mean() - drop) < 4 * np.sqrt(drop * (1 - drop) / MANY)
    np.testing.assert_array_equal(label[~gone], batch["label"][~gone])
    text = np.asarray(condition.text)[:, 0]
    assert not np.any(text[gone])
    np.testing.assert_array_equal(text[~gone], batch["text"][~gone])
    np.testing.assert_array_equal(condition.text_mask[:, 0], batch["text_mask"])
    np.testing.assert_array_equal(streams["noisy"].action, batch["action"])
    assert not np.any(streams["noisy"].action_given is not None)


def test_nothing_is_dropped_at_zero():
    _, condition, *_ = look(recipe_of(), batch_of(MANY))
    assert np.all(np.asarray(condition.label) >= 0)


def test_what_the_model_does_not_take_is_not_given():
    recipe = recipe_of(model=dict(classes=0, action=0, text=0))
    streams, condition, *_ = look(recipe, batch_of())
    assert condition.label is None and condition.text is None and condition.text_mask is None
    assert streams["noisy"].action is None and streams["clean"].action is None
    assert batch_condition(recipe, batch_of()).label is None

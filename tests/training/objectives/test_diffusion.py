"""The objective, looked at through a network that notes what it is shown and answers what it is told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import freeze
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import batch_condition, diffusion_loss

B, T = 6, 4
MANY = 2000


def recipe_of(**sections):
    sections = {name: dict(values) for name, values in sections.items()}
    data = dict(source="own", frames=T, height=4, width=4, channels=1, classes=5, action_dim=2)
    model = dict(width=8, depth=1, heads=2, mlp=8, patch=(1, 4, 4), channels=1, classes=5, action=2, text=3)
    sections["data"] = data | sections.get("data", {})
    sections["model"] = model | sections.get("model", {})
    sections["train"] = dict(drop=0.0) | sections.get("train", {})
    return build(freeze(sections))


def batch_of(size=B, seed=0, frames=T):
    rng = np.random.default_rng(seed)
    return {
        "video": rng.uniform(-1, 1, (size, frames, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, 5, size).astype(np.int32),
        "action": rng.standard_normal((size, frames, 2)).astype(np.float32),
        "text": rng.standard_normal((size, 2, 3)).astype(np.float32) + 5.0,
        "text_mask": rng.random((size, 2)) < 0.5,
        "index": np.arange(size, dtype=np.int32) + 100,
    }


class Network:
    """Stands in for the transformer: ``answer(stream)`` is its output for each stream."""

    def __init__(self, recipe, answer=lambda name, stream: jnp.zeros_like(stream.x)):
        self.config, self.answer, self.seen = recipe.model.config, answer, None

    def apply(self, variables, streams, condition, mask):
        self.seen = streams, condition, mask
        return {name: self.answer(name, stream) for name, stream in streams.items()}, None


def look(recipe, batch, key=7, answer=None):
    """(streams, condition, mask, loss, metrics) of one call."""
    network = Network(recipe, answer) if answer else Network(recipe)
    loss, metrics = diffusion_loss(recipe._replace(model=network), {}, batch, jax.random.key(key))
    return *network.seen, loss, metrics


def noise_in(stream, x0):
    """eps of x_t = (1 - t) x0 + t eps."""
    t = np.asarray(stream.t)[..., None, None, None]
    return (np.asarray(stream.x) - (1 - t) * x0) / t


CONTEXT = dict(levels=dict(context=0.3))


def test_noise_depends_on_key_and_index_alone():
    """Bit for bit: any order, any companions, any batch size."""
    recipe, batch = recipe_of(**CONTEXT, train=dict(drop=0.5)), batch_of()
    streams, condition, *_ = look(recipe, batch)
    order = np.array([4, 0, 5, 2, 1, 3])
    moved, moved_condition, *_ = look(recipe, jax.tree.map(lambda x: x[order], batch))
    both = (streams, condition), (moved, moved_condition)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), *both)
    alone, *_ = look(recipe, jax.tree.map(lambda x: x[3:4], batch))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:4], b), streams, alone)


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


def test_streams_carry_frames_actions_and_mask_of_the_layout():
    recipe, batch = recipe_of(layout=dict(block=2)), batch_of()
    streams, _, mask, *_ = look(recipe, batch)
    clean, noisy = streams["clean"], streams["noisy"]
    np.testing.assert_array_equal(clean.x, batch["video"][:, :2])  # the last block has no reader
    assert not np.any(clean.t)
    for stream, frames in ((clean, 2), (noisy, 4)):
        np.testing.assert_array_equal(stream.frame, np.broadcast_to(np.arange(frames), (B, frames)))
        np.testing.assert_array_equal(stream.action, batch["action"][:, :frames])
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(T))
    t = np.asarray(noisy.t).reshape(B, 2, 2)
    np.testing.assert_array_equal(t[..., 0], t[..., 1])  # the frames of a block share a level
    assert len(np.unique(t[..., 0])) == 2 * B  # and blocks do not
    assert t.min() >= 0 and t.max() <= 1


def test_shared_levels_are_one_per_clip():
    recipe = recipe_of(levels=dict(kind="shared"))
    t = np.asarray(look(recipe, batch_of())[0]["noisy"].t)
    assert np.array_equal(t, np.repeat(t[:, :1], T, axis=1)) and len(np.unique(t)) == B


@pytest.mark.parametrize("told", [True, False])
def test_the_clean_copy_is_noised_to_its_own_level(told):
    recipe = recipe_of(levels=dict(context=0.3, label_context=told))
    batch = batch_of(MANY)
    clean = look(recipe, batch)[0]["clean"]
    changed = np.abs(np.asarray(clean.x) - batch["video"][:, :-1]).mean(axis=(2, 3, 4))
    assert np.all(changed > 0)
    if not told:
        assert not np.any(clean.t)
        return
    t = np.asarray(clean.t)
    assert 0 <= t.min() < 0.02 and 0.28 < t.max() <= 0.3
    assert np.corrcoef(t.ravel(), changed.ravel())[0, 1] > 0.8


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

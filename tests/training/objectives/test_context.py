"""Context: how the past is shown and told, that it is not scored, and the masks that depend on where it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import CLEAN, NOISY, Ids
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from tests.training.objectives.looking import (
    CONTEXT,
    SOME,
    Network,
    T,
    batch_of,
    beside,
    look,
    noise_in,
    one_block_context,
    recipe_of,
)


def test_context_levels_follow_the_data():
    recipe, batch = recipe_of(**CONTEXT), batch_of(SOME)
    clean = look(recipe, batch)[0]["clean"]
    changed = np.abs(np.asarray(clean.x) - batch["video"][:, :-1]).mean(axis=(2, 3, 4))
    t = np.asarray(clean.t)
    assert np.all(changed > 0) and 0 <= t.min() < 0.02 and 0.28 < t.max() <= 0.3
    assert np.corrcoef(t.ravel(), changed.ravel())[0, 1] > 0.8


# The conventions drawn in the docstring of ``levels``, on the linear path: (levels, what is shown, what is told).
CONVENTIONS = {
    "GameNGen": (dict(context=0.7), "noised", None),
    "DFoT": (dict(context=0.4, context_draw="fixed"), "noised", 0.4),
    "Ca2-VDM": (dict(context=0.101, context_draw="fixed", context_label="fixed"), "noised", 0.0),
    "Diffusion Forcing": (dict(context=0.015, context_draw="fixed", context_data="scaled"), "scaled", 0.015),
    "Oasis": (dict(context=0.015, context_draw="fixed", context_data="clean"), "clean", 0.015),
    "FAR": (dict(context_data="clean", context_label="fixed", context_label_at=-0.001), "clean", -0.001),
    "ACDiT": (dict(context_data="clean", context_label="fixed"), "clean", 0.0),
}


@pytest.mark.parametrize("in_stream", [False, True])
@pytest.mark.parametrize("system", CONVENTIONS)
def test_context_is_shown_and_told_as_published(system, in_stream):
    """What is done to the data, and what the network is told of it, beside the noisy stream or inside it."""
    levels, data, told = CONVENTIONS[system]
    batch = batch_of(SOME)
    told_so = dict(commit_label="fixed", commit_label_at=levels.get("context_label_at", 0.0))
    cache = told_so if levels.get("context_label") == "fixed" else {}
    recipe = one_block_context(**levels) if in_stream else recipe_of(levels=levels, cache=cache)
    streams = look(recipe, batch)[0]
    stream = streams["noisy" if in_stream else "clean"]
    x0 = batch["video"][:, : stream.x.shape[1]]
    context, t, x = (np.asarray(a) for a in (stream.clean, stream.t, stream.x))
    assert context.all() != in_stream and context.any()
    if told is None:  # told what was done
        assert t[context].min() < 0.05 < 0.6 < t[context].max() <= 0.7
    else:
        np.testing.assert_allclose(t[context], told, atol=1e-7)
    level = t if levels.get("context_label") != "fixed" else np.full_like(t, levels.get("context", 0.0))
    kept = (1 - beside(level)) * x0
    if data == "noised":
        noise = ((x - kept) / beside(level))[context]
        assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
        assert abs(np.corrcoef(noise.ravel(), x0[context].ravel())[0, 1]) < 0.1
    else:
        np.testing.assert_allclose(x[context], (kept if data == "scaled" else x0)[context], rtol=1e-6)
    if in_stream:
        fresh = noise_in(dataclasses.replace(stream, t=np.where(context, 0.5, t)), x0)[~context]
        assert abs(fresh.std() - 1) < 0.1 and len(np.unique(t[~context])) > 100


def test_the_network_is_told_in_the_units_of_the_process():
    """Published labels of a table: index / 1000, of context as of noise; a fixed label is told as it stands."""
    table = dict(path="vp_linear", predict="v", labels="published")
    for label, told in (("level", 99 / 1000), ("fixed", 0.5)):
        levels = dict(kind="prefix", grid=1000, context=0.1, context_draw="fixed", context_label=label)
        levels |= dict(context_label_at=0.5) if label == "fixed" else {}
        cache = dict(commit_label="fixed", commit_label_at=0.5) if label == "fixed" else {}
        recipe = recipe_of(layout=dict(kind="block_causal"), process=table, levels=levels, cache=cache)
        stream = look(recipe, batch_of(SOME))[0]["noisy"]
        t, context = np.asarray(stream.t), np.asarray(stream.clean)
        np.testing.assert_allclose(t[context], told, atol=1e-6)
        np.testing.assert_allclose(1000 * t[~context], np.round(1000 * t[~context]), atol=1e-3)
        np.testing.assert_allclose(t[~context].max(), 0.999, rtol=1e-6)  # unavailable frames are pure noise


def test_sinks_are_shown_clean():
    """As a stream keeps them, beside the noisy stream or inside it."""
    for recipe, name in ((recipe_of(layout=dict(sinks=1), **CONTEXT), "clean"),
                         (recipe_of(layout=dict(kind="block_causal", sinks=1),
                                    levels=dict(kind="prefix", context=0.3)), "noisy")):  # fmt: skip
        batch = batch_of(SOME)
        stream = look(recipe, batch)[0][name]
        np.testing.assert_array_equal(stream.x[:, 0], batch["video"][:, 0])
        assert not np.any(stream.t[:, 0]) and np.all(stream.clean[:, 0])
        later = np.asarray(stream.clean[:, 1:])
        assert np.all(np.asarray(stream.t[:, 1:])[later] > 0) and later.any()


def test_only_scored_frames_have_a_loss():
    """Neither what the network says of the others, nor what they are, nor a NaN there, moves loss or gradient."""
    recipe, batch = one_block_context(), batch_of()
    recipe = recipe._replace(process=dataclasses.replace(recipe.process, predict="x0"))
    context = np.asarray(look(recipe, batch)[0]["noisy"].clean)
    assert context.any() and not context.all(axis=1).any()
    says = np.random.default_rng(1).standard_normal(batch["video"].shape).astype(np.float32)

    def loss(says, batch):
        return look(recipe, batch, answer=lambda name, stream: says)[-2]

    error = ((says - batch["video"]) ** 2).mean(axis=(2, 3, 4))
    wanted = np.mean(np.sum(error * ~context, axis=1) / np.sum(~context, axis=1))
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(says), batch)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert np.all(np.asarray(gradient)[context] == 0) and np.all(np.asarray(gradient)[~context] != 0)
    broken = says.copy()
    broken[context] = np.nan
    other = dict(batch, video=np.where(beside(context), 7.0, batch["video"]).astype(np.float32))
    assert loss(jnp.asarray(broken), batch) == value == loss(jnp.asarray(says), other)
    by_frame = look(recipe, batch, answer=lambda name, stream: jnp.asarray(broken))[-1]["loss_by_frame"]
    np.testing.assert_allclose(by_frame, np.sum(error * ~context, axis=0) / np.maximum(1, np.sum(~context, axis=0)),
                               rtol=1e-6)


def test_a_prefix_gives_every_clip_a_mask_of_its_own():
    """Levels of kind prefix under every layout that knows one; the frames behind the chunk are pure noise."""
    for kind in ("partial_prefix", "prefix", "frame_causal"):
        recipe = recipe_of(
            layout=dict(kind=kind, block=2, first=1, window=2), data=dict(frames=7), levels=dict(kind="prefix"),
            cache=dict(kind="none" if kind == "prefix" else "kv"),
        )  # fmt: skip
        streams, _, mask, _, metrics = look(recipe, batch_of(SOME, frames=7))
        context, t = np.asarray(streams["noisy"].clean), np.asarray(streams["noisy"].t)
        lengths = context.sum(axis=1)
        assert set(lengths) == {1, 3, 5}
        np.testing.assert_array_equal(context, np.arange(7) < lengths[:, None])
        for P, levels in zip(lengths, t, strict=True):
            assert not levels[:P].any() and levels[P] == levels[P + 1] < 1 and np.all(levels[P + 2 :] == 1)
        assert metrics["loss_by_frame"][0] == 0 and np.all(metrics["loss_by_frame"][1:] > 0)
        if kind == "frame_causal":  # does not ask who is clean
            np.testing.assert_array_equal(mask, recipe.layout.training_mask(7))
            continue
        assert mask.shape == (SOME, 7, 7)
        for clip, P in zip(mask, lengths, strict=True):
            ids = Ids.of(np.where(np.arange(7) < P, CLEAN, NOISY), np.arange(7))
            np.testing.assert_array_equal(clip, recipe.layout.visible(ids, ids))


def test_prefix_attention_has_a_mask_of_its_own():
    model = dict(attention="factorised", prefix=2, mask_channel=True)
    recipe = recipe_of(layout=dict(kind="frame_causal", window=2), model=model, levels=dict(kind="prefix"))
    network = Network(recipe)
    diffusion_loss(recipe._replace(model=network), {}, batch_of(), jax.random.key(0))
    context, prefix_mask = np.asarray(network.seen[0]["noisy"].clean), network.prefix_mask
    q, k = np.arange(T)[:, None], np.arange(T)
    before = (k < q) & (k >= q - 2)
    np.testing.assert_array_equal(prefix_mask, before & ~context[:, :, None] & context[:, None, :])


def test_ranges_follow_the_levels_of_each_clip():
    layout = dict(kind="block_causal", ranges=(4, 2, 1), range_levels=(0.6, 0.3))
    streams, _, mask, *_ = look(recipe_of(layout=layout), batch_of(SOME))
    t, frame = np.asarray(streams["noisy"].t), np.arange(T)
    reach = np.where(t > 0.6, 4, np.where(t > 0.3, 2, 1))[:, :, None]
    before = frame[:, None] - frame
    np.testing.assert_array_equal(mask, (before >= 0) & (before < reach))

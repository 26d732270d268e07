"""The objective, looked at through a network that notes what it is shown and answers what it is told to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.config import freeze
from causal_diffusion.layout import CLEAN, NOISY, Ids
from causal_diffusion.recipe import build
from causal_diffusion.training.objectives.diffusion import batch_condition, diffusion_loss

B, T = 6, 4
SOME, MANY = 64, 2000


@pytest.fixture(autouse=True, scope="module")
def quick_compiles():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def recipe_of(**sections):
    sections = {name: dict(values) for name, values in sections.items()}
    data = dict(source="own", frames=T, height=4, width=4, channels=1, classes=5, action_dim=2)
    model = dict(width=8, depth=1, heads=2, mlp=8, patch=(1, 4, 4), channels=1, classes=5, action=2, text=3)
    sections["data"] = data | sections.get("data", {})
    sections["model"] = model | sections.get("model", {})
    sections["train"] = dict(drop=0.0) | sections.get("train", {})
    sections["evaluate"] = dict(clips=0)
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

    def apply(self, variables, streams, condition, mask, prefix_mask=None):
        self.seen, self.prefix_mask = (streams, condition, mask), prefix_mask
        return {name: self.answer(name, stream) for name, stream in streams.items()}, None


def look(recipe, batch, key=7, answer=None, compiled=False):
    """(streams, condition, mask, loss, metrics) of one call.

    One operation at a time, as most of these were compiled by the test before; ``compiled`` is quicker for a rare one.
    """
    network = Network(recipe, answer) if answer else Network(recipe)

    def run(batch):
        loss, metrics = diffusion_loss(recipe._replace(model=network), {}, batch, jax.random.key(key))
        streams, condition, mask = network.seen
        return list(streams.values()), condition, mask, loss, metrics

    streams, *rest = (jax.jit(run) if compiled else run)(batch)
    return dict(zip(network.seen[0], streams, strict=True)), *rest


def beside(t):
    return np.asarray(t)[..., None, None, None]


def noise_in(stream, x0):
    """eps of x_t = (1 - t) x0 + t eps."""
    t = beside(stream.t)
    return (np.asarray(stream.x) - (1 - t) * x0) / t


def one_block_context(**levels):
    """A single stream in which some frames of every clip are shown as context: independent levels, half of them."""
    return recipe_of(layout=dict(kind="block_causal"), levels=dict(clean=0.5, **levels))


CONTEXT = dict(levels=dict(context=0.3))


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
    t = np.asarray(look(recipe_of(levels=dict(kind="shared")), batch_of())[0]["noisy"].t)
    assert np.array_equal(t, np.repeat(t[:, :1], T, axis=1)) and len(np.unique(t)) == B


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


def test_coarse_history_is_shown_clean_and_not_scored():
    """No config may ask for it yet, for want of a stream that keeps it; the objective knows it."""
    recipe = recipe_of(layout=dict(kind="block_causal", block=2, first=1), data=dict(frames=7))
    recipe = recipe._replace(layout=dataclasses.replace(recipe.layout, coarse=3))
    batch = batch_of(SOME, frames=7)
    streams, _, mask, _, metrics = look(recipe, batch)
    history, noisy = streams["coarse"], streams["noisy"]
    assert list(streams) == ["coarse", "noisy"]
    np.testing.assert_array_equal(history.x, batch["video"][:, :3])
    assert not np.any(history.t) and np.all(history.clean)
    for stream, at in ((history, slice(3)), (noisy, slice(3, 7))):
        np.testing.assert_array_equal(stream.frame, np.broadcast_to(np.arange(7)[at], stream.frame.shape))
        np.testing.assert_array_equal(stream.action, batch["action"][:, at])
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(7))
    eps = noise_in(noisy, batch["video"][:, 3:])
    np.testing.assert_allclose(metrics["loss_by_frame"],
                               np.mean((eps - batch["video"][:, 3:]) ** 2, axis=(0, 2, 3, 4)), rtol=1e-3)
    t = np.asarray(noisy.t)
    np.testing.assert_array_equal(t[:, 0], t[:, 1])  # blocks of two behind the history
    np.testing.assert_array_equal(t[:, 2], t[:, 3])
    assert len(np.unique(t)) == 2 * SOME


def test_places_are_cyclic_and_leave_a_gap_behind_the_sinks():
    recipe = recipe_of(model=dict(positions="additive", period=8), layout=dict(window=2))
    frame = np.asarray(look(recipe, batch_of(SOME))[0]["noisy"].frame)
    np.testing.assert_array_equal(frame - frame[:, :1], np.broadcast_to(np.arange(T), (SOME, T)))
    assert set(frame[:, 0]) == set(range(8))
    frame = np.asarray(look(recipe_of(layout=dict(sinks=1, gap=3)), batch_of(SOME))[0]["noisy"].frame)
    assert not frame[:, 0].any() and set(frame[:, 1] - 1) == {0, 1, 2, 3}
    np.testing.assert_array_equal(np.diff(frame[:, 1:], axis=1), 1)


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

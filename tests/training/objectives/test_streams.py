"""The streams of a clip: what each holds and at which places, and that nothing leaks from one to the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.levels import Levels
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from tests.training.objectives.looking import CONTEXT, SOME, B, T, batch_of, beside, look, noise_in, recipe_of


def laid_out(recipe, **changed):
    """A recipe whose layout alone is changed: what else a stream asks of a config is no matter of the objective."""
    return recipe._replace(layout=dataclasses.replace(recipe.layout, **changed))


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


def test_coarse_history_is_shown_clean_and_not_scored():
    recipe = laid_out(recipe_of(layout=dict(kind="block_causal", block=2, first=1), data=dict(frames=7)), coarse=3)
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


# Blocks 0 | 1 2 3 | 4 5 6 with knots of two: the frames of a copy, and the last frame of the block of each.
KNOTTED = dict(data=dict(frames=7), layout=dict(block=3, first=1, copies=2))
FRAME, OWN = np.array([[0, 0], [1, 0], [2, 0], [1, 1], [2, 2], [3, 3], [4, 3], [5, 3], [4, 4], [5, 5], [6, 6]]).T
KNOT = FRAME != OWN


@pytest.fixture(scope="module")
def knotted():
    """(recipe, batch, what the network is shown and what comes of it), with knots and without."""
    batch = batch_of(frames=7)
    plain = recipe_of(**KNOTTED | CONTEXT | dict(process=dict(predict="x0")))
    recipe = laid_out(plain, knot=2)
    return recipe, batch, look(recipe, batch), look(plain, batch)


def test_knots_are_frames_of_the_next_block_at_the_level_of_their_own(knotted):
    recipe, batch, (streams, _, mask, *_), (plain, *_) = knotted
    noisy, x0 = streams["noisy"], np.tile(batch["video"][:, FRAME], (1, 2, 1, 1, 1))
    np.testing.assert_array_equal(noisy.frame, np.tile(FRAME, (B, 2)))
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(7))
    # A stream knows no action beyond its block: it holds the last one.
    np.testing.assert_array_equal(noisy.action, np.tile(batch["action"][:, OWN], (1, 2, 1)))
    # The clean past and the levels are those of a clip without knots.
    jax.tree.map(np.testing.assert_array_equal, streams["clean"], plain["clean"])
    t, without = (np.asarray(s["noisy"].t).reshape(B, 2, -1) for s in (streams, plain))
    np.testing.assert_array_equal(t, without[..., OWN])
    eps = noise_in(noisy, x0)
    assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1 and abs(np.corrcoef(eps.ravel(), x0.ravel())[0, 1]) < 0.1
    eps = eps.reshape(B, 2, len(FRAME), -1)
    for f in (1, 2, 4, 5):  # the same frame as a knot and in its own block
        one, other = (eps[:, :, (FRAME == f) & which].ravel() for which in (KNOT, ~KNOT))
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


def test_knots_count_in_the_loss_and_not_by_frame(knotted):
    recipe, batch, (*_, loss, metrics), _ = knotted
    video = batch["video"]
    np.testing.assert_allclose(loss, np.mean(video[:, FRAME] ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_by_frame"], np.mean(video**2, axis=(0, 2, 3, 4)), rtol=1e-5)
    says = np.tile(video[:, FRAME] + 0.5 * beside(KNOT), (1, 2, 1, 1, 1))
    answers = {"noisy": says, "clean": np.full_like(video[:, :4], np.nan)}
    *_, loss, metrics = look(recipe, batch, answer=lambda name, stream: jnp.asarray(answers[name]))
    np.testing.assert_allclose(loss, 0.25 * KNOT.mean(), rtol=1e-6)
    assert not np.any(metrics["loss_by_frame"]) and metrics["loss_by_frame"].shape == (7,)


def test_a_reference_is_the_last_frame_where_it_stands():
    """Clean, told as context, without an action; whatever else is shown is as it is without a reference."""
    gap = dict(layout=dict(block=2, sinks=2, gap=4), data=dict(frames=6))
    told = dict(levels=dict(context_data="clean", context_label="fixed", context_label_at=-0.001),
                cache=dict(commit_label="fixed", commit_label_at=-0.001))  # fmt: skip
    plain = laid_out(recipe_of(**gap | told), knot=1)
    recipe, batch = laid_out(plain, reference=1), batch_of(SOME, frames=6)
    (streams, _, mask, *scores), (without, _, _, *same_scores) = (look(r, batch) for r in (recipe, plain))
    assert list(streams) == ["clean", "noisy", "reference"]
    reference = streams.pop("reference")
    np.testing.assert_array_equal(reference.x, batch["video"][:, -1:])
    np.testing.assert_allclose(reference.t, -0.001)
    assert np.all(reference.clean) and reference.action is None and reference.action_given is None
    jax.tree.map(np.testing.assert_array_equal, (streams, scores), (without, same_scores))
    np.testing.assert_array_equal(mask, recipe.layout.training_mask(6))
    frame = np.asarray(streams["noisy"].frame)
    np.testing.assert_array_equal(reference.frame, frame[:, -1:])
    moved = frame[:, -1] - 5
    assert set(moved) == {0, 2, 4}
    # Frames 0 1 2 | 2 3 4 | 4 5: a knot stands right behind its block, even where the gap parts that from the next.
    behind = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(frame, np.array([0, 1, 2, 2, 3, 4, 4, 5]) + moved[:, None] * behind)


def windowed(**changed):
    """Blocks of two under a bidirectional window, two of the seven in flight."""
    recipe = recipe_of(layout=dict(kind="partial_prefix", block=2, first=1), data=dict(frames=13),
                       levels=dict(kind="prefix"))  # fmt: skip
    recipe = recipe._replace(levels=Levels(kind="staircase", in_flight=2))
    return laid_out(recipe, **dict(kind="bidirectional_window", window=4, sinks=2) | changed)


def test_the_window_in_flight_sees_itself_and_what_is_behind_it():
    """Each clip against the rules, asked frame by frame; blocks ahead of the window are seen by nobody."""
    batch = batch_of(SOME, frames=13)
    streams, _, mask, *_ = look(windowed(reference=1), batch, compiled=True)
    clean, t = np.asarray(streams["noisy"].clean), np.asarray(streams["noisy"].t)
    np.testing.assert_array_equal(streams["noisy"].frame, np.broadcast_to(np.arange(13), (SOME, 13)))
    block, states = (np.arange(13) + 1) // 2, set()
    for seen, is_clean, level in zip(np.asarray(mask), clean, t, strict=True):
        absent = ~is_clean & (level == 1)
        flying = ~is_clean & ~absent
        states.add((is_clean.sum(), flying.sum()))
        expected = np.zeros((14, 14), bool)
        for q in range(13):
            start = block[flying].min() if flying[q] else block[q]
            for k in range(13):
                far = 1 <= block[k] < start - 2  # neither in the window nor a sink
                behind = flying[q] and flying[k]
                if is_clean[k]:
                    behind = block[k] <= block[q] if is_clean[q] else block[k] < block[q]
                expected[q, k] = behind and not far
        expected[:, 13] = True
        expected[13] = np.arange(14) == 13
        there = np.append(~absent, True)
        np.testing.assert_array_equal(seen[there], expected[there])
        np.testing.assert_array_equal(seen[:, :13][:, absent], np.eye(14, 13, dtype=bool)[:, absent])
    # From the first block alone to the last one alone, in every place.
    assert states == {(0, 1), (0, 3), (1, 4), (3, 4), (5, 4), (7, 4), (9, 4), (11, 2)}


def reach(recipe, params, batch):
    """Whether any output of a frame depends on a frame of the clip, through objective and network, bool [B, frames
    out, frames]; and the mask, streams and outputs that the network met."""

    class Spy:
        config = recipe.model.config

        def apply(self, variables, streams, *rest, **more):
            self.met = streams, rest[1]
            self.out, kv = recipe.model.apply({"params": params}, streams, *rest, **more)
            return self.out, kv

    def outputs(video):
        spy = Spy()
        diffusion_loss(recipe._replace(model=spy), {}, batch | {"video": video}, jax.random.key(7))
        return jnp.concatenate([jnp.sum(jnp.sin(out), axis=(0, 2, 3, 4)) for out in spy.out.values()]), spy.met

    jacobian, (streams, mask) = jax.jit(jax.jacrev(outputs, has_aux=True))(batch["video"])
    touched = np.abs(np.asarray(jacobian)).max(axis=(-3, -2, -1)) > 0
    return np.moveaxis(touched, 1, 0), streams, np.broadcast_to(mask, (len(batch["video"]), *mask.shape[-2:]))


SPARE = dict(model=dict(depth=2, classes=0, action=0, text=0))
LEAKS = {
    "knot and reference": lambda: laid_out(
        recipe_of(data=dict(frames=7), layout=dict(block=3, first=1), **SPARE), knot=2, reference=1),
    "window": lambda: windowed()._replace(model=recipe_of(**SPARE).model),
}  # fmt: skip


@pytest.mark.parametrize("system", LEAKS)
def test_an_output_depends_on_a_frame_of_the_clip_where_the_mask_says_so(system):
    """Both ways: exactly zero out of reach, and not zero within. Two layers reach what is seen by what is seen."""
    recipe = LEAKS[system]()
    rng, frames = np.random.default_rng(0), recipe.frames
    shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), jnp.float32), shapes)
    touched, streams, mask = reach(recipe, params, batch_of(frames=frames))
    place, t = (np.concatenate([np.asarray(a) for a in parts], axis=1)
                for parts in zip(*((stream.frame, stream.t) for stream in streams.values()), strict=True))  # fmt: skip
    shown = (place[:, :, None] == np.arange(frames)) & (t < 1)[:, :, None]  # of pure noise no data are left
    np.testing.assert_array_equal(touched, mask @ mask @ shown)
    # In words:
    if system == "window":  # the past does not know what is in flight
        past = np.asarray(streams["noisy"].clean)
        assert past.any() and not (touched & past[:, :, None] & ~past[:, None, :]).any()
        return
    noisy = touched[:, 4:-1]
    assert not touched[:, -1, :6].any() and noisy[:, :, 6].all()  # the reference is frame 6
    assert not noisy[:, OWN == 0, 3:6].any() and noisy[:, OWN == 0, 2].all()  # block 0 and its knot 1 2
    assert noisy[:, OWN > 3].all()  # the last block knows all

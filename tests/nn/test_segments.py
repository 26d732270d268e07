"""Registers, coarse frames and clean frames: forms of their own that share the blocks, and who they reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

CAUSAL = np.tril(np.ones((4, 4), bool))
SIMPLE = dict(text=0, action=0, space=(4, 4), patch=(1, 2, 2))
LONG = dict(coarse=2, classes=0, text=0, space=(4, 4), patch=(1, 1, 1), batch=1)
# Frames 0 and 1 are coarse history, 1 to 3 fine: in time, a frame sees what is not later than itself.
TIMES = {"coarse": np.array([0, 1]), "noisy": np.array([1, 2, 3])}
HISTORY = np.concatenate(list(TIMES.values()))
HISTORY = HISTORY[:, None] >= HISTORY
HISTORY[:2, 2] = False


def test_registers_reach_all_frames_and_none_through_them(assembled, influence):
    made = assembled({"noisy": np.arange(4)}, CAUSAL, **SIMPLE | dict(registers=3, action=2, batch=1, depth=1))
    for name, touched in influence(made).items():
        np.testing.assert_array_equal(touched, CAUSAL, err_msg=name)
    before = made.forward()[0]["noisy"]
    params = made.params | {"registers": made.params["registers"] * np.arange(16)}
    moved = np.abs(made.forward(params)[0]["noisy"] - before).max(axis=(0, 2, 3, 4))
    assert (moved > 1e-3).all()


@pytest.fixture(scope="module")
def labelled(assembled):
    sizes = SIMPLE | dict(registers=3, label_tokens=True, modulate_clean=False)
    return assembled({"noisy": np.arange(4)}, CAUSAL, **sizes)


def test_a_class_as_tokens_reaches_its_own_block(labelled):
    """Every block of frames sees the registers of its own class; without a class in the modulation, through them."""
    alone = np.eye(4, dtype=bool)
    both = jax.tree.map(lambda a: jnp.concatenate([a, a[::-1]], axis=1), labelled.condition)

    def run(condition):
        return np.asarray(labelled.forward(condition=condition, mask=alone)[0]["noisy"])

    first, second = (run(jax.tree.map(lambda a: jnp.repeat(a, 2, axis=1), c)) for c in (
        labelled.condition, jax.tree.map(lambda a: a[::-1], labelled.condition)
    ))  # fmt: skip
    mixed = run(both)
    np.testing.assert_allclose(mixed[:, :2], first[:, :2], atol=1e-5)
    np.testing.assert_allclose(mixed[:, 2:], second[:, 2:], atol=1e-5)
    assert (np.abs(first - second).max(axis=(2, 3, 4)) > 1e-3).all()


def test_registers_take_part_in_the_past_as_well(labelled):
    """Their columns stand between the slots and the streams; their keys are not cached but made anew."""
    whole, kv = labelled.forward()
    stream = labelled.streams["noisy"]
    assert all(part.shape == (2, 4, 4, 2, 8) for layer in kv for part in layer)
    later = jax.tree.map(lambda a: a[:, 2:], stream)
    past = tuple(tuple(part[:, :2] for part in layer) for layer in kv)
    out, _ = labelled.forward(streams={"noisy": later}, mask=CAUSAL[2:], past=past)
    np.testing.assert_allclose(out["noisy"], whole["noisy"][:, 2:], atol=1e-5 * np.abs(whole["noisy"]).max())


@pytest.mark.parametrize("attention", ["joint", "factorised"])
def test_unmodulated_clean_frames_know_neither_level_nor_class(assembled, attention):
    """Their keys and values, all that others see of them, keep their bits; those of noisy frames do not."""
    clean = {"clean": np.ones(2, bool)}
    mask = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], bool)
    sizes = SIMPLE | dict(modulate_clean=False, attention=attention, action=2)
    made = assembled({"clean": np.arange(2), "noisy": np.arange(2)}, mask, clean=clean, **sizes)

    def parts(system, condition=None):
        return [np.asarray(part) for part in jax.tree.leaves(system.forward(condition=condition)[1])]

    before = parts(made)
    other = dataclasses.replace(made.condition, label=made.condition.label + 1)
    streams = {name: dataclasses.replace(s, t=s.t / 2, action=s.action + 1) for name, s in made.streams.items()}
    for after in (parts(made, other), parts(made._replace(streams=streams))):
        assert len(after) == 4
        for i, (a, b) in enumerate(zip(after, before, strict=True)):
            np.testing.assert_array_equal(a[:, :2], b[:, :2])
            if i > 1 or attention == "joint":  # along time, the first layer sees what space has been gated by
                assert np.abs(a[:, 2:] - b[:, 2:]).max() > 1e-3
    if attention == "factorised":
        return
    unmarked = {name: dataclasses.replace(s, clean=None) for name, s in made.streams.items()}
    marked = {name: dataclasses.replace(s, clean=jnp.zeros_like(s.t, bool)) for name, s in made.streams.items()}
    for a, b in zip(*(parts(made._replace(streams=s)) for s in (unmarked, marked)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_coarse_frames_are_seen_as_the_mask_says_and_predict_nothing(assembled, influence):
    made = assembled(TIMES, HISTORY, **LONG | dict(depth=1))
    for name, touched in influence(made).items():
        np.testing.assert_array_equal(touched, HISTORY[2:], err_msg=name)
    out, kv = jax.eval_shape(lambda: made.forward(compiled=False))
    assert set(out) == {"noisy"} and kv[0][0].shape == (1, 3, 16, 2, 8)


def test_coarse_frames_with_the_weights_and_patches_of_fine_ones_are_fine_ones(assembled):
    """Factor 1 and equal projections: the forms differ in nothing else."""
    made = assembled(TIMES, HISTORY, **LONG | dict(coarse=1))
    blocks = {
        f"block_{i}": made.params[f"block_{i}"] | {"coarse_attention": made.params[f"block_{i}"]["attention"]}
        for i in range(2)
    }
    params = made.params | blocks | {"coarse_embed": made.params["embed"]}
    out = made.forward(params)[0]["noisy"]
    streams = {"history": made.streams["coarse"], "noisy": made.streams["noisy"]}
    fine = made.forward(params, streams)[0]["noisy"]
    np.testing.assert_allclose(out, fine, atol=1e-5 * np.abs(fine).max())
    assert np.abs(made.forward()[0]["noisy"] - fine).max() > 1e-3  # with weights of their own they are not


def test_a_coarse_stream_needs_a_factor(assembled):
    with pytest.raises(ValueError, match="a stream 'coarse' and model.coarse is 0; model.coarse = 4 would do"):
        assembled(TIMES, HISTORY, **LONG | dict(coarse=0))


def test_more_outputs_per_channel_stand_behind_the_first(assembled):
    """With outputs = 2 the first C channels are those of outputs = 1 and the last C have weights of their own."""
    two = assembled({"noisy": np.arange(2)}, CAUSAL[:2, :2], **SIMPLE | dict(outputs=2, depth=1, classes=0))
    one = assembled({"noisy": np.arange(2)}, CAUSAL[:2, :2], **SIMPLE | dict(depth=1, classes=0))
    kernel = two.params["head"]["kernel"].reshape(16, 4, 4)
    bias = two.params["head"]["bias"].reshape(4, 4)
    out = two.forward()[0]["noisy"]
    assert out.shape == (2, 2, 4, 4, 4)
    for half in (slice(0, 2), slice(2, 4)):
        head = {"kernel": kernel[:, :, half].reshape(16, 8), "bias": bias[:, half].reshape(8)}
        np.testing.assert_allclose(one.forward(two.params | {"head": head})[0]["noisy"], out[..., half], atol=1e-5)


@pytest.mark.parametrize("attention", ["joint", pytest.param("factorised", marks=pytest.mark.full)])
def test_additive_times_repeat_with_their_period(assembled, attention):
    sizes = SIMPLE | dict(positions="additive", period=5, depth=1, classes=0, attention=attention)
    made = assembled({"noisy": np.arange(4)}, CAUSAL, **sizes)
    stream = made.streams["noisy"]

    def run(shift):
        return made.forward(streams={"noisy": dataclasses.replace(stream, frame=stream.frame + shift)})[0]["noisy"]

    np.testing.assert_array_equal(run(10), run(0))
    assert np.abs(run(1) - run(0)).max() > 1e-3

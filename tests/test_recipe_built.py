"""The recipe: what does not clash is put together, and what it is then."""

import itertools

import jax
import numpy as np

from causal_diffusion.config import Config, override
from causal_diffusion.recipe import build, null_condition, parameter_count
from tests.sound import CAUSAL, ONE_BY_ONE, PYRAMID, SOUND, TOGETHER, WINDOW


def test_what_does_not_clash_is_built():
    """All layouts, predictions and offsets that a stream can run, together."""
    offsets = [ONE_BY_ONE, PYRAMID,
               {"schedule.offset": "rolling", "schedule.in_flight": 5}]  # fmt: skip
    kinds, predictions = ("block_causal", "teacher_forcing"), ("velocity", "x0", "noise")
    for kind, predict, offset in itertools.product(kinds, predictions, offsets):
        changed = {"layout.kind": kind, "process.predict": predict, "schedule.t_max": 0.99} | offset
        if kind == "teacher_forcing" and offset["schedule.offset"] != "autoregressive":
            continue
        recipe = build(override(Config(), SOUND | changed))
        assert recipe.kind == "exact" and recipe.frame_shape == (16, 16, 1) and recipe.frames == 12
        assert recipe.process.predict == predict and recipe.layout.kind == kind


def test_a_window_of_zero_is_the_training_clip():
    recipe = build(override(Config(), SOUND | {"layout.block": 3}))
    assert recipe.layout.window == 9 and recipe.config.layout.window == 0
    assert build(override(Config(), SOUND | {"layout.block": 3, "layout.window": 6})).layout.window == 6
    np.testing.assert_array_equal(recipe.layout.training_mask(12), recipe.config.layout.training_mask(12))


def test_training_and_streaming_share_parameters():
    """Whatever ``layers`` says, streaming unrolls them and keeps every other choice."""
    scanned = build(override(Config(), SOUND | {"model.layers": "scan", "model.remat": "full", "model.depth": 2}))
    unrolled = scanned.streaming()
    assert unrolled.model.config.layers == "unrolled" and unrolled.model.config.remat == "none"
    assert unrolled._replace(model=None) == scanned._replace(model=None)
    one, two = (jax.eval_shape(recipe.init_params, jax.random.key(0)) for recipe in (scanned, unrolled))
    assert parameter_count(one) == parameter_count(two) > 1000 and "blocks" in one and "block_1" in two


def test_the_example_is_a_training_clip_of_two_blocks():
    recipe = build(override(Config(), SOUND | {"layout.block": 3, "model.action": 2, "model.classes": 10}))
    streams, condition, mask = recipe.example(batch=2)
    assert {name: s.x.shape for name, s in streams.items()} == {"clean": (2, 3, 16, 16, 1), "noisy": (2, 6, 16, 16, 1)}
    assert mask.shape == (9, 9) and condition.label.tolist() == [[-1], [-1]]
    assert streams["noisy"].action.shape == (2, 6, 2)


def test_the_null_condition_has_what_the_model_takes():
    recipe = build(override(Config(), SOUND | {"model.text": 4}))
    null = null_condition(recipe.model.config, 2, blocks=3)
    assert null.label is None and null.text.shape == (2, 3, 1, 4) and not null.text.any() and null.text_mask.all()


def test_a_clip_denoised_as_a_whole_may_share_its_level():
    """Full-sequence diffusion: of one clip everything is in flight, so nothing clean is ever behind."""
    changed = CAUSAL | {"levels.kind": "shared", "schedule.offset": "full", "schedule.chunk": 12}
    assert build(override(Config(), SOUND | changed)).kind == "exact"


def test_keys_and_values_in_fewer_bits_are_an_approximation():
    recipe = build(override(Config(), SOUND | {"cache.dtype": "bfloat16", "model.dtype": "float32"}))
    assert recipe.kind == "approximate" and recipe.approximations == (
        "keys and values are computed in float32 and stored in bfloat16",)
    for other in ({"cache.dtype": "bfloat16", "model.dtype": "bfloat16"}, {"cache.dtype": "float32"},
                  WINDOW | {"cache.dtype": "bfloat16"}):  # fmt: skip
        assert build(override(Config(), SOUND | other)).kind == "exact"


def test_without_a_cache_a_stream_sees_as_much_as_training():
    """Past and blocks in flight together are the clip, unless the layout asks for another window."""
    one = build(override(Config(), SOUND | WINDOW | {"layout.block": 2}))
    assert (one.slots, one.layout.window) == (10, 10)
    three = build(override(Config(), SOUND | WINDOW | TOGETHER | {"layout.block": 2}))
    assert (three.slots, three.layout.window) == (6, 10)
    asked = build(override(Config(), SOUND | WINDOW | TOGETHER | {"layout.block": 2, "layout.window": 4}))
    assert (asked.slots, asked.layout.window) == (4, 4)

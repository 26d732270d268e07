"""The recipe: every clash is refused with both keys and a value that works, everything else is put together."""

import itertools

import jax
import numpy as np
import pytest

from causal_diffusion.config import Config, load_config, override
from causal_diffusion.errors import UserError
from causal_diffusion.recipe import build, null_condition, parameter_count

# Clips of 12 grey frames of 16 x 16 with 10 classes and 2 numbers per action, cut into patches of 8 x 8.
SOUND = {
    "data.source": "video_folder", "data.frames": 12, "data.classes": 10, "data.action_dim": 2,
    "model.width": 16, "model.heads": 2, "model.depth": 1, "model.mlp": 16,
}  # fmt: skip

# name: (what is changed, keys that the message names, the value it proposes)
CLASHES = {
    "half a block": ({"layout.block": 5}, ["data.frames", "layout.block"], {"data.frames": 10}),
    "one block": (
        {"data.frames": 4, "layout.block": 4}, ["layout.block", "data.frames"], {"data.frames": 8}
    ),
    "window of half a block": (
        {"layout.block": 2, "layout.window": 3}, ["layout.window", "layout.block"], {"layout.window": 2}
    ),
    "sinks of half a block": (
        {"layout.block": 4, "layout.sinks": 6}, ["layout.sinks", "layout.block"], {"layout.sinks": 8}
    ),
    "channels": ({"data.channels": 3}, ["model.channels", "3 channels"], {"model.channels": 3}),
    "patch of too few axes": (
        {"model.patch": (1, 6)}, ["model.patch", "(time, 16, 16, 1)"], {"model.patch": (1, 2, 2)}
    ),
    "patch in time": ({"model.patch": (2, 8, 8)}, ["model.patch", "streams"], {"model.patch": (1, 8, 8)}),
    "height": ({"data.height": 20}, ["data.height", "model.patch"], {"data.height": 16}),
    "width": ({"data.width": 4}, ["data.width", "model.patch"], {"data.width": 8}),
    "classes without labels": (
        {"model.classes": 3, "data.classes": 0}, ["model.classes", "labels"], {"model.classes": 0}
    ),
    "actions": ({"model.action": 3}, ["model.action", "2 numbers per action"], {"model.action": 2}),
    "actions without any": ({"model.action": 3, "data.action_dim": 0}, ["model.action", "0"], {"model.action": 0}),
    "a full schedule": (
        {"schedule.offset": "full"}, ["schedule.offset", "stream"], {"schedule.offset": "autoregressive"}
    ),
    "a broken pyramid": (
        {"layout.kind": "block_causal", "schedule.offset": "pyramid", "schedule.stride": 2.5},
        ["schedule.offset", "schedule.steps"], {"schedule.stride": 2},
    ),
    "a slow pyramid": (
        {"layout.kind": "block_causal", "schedule.offset": "pyramid", "schedule.stride": 0.25},
        ["schedule.offset", "schedule.steps"], {"schedule.stride": 1},
    ),
    "a broken roll": (
        {"layout.kind": "block_causal", "schedule.offset": "rolling", "schedule.in_flight": 4},
        ["schedule.offset", "schedule.steps"], {"schedule.steps": 12},
    ),
    "teachers of several blocks": (
        {"schedule.offset": "pyramid", "schedule.stride": 5.0},
        ["layout.kind", "schedule.offset"], {"schedule.offset": "autoregressive"},
    ),
    "a past at the level of the present": (
        {"layout.kind": "block_causal", "levels.kind": "shared"},
        ["levels.kind", "layout.kind"], {"levels.kind": "independent"},
    ),
    "noise from noise": ({"process.predict": "noise"}, ["process.predict", "schedule.t_max"], {"schedule.t_max": 0.99}),
    "a commit never trained": (
        {"cache.commit_level": 0.4, "levels.context": 0.25},
        ["cache.commit_level", "levels.context"], {"cache.commit_level": 0.25},
    ),
    "mirrored actions": ({"train.flip": True}, ["train.flip", "data.source"], {"train.flip": False}),
    "guidance without conditions": (
        {"guidance.kind": "cfg", "guidance.scale": 2.0}, ["guidance.kind", "label, text"], {"guidance.kind": "none"}
    ),
    "guidance never trained": (
        {"guidance.kind": "cfg", "guidance.scale": 2.0, "model.classes": 10, "train.drop": 0.0},
        ["guidance.kind", "train.drop"], {"train.drop": 0.1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("clash", CLASHES)
def test_a_clash_is_refused_and_the_proposed_value_works(clash):
    changed, named, proposed = CLASHES[clash]
    with pytest.raises(UserError) as refusal:
        build(override(Config(), SOUND | changed))
    said = str(refusal.value)
    assert "\n" not in said and all(name in said for name in named), said
    ((key, value),) = proposed.items()
    assert f"{key} = {value!r}" in said.replace(" or ", f" or {key} = ") and "would do" in said, said
    build(override(Config(), SOUND | changed | proposed))


def test_a_width_for_the_heads_is_proposed_too():
    with pytest.raises(UserError, match=r"^model\.width is 18 and model\.heads is 4: .* model.width = 16 would do$"):
        build(override(Config(), SOUND | {"model.width": 18, "model.heads": 4}))
    build(override(Config(), SOUND | {"model.width": 16, "model.heads": 4}))


def test_what_does_not_clash_is_built():
    """All layouts, predictions and offsets that a stream can run, together."""
    offsets = [{"schedule.offset": "autoregressive"}, {"schedule.offset": "pyramid", "schedule.stride": 5.0},
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


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart:tiny", "video_folder", "video_folder:tiny", "video_folder:gpu"]
)
def test_shipped_configs_are_sound(name):
    recipe = build(load_config(name))
    assert recipe.kind == "exact" and recipe.config.name == name.partition(":")[0]

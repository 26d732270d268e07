"""The transformer: what each input reaches, and that encoding a condition beforehand changes nothing."""

import ast
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.layout import Layout
from causal_diffusion.nn.embedders import patchify
from causal_diffusion.nn.remat import POLICIES
from causal_diffusion.nn.transformer import EncodedCondition, TransformerConfig
from tests.compiling import AS_SHIPPED
from tests.nn import conftest

BARE = dict(depth=1, classes=0, action=0, text=0)  # where conditions play no part
FORMS = [("linear", "linear"), ("table", "table"), ("linear", "none"), ("table", "linear")]


@pytest.mark.parametrize(("modulation", "head"), FORMS)
def test_a_level_modulates_its_own_frame_alone(tiny, modulation, head):
    """Frames that do not see each other: another level in one of them leaves the bits of the others."""
    system = tiny(modulation=modulation, head=head, **BARE)
    alone = np.eye(4, dtype=bool)
    stream = system.streams["noisy"]
    before = np.asarray(system.apply(mask=alone)["noisy"])
    for frame in range(4):
        t = stream.t.at[:, frame].add(-0.05)
        after = np.asarray(system.apply(streams={"noisy": dataclasses.replace(stream, t=t)}, mask=alone)["noisy"])
        others = np.arange(4) != frame
        np.testing.assert_array_equal(after[:, others], before[:, others])
        assert (np.abs(after - before)[:, frame].max(axis=(1, 2, 3)) > 1e-3).all()


@pytest.fixture(scope="module")
def teacher(tiny):
    return tiny(Layout("teacher_forcing"), frames=3)


@pytest.fixture(scope="module")
def run(teacher):
    return lambda streams, condition: teacher.apply(streams=streams, condition=condition)


def changed(one, two):
    """Which samples and frames differ, bool [B, T]."""
    return (np.asarray(one["noisy"]) != np.asarray(two["noisy"])).any(axis=(2, 3, 4))


def test_every_condition_matters(teacher, run):
    before = run(teacher.streams, teacher.condition)
    for name, other in {
        "label": jnp.array([[2], [0]]),
        "text": teacher.condition.text + 0.1,
        "text_mask": teacher.condition.text_mask.at[:, :, 1].set(False),
    }.items():
        after = run(teacher.streams, dataclasses.replace(teacher.condition, **{name: other}))
        assert changed(before, after).all(), name
    only = teacher.condition.text.at[1].add(1.0)  # and steers its own sample
    after = run(teacher.streams, dataclasses.replace(teacher.condition, text=only))
    np.testing.assert_array_equal(changed(before, after), [[False] * 3, [True] * 3])
    hidden = teacher.condition.text.at[0, 0, 2].add(1.0)  # padding does not
    after = run(teacher.streams, dataclasses.replace(teacher.condition, text=hidden))
    assert not changed(before, after).any()


def test_an_action_reaches_its_frame_and_those_after_it(teacher, run):
    before = run(teacher.streams, teacher.condition)
    noisy, clean = teacher.streams["noisy"], teacher.streams["clean"]
    after = run(
        {"clean": clean, "noisy": dataclasses.replace(noisy, action=noisy.action.at[:, 1].add(1.0))}, teacher.condition
    )
    np.testing.assert_array_equal(changed(before, after), [[False, True, False]] * 2)  # noisy blocks stay apart
    after = run(
        {"clean": dataclasses.replace(clean, action=clean.action.at[:, 1].add(1.0)), "noisy": noisy}, teacher.condition
    )
    np.testing.assert_array_equal(changed(before, after), [[False, False, True]] * 2)


def test_no_action_is_an_action_that_is_not_given(teacher):
    streams = {name: dataclasses.replace(s, action=None) for name, s in teacher.streams.items()}
    given = {
        name: dataclasses.replace(s, action_given=jnp.zeros(s.t.shape, bool)) for name, s in teacher.streams.items()
    }
    as_shipped = jax.jit(
        lambda streams: conftest.run(
            teacher.model, (), teacher.params, streams, teacher.condition, teacher.mask, {}
        )[0],
        compiler_options=AS_SHIPPED,
    )
    absent = as_shipped(streams)
    np.testing.assert_array_equal(absent["noisy"], as_shipped(given)["noisy"])
    assert changed(absent, as_shipped(teacher.streams)).all()


def test_a_condition_encoded_beforehand_is_the_condition(tiny):
    system = tiny(text_layers=2, frames=3)
    encode = jax.jit(lambda c: system.model.apply({"params": system.params}, c, method=system.model.encode_condition))
    encoded = encode(system.condition)
    assert isinstance(encoded, EncodedCondition) and len(encoded.keys) == len(encoded.values) == 2
    inline = system.apply()["noisy"]
    np.testing.assert_allclose(system.apply(condition=encoded)["noisy"], inline, atol=1e-5 * np.abs(inline).max())


def test_every_block_of_frames_may_have_its_own_condition(tiny):
    """Conditions per block equal the whole-sample forwards of each, where frames do not see each other."""
    system = tiny(frames=4, depth=1)
    wide = jax.tree.map(lambda a: jnp.concatenate([a, a[::-1]], axis=1), system.condition)  # two blocks of two frames

    def run(condition):
        return np.asarray(system.apply(condition=condition, mask=np.eye(4, dtype=bool))["noisy"])

    both, first, second = run(wide), run(system.condition), run(jax.tree.map(lambda a: a[::-1], system.condition))
    np.testing.assert_allclose(both[:, :2], first[:, :2], atol=1e-5)
    np.testing.assert_allclose(both[:, 2:], second[:, 2:], atol=1e-5)
    assert np.abs(first - second)[:, 2:].max() > 1e-2


@pytest.mark.parametrize(
    ("space", "patch"), [((), (1,)), ((6,), (1, 3)), ((4, 6), (1, 2, 3))], ids=["1-D", "2-D", "3-D"]
)
@pytest.mark.parametrize("positions", ["rotary", "additive", "both"])
def test_data_of_every_dimension_and_positions_that_matter(tiny, space, patch, positions):
    system = tiny(space=space, patch=patch, positions=positions, batch=1, frames=3, **BARE)
    stream = system.streams["noisy"]

    def run(shift):
        streams = {"noisy": dataclasses.replace(stream, frame=stream.frame + jnp.array([shift], jnp.int32))}
        return system.apply(streams=streams, mask=np.ones((3, 3), bool))["noisy"]

    out = run([0, 0, 0])
    assert out.shape == (1, 3, *space, 2) and out.dtype == jnp.float32
    assert np.abs(out - run([0, 0, 1])).max() > 1e-3
    relative = np.abs(out - run([5, 5, 5])).max() < 1e-4
    assert relative == (positions != "additive")  # a stream never ends: time is relative wherever it can be


@pytest.mark.parametrize("positions", ["rotary", "additive", "both"])
def test_corners_have_a_place_of_their_own_unless_all_positions_are_relative(tiny, positions):
    """A frame that is the same everywhere and sees itself alone: what comes out differs from token to token only
    where positions were added."""
    system = tiny(space=(4, 4), positions=positions, frames=2, **BARE)
    stream = system.streams["noisy"]
    even = {"noisy": dataclasses.replace(stream, x=jnp.broadcast_to(stream.x[:, :, :1, :1], stream.x.shape))}
    out = system.apply(streams=even, mask=np.eye(2, dtype=bool))["noisy"]
    tokens = patchify(out, (1, 2, 2))
    spread = np.abs(tokens - tokens[:, :, :1]).max() / np.abs(tokens).max()
    assert spread < 1e-5 if positions == "rotary" else spread > 1e-2


def test_a_fresh_model_predicts_zero(tiny):
    """The last layer starts at zero, as in DiT: training starts from the mean, whatever is inside."""
    system = tiny(frames=2, **BARE)
    params = jax.jit(system.model.init)(jax.random.key(0), system.streams, system.condition, system.mask)["params"]
    assert not np.asarray(system.apply(params=params)["noisy"]).any()


def test_half_precision_stays_near_and_returns_float32(tiny):
    exact, half = (tiny(frames=3, dtype=dtype, depth=1) for dtype in ("float32", "bfloat16"))
    one, two = exact.apply()["noisy"], half.apply()["noisy"]
    assert two.dtype == jnp.float32
    assert 0 < np.abs(one - two).max() < 0.1 * np.abs(one).max()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (dict(positions="learned"), "model.positions is 'learned'; it is one of rotary, additive, both"),
        (dict(qk_norm="layer"), "model.qk_norm is 'layer'; it is one of full, head, none"),
        (dict(modulation="film"), "model.modulation is 'film'; it is one of linear, table"),
        (dict(head="big"), "model.head is 'big'; it is one of linear, table, none, diffusion"),
        (dict(text_layers=3), "model.text_layers is 3; it is one of 1, 2"),
        (dict(layers="loop"), "model.layers is 'loop'; it is one of unrolled, scan"),
        (dict(backend="flash"), "model.backend is 'flash'; it is one of auto, reference, blockwise, cudnn, splash"),
        (dict(dtype="float16"), "model.dtype is 'float16'; it is one of auto, float32, bfloat16"),
        (dict(remat="some"), f"model.remat is 'some'; it is one of {', '.join(POLICIES)}"),
        (dict(patch=()), "model.patch is (): one entry for time and up to two for space"),
        (dict(attention="axial"), "model.attention is 'axial'; it is one of joint, factorised"),
        (dict(outputs=0), "model.outputs is 0; it lies in [1, 2], try model.outputs = 1"),
        (dict(time_every=0), "model.time_every is 0; it is at least 1, try model.time_every = 1"),
        (dict(coarse=-1), "model.coarse is -1; it is at least 0, try model.coarse = 0"),
        (dict(patch=(1, 0, 2)), "model.patch is (1, 0, 2): each is at least 1, try model.patch = (1, 1, 2)"),
    ],
)
def test_unknown_choices_are_refused(wrong, named):
    with pytest.raises(ValueError) as refusal:
        TransformerConfig(**wrong)
    assert str(refusal.value) == named


@pytest.mark.parametrize(("width", "heads"), [(10, 4), (12, 4), (5, 1), (1, 3)])
def test_a_width_that_heads_cannot_share_names_one_that_they_can(width, heads):
    with pytest.raises(ValueError, match=f"model.width is {width} and model.heads is {heads}") as refusal:
        TransformerConfig(width=width, heads=heads)
    TransformerConfig(width=int(re.search(r"model.width = (\d+) would do", str(refusal.value))[1]), heads=heads)


FACTORISED = dict(attention="factorised")


@pytest.mark.parametrize(
    ("wrong", "first", "second"),
    [
        (dict(axial_mlp=True), "axial_mlp", "attention"),
        (dict(time_every=2), "time_every", "attention"),
        (dict(prefix=3), "prefix", "attention"),
        (dict(mask_channel=True), "mask_channel", "attention"),
        (FACTORISED | dict(registers=4), "registers", "attention"),
        (FACTORISED | dict(coarse=4), "coarse", "attention"),
        (FACTORISED | dict(rope_split=(2, 3, 3)), "rope_split", "attention"),
        (FACTORISED | dict(time_every=7), "time_every", "depth"),
        (FACTORISED | dict(time_every=2, prefix=3), "prefix", "time_every"),
        (FACTORISED | dict(time_every=2, mask_channel=True), "mask_channel", "time_every"),
        (FACTORISED | dict(time_every=2, layers="scan"), "time_every", "layers"),
        (FACTORISED | dict(mask_channel=True, layers="scan"), "mask_channel", "layers"),
        (dict(coarse=4, patch=(1,)), "coarse", "patch"),
        (dict(label_tokens=True, classes=3), "label_tokens", "registers"),
        (dict(label_tokens=True, registers=3), "label_tokens", "classes"),
        (dict(period=33), "positions", "period"),
        (dict(period=33, positions="both"), "positions", "period"),
        (dict(rope_split=(1, 1, 2), positions="additive"), "rope_split", "positions"),
        (dict(rope_split=(1, 1)), "rope_split", "patch"),
        (dict(rope_split=(2, 3, 3), width=64, heads=8, patch=(1, 2, 2)), "rope_split", "width"),
        (dict(rope_split=(0, 1, 1)), "rope_split", "width"),
    ],
    ids=str,
)
def test_forms_that_exclude_each_other_are_refused_with_a_value_that_would_do(wrong, first, second):
    with pytest.raises(ValueError, match=rf"^model\.{first} is .* and model\.{second} .*would do$") as refusal:
        TransformerConfig(**wrong)
    assert "\n" not in str(refusal.value)
    name, value = re.search(r"model\.(\w+) = (\S.*) would do$", str(refusal.value)).groups()
    TransformerConfig(**wrong | {name: ast.literal_eval(value)})

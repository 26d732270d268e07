"""Factorised attention: against brute force over all tokens, what it reaches, and the past against the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.attention_backends import BACKENDS, within_frames
from causal_diffusion.nn.layers import stack_layers, unstack_layers
from causal_diffusion.nn.transformer import Transformer

CAUSAL = np.tril(np.ones((4, 4), bool))
PLAIN = dict(attention="factorised", classes=0, text=0, space=(2, 2), patch=(1, 1, 2))
# Frames 0 and 1 are clean; each noisy frame sees the last two clean ones before it.
CLEAN = np.array([True, True, False, False])
PREFIX = (np.arange(4)[:, None] > 1) & (np.arange(4) < 2)
FORMS = {
    "ca2_vdm": dict(prefix=2, mask_channel=True),
    "oasis": dict(axial_mlp=True),
    "sparse": dict(time_every=2),
}
SOME = ["ca2_vdm", "sparse", pytest.param("oasis", marks=pytest.mark.full)]


def system(assembled, form, mask=CAUSAL, **sizes):
    return assembled({"noisy": np.arange(4)}, mask, clean={"noisy": CLEAN}, **PLAIN | FORMS[form] | sizes)


@pytest.fixture(scope="module", params=SOME)
def each(request, assembled):
    prefix = dict(prefix_mask=PREFIX) if request.param == "ca2_vdm" else {}
    return system(assembled, request.param, positions="both", action=0), prefix


def softmax_over_tokens(q, k, v, mask):
    """q, k, v [B, S, H, K] under a mask by token [S, S], in float64."""
    score = np.einsum("bqhk,bshk->bhqs", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    score = np.where(mask, score, -np.inf)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return np.einsum("bhqs,bshk->bqhk", weight / weight.sum(axis=-1, keepdims=True), v)


def norm(x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def brute(config, params, x, e, clean, mask, prefix):
    """Blocks of Ca2-VDM's or Oasis' form in plain NumPy, over all tokens at once [B, S, D], S = T * N."""
    B, T, N, D = x.shape
    frame, cell = np.divmod(np.arange(T * N), N)
    seen = {
        "space": frame[:, None] == frame,
        "time": (cell[:, None] == cell) & mask[frame][:, frame],
        "prefix": np.where(prefix.any(axis=1)[:, None], prefix, np.eye(T, dtype=bool))[frame][:, frame],
    }
    x, e = x.reshape(B, T * N, D), e.repeat(N, axis=1)

    def attend(p, h, name):
        q, k, v = (linear(p[part], h) for part in "qkv")
        q, k = (
            part / np.sqrt(np.mean(part**2, axis=-1, keepdims=True) + 1e-6) * p[f"{n}_norm"]["scale"]
            for n, part in (("q", q), ("k", k))
        )
        q, k, v = (part.reshape(B, T * N, config.heads, -1) for part in (q, k, v))
        return linear(p["o"], softmax_over_tokens(q, k, v, seen[name]).reshape(B, T * N, D))

    def mlp(p, h, prefix=""):
        hidden = np.asarray(jax.nn.gelu(linear(p[f"{prefix}mlp_in"], h), approximate=True))
        return linear(p[f"{prefix}mlp_out"], hidden)

    for i in range(config.depth):
        p = params[f"block_{i}"]
        m = np.split(linear(p["modulation"]["linear"], e / (1 + np.exp(-e))), 12 if config.axial_mlp else 6, axis=-1)
        x = x + m[2] * attend(p["space_attention"], norm(x) * (1 + m[1]) + m[0], "space")
        if config.prefix:
            x = x + m[2] * attend(p["prefix_attention"], x, "prefix")
        if config.axial_mlp:
            x = x + m[5] * mlp(p, norm(x) * (1 + m[4]) + m[3])
            m = m[6:]
            h = norm(x) * (1 + m[1]) + m[0]
        else:
            h = x
        if config.mask_channel and i == 0:
            channel = np.broadcast_to(clean[frame][None, :, None], (B, T * N, 1))
            h = linear(p["merge_mask"], np.concatenate([h, channel], axis=-1))
        x = x + m[2] * attend(p["time_attention"], h, "time")
        x = x + m[5] * mlp(p, norm(x) * (1 + m[4]) + m[3], "time_" if config.axial_mlp else "")
    return x.reshape(B, T, N, D)


@pytest.mark.parametrize("form", ["ca2_vdm", "oasis"])
def test_blocks_equal_brute_force_under_masks_by_token(assembled, form):
    """All tokens against all tokens, the axial pattern drawn token by token; order, gates and merge as published."""
    made = system(assembled, form, positions="additive", action=0, head="none", batch=1)
    config, stream = made.model.config, made.streams["noisy"]
    params = jax.tree.map(lambda a: 0.5 * np.asarray(a, np.float64), made.params)
    bound = made.model.bind({"params": jax.tree.map(jnp.float32, params)})
    x, segments, _, e = bound._segments(made.streams, bound.embed_condition(made.condition))
    x, e = (np.asarray(part[0], np.float64) for part in (x, e))
    expected = linear(params["head"], norm(brute(config, params, x, e, CLEAN, CAUSAL, PREFIX)))
    out, _ = made.forward(jax.tree.map(jnp.float32, params), prefix_mask=PREFIX)
    shape = (1, 4, 2, 1, 1, 1, 2, 2)  # frames, grid, patch, channels
    expected = expected.reshape(shape).transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(stream.x.shape)
    np.testing.assert_allclose(out["noisy"], expected, atol=1e-4 * np.abs(expected).max())


def test_attention_inside_a_frame_is_dense_attention_under_the_unit_mask():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 3, 4, 2, 6)).astype(np.float32)
    dense = BACKENDS["reference"](q, [k], [v], np.eye(3, dtype=bool))
    np.testing.assert_allclose(within_frames("reference", q, k, v), dense, atol=1e-6)


@pytest.mark.parametrize("form", SOME)
def test_no_frame_depends_on_what_it_may_not_see(assembled, influence, form):
    """Exactly the frames that the mask shows, and the prefix, which lies inside of it; both ways."""
    made = system(assembled, form, depth=2 if form == "sparse" else 1, batch=1)
    for name, touched in influence(made, **dict(prefix_mask=PREFIX) if form == "ca2_vdm" else {}).items():
        np.testing.assert_array_equal(touched, CAUSAL, err_msg=name)


def part_of(stream, cut):
    return jax.tree.map(lambda a: a[:, cut], stream)


@pytest.mark.parametrize("raw", [False, pytest.param(True, marks=pytest.mark.full)], ids=["rotated", "raw"])
def test_the_past_in_slots_equals_the_whole(each, raw):
    """Frames 0 and 1 leave keys and values; 2 and 3 read them there, two empty slots hidden, and nothing changes."""
    made, prefix = each
    whole, whole_kv = made.forward(**prefix)
    stream = made.streams["noisy"]
    slots = jnp.array([[1, -1, 0, -1]] * 2, jnp.int32)
    frames = {"past_frame": slots, "raw": True} if raw else {}

    def own(cut, past, first):
        columns = np.array([1, -1, 0, -1] + list(range(first, first + 2)))
        seen = (columns <= np.arange(first, first + 2)[:, None]) & (columns >= 0)
        seen[:, :4] &= first > 0
        near = {} if not prefix else {"prefix_mask": PREFIX[first : first + 2][:, columns] & seen & (columns < 2)}
        return made.forward(streams={"own": part_of(stream, cut)}, mask=seen, past=past, **near, **frames)

    empty = [tuple(jnp.full((2, 4, *a.shape[2:]), 7.0) for a in layer) for layer in whole_kv]
    first, kv = own(slice(0, 2), tuple(empty), 0)
    np.testing.assert_allclose(first["own"], whole["noisy"][:, :2], atol=1e-5 * np.abs(whole["noisy"]).max())
    past = tuple(
        tuple(old.at[:, 0].set(new[:, 1]).at[:, 2].set(new[:, 0]) for old, new in zip(*layers, strict=True))
        for layers in zip(empty, kv, strict=True)
    )
    second, _ = own(slice(2, 4), past, 2)
    np.testing.assert_allclose(second["own"], whole["noisy"][:, 2:], atol=1e-5 * np.abs(whole["noisy"]).max())
    if not raw:
        for layer, expected in zip(kv, whole_kv, strict=True):
            for a, b in zip(layer, expected, strict=True):
                np.testing.assert_allclose(a, b[:, :2], atol=1e-5 * np.abs(b).max())


def test_scanned_layers_equal_unrolled_ones(assembled):
    """With a prefix and a past, which both go through the scan."""
    made = assembled({"noisy": np.arange(4)}, CAUSAL, **PLAIN | dict(prefix=1, action=0))
    rng = np.random.default_rng(0)
    past = [tuple(rng.normal(size=(4, 2, 4, 2, 2, 8)).astype(np.float32)) for _ in range(2)]
    seen = np.concatenate([np.ones((4, 4), bool), CAUSAL], axis=1)
    near = np.concatenate([PREFIX, PREFIX], axis=1)
    out, kv = made.forward(mask=seen, past=tuple(past), prefix_mask=near)
    stacked = stack_layers(made.params)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), made.params)
    scan = made._replace(model=Transformer(dataclasses.replace(made.model.config, layers="scan", remat="full")))
    past = tuple(np.stack(parts) for parts in zip(*past, strict=True))
    other, other_kv = scan.forward(stacked, mask=seen, past=past, prefix_mask=near)
    np.testing.assert_allclose(other["noisy"], out["noisy"], atol=1e-5 * np.abs(out["noisy"]).max())
    for i, layer in enumerate(kv):
        for a, b in zip(other_kv, layer, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5 * np.abs(b).max())


def test_only_every_nth_layer_sees_along_time(assembled):
    made = system(assembled, "sparse", depth=4, axial_mlp=True, modulation="table")
    for i in range(4):
        sees = i % 2 == 1
        assert ("time_attention" in made.params[f"block_{i}"]) == sees == ("time_mlp_in" in made.params[f"block_{i}"])
        assert made.params[f"block_{i}"]["modulation"]["table"].shape == (12 if sees else 6, 16)
    _, kv = jax.eval_shape(lambda: made.forward(compiled=False))
    assert [len(layer) for layer in kv] == [0, 2, 0, 2]


def test_a_fresh_prefix_and_mask_channel_change_nothing(assembled):
    """The prefix ends in zeros, and the merge is the identity whatever the channel says; trained, both matter."""
    made = system(assembled, "ca2_vdm", depth=1, action=0)
    fresh = jax.jit(made.model.init)(jax.random.key(0), made.streams, made.condition, made.mask)["params"]["block_0"]
    block = made.params["block_0"]
    prefix = block["prefix_attention"] | {"o": fresh["prefix_attention"]["o"]}
    params = made.params | {"block_0": block | {"prefix_attention": prefix, "merge_mask": fresh["merge_mask"]}}
    np.testing.assert_array_equal(fresh["merge_mask"]["kernel"], np.eye(17, 16))
    assert not fresh["merge_mask"]["bias"].any()
    unmarked = {"noisy": dataclasses.replace(made.streams["noisy"], clean=jnp.zeros((2, 4), bool))}

    def run(params, streams, prefix):
        return np.asarray(made.forward(params, streams, prefix_mask=prefix)[0]["noisy"])

    nobody = np.zeros_like(PREFIX)
    before = run(params, made.streams, PREFIX)
    np.testing.assert_array_equal(run(params, unmarked, PREFIX), before)
    np.testing.assert_array_equal(run(params, made.streams, nobody), before)
    before = run(made.params, made.streams, PREFIX)
    assert (np.abs(run(made.params, unmarked, PREFIX) - before)).max() > 1e-3
    moved = np.abs(run(made.params, made.streams, nobody) - before).max(axis=(0, 2, 3, 4))
    assert not moved[:2].any() and (moved[2:] > 1e-3).all()
    alone = made.forward(prefix_mask=nobody)[0]["noisy"]
    np.testing.assert_array_equal(made.forward()[0]["noisy"], alone)  # no mask: every frame sees itself


def test_positions_turn_whole_heads(assembled):
    """Time is relative and matters; swapping two columns of cells shows that places in a frame do, too."""
    made = assembled({"noisy": np.arange(4)}, CAUSAL, **PLAIN | dict(space=(2, 4), action=0, depth=1))
    stream = made.streams["noisy"]
    before = made.forward()[0]["noisy"]
    for shift, relative in (([9, 9, 9, 9], True), ([0, 0, 0, 1], False)):
        moved = dataclasses.replace(stream, frame=stream.frame + jnp.array(shift, jnp.int32))
        after = made.forward(streams={"noisy": moved})[0]["noisy"]
        assert (np.abs(after - before).max() < 1e-4) == relative
    swapped = dataclasses.replace(stream, x=jnp.roll(stream.x, 2, axis=3))
    after = jnp.roll(made.forward(streams={"noisy": swapped})[0]["noisy"], -2, axis=3)
    assert np.abs(after - before).max() > 1e-3


def test_data_without_space_have_attention_along_time_alone(assembled):
    made = assembled({"noisy": np.arange(4)}, CAUSAL, **PLAIN | dict(space=(), patch=(1,)))
    assert jax.eval_shape(lambda: made.forward(compiled=False))[0]["noisy"].shape == (2, 4, 2)

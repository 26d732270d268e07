"""Attention: the reference against a plain softmax, the past and the own tokens, and how q and k are normed.

Other backends are compared with the reference in attention_backends/.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.cache import store
from causal_diffusion.nn.attention import CrossAttention, RMSNorm, Segment, SelfAttention, Visibility, slots
from causal_diffusion.nn.attention_backends import BACKENDS
from causal_diffusion.nn.rope import rotary_table, rotate

B, T, W, N, H, K = 2, 3, 4, 2, 2, 6
D = H * K
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def plain(q, k, v, mask):
    """softmax(q k / sqrt(K)) v over all tokens, in float64 and one query at a time. mask by frame, [B, T, S]."""
    out = np.zeros(q.shape)
    for b, t, n, h in np.ndindex(q.shape[:-1]):
        seen = np.flatnonzero(mask[b, t])
        keys, values = (a[b, seen, :, h].reshape(-1, K).astype(np.float64) for a in (k, v))
        score = keys @ q[b, t, n, h] / np.sqrt(K)
        weight = np.exp(score - score.max())
        out[b, t, n, h] = weight / weight.sum() @ values
    return out


@pytest.fixture(scope="module")
def backend():
    return jax.jit(BACKENDS["reference"])


def problem():
    q, k, v = normal(B, T, N, H, K), normal(B, W + T, N, H, K), normal(B, W + T, N, H, K)
    mask = rng.random((B, T, W + T)) < 0.5
    mask[:, :, W:] |= np.eye(T, dtype=bool)
    return q, k, v, mask


def test_attention_equals_a_plain_softmax(backend):
    q, k, v, mask = problem()
    np.testing.assert_allclose(backend(q, [k], [v], mask), plain(q, k, v, mask), atol=2e-6)
    shared = backend(q, [k], [v], mask[0])  # one mask for all samples
    np.testing.assert_allclose(shared, plain(q, k, v, np.stack([mask[0]] * B)), atol=2e-6)


def test_the_past_and_the_own_tokens_may_come_apart(backend):
    q, k, v, mask = problem()
    whole = backend(q, [k], [v], mask)
    apart = backend(q, [k[:, :W], k[:, W:]], [v[:, :W], v[:, W:]], mask)
    np.testing.assert_allclose(apart, whole, atol=1e-6)


def test_frames_of_keys_may_have_other_numbers_of_tokens(backend):
    """Slots of 5 tokens, own frames of 2: as if every token were a frame of its own."""
    q, k, v, mask = problem()
    wide_k, wide_v = normal(2, B, W, 5, H, K)
    by_token = np.concatenate([mask[:, :, :W].repeat(5, axis=2), mask[:, :, W:].repeat(N, axis=2)], axis=2)
    keys, values = (
        np.concatenate([a.reshape(B, -1, 1, H, K), b[:, W:].reshape(B, -1, 1, H, K)], axis=1)
        for a, b in ((wide_k, k), (wide_v, v))
    )
    out = backend(q, [wide_k, k[:, W:]], [wide_v, v[:, W:]], mask)
    np.testing.assert_allclose(out, plain(q, keys, values, by_token), atol=2e-6)


def test_hidden_tokens_leave_no_trace(backend):
    """Whatever stands in a hidden slot, be it huge, the output keeps its bits."""
    q, k, v, mask = problem()
    mask[:, :, 1] = False
    before = backend(q, [k[:, :W], k[:, W:]], [v[:, :W], v[:, W:]], mask)
    k[:, 1], v[:, 1] = 1e20, -1e20
    np.testing.assert_array_equal(backend(q, [k[:, :W], k[:, W:]], [v[:, :W], v[:, W:]], mask), before)


def test_scores_are_computed_in_float32(backend):
    q, k, v, mask = problem()
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, v))
    out = backend(q, [k], [v], mask)
    assert out.dtype == jnp.bfloat16
    wide = plain(*(np.asarray(a, np.float32) for a in (q, k, v)), mask)
    np.testing.assert_allclose(np.asarray(out, np.float32), wide, atol=0.03)


def test_rms_norm_has_its_closed_form():
    x = 7 * normal(3, 5)
    scale = normal(5)
    expected = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(RMSNorm().apply({"params": {"scale": scale}}, x), expected, rtol=1e-5)


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def normed(params, name, x, form):
    """A projection, normed as ``form`` says, in plain numpy."""
    y = linear(params[name], x)
    if form == "full":
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6) * params[f"{name}_norm"]["scale"]
    y = y.reshape(*y.shape[:-1], H, K)
    if form == "head":
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6) * params[f"{name}_norm"]["scale"]
    return y


def random_params(module, *args, **kwargs):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))["params"]
    return jax.tree.map(lambda s: 0.4 * normal(*s.shape), shapes)


@pytest.mark.parametrize("form", ["full", "head", "none"])
def test_self_attention_with_each_norm_of_q_and_k(form):
    attention = SelfAttention(H, D, form, jnp.float32)
    x, past = normal(B, T, N, D), (normal(B, W, N, H, K), normal(B, W, N, H, K))
    table = rotary_table(jnp.arange(T)[None] + jnp.zeros((B, 1), int), (N,), K)
    _, _, _, mask = problem()
    segments = (Segment("fine", rotary=table),)
    params = random_params(attention, (x,), segments, Visibility(mask[:, :, W:]))
    assert {"full": D, "head": K, "none": None}[form] == (
        params["q_norm"]["scale"].size if "q_norm" in params else None
    )
    (out,), (own_k, own_v) = jax.jit(attention.apply)({"params": params}, (x,), segments, Visibility(mask), past)
    q, k = (np.asarray(rotate(normed(params, name, x, form), table)) for name in "qk")
    v = linear(params["v"], x).reshape(B, T, N, H, K)
    np.testing.assert_allclose(own_k, k, atol=1e-5)  # what goes to the cache: rotated, normed
    np.testing.assert_allclose(own_v, v, atol=1e-5)
    joined = (np.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True))
    expected = linear(params["o"], plain(q, *joined, mask).reshape(B, T, N, D))
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_slots_are_pairs_in_the_order_of_the_masks_columns():
    """The first pair's keys are turned, 8-bit numbers are read as numbers, and a third part is no pair."""
    k, v, far_k, far_v = normal(4, B, W, N, H, K)
    table = rotary_table(jnp.arange(W)[None], (N,), K)
    assert slots(None, table, jnp.float32) == slots((), table, jnp.float32) == ([], [])
    keys, values = slots((k, v, far_k, far_v), table, jnp.float32)
    for part, expected in zip([*keys, *values], [rotate(k, table), far_k, v, far_v], strict=True):
        np.testing.assert_array_equal(part, expected)
    keys, values = slots((store(k, "int8"), store(v, "int8"), far_k), None, jnp.float32)
    assert len(keys) == len(values) == 1
    for part, exact in ((keys[0], k), (values[0], v)):
        allowed = np.abs(exact).max(axis=-1, keepdims=True) / 254 * (1 + 1e-5)
        assert 0 < np.abs(part - exact).max() and (np.abs(part - exact) <= allowed).all()


@pytest.mark.parametrize("form", ["full", "none"])
def test_cross_attention_reads_the_tokens_of_its_own_block(form):
    """F blocks of T / F frames, each with M tokens of its own; without a single shown token, all are shown."""
    F, M = 3, 4
    attention = CrossAttention(H, D, form, jnp.float32)
    x, text = normal(B, 2 * F, N, D), normal(B, F, M, D)
    mask = rng.random((B, F, M)) < 0.6
    mask[:, :, 0] = True
    mask[1, 2] = False

    def run(module, x, text, mask):
        return module(x, module.keys_values(text), mask)

    params = random_params(attention, x, text, mask, method=run)
    out = jax.jit(lambda mask: attention.apply({"params": params}, x, text, mask, method=run))(mask)
    q, k = normed(params, "q", x, form), normed(params, "k", text, form)
    v = linear(params["v"], text).reshape(B, F, M, H, K)
    shown = mask | ~mask.any(axis=-1, keepdims=True)
    expected = np.zeros(q.shape)
    for f in range(F):
        frames = slice(2 * f, 2 * f + 2)
        each = shown[:, f, None].repeat(2, axis=1)  # a token of text is a "frame" of one token
        expected[:, frames] = plain(q[:, frames], k[:, f, :, None], v[:, f, :, None], each)
    np.testing.assert_allclose(out, linear(params["o"], expected.reshape(B, 2 * F, N, D)), atol=2e-5)
    whole = attention.apply({"params": params}, x, text, None, method=run)
    shown = attention.apply({"params": params}, x, text, np.ones_like(mask), method=run)
    np.testing.assert_array_equal(whole, shown)

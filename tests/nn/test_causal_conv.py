"""Causal convolutions against closed forms in NumPy, against each other, and in pieces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.causal_conv import (
    Carry,
    CausalConv,
    ChannelNorm,
    FrameConv,
    TimeDownsample,
    TimeUpsample,
    causal_conv,
    enlarge,
    frame_conv,
    interleave,
)


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def randomised(module, x, *arguments):
    """Parameters of a module, all of them away from zero."""
    leaves, tree = jax.tree.flatten(shapes_of(module, x, *arguments))
    return jax.tree.unflatten(tree, [normal(i, leaf.shape) for i, leaf in enumerate(leaves)])


def shapes_of(module, *arguments):
    return jax.eval_shape(nn.init(lambda module, *a: module(*a), module), jax.random.key(0), *arguments)


def written_out(x, kernel, bias, form):
    """One output frame, pixel and group of channels at a time: nothing shared with the code but the definition."""
    _, stride, dilation, apart, groups, edge = form
    k, *space, inputs, features = kernel.shape
    taps = (k - 1) * dilation
    start = taps if apart else taps + 1 - stride
    pads = ((0, 0), (start, 0), *((n // 2, n // 2) for n in space), (0, 0))
    padded = np.pad(x.astype(np.float64), pads, mode="edge" if edge else "constant")
    frames = (padded.shape[1] - taps - 1) // stride + 1
    y = np.zeros((x.shape[0], frames, *x.shape[2:-1], features))
    for t in range(frames):
        for pixel in np.ndindex(*x.shape[2:-1]):
            window = tuple(slice(at, at + n) for at, n in zip(pixel, space, strict=True))
            seen = padded[(slice(None), slice(t * stride, t * stride + taps + 1, dilation), *window)]
            for g in range(groups):
                ins = slice(g * inputs, (g + 1) * inputs)
                outs = slice(g * features // groups, (g + 1) * features // groups)
                part = seen[..., ins].reshape(len(x), -1) @ kernel[..., outs].reshape(-1, features // groups)
                y[(slice(None), t, *pixel, outs)] = part
    return y + bias


# kernel, stride, dilation, apart, groups, edge
FORMS = [
    ((3,), 1, 1, False, 1, False),
    ((3,), 1, 9, False, 1, False),
    ((4,), 2, 1, False, 1, False),
    ((4,), 2, 1, False, 2, True),
    ((4,), 2, 3, True, 1, False),
    ((1,), 1, 1, False, 4, False),
    ((3, 3, 3), 1, 1, False, 1, False),
    ((3, 3, 3), 1, 2, False, 2, True),
    ((3, 3, 3), 2, 1, True, 1, False),
    ((3, 3, 3), 2, 1, True, 1, True),
    ((2, 1, 3), 2, 1, False, 1, True),
    ((1, 3, 5), 1, 1, False, 1, True),
    ((3, 3, 3), 1, 1, False, 4, False),
    ((3, 3, 3), 1, 1, False, 4, True),
]


def conv_of(form, features=4):
    kernel, stride, dilation, apart, groups, edge = form
    return CausalConv(features, kernel, stride, dilation, apart, groups, edge)


def clip_of(form, groups, seed=1):
    kernel, stride, apart = form[0], form[1], form[3]
    space = (3, 4)[: len(kernel) - 1]
    return normal(seed, (2, stride * groups + (1 - stride if apart and stride > 1 else 0), *space, 4))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_convolution_is_what_its_definition_says(form):
    conv, x = conv_of(form), clip_of(form, 5)
    params = randomised(conv, x)
    y, state = conv.apply(params, x)
    expected = written_out(x, **params["params"], form=form)
    assert y.shape[1] == 5
    close(y, expected)
    if conv.history:
        kept = x[:, -conv.history :]
        np.testing.assert_array_equal(state[:, -kept.shape[1] :], kept)
        assert state.shape[1] == conv.history
    else:
        assert state == ()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_pieces_equal_the_whole(form):
    conv, x = conv_of(form), clip_of(form, 5)
    params = randomised(conv, x)
    whole, last = conv.apply(params, x)
    for plan in ((1, 1, 3), (4, 1)):
        at, state, out = 0, None, []
        for n in plan:
            frames = form[1] * n + (1 - form[1] if form[3] and not out else 0)
            y, state = conv.apply(params, x[:, at : at + frames], state)
            assert y.shape[1] == n and np.shape(state) == np.shape(last)
            at, out = at + frames, [*out, y]
        close(np.concatenate(out, axis=1), whole)
        np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize(
    "groups, stride, dilation, edge",
    [(1, 1, 1, False), (1, 2, 1, True), (1, 3, 2, False), (2, 1, 2, True), (2, 2, 1, False), (4, 3, 2, True)],
)
def test_taps_equal_the_volume(groups, stride, dilation, edge):
    """Values and gradients: on one backend the two forms are the same function. groups = 4: depth-wise."""
    x, kernel = normal(0, (2, 8 + (stride - 1) * 2, 4, 3, 4)), normal(1, (3, 3, 3, 4 // groups, 4))
    x = x[:, : (x.shape[1] - 2 * dilation - 1) // stride * stride + 2 * dilation + 1]

    def run(form):
        def loss(x, kernel):
            y = causal_conv(x, kernel, stride, dilation, groups, edge, form)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)

    for taps, volume in zip(jax.tree.leaves(run("taps")), jax.tree.leaves(run("volume")), strict=True):
        close(taps, volume)


def test_depthwise_equals_the_grouped_convolution():
    x, kernel = normal(0, (2, 3, 5, 6, 7)), normal(1, (3, 3, 1, 7))
    expected = jax.lax.conv_general_dilated(
        x.reshape(6, 5, 6, 7), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=7
    )
    close(frame_conv(x, kernel, groups=7), expected.reshape(x.shape))


@pytest.mark.parametrize("form", [f for f in FORMS if f[0][0] > 1 and f[2] == 1 and f[4] == 1], ids=str)
def test_no_output_sees_a_later_frame(form):
    conv, x = conv_of(form), clip_of(form, 4)
    params = randomised(conv, x)
    y = conv.apply(params, x)[0]
    first = 1 if form[3] else form[1]
    for t in range(x.shape[1]):
        group = 0 if t < first else (t - first) // form[1] + 1
        changed = x.copy()
        changed[:, t] += 1.0
        other = conv.apply(params, changed)[0]
        np.testing.assert_array_equal(other[:, :group], y[:, :group])
        assert np.abs(other - y)[:, group:].max() > 1e-3


def test_a_gap_between_strides_is_refused():
    with pytest.raises(ValueError, match="misses frames between strides of 3: 3 taps would do"):
        shapes_of(CausalConv(2, (2,), 3), jnp.zeros((1, 6, 2)))


def test_frames_that_are_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="7 frames, history included, are not a whole number of groups"):
        shapes_of(CausalConv(2, (4,), 2), jnp.zeros((1, 5, 2)))
    with pytest.raises(ValueError, match="odd in space, not"):
        shapes_of(CausalConv(2, (3, 2, 3)), jnp.zeros((1, 5, 4, 4, 2)))


def test_a_frame_convolution_pads_where_it_is_told():
    """Wan's downsampling: a row and a column of zeros after the frame, none before it."""
    x = normal(0, (1, 2, 4, 6, 3))
    conv = FrameConv(2, stride=2, pads=((0, 1), (0, 1)))
    params = randomised(conv, x)
    kernel, padded = params["params"]["kernel"], np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    expected = np.zeros((1, 2, 2, 3, 2))
    for i, j in np.ndindex(2, 3):
        window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, :, i, j] = np.einsum("bthwc,hwcf->btf", window, kernel) + params["params"]["bias"]
    close(conv.apply(params, x), expected)


def test_a_norm_sees_the_channels_of_one_position_only():
    x = normal(0, (2, 3, 4, 5))
    x[0, 0, 0] = 0.0
    params = randomised(ChannelNorm(), x)
    y = ChannelNorm().apply(params, x)
    length = np.maximum(np.sqrt((x.astype(np.float64) ** 2).sum(axis=-1, keepdims=True)), 1e-12)
    close(y, x / length * np.sqrt(5) * params["params"]["scale"])
    gradient = jax.grad(lambda x: ChannelNorm().apply(params, x).sum())(x)
    assert np.isfinite(gradient).all()
    assert ChannelNorm().apply(params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_interleave_puts_the_first_half_of_the_channels_first():
    x = jnp.arange(12.0).reshape(1, 2, 1, 6)  # frame 0: channels 0..5, frame 1: 6..11
    expected = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    np.testing.assert_array_equal(interleave(x, 2)[0, :, 0], expected)
    np.testing.assert_array_equal(interleave(x, 3)[0, :, 0], np.arange(12).reshape(6, 2))


def test_enlarge_repeats_pixels_and_nothing_else():
    x = normal(0, (1, 2, 2, 3, 1))
    expected = np.kron(x[0, :, :, :, 0], np.ones((1, 2, 2)))
    np.testing.assert_array_equal(enlarge(x)[0, ..., 0], expected)


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_time_is_halved_but_for_the_first_frame(frames):
    x = normal(0, (2, frames, 2, 2, 3))
    down = TimeDownsample()
    params = randomised(down, x)
    y, state = down.apply(params, x)
    kernel, bias = params["params"]["conv"]["kernel"][:, 0, 0], params["params"]["conv"]["bias"]
    pairs = [
        np.einsum("bkhwc,kcf->bhwf", x[:, t : t + 3], kernel) + bias for t in range(0, frames - 2, 2)
    ]  # fmt: skip
    close(y, np.stack([x[:, 0], *pairs], axis=1))
    np.testing.assert_array_equal(state, x[:, -1:])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_time_is_doubled_but_for_the_first_frame(frames):
    """The convolution does not see the first frame: two frames of zeros stand before the second."""
    x = normal(0, (2, frames, 2, 2, 3))
    up = TimeUpsample()
    params = randomised(up, x)
    y, state = up.apply(params, x)
    kernel, bias = params["params"]["conv"]["kernel"][:, 0, 0], params["params"]["conv"]["bias"]
    padded = np.concatenate([np.zeros_like(x[:, :1]), np.zeros_like(x[:, :1]), x[:, 1:]], axis=1)
    out = [x[:, 0]]
    for t in range(frames - 1):
        both = np.einsum("bkhwc,kcf->bhwf", padded[:, t : t + 3], kernel) + bias
        out += [both[..., :3], both[..., 3:]]
    close(y, np.stack(out, axis=1))
    np.testing.assert_array_equal(state, padded[:, -2:])


@pytest.mark.parametrize("module, factor", [(TimeDownsample(), 2), (TimeUpsample(), 1)])
@pytest.mark.parametrize("plan", [(1, 1, 1), (1, 2), (2, 1), (3,)])
def test_resampled_pieces_equal_the_whole(module, factor, plan):
    """In pieces of n groups; a group is a pair of frames downwards and one frame upwards."""
    x = normal(0, (2, 1 + factor * (sum(plan) - 1), 2, 2, 3))
    params = randomised(module, x)
    whole, last = module.apply(params, x)
    at, state, out = 0, None, []
    for n in plan:
        frames = factor * n + (0 if out else 1 - factor)
        y, state = module.apply(params, x[:, at : at + frames], state)
        at, out = at + frames, [*out, y]
    close(np.concatenate(out, axis=1), whole)
    np.testing.assert_array_equal(state, last)


@pytest.mark.parametrize("module", [TimeDownsample(), TimeUpsample()])
def test_one_frame_makes_the_parameters_that_a_clip_makes(module):
    """An image is a clip, to begin with too."""
    one, many = (shapes_of(module, jnp.zeros((1, n, 2, 2, 3))) for n in (1, 5))
    assert one == many


def test_states_are_threaded_by_name():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, state=None):
            carry = Carry(state)
            x = carry(CausalConv(3, (3,), name="long"), x)
            return carry(CausalConv(2, (1,), name="short"), x), carry.state

    x = normal(0, (1, 6, 4))
    params = randomised(Two(), x)
    whole, state = Two().apply(params, x)
    assert set(state) == {"long", "short"} and state["long"].shape == (1, 2, 4) and state["short"] == ()
    first, state = Two().apply(params, x[:, :4])
    second, _ = Two().apply(params, x[:, 4:], state)
    close(np.concatenate([first, second], axis=1), whole)
    with pytest.raises(KeyError, match="short"):
        Two().apply(params, x[:, 4:], {"long": state["long"]})

"""The patch discriminator: a logit per patch and group, causal, piece by piece as at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.nn.autoencoder import Geometry
from causal_diffusion.nn.discriminator import Discriminator

GROUPS = 3
CASES = {
    "video": (Discriminator(4, (2, 2)), (8, 12, 3)),
    "video, no stride": (Discriminator(4, (1, 1)), (9, 8, 1)),
    "motion": (Discriminator(4, (2, 2), apart=False, axes=0), (5,)),
    "motion, odd stride": (Discriminator(4, (3, 1), apart=False, axes=0), (5,)),
}


def filled(d, x):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(d.init, jax.random.key(0), x)["params"]
    return jax.tree_util.tree_map_with_path(
        lambda path, s: jnp.asarray(0.3 * rng.normal(size=s.shape) + (path[-1].key == "scale"), jnp.float32), shapes
    )


class Case:
    """A small discriminator, a clip of ``GROUPS`` groups, and its logits."""

    def __init__(self, name):
        self.d, shape = CASES[name]
        stride = int(np.prod(self.d.time))
        self.geometry = Geometry(stride, self.d.apart, 1, self.d.axes, shape[-1], 1)
        clip = (2, self.geometry.frames(GROUPS), *shape)
        self.x = jnp.asarray(np.random.default_rng(1).normal(size=clip), jnp.float32)
        params = filled(self.d, self.x)
        self.apply = jax.jit(lambda x: self.d.apply({"params": params}, x))
        self.score = jax.jit(lambda x, state: self.d.apply({"params": params}, x, state, method="score"))
        self.logits = self.apply(self.x)

    def frames(self, group):
        return slice(self.geometry.frames(group), self.geometry.frames(group + 1))


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return Case(request.param)


def test_a_logit_per_patch_and_group(case):
    space = tuple(size // 2 ** len(case.d.time) for size in case.x.shape[2:-1])
    assert case.logits.shape == (2, GROUPS, *space) and case.logits.dtype == jnp.float32
    assert np.std(case.logits) > 1e-2


def test_no_logit_sees_a_later_group(case):
    """d(group i)/d(group j) is exactly zero for j > i, and is not for j = i."""
    y, pull = jax.vjp(case.apply, case.x)
    pull = jax.jit(pull)
    ones = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
    for i in range(GROUPS):
        only = np.zeros_like(ones)
        only[:, i] = ones[:, i]
        (gradient,) = pull(jnp.asarray(only))
        for j in range(GROUPS):
            largest = np.abs(gradient[:, case.frames(j)]).max()
            assert largest == 0.0 if j > i else largest > 0.0 if j == i else True


def test_pieces_equal_the_whole(case):
    state, logits = None, []
    for group in range(GROUPS):
        y, state = case.score(case.x[:, case.frames(group)], state)
        logits.append(y)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), case.logits, atol=1e-5)


def test_the_first_frame_of_a_clip_is_scored_as_an_image_and_samples_apart(case):
    """One frame, or one group, of one sample: the same logits as among others."""
    first = case.apply(case.x[:1, case.frames(0)])
    np.testing.assert_allclose(first, case.logits[:1, :1], atol=1e-5)


def test_a_patch_sees_its_own_neighbourhood_only():
    """Two levels see 10 pixels and the head 3 patches of 4: 18 pixels across, centred."""
    d = Discriminator(4, (1, 1))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 32, 32, 1)), jnp.float32)
    params = filled(d, x)
    gradient = jax.jit(jax.grad(lambda x: d.apply({"params": params}, x)[0, 0, 4, 4]))(x)
    seen = np.flatnonzero(np.abs(gradient[0, 0, :, :, 0]).max(axis=1))
    assert (seen[0], seen[-1]) == (9, 26)


def test_it_fits_the_clips_of_an_autoencoder():
    for time, depth, want in ((4, 3, (2, 2, 1)), (1, 2, (1, 1)), (3, 2, (3, 1)), (8, 2, (2, 4)), (6, 3, (2, 3, 1))):
        for apart, axes in ((True, 2), (False, 0)):
            geometry = Geometry(time, apart, 8, axes, 3, 16)
            d = Discriminator.of(geometry, width=2, depth=depth)
            assert d.time == want
            x = jax.ShapeDtypeStruct((1, geometry.frames(2), *(8,) * axes, 3), jnp.float32)
            logits, _ = jax.eval_shape(lambda x, d=d: d.init_with_output(jax.random.key(0), x), x)
            assert logits.shape == (1, 2, *(8 // 2**depth,) * axes)


def test_widths_double_up_to_eight_times():
    shapes = jax.eval_shape(Discriminator(2, (1,) * 5).init, jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))["params"]
    assert [shapes[f"time_{i}"]["bias"].shape[0] for i in range(5)] == [2, 4, 8, 16, 16]
    assert "frames_norm_0" not in shapes and "frames_norm_1" in shapes


@pytest.mark.parametrize("d, shape, words", [
    (Discriminator(4, (2, 2)), (1, 4, 8, 8, 3), "4 frames .* 1 or 5 would do"),
    (Discriminator(4, (2, 2), apart=False, axes=0), (1, 6, 3), "6 frames .* 4 or 8 would do"),
    (Discriminator(4, (2, 2)), (1, 5, 8, 3), r"scores \[B, T, H, W, C\], not \(1, 5, 8, 3\)"),
    (Discriminator(4, (2, 2), axes=0), (1, 5, 8, 8, 3), r"scores \[B, T, C\]"),
    (Discriminator(4, (1, 1, 1)), (1, 1, 8, 7, 3), "8 x 7 pixels .* 8 x 8 pixels or more"),
    (Discriminator(4, ()), (1, 1, 8, 8, 3), r"strides in time \(\) .* \(2, 2, 1\)"),
    (Discriminator(4, (2, 0)), (1, 1, 8, 8, 3), r"strides in time \(2, 0\)"),
    (Discriminator(0, (2,)), (1, 1, 8, 8, 3), "width 0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(d, shape, words):
    with pytest.raises(UserError, match=words) as caught:
        d.init(jax.random.key(0), jnp.zeros(shape))
    assert "\n" not in str(caught.value)

"""Clips that are padded: what pads them is neither scored nor seen, whatever it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn.autoencoder import Geometry
from causal_diffusion.training.objectives.diffusion import diffusion_loss
from tests.training.objectives.looking import B, T, batch_of, look, recipe_of

BARE = dict(classes=0, action=0, text=0)
FRAMES = 6  # of a clip
SYSTEMS = {
    "a frame per block": dict(layout=dict(kind="block_causal"), data=dict(frames=FRAMES)),
    "two frames per block and a noised past": dict(
        layout=dict(block=2), data=dict(frames=FRAMES), levels=dict(context=0.3)
    ),
    "a staircase that sees itself": dict(
        layout=dict(kind="bidirectional_window"), data=dict(frames=FRAMES),
        levels=dict(kind="staircase", in_flight=3), schedule=dict(offset="rolling", in_flight=3, steps=3),
    ),
}  # fmt: skip
LENGTH = np.array([6, 3, 4, 5, 2, 4], np.int32)
KEY = 7


class System:
    """A small network with no parameter at zero, its loss with all gradients, and a batch."""

    def __init__(self, name):
        self.recipe = recipe = recipe_of(model=BARE, **SYSTEMS[name])
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(recipe.init_params, jax.random.key(0))
        self.params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), shapes)
        self.batch = batch_of(frames=FRAMES)
        self.whole = LENGTH // recipe.layout.block * recipe.layout.block

        @jax.jit
        def look(params, video, batch):
            def loss(params, video):
                return diffusion_loss(recipe, params, batch | {"video": video}, jax.random.key(KEY))

            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, video)

        self.look = look

    def loss(self, video=None, length=None):
        """((loss, metrics), (gradients of the parameters, of the video))."""
        batch = {name: self.batch[name] for name in ("video", "index")}
        batch |= {} if length is None else {"length": length}
        return self.look(self.params, batch["video"] if video is None else video, batch)


@pytest.fixture(
    scope="module", params=[n if "staircase" not in n else pytest.param(n, marks=pytest.mark.full) for n in SYSTEMS]
)
def system(request):
    return System(request.param)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_pads_a_clip_changes_neither_loss_nor_gradients(system):
    """Bit for bit, and the derivative by it is zero; a block that is padded in part counts as padding."""
    padding = np.arange(FRAMES) >= system.whole[:, None]
    got = system.loss(length=LENGTH)
    (loss, metrics), (_, by_video) = got
    by_frame = np.abs(by_video).sum(axis=(2, 3, 4))
    assert (by_frame[padding] == 0.0).all() and np.isfinite(loss)
    assert (by_frame[:, 0] > 0).any()
    other = np.where(padding[..., None, None, None], 50.0, system.batch["video"]).astype(np.float32)
    again = system.loss(other, LENGTH)
    equal(again[0][0], got[0][0])
    equal(again[1][0], got[1][0])
    equal(metrics["loss_by_frame"], again[0][1]["loss_by_frame"])
    seen = np.where(padding[..., None, None, None], system.batch["video"], 50.0).astype(np.float32)
    assert system.loss(seen, LENGTH)[0][0] != loss


def test_a_batch_of_whole_clips_has_the_loss_without_lengths(system):
    """Bit for bit where the same operations are run one by one, and compiled but for the order of sums."""
    whole = np.full(B, FRAMES, np.int32)
    batch = {name: system.batch[name] for name in ("video", "index")}
    for a, b in zip(look(system.recipe, batch | {"length": whole})[-2:], look(system.recipe, batch)[-2:], strict=True):
        equal(a, b)
    got, plain = (jax.tree.leaves(system.loss(length=length)) for length in (whole, None))
    for a, b in zip(got, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(b).max()))


def test_frames_fill_whole_latents():
    for apart in (False, True):
        geometry = Geometry(time=4, apart=apart, space=1, axes=0, channels=3, latent=2)
        frames = np.arange(1, 30)
        filled = [max(n for n in range(9) if geometry.frames(n) <= f) for f in frames]
        np.testing.assert_array_equal(geometry.whole_latents(frames), filled)


def test_a_padded_clip_has_the_loss_of_the_short_one():
    """Levels and noise of the first frames do not depend on how many follow."""
    recipe, batch = recipe_of(model=BARE, layout=dict(kind="block_causal")), batch_of()
    params = jax.eval_shape(recipe.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), params)
    short = recipe_of(model=BARE, layout=dict(kind="block_causal"), data=dict(frames=T - 1))

    @jax.jit
    def both(params):
        index = {"index": batch["index"]}
        padded = index | {"video": batch["video"], "length": np.full(B, T - 1, np.int32)}
        alone = index | {"video": batch["video"][:, : T - 1]}
        return [diffusion_loss(r, params, b, jax.random.key(KEY)) for r, b in ((recipe, padded), (short, alone))]

    (a, of_padded), (b, of_short) = both(params)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(of_padded["loss_by_frame"][:-1], of_short["loss_by_frame"], rtol=1e-5)
    assert of_padded["loss_by_frame"][-1] == 0.0

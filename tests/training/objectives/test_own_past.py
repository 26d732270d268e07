"""The two forwards: a share of the past is what the network itself makes of it, and no gradient runs through that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.run_config import TrainConfig
from causal_diffusion.training.objectives.diffusion import _share, diffusion_loss
from causal_diffusion.training.step import held_out_loss
from tests.training.objectives.looking import SOME, B, Network, T, batch_of, recipe_of

X0 = dict(predict="x0")
STEPS = 100


def two(first, last, predict=X0, **sections):
    train = dict(own_past=(first, last), steps=STEPS, drop=0.0)
    return recipe_of(process=predict, train=train, **sections)


class Twice(Network):
    """The guess of frame f of clip i is 10 i + f in all its numbers; notes the clean stream of every call."""

    def __init__(self, recipe):
        super().__init__(recipe, lambda name, s: 10.0 * jnp.arange(s.x.shape[0])[:, None, None, None, None]
                         + s.frame[..., None, None, None] + 0.0 * s.x)  # fmt: skip
        self.clean = []

    def apply(self, variables, streams, condition, mask, prefix_mask=None):
        self.clean.append(streams["clean"].x)
        return super().apply(variables, streams, condition, mask, prefix_mask)


def clean_streams(recipe, batch, step, key=7):
    """The clean stream of each forward."""
    network = Twice(recipe)

    @jax.jit
    def run(batch):
        diffusion_loss(recipe._replace(model=network), {}, batch, jax.random.key(key), step)
        return network.clean

    return [np.asarray(clean) for clean in run(batch)]


@pytest.mark.parametrize("context", [0.0, 0.3])
def test_a_share_of_the_past_is_replaced_by_guesses(context):
    """Of each frame all or nothing, by (key, index) alone; a past that is noised is so whoever made it."""
    batch = batch_of(SOME)
    recipe = two(0.5, 0.5, levels=dict(context=context))
    plain, mixed = clean_streams(recipe, batch, 10)
    whole = clean_streams(two(1.0, 1.0, levels=dict(context=context)), batch, 10)[1]
    own = np.isclose(mixed, whole).all(axis=(2, 3, 4))
    np.testing.assert_allclose(np.where(own[..., None, None, None], whole, plain), mixed, rtol=1e-5, atol=1e-5)
    assert abs(own.mean() - 0.5) < 4 * 0.5 / np.sqrt(own.size) and own.shape == (SOME, T - 1)
    some = {name: value[5:9] for name, value in batch.items()}
    again = clean_streams(recipe, some, 10)[1]
    own_again = ~np.isclose(again, plain[5:9]).all(axis=(2, 3, 4))
    np.testing.assert_array_equal(own_again, own[5:9])
    if not context:
        guess = 10.0 * np.arange(SOME)[:, None] + np.arange(T - 1)
        np.testing.assert_array_equal(whole[..., 0, 0, 0], guess)
        np.testing.assert_array_equal(plain, batch["video"][:, :-1])


def test_the_share_goes_from_the_first_to_the_last_value_on_half_a_cosine():
    train = TrainConfig(own_past=(1.0, 0.2), steps=STEPS)
    got = [float(_share(train, step)) for step in (0, 25, 50, 75, 100, 400)]
    wanted = [0.2 + 0.8 * 0.5 * (1 + np.cos(np.pi * f)) for f in (0, 0.25, 0.5, 0.75, 1, 1)]
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    for bad in ((0.5,), (0.0, 1.5), (-0.1, 0.5), (0.0, 0.5, 1.0)):
        with pytest.raises(ValueError, match=r"train.own_past is .*, try train.own_past = \("):
            TrainConfig(own_past=bad)


@pytest.fixture(scope="module")
def real():
    """A network with no parameter at zero: (params, batch, f), f of a recipe's share: loss and all gradients."""
    bare = dict(classes=0, action=0, text=0)
    make = {share: two(share, share, model=bare, layout=dict(block=2)) for share in (0.0, 1.0)}
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(make[0.0].init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), shapes)
    batch = {name: batch_of()[name] for name in ("video", "index")}

    def f(recipe, step):
        def loss(params, video):
            return diffusion_loss(recipe, params, batch | {"video": video}, jax.random.key(7), step)[0]

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, batch["video"])

    return make, params, batch, f


def test_without_a_share_it_is_the_plain_loss_bit_for_bit(real):
    make, _, _, f = real
    plain, none = f(make[0.0], None), f(make[0.0], 3)
    jax.tree.map(np.testing.assert_array_equal, plain, none)
    assert f(make[1.0], 3)[0] != plain[0]


def test_of_guesses_alone_the_data_are_scored_but_never_seen_as_a_past(real):
    """The derivative by a frame is that of its own block's loss: with the guesses held, nothing else changes."""
    make, params, batch, f = real
    recipe, network, clean = make[1.0], make[1.0].model, []

    class Kept(Network):
        def apply(self, variables, streams, condition, mask, prefix_mask=None):
            clean.append(streams["clean"].x)
            return network.apply(variables, streams, condition, mask, prefix_mask=prefix_mask)

    @jax.jit
    def guess(params, batch):
        diffusion_loss(recipe._replace(model=Kept(recipe)), params, batch, jax.random.key(7), 3)
        return clean[1]

    guesses = guess(params, batch)

    class Held(Network):
        """One forward, in which the past is what was guessed before."""

        def apply(self, variables, streams, condition, mask, prefix_mask=None):
            streams = streams | {"clean": dataclasses.replace(streams["clean"], x=guesses)}
            return network.apply(variables, streams, condition, mask, prefix_mask=prefix_mask)

    def held(params, video):
        model = Held(recipe)
        return diffusion_loss(recipe._replace(model=model), params, batch | {"video": video}, jax.random.key(7))[0]

    loss, (by_params, by_video) = jax.jit(jax.value_and_grad(held, argnums=(0, 1)))(params, batch["video"])
    got, (own_params, own_video) = f(recipe, 3)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    largest = max(float(np.abs(a).max()) for a in jax.tree.leaves(by_params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), own_params, by_params)
    np.testing.assert_allclose(own_video, by_video, atol=1e-5 * float(np.abs(by_video).max()))
    assert np.abs(own_video).max() > 1e-4


def test_held_out_clips_are_measured_with_their_own_past(real):
    make, params, batch, f = real
    own, plain = (held_out_loss(recipe, params, batch["video"], {}) for recipe in (make[1.0], make[0.0]))
    assert own == plain and own > 0 and len(batch["video"]) == B

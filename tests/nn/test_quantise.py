"""Quantisers against their closed forms: codes and back, gradients, entropies."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.nn import quantise
from causal_diffusion.nn.quantise import Quantiser, bit_entropy, check, mean_entropy, sphere

vq, lfq, fsq = jax.jit(quantise.vq), jax.jit(quantise.lfq), jax.jit(quantise.fsq, static_argnums=1)
vq_vectors = jax.jit(quantise.vq_vectors)
lfq_vectors, fsq_vectors = (jax.jit(f, static_argnums=1) for f in (quantise.lfq_vectors, quantise.fsq_vectors))
rng = np.random.default_rng(0)
Z = rng.normal(size=(3, 4, 5)).astype(np.float32)
BOOK = rng.normal(size=(11, 5)).astype(np.float32)
LEVELS = (2, 3, 4, 5, 7)
FORMS = {
    "vq": (lambda z: vq(z, BOOK), lambda codes: vq_vectors(codes, BOOK), 11),
    "lfq": (lfq, lambda codes: lfq_vectors(codes, 5), 2**5),
    "fsq": (lambda z: fsq(z, LEVELS), lambda codes: fsq_vectors(codes, LEVELS), 2 * 3 * 4 * 5 * 7),
}


@pytest.mark.parametrize("form", FORMS)
def test_codes_and_back(form):
    """Every code has a vector of its own, and z becomes that of its code."""
    make, vectors, count = FORMS[form]
    z, codes, loss = make(Z)
    assert codes.shape == Z.shape[:-1] and codes.dtype == jnp.int32 and z.shape == Z.shape and loss.shape == ()
    np.testing.assert_allclose(z, vectors(codes), atol=1e-6)
    assert len(np.unique(vectors(jnp.arange(count)), axis=0)) == count
    assert int(codes.min()) >= 0 and int(codes.max()) < count and len(np.unique(codes)) > 3


@pytest.mark.parametrize("form", FORMS)
def test_the_vectors_of_codes_are_quantised_to_themselves(form):
    make, vectors, count = FORMS[form]
    every = vectors(jnp.arange(count))
    z, codes, _ = make(_before_fsq(every) if form == "fsq" else every)
    np.testing.assert_array_equal(codes, np.arange(count))
    np.testing.assert_allclose(z, every, atol=1e-6)


def _before_fsq(vectors):
    """z of which equation (4) makes whole numbers, or nearly so at the ends."""
    levels = np.array(LEVELS)
    reach, offset = (levels - 1) / 2 + 1e-3, (levels + 1) % 2 / 2
    return np.arctanh((vectors * (levels // 2) + offset) / reach) - np.arctanh(offset / reach)


def test_gradients_pass_straight_through():
    pull = rng.normal(size=Z.shape).astype(np.float32)

    def gradient(f):
        return jax.grad(lambda z: jnp.sum(pull * f(z)))(Z)

    np.testing.assert_array_equal(gradient(lambda z: lfq(z).z), pull)
    np.testing.assert_allclose(gradient(lambda z: vq(z, BOOK).z), gradient(sphere), rtol=1e-5)
    levels = np.array(LEVELS)
    reach, offset = (levels - 1) / 2 + 1e-3, (levels + 1) % 2 / 2
    slope = reach * (1 - np.tanh(Z + np.arctanh(offset / reach)) ** 2) / (levels // 2)
    np.testing.assert_allclose(gradient(lambda z: fsq(z, LEVELS).z), pull * slope, rtol=1e-4, atol=1e-6)


def test_fsq_has_as_many_codes_as_the_product_of_its_levels():
    axis = np.linspace(-9, 9, 61)
    for levels in ((2,), (3,), (8,), (2, 5), (8, 5)):
        grid = np.stack(np.meshgrid(*[axis] * len(levels)), axis=-1)
        z, codes, loss = fsq(grid, levels)
        assert set(np.unique(codes)) == set(range(np.prod(levels))) and float(loss) == 0.0
        assert float(jnp.abs(z).max()) == 1.0
        np.testing.assert_array_equal(fsq(np.zeros(len(levels)), levels).z, 0.0)


def test_the_first_channel_counts_least():
    np.testing.assert_array_equal(lfq_vectors(np.array([1, 6]), 3), [[1, -1, -1], [-1, 1, 1]])
    np.testing.assert_allclose(fsq_vectors(np.array([0, 1, 5]), (5, 3)), [[-1, -1], [-0.5, -1], [-1, 0]])
    assert int(lfq(np.array([2.0, -1.0, 0.1])).codes) == 5 and int(fsq(np.array([9.0, 0.0]), (5, 3)).codes) == 9


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_entropies_are_those_of_the_soft_assignment(channels):
    """Against the softmax over all codes of -|z - c|^2 / T."""
    z, temperature = rng.normal(size=(7, channels)), 1.7
    codes = np.asarray(lfq_vectors(np.arange(2**channels), channels))
    score = -np.sum((z[:, None] - codes) ** 2, axis=-1) / temperature
    p = np.exp(score - score.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    logits = jnp.asarray(4 * z / temperature, jnp.float32)
    each, mean = -np.sum(p * np.log(p), axis=1), p.mean(axis=0)
    np.testing.assert_allclose(bit_entropy(logits), each, rtol=1e-4)
    whole = -np.sum(mean * np.log(mean))
    np.testing.assert_allclose(mean_entropy(logits), whole, rtol=1e-4)
    commit = np.mean((z - np.where(z > 0, 1, -1)) ** 2)
    loss = lfq(z, entropy=0.3, commitment=0.7, diversity=2.0, temperature=temperature).loss
    np.testing.assert_allclose(loss, 0.3 * (each.mean() - 2 * whole) + 0.7 * commit, rtol=1e-4)


def test_lfq_at_its_extremes():
    """Undecided latents cost D ln 2 per vector; certain ones the entropy of how often each code is used."""
    log2 = np.log(2)
    np.testing.assert_allclose(lfq(np.zeros((6, 4))).loss, 0.1 * (1 - 2.5) * 4 * log2 + 1.0, rtol=1e-5)
    certain = 50.0 * np.array([[1, 1], [1, 1], [1, -1], [-1, -1]])
    np.testing.assert_allclose(lfq(certain, commitment=0.0).loss, -0.1 * 2.5 * 1.5 * log2, rtol=1e-5)


def test_vq_takes_the_vector_of_the_least_angle():
    unit = BOOK / np.linalg.norm(BOOK, axis=1, keepdims=True)
    z, codes, _ = vq(Z, BOOK)
    np.testing.assert_array_equal(codes, np.argmax(Z @ unit.T, axis=-1))
    np.testing.assert_allclose(jnp.sum(z**2, axis=-1), 5.0, rtol=1e-5)
    longer = vq(7.0 * Z, 3.0 * BOOK)
    np.testing.assert_array_equal(longer.codes, codes)
    np.testing.assert_allclose(longer.z, z, atol=1e-5)


def test_vq_loss_is_that_of_the_angle():
    """|u - e|^2 / D = 2 (1 - cos), once for the codebook and b times for z."""
    angle = 0.3
    z, book = np.array([[np.cos(angle), np.sin(angle)]]), np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(vq(z, book, 0.25).loss, 1.25 * 2 * (1 - np.cos(angle)), rtol=1e-5)


def test_each_side_of_vq_learns_by_its_own_term():
    loss = jax.jit(lambda z, book, commitment: vq(z, book, commitment).loss)
    both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    to_z, to_book = both(Z, BOOK, 0.0)
    assert float(jnp.abs(to_z).max()) == 0.0
    used = np.unique(vq(Z, BOOK).codes)
    moved = np.flatnonzero(np.abs(to_book).max(axis=1))
    assert set(moved) <= set(used) and len(moved) > 3
    np.testing.assert_array_equal(both(Z, BOOK, 5.0)[1], to_book)
    np.testing.assert_allclose(both(Z, BOOK, 2.0)[0], 2 * np.asarray(both(Z, BOOK, 1.0)[0]), atol=1e-6)
    book = BOOK
    for _ in range(20):
        book = book - 5.0 * np.asarray(both(Z, book, 0.25)[1])
    assert float(loss(Z, book, 0.25)) < 0.8 * float(loss(Z, BOOK, 0.25))


def test_zero_is_quantised_without_nan():
    for make, _, _ in FORMS.values():
        gradient = jax.grad(lambda z, f=make: jnp.sum(f(z).z) + f(z).loss)
        assert np.isfinite(gradient(np.zeros((3, 4, 5), np.float32))).all()


@pytest.mark.parametrize("kind, sizes, count", [
    ("vq", dict(codes=6), 6), ("lfq", {}, 16), ("fsq", dict(levels=(3, 2, 2, 2)), 24),
])  # fmt: skip
def test_the_module_is_its_function(kind, sizes, count):
    module, z = Quantiser(kind, 4, **sizes), Z[..., :4]
    params = module.init(jax.random.key(0), z)
    assert [a.shape for a in jax.tree.leaves(params)] == ([(6, 4)] if kind == "vq" else [])
    out = module.apply(params, z)
    np.testing.assert_allclose(module.apply(params, out.codes, method="vectors"), out.z, atol=1e-6)
    assert int(out.codes.max()) < count


@pytest.mark.parametrize("given, message", [
    (("pq", 4, 8, ()), "x.quantise is 'pq'; it is one of none, vq, lfq, fsq, 'none' would do"),
    (("vq", 4, 1, ()), "x.codes is 1; vq has at least 2 vectors"),
    (("lfq", 16, 8192, ()), "x.latent is 16 and x.codes is 8192: lfq has one bit per channel, x.latent = 13 and "
                            "x.codes = 8192 would do"),
    (("fsq", 4, 0, (8, 5)), "x.latent is 4 and x.levels is (8, 5): fsq has one number of levels per channel, "
                            "x.latent = 2 would do"),
    (("fsq", 2, 0, (8, 1)), "x.levels is (8, 1): each at least 2"),
    (("fsq", 4, 0, (256,) * 4), "x.levels is (256, 256, 256, 256): each at least 2, and fewer than 2^31 codes"),
])  # fmt: skip
def test_sizes_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        check("x", *given)
    assert "\n" not in str(error.value)
    check("x", "none", 16, 0, ())

"""Gaussian paths: tables against float64 products, derivatives, SNR laws and published labels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.diffusion.paths import PATHS, TABLES, alpha_bar
from causal_diffusion.diffusion.process import Process

K = 1000
GRID = np.arange(K + 1, dtype=np.float32) / K  # one shape throughout: operations are compiled for each
VARIANTS = [dict(path=path) for path in PATHS] + [
    dict(path="vp_linear", zero_snr=True),
    dict(path="vp_cosine", zero_snr=True, shift=0.5),
    dict(path="logsnr_cosine", shift=0.125),
    dict(path="edm", data_std=0.5),
]


def product(betas):
    """alpha_bar by definition, one factor at a time in Python's floats; entry 0 is clean."""
    table = [1.0]
    for beta in betas:
        table.append(table[-1] * (1.0 - beta))
    return np.array(table)


def spaced(first, last, n=K):
    return [first + (last - first) * i / (n - 1) for i in range(n)]


def bounded(curve, n=K):
    return product([min(1 - curve(i + 1) / curve(i), 0.999) for i in range(n)])


def cosine(i):
    return math.cos(math.pi / 2 * (i / K + 0.008) / 1.008) ** 2


def sigmoid(i):
    def h(x):
        return 1 / (1 + math.exp(-x))

    return (h(3) - h(6 * i / K - 3)) / (h(3) - h(-3))


def scaled(first, last):
    return product([root**2 for root in spaced(math.sqrt(first), math.sqrt(last))])


PRODUCTS = {
    "vp_linear": lambda: product(spaced(1e-4, 2e-2)),
    "vp_scaled_linear": lambda: scaled(8.5e-4, 1.2e-2),
    "vp_cosine": lambda: bounded(cosine),
    "vp_sigmoid": lambda: bounded(sigmoid),
}


@pytest.mark.parametrize("path", TABLES)
def test_grid_points_are_the_product_of_the_published_betas(path):
    want = PRODUCTS[path]()
    a, s, da, ds = (np.asarray(x, np.float64) for x in Process(path=path).values(GRID))
    np.testing.assert_allclose(a**2, want, rtol=1e-6)
    np.testing.assert_allclose(s**2, 1 - want, rtol=1e-6, atol=1e-15)
    assert (a[0], s[0]) == (1.0, 0.0)  # level -1 is clean, not the table's last entry
    rise = K * np.diff(np.arccos(np.sqrt(want)))  # D = phi', of the piece right of each entry
    np.testing.assert_allclose((a * ds - s * da)[:-1], rise, rtol=2e-5)


def test_tables_end_where_the_papers_say():
    end = {path: alpha_bar(path, K)[-1] for path in TABLES}
    assert end["vp_linear"] == pytest.approx(4.036e-5, rel=1e-3)
    assert end["vp_scaled_linear"] == pytest.approx(4.660e-3, rel=1e-3)
    assert 0 < end["vp_cosine"] < 1e-8 and 0 < end["vp_sigmoid"] < 1e-6


def test_given_betas_are_used():
    a = Process(path="vp_scaled_linear", betas=(1e-4, 2e-2)).values(GRID).a
    np.testing.assert_allclose(np.square(a), scaled(1e-4, 2e-2), rtol=2e-6)
    a = Process(path="vp_linear", betas=(0.1, 0.3), steps=5).values(GRID).a
    np.testing.assert_allclose(np.square(a[::200]), product(spaced(0.1, 0.3, 5)), rtol=2e-6)


@pytest.mark.parametrize("path", TABLES)
def test_fewer_steps_keep_the_shape_of_the_path(path):
    few, many = (np.asarray(Process(path=path, steps=steps).values(GRID).a) for steps in (100, K))
    np.testing.assert_allclose(few[:991], many[:991], atol=0.01)  # up to the last of the 100 steps


@pytest.mark.parametrize("path", TABLES)
def test_zero_terminal_snr(path):
    plain, zero = Process(path=path).values(GRID), Process(path=path, zero_snr=True).values(GRID)
    assert float(zero.a[-1]) == 0.0 and float(zero.s[-1]) == 1.0
    assert np.all(np.diff(zero.a) < 0)
    if path == "vp_cosine":  # the cosine without its bound
        want = np.sqrt([cosine(i) / cosine(0) for i in range(K)])
    else:  # Lin et al.: first entry kept, last one moved to zero, linear in sqrt(alpha_bar)
        np.testing.assert_allclose(zero.a[1], plain.a[1], rtol=1e-6)
        first, last = float(plain.a[1]), float(plain.a[-1])
        want = (np.asarray(plain.a, np.float64)[1:-1] - last) * first / (first - last)
        want = np.concatenate([[1.0], want])
    np.testing.assert_allclose(zero.a[:-1], want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("path", [*TABLES, "logsnr_cosine"])
@pytest.mark.parametrize("c", [0.125, 3.0])
def test_the_shift_multiplies_the_snr(path, c):
    plain, moved = (np.asarray(Process(path=path, shift=shift).snr(GRID))[1:] for shift in (1.0, c))
    np.testing.assert_allclose(moved, c**2 * plain, rtol=1e-5)


def test_the_shifted_cosine_is_the_papers():
    t = GRID.astype(np.float64)
    t0, t1 = math.atan(math.exp(-7.5)), math.atan(math.exp(7.5))
    logsnr = -2 * np.log(np.tan(t0 + t * (t1 - t0))) + 2 * np.log(0.125)
    process = Process(path="logsnr_cosine", shift=0.125)
    path = process.values(GRID)
    np.testing.assert_allclose(np.log(process.snr(GRID)), logsnr, atol=2e-5)
    np.testing.assert_allclose(path.a, np.sqrt(1 / (1 + np.exp(-logsnr))), rtol=1e-5)
    np.testing.assert_allclose(path.s, np.sqrt(1 / (1 + np.exp(logsnr))), rtol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_path_knows_its_derivatives(options):
    process = Process(**options)
    t = jnp.asarray((np.arange(K + 1) % K + 0.37) / K, jnp.float32)  # inside the table's pieces
    (a, s), (da, ds) = jax.jvp(lambda t: process.values(t)[:2], (t,), (jnp.ones_like(t),))
    path = process.values(t)
    # A table's slope by jvp is a difference of float32 angles; its own is one of float64.
    atol = K * 5e-7 if options["path"] in TABLES else 2e-6
    np.testing.assert_allclose(da, path.da, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(ds, path.ds, rtol=1e-5, atol=atol)
    assert float(jnp.min(path.a * path.ds - path.s * path.da)) > 0.04  # D, so that conversions exist everywhere
    if options["path"] not in ("linear", "edm"):
        np.testing.assert_allclose(a**2 + s**2, 1.0, rtol=1e-6)


def test_edm_is_the_tangent():
    path = Process(path="edm", data_std=0.5).values(GRID)
    tangent = np.tan(np.pi / 2 * GRID.astype(np.float64))
    np.testing.assert_allclose(path.s[:-1], 0.5 * tangent[:-1], rtol=1e-4)
    np.testing.assert_array_equal(path.a, 1.0)
    assert np.all(np.isfinite(path)) and 0.5 * 2600 < float(path.s[-1]) < 0.5 * 2620


def test_published_labels_are_what_the_networks_were_told():
    def told(path, **options):
        return 1000 * np.asarray(Process(path=path, labels="published", **options).label(GRID), np.float64)

    t = GRID.astype(np.float64)
    for path in TABLES:
        np.testing.assert_allclose(told(path), np.arange(-1, K), atol=1e-4)
    np.testing.assert_allclose(told("linear"), 1000 * t)
    np.testing.assert_allclose(told("trigflow"), np.pi / 2 * t, rtol=1e-6)
    edm = told("edm", data_std=0.5)
    assert edm[0] == pytest.approx(math.log(0.002) / 4, rel=1e-6)  # clean frames
    np.testing.assert_allclose(edm[5:-1], np.log(0.5 * np.tan(np.pi / 2 * t[5:-1])) / 4, rtol=1e-5, atol=2e-5)
    shifted = dict(path="logsnr_cosine", shift=0.125)
    logsnr = np.log(np.asarray(Process(**shifted).snr(GRID), np.float64))
    np.testing.assert_allclose(told(**shifted), 0.125 * logsnr, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(Process(path="vp_linear").label(GRID), GRID)  # plain time is the default

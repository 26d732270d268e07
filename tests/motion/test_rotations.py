import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from causal_diffusion.errors import UserError
from causal_diffusion.motion import rotations as rot

ORDERS = ["".join(order) for order in itertools.permutations("XYZ")]
RNG = np.random.default_rng(0)


def quaternions(*shape, seed=0):
    q = np.random.default_rng(seed).standard_normal((*shape, 4))
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def matrix(axis, angle):
    c, s = np.cos(angle), np.sin(angle)
    rows = {
        "X": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "Y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "Z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis])


def same(a, b, atol):
    """One rotation, whatever the sign."""
    np.testing.assert_allclose(np.abs(np.sum(a * b, axis=-1)), 1.0, atol=atol)


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_are_the_product_of_matrices_in_their_order(order):
    for angles in RNG.uniform(-3, 3, (20, 3)):
        expected = np.linalg.multi_dot([matrix(axis, angle) for axis, angle in zip(order, angles, strict=True)])
        q = rot.from_euler(angles, order)
        np.testing.assert_allclose(rot.to_matrix(q), expected, atol=1e-14)
        same(rot.from_matrix(expected), q, 1e-14)
        assert rot.from_matrix(expected)[0] >= 0


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_give_the_rotation_back_also_where_they_are_not_unique(order):
    q = quaternions(200)
    locked = rot.from_euler(np.stack([*RNG.uniform(-3, 3, (2, 50)), np.zeros(50)], -1)[:, [0, 2, 1]], order)
    for second in (np.pi / 2, -np.pi / 2, np.pi / 2 - 1e-9):
        angles = np.stack([RNG.uniform(-3, 3, 50), np.full(50, second), RNG.uniform(-3, 3, 50)], axis=-1)
        locked = np.concatenate([locked, rot.from_euler(angles, order)])
    for r in (q, locked):
        angles = rot.to_euler(r, order)
        assert (np.abs(angles[:, 1]) <= np.pi / 2).all() and (np.abs(angles) <= np.pi).all()
        np.testing.assert_allclose(rot.to_matrix(rot.from_euler(angles, order)), rot.to_matrix(r), atol=1e-14)
    angles = RNG.uniform(-1.5, 1.5, (50, 3))
    np.testing.assert_allclose(rot.to_euler(rot.from_euler(angles, order), order), angles, atol=1e-12)


def test_products_and_turned_vectors_are_those_of_matrices():
    a, b, v = quaternions(50), quaternions(50, seed=1), RNG.standard_normal((50, 3))
    product = rot.to_matrix(a) @ rot.to_matrix(b)
    np.testing.assert_allclose(rot.to_matrix(rot.multiply(a, b)), product, atol=1e-14)
    np.testing.assert_allclose(rot.rotate(a, v), np.einsum("nij,nj->ni", rot.to_matrix(a), v), atol=1e-14)
    np.testing.assert_allclose(rot.multiply(a, rot.inverse(a)), np.tile(rot.IDENTITY, (50, 1)), atol=1e-15)
    np.testing.assert_allclose(np.linalg.det(product), 1.0, atol=1e-12)
    np.testing.assert_allclose(rot.rotate(rot.yaw(np.pi / 2), np.array([0.0, 0.0, 1.0])), [1, 0, 0], atol=1e-15)
    np.testing.assert_allclose(rot.to_matrix(rot.yaw(0.3)), matrix("Y", 0.3), atol=1e-15)


def test_matrices_of_half_turns_come_back():
    """Where w is 0, and so every formula that divides by it fails."""
    axes = np.concatenate([np.eye(3), RNG.standard_normal((20, 3))])
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    half = np.concatenate([np.zeros((23, 1)), axes], axis=-1)
    same(rot.from_matrix(rot.to_matrix(half)), half, 1e-14)


def test_six_numbers_are_two_columns():
    q = quaternions(30)
    m = rot.to_matrix(q)
    six = rot.to_six(q)
    np.testing.assert_array_equal(six, np.concatenate([m[..., 0], m[..., 1]], axis=-1))
    same(rot.from_six(six), q, 1e-14)
    loose = np.concatenate([3 * six[:, :3], 0.5 * six[:, 3:] - 2 * six[:, :3]], axis=-1)
    same(rot.from_six(loose), q, 1e-14)


def test_between_turns_one_direction_into_another_the_shortest_way():
    u, v = RNG.standard_normal((2, 100, 3))
    q = rot.between(u, v)
    unit = v / np.linalg.norm(v, axis=-1, keepdims=True)
    np.testing.assert_allclose(rot.rotate(q, u), unit * np.linalg.norm(u, axis=-1, keepdims=True), atol=1e-13)
    angle = np.arccos(np.sum(u * v, -1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1))
    np.testing.assert_allclose(2 * np.arccos(q[:, 0]), angle, atol=1e-6)
    back = rot.between(u, -2 * u)
    np.testing.assert_allclose(rot.rotate(back, u), -u, atol=1e-14)
    nearly = rot.between(u, -u + 1e-7 * v)
    np.testing.assert_allclose(rot.rotate(nearly, u), -u, atol=1e-6)
    np.testing.assert_allclose(rot.between(u, u), np.tile(rot.IDENTITY, (100, 1)), atol=1e-15)
    assert np.isfinite(rot.between(u, 0 * u)).all()


def test_slerp_has_constant_speed_the_shorter_way():
    a, b = quaternions(20), quaternions(20, seed=1)
    t = np.linspace(0, 1, 6)
    path = rot.slerp(a[:, None], b[:, None], t)
    same(path[:, 0], a, 1e-14)
    same(path[:, -1], b, 1e-14)
    steps = 2 * np.arccos(np.clip(np.abs(np.sum(path[:, 1:] * path[:, :-1], axis=-1)), 0, 1))
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=1e-7)
    np.testing.assert_allclose(steps.sum(-1), 2 * np.arccos(np.abs(np.sum(a * b, axis=-1))), atol=1e-6)
    same(rot.slerp(a, -b, 0.5), rot.slerp(a, b, 0.5), 1e-14)
    same(rot.slerp(a, a, 0.3), a, 1e-14)
    np.testing.assert_allclose(rot.slerp(rot.yaw(0.2), rot.yaw(0.6), 0.25), rot.yaw(0.3), atol=1e-15)


def test_jax_gives_what_numpy_gives_and_has_finite_gradients():
    q, p = (quaternions(7, seed=s).astype(np.float32) for s in (0, 1))
    v = RNG.standard_normal((7, 3)).astype(np.float32)
    functions = {
        "multiply": (rot.multiply, q, p),
        "rotate": (rot.rotate, q, v),
        "six": (lambda q: rot.from_six(rot.to_six(q)), q),
        "to_euler": (lambda q: rot.to_euler(q, "ZXY"), q),
        "from_euler": (lambda v: rot.from_euler(v, "ZXY"), v),
        "between": (lambda q, v: rot.between(q[..., 1:], v), q, v),
        "slerp": (rot.slerp, q, p, v[:, 0]),
        "yaw": (rot.yaw, v[:, 0]),
    }
    six = np.array([[1.0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], np.float32)
    gradients = (
        (lambda x: rot.from_six(x).sum(), six),
        (lambda q: rot.slerp(q, q, 0.5).sum(), q),
        (lambda u: rot.between(u, -u).sum(), v),
    )

    def everything():
        values = {name: f(*map(jnp.asarray, arrays)) for name, (f, *arrays) in functions.items()}
        return values, [jax.grad(f)(jnp.asarray(x)) for f, x in gradients]

    # Of this many small operations most of the time would go into optimising the program.
    quick = {"xla_backend_optimization_level": 0}
    values, slopes = jax.jit(everything, compiler_options=quick)()
    for name, (function, *arrays) in functions.items():
        expected = function(*arrays)
        assert type(expected) is np.ndarray and expected.dtype == values[name].dtype == np.float32, name
        np.testing.assert_allclose(values[name], expected, atol=1e-5, err_msg=name)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("order", ["XYX", "XY", "", "XYZW", "abc"])
def test_an_order_that_is_none_is_refused(order):
    for call in (lambda: rot.from_euler(np.zeros(3), order), lambda: rot.to_euler(np.array(rot.IDENTITY), order)):
        with pytest.raises(UserError, match="a rotation order has X, Y and Z once each, not .*: 'ZXY' would do"):
            call()

"""Rotations in space as unit quaternions (w, x, y, z), and what else they are written as.

A quaternion q = (w, u) with |q| = 1 turns column vectors; q and -q are one rotation. A product applies its right factor
first, and angles turn from x to y, y to z and z to x (right-handed):

    q v q* = v + 2 w (u x v) + 2 u x (u x v)                                                                 (1)

Every function takes numpy or jax arrays with any axes in front that broadcast, keeps their precision, and returns the
same kind (jax if one of several is). None checks that quaternions have unit length.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from causal_diffusion.errors import UserError

Array = Any
IDENTITY = (1.0, 0.0, 0.0, 0.0)
_AXES = "XYZ"


def multiply(a: Array, b: Array) -> Array:
    """The product a b [..., 4]: b first, then a."""
    xp, a, b = _arrays(a, b)
    w = a[..., :1] * b[..., :1] - xp.sum(a[..., 1:] * b[..., 1:], axis=-1, keepdims=True)
    u = a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:] + xp.cross(a[..., 1:], b[..., 1:])
    return xp.concatenate([w, u], axis=-1)


def inverse(q: Array) -> Array:
    """The rotation back, [..., 4]."""
    xp, q = _arrays(q)
    return q * xp.asarray([1, -1, -1, -1], q.dtype)


def rotate(q: Array, v: Array) -> Array:
    """Equation (1): vectors [..., 3] turned by q [..., 4]."""
    xp, q, v = _arrays(q, v)
    cross = 2 * xp.cross(q[..., 1:], v)
    return v + q[..., :1] * cross + xp.cross(q[..., 1:], cross)


def from_matrix(matrix: Array) -> Array:
    """[..., 3, 3], orthonormal with determinant 1 -> [..., 4] with w >= 0.

    Of the four ways to find q in the entries of its matrix, the one that divides by the largest of |w|, |x|, |y|, |z|.
    """
    xp, m = _arrays(matrix)
    sums = [[m[..., i, j] + m[..., j, i] for j in range(3)] for i in range(3)]
    x, y, z = (m[..., j, i] - m[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))  # 4 w (x, y, z)
    a, b, c = (m[..., i, i] for i in range(3))
    rows = [
        [1 + a + b + c, x, y, z],
        [x, 1 + a - b - c, sums[0][1], sums[0][2]],
        [y, sums[0][1], 1 - a + b - c, sums[1][2]],
        [z, sums[0][2], sums[1][2], 1 - a - b + c],
    ]  # 4 q q^T
    outer = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = xp.argmax(xp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    q = _unit(xp, xp.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :])
    return xp.where(q[..., :1] < 0, -q, q)


def to_matrix(q: Array) -> Array:
    """[..., 4] -> [..., 3, 3]."""
    xp, q = _arrays(q)
    axes = xp.broadcast_to(xp.eye(3, dtype=q.dtype), (*q.shape[:-1], 3, 3))
    return xp.swapaxes(rotate(q[..., None, :], axes), -1, -2)


def from_six(six: Array) -> Array:
    """Six numbers [..., 6] -> [..., 4]: the first two columns of a matrix (Zhou et al. 2019, arXiv 1812.07035).

    They need not be orthonormal: the first keeps its direction, the second the plane that both span.
    """
    xp, six = _arrays(six)
    x = _unit(xp, six[..., :3])
    z = _unit(xp, xp.cross(x, six[..., 3:]))
    return from_matrix(xp.stack([x, xp.cross(z, x), z], axis=-1))


def to_six(q: Array) -> Array:
    """[..., 4] -> [..., 6]: column 0 of the matrix, then column 1, as HumanML3D has them."""
    matrix = to_matrix(q)
    return _kind(matrix).concatenate([matrix[..., 0], matrix[..., 1]], axis=-1)


def from_euler(angles: Array, order: str) -> Array:
    """Angles in radians [..., 3], in the order of the axes' names -> [..., 4].

    Intrinsic, as the channels of a BVH joint: 'ZYX' turns about z, then about the turned y, then about the x that both
    have turned, the product of the three in that order.

    Raises:
        UserError: the order is not the letters X, Y, Z, each once.
    """
    xp, angles = _arrays(angles)
    half = angles / 2
    quaternions = []
    for at, axis in enumerate(_axes(order)):
        zero = xp.zeros_like(half[..., at])
        u = [zero, zero, zero]
        u[axis] = xp.sin(half[..., at])
        quaternions.append(xp.stack([xp.cos(half[..., at]), *u], axis=-1))
    return multiply(multiply(quaternions[0], quaternions[1]), quaternions[2])


def to_euler(q: Array, order: str) -> Array:
    """The inverse of ``from_euler``, radians [..., 3]: first and third in [-pi, pi], second in [-pi/2, pi/2].

    Where the second is a quarter turn the other two are not unique, and any two that give the rotation are returned.
    """
    i, j, k = _axes(order)
    sign = 1 if (j - i) % 3 == 1 else -1
    m = to_matrix(q)
    xp = _kind(m)
    first = xp.arctan2(-sign * m[..., j, k], m[..., k, k])
    second = xp.arctan2(sign * m[..., i, k], xp.hypot(m[..., i, i], m[..., i, j]))
    # What the first leaves over tells the third: exact also where first is arbitrary.
    cos, sin = xp.cos(first), sign * xp.sin(first)
    third = xp.arctan2(sign * (cos * m[..., j, i] + sin * m[..., k, i]), cos * m[..., j, j] + sin * m[..., k, j])
    return xp.stack([first, second, third], axis=-1)


def between(u: Array, v: Array) -> Array:
    """The shortest rotation that turns the direction of u [..., 3] into that of v: [..., 4].

    If they are opposite, the half turn about some axis across u; if one is zero, none or such a half turn.
    """
    xp, u, v = _arrays(u, v)
    u, v = xp.broadcast_arrays(u, v)
    u, v = _unit(xp, u), _unit(xp, v)
    middle = u + v
    length = xp.sum(middle * middle, axis=-1, keepdims=True)
    least = xp.argmin(xp.abs(u), axis=-1)
    across = xp.cross(u, xp.eye(3, dtype=u.dtype)[least])
    middle = _unit(xp, xp.where(length > 16 * xp.finfo(u.dtype).eps ** 2, middle, across))
    return _unit(xp, xp.concatenate([xp.sum(u * middle, axis=-1, keepdims=True), xp.cross(u, middle)], axis=-1))


def yaw(theta: Array) -> Array:
    """Turns by theta [...] radians about the vertical axis y: [..., 4]; a quarter turn takes z to x."""
    xp, theta = _arrays(theta)
    zero = xp.zeros_like(theta)
    return xp.stack([xp.cos(theta / 2), zero, xp.sin(theta / 2), zero], axis=-1)


def slerp(a: Array, b: Array, t: Array) -> Array:
    """From a (t = 0) to b (t = 1), both [..., 4], at constant speed the shorter way round; t [...] broadcasts."""
    xp, a, b, t = _arrays(a, b, t)
    t = t[..., None]
    b = xp.where(xp.sum(a * b, axis=-1, keepdims=True) < 0, -b, b)
    angle = 2 * xp.arctan2(_length(xp, a - b), _length(xp, a + b))
    near = angle < 1e-4
    sine = xp.sin(xp.where(near, 1.0, angle))
    left, right = (xp.where(near, s, xp.sin(s * angle) / sine) for s in (1 - t, t))
    return _unit(xp, left * a + right * b)


def _axes(order: str) -> list[int]:
    if sorted(order.upper()) != list(_AXES):
        raise UserError(f"a rotation order has X, Y and Z once each, not {order!r}: 'ZXY' would do")
    return [_AXES.index(letter) for letter in order.upper()]


def _length(xp, v):
    """The norm, with a gradient that is finite at zero."""
    square = xp.sum(v * v, axis=-1, keepdims=True)
    return xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1.0)), 0.0)


def _unit(xp, v):
    length = _length(xp, v)
    return v / xp.where(length > 0, length, 1.0)


def _kind(*arrays):
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def _arrays(*arrays):
    """The module that computes, then every argument as an array of floats of it."""
    xp = _kind(*arrays)
    arrays = [xp.asarray(array) for array in arrays]
    return xp, *(array if xp.issubdtype(array.dtype, xp.floating) else array.astype(float) for array in arrays)
